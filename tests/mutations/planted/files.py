"""Mistakes in loading, in file formats, in stores of maps, and in volumes larger than memory."""

from __future__ import annotations

from plant import Mutation

DATA = [
    Mutation(
        "maximum-of-a-class-that-fills-its-image",
        "forgotten case",
        "return back(torch.where(largest.isinf(), 1.0, largest))",
        "return back(largest)",
        ("test_data_volumes: filling",),
    ),
    Mutation(
        "maximum-of-an-ignored-class",
        "ignored option",
        "counts &= ~reference.is_label(found, ignored)",
        "counts |= reference.is_label(found, ignored)",
        ("test_data_volumes: ignored",),
        instead=(("counts &= ~is_label(found, ignored)", "counts |= is_label(found, ignored)"),),
    ),
    Mutation(
        "box-that-ends-with-the-volume",
        "off by one",
        "any(part.stop > side for part, side in zip(box, shape, strict=True))",
        "any(part.stop >= side for part, side in zip(box, shape, strict=True))",
        ("test_data_volumes",),
    ),
    Mutation(
        "batch-changed-in-place",
        "missing copy",
        "changed = copy.copy(batch) changed[key] = value",
        "changed = batch; changed[key] = value",
        ("test_data_batches: dict",),
    ),
    Mutation(
        "spacing-of-the-first-image",
        "wrong quantifier",
        "if all(row == spacing[0] for row in spacing):",
        "if any(row == spacing[0] for row in spacing):",
        ("test_data_batches: own_spacing",),
    ),
    Mutation(
        "one-batch-less-ahead",
        "off by one",
        "while not self._ended and len(self._ahead) <= self._depth:",
        "while not self._ended and len(self._ahead) < self._depth:",
        ("test_data_loader: depth or while_the_caller",),
    ),
    Mutation(
        "error-of-a-loader-is-its-end",
        "swallowed error",
        "except Exception as error: self._ahead.append(ahead.failed(error))",
        "except Exception: self._ended = True",
        ("test_data_lifetime: error",),
    ),
    Mutation(
        "patch-never-at-the-far-end",
        "off by one",
        "start = [int(torch.randint(left + 1, ())) for left in room]",
        "start = [int(torch.randint(max(left, 1), ())) for left in room]",
        ("test_data_precomputed: drawn",),
    ),
    Mutation(
        "store-of-a-parent-process",
        "missing reset",
        'return {**self.__dict__, "_opened": {}}',
        "return {**self.__dict__}",
        ("test_data_precomputed: pickled",),
    ),
]

FORMATS = [
    Mutation(
        "world-of-itk",
        "wrong sign",
        "return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine",
        "return np.diag([1.0, 1.0, 1.0, 1.0]) @ affine",
        ("test_formats: same_place",),
    ),
    Mutation(
        "dots-of-a-picture",
        "swapped axes",
        "spacing = (25.4 / dots[1], 25.4 / dots[0])",
        "spacing = (25.4 / dots[0], 25.4 / dots[1])",
        ("test_formats: pictures or unit_of_the_spacing",),
    ),
    Mutation(
        "fortran-order-of-an-array",
        "ignored option",
        'values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")',
        "values = np.frombuffer(data, dtype).reshape(shape)",
        ("test_formats: both_orders",),
        instead=(
            (
                "values = np.lib.format.read_array(file, allow_pickle=False)",
                "values = np.lib.format.read_array(file, allow_pickle=False).T.reshape(shape)",
            ),
        ),
    ),
    Mutation(
        "whole-numbers-that-wrap",
        "forgotten check",
        "wrong = (whole != values) | ~(np.abs(values) < 2.0**53)",
        "wrong = whole != values",
        ("test_formats: floats_have_to_be_whole",),
    ),
    Mutation(
        "locale-not-put-back",
        "missing reset",
        "finally: locale.setlocale(locale.LC_ALL, before)",
        "finally: del before",
        ("test_formats: every_format or locale or hold_the_array", "test_precompute_items"),
    ),
    Mutation(
        "axes-of-an-affine",
        "swapped axes",
        "columns = [*order, *range(len(order), 3), 3]",
        "columns = [*range(len(order)), *range(len(order), 3), 3]",
        ("test_formats: same_place",),
    ),
]

PRECOMPUTE = [
    Mutation(
        "source-that-changed",
        "forgotten check",
        'if kept["source"]["sha256"] != checksum: return "its source changed"',
        "",
        ("test_precompute_command: made_anew",),
    ),
    Mutation(
        "bytes-of-an-item",
        "forgotten check",
        "if contents and _fingerprint(path)[1] != checksum:",
        "if contents and _fingerprint(path)[0] != size:",
        ("test_precompute_store: damaged",),
    ),
    Mutation(
        "length-of-a-chunk-without-its-checksum",
        "wrong size",
        "index[place] = offset, len(data) + 4",
        "index[place] = offset, len(data)",
        ("test_precompute_items: zarr_reads",),
    ),
    Mutation(
        "fraction-of-items-rounded-down",
        "wrong rounding",
        "count = math.ceil(value * len(names)) if value < 1 else int(value)",
        "count = int(value * len(names)) if value < 1 else int(value)",
        ("test_precompute_command: sample",),
    ),
    Mutation(
        "ignored-label-is-the-largest",
        "ignored option",
        "counted = labels if ignore_index is None else labels[labels != ignore_index]",
        "counted = labels",
        ("test_precompute_command: classes", "test_precompute_items"),
    ),
    Mutation(
        "links-out-of-the-store",
        "forgotten check",
        "os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)",
        "os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)",
        ("test_precompute_store: links",),
    ),
    Mutation(
        "names-that-lead-upwards",
        "forgotten check",
        'if not parts or parts[0] == "/" or ".." in parts:',
        'if not parts or parts[0] == "/":',
        ("test_precompute_store: leads_out",),
    ),
]

SCALE = [
    Mutation(
        "last-block-has-the-largest-distance",
        "wrong reduction",
        "here if known is None else np.maximum(known[1], here)",
        "here",
        ("test_scale: rectified_map_has_the_bits",),
        instead=(
            ("return largest.max(axis=axes, split_every=_WIDTH)", "return largest.min(axis=axes, split_every=_WIDTH)"),
        ),
    ),
    Mutation(
        "ratio-of-two-axes",
        "swapped axes",
        "ratio = spacing[before] / spacing[axis]",
        "ratio = spacing[axis] / spacing[before]",
        ("test_scale: volume_in_blocks",),
    ),
    Mutation(
        "axis-of-one-pixel-with-a-border",
        "ignored option",
        "if shape[leading + axis] > 1 or black_border]",
        "if shape[leading + axis] > 1]",
        ("test_scale: volume_in_blocks or one_label",),
    ),
    Mutation(
        "place-of-a-label-in-its-block",
        "wrong offset",
        "place = [part.start + int(index) for part, index in zip(region, at, strict=True)]",
        "place = [int(index) for part, index in zip(region, at, strict=True)]",
        ("test_scale: place_in_the_volume",),
    ),
    Mutation(
        "part-that-is-missing",
        "wrong quantifier",
        "slice(None, None, size) for size in array.chunks)]).any():",
        "slice(None, None, size) for size in array.chunks)]).all():",
        ("test_scale: missing",),
    ),
    Mutation(
        "maximum-of-an-ignored-class-of-a-volume",
        "ignored option",
        "largest[..., job.classes.ignore_index] = 0",
        "largest[..., job.classes.ignore_index] *= 1",
        ("test_scale: rectified_map",),
    ),
    Mutation(
        "labels-by-their-sign",
        "wrong dtype",
        "return torch.from_numpy(labels.view(_SIGNED[labels.dtype.itemsize]))",
        "return torch.from_numpy(labels.astype(np.int16))",
        ("test_scale: every_integer_type",),
        instead=(
            (
                'return torch.from_numpy(labels.view(f"i{labels.dtype.itemsize}"))',
                "return torch.from_numpy(labels.astype(np.int16))",
            ),
        ),
    ),
    Mutation(
        "squared-distances-of-a-volume",
        "wrong factor",
        "np.float32(spacing * spacing if squared else spacing)",
        "np.float32(spacing)",
        ("test_scale: squared",),
    ),
    Mutation(
        "result-over-what-appeared",
        "forgotten check",
        "elif os.path.lexists(self.path): raise _exists(self.path)",
        "elif os.path.lexists(self.path): os.replace(self.path, old)",
        ("test_scale_zarr: replaced or nothing_is_left",),
    ),
]

AREAS = {"data": DATA, "formats": FORMATS, "precompute": PRECOMPUTE, "scale": SCALE}
