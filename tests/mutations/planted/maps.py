"""Mistakes in maps, in the operators on labels, and in what checks arguments."""

from __future__ import annotations

from plant import Mutation

MAPS = [
    Mutation(
        "squared-for-black-border",
        "swapped bool",
        'checks.flag("squared", squared), checks.flag("black_border", black_border),',
        'checks.flag("black_border", black_border), checks.flag("squared", squared),',
        ("test_distance: black_border or squared",),
        instead=(
            (
                'run_map("distance", problem, checks.flag("squared", squared), out=out',
                'run_map("distance", problem, checks.flag("squared", squared) or black_border, out=out',
            ),
        ),
    ),
    Mutation(
        "mean-of-the-wrong-classes",
        "wrong divisor",
        "others = max(num_classes - 1, 1)",
        "others = max(num_classes, 1)",
        ("test_maps: rectify",),
    ),
    Mutation(
        "largest-of-all-classes",
        "dropped mask",
        "value = maps.masked_fill(true_class, -torch.inf).amax(1)",
        "value = maps.amax(1)",
        ("test_maps: rectify",),
    ),
    Mutation(
        "boundary-maps-are-not-measured",
        "dropped element",
        'MEASURED = ("rectified", "boundary")',
        'MEASURED = ("rectified",)',
        ("test_modules: family or spacing",),
        instead=(('Family(boundary_map, "RW-Boundary", measured=True,', 'Family(boundary_map, "RW-Boundary",'),),
    ),
    Mutation(
        "count-of-the-whole-map-for-a-crop",
        "stale value",
        "return self._with(labels=labels, foreground=foreground, background=background, image_count=None)",
        "return self._with(labels=labels, foreground=foreground, background=background)",
        ("test_loss_inputs: crop",),
    ),
    Mutation(
        "labels-of-a-map-become-floats",
        "wrong dtype",
        "wanted = dtype if tensor.is_floating_point() else None",
        "wanted = dtype",
        ("test_rectified_map: to_changes",),
    ),
    Mutation(
        "collation-of-two-settings",
        "off by one",
        "if len(settings) > 1: raise ValueError",
        "if len(settings) > 2: raise ValueError",
        ("test_rectified_map: refuses_samples",),
    ),
    Mutation(
        "context-of-a-pytree",
        "swapped ints",
        "present, background, num_classes, ignore_index = context",
        "present, background, ignore_index, num_classes = context",
        ("test_rectified_map: pytree or compiled_function",),
    ),
    Mutation(
        "class-scale-replaced",
        "dropped factor",
        "scale = weight if compact.class_scale is None else weight * compact.class_scale",
        "scale = weight",
        ("test_scaling: twice",),
    ),
    Mutation(
        "pixel-weights-checked-when-asked",
        "wrong default",
        "if checks.validate(validate, like.device): _refuse_negative",
        "if validate: _refuse_negative",
        ("test_bad_input: pixel_weights",),
    ),
    Mutation(
        "background-not-weighted",
        "dropped factor",
        "foreground=maps.foreground * weight, background=maps.background * weight)",
        "foreground=maps.foreground * weight)",
        ("test_scaling: by_label or pixels",),
    ),
    Mutation(
        "codes-cut-off-without-the-core",
        "wrong rounding",
        "np.rint(part, out=part), casting=",
        "part, casting=",
        ("test_quantised: numpy",),
        instead=(("values.double().mul_(-steps).round_()", "values.double().mul_(-steps)"),),
    ),
    Mutation(
        "zero-decoded-as-minus-zero",
        "wrong sign",
        "np.subtract(np.float32(0), part, out=part)",
        "np.negative(part, out=part)",
        ("test_quantised: numpy",),
        instead=(("np.subtract(np.float32(0), written, out=written)", "np.negative(written, out=written)"),),
    ),
    Mutation(
        "strided-working-memory",
        "forgotten check",
        "found.device == labels.device and found.is_contiguous()",
        "found.device == labels.device",
        ("test_rectified_codes: working_memory",),
    ),
    Mutation(
        "codes-beside-the-buffer",
        "ignored option",
        "made = made._replace(codes=codes.copy_(made.codes))",
        "made = made._replace(codes=made.codes)",
        ("test_rectified_codes: without_the_core or written_where",),
    ),
]

OPS = [
    Mutation(
        "vmap-folds-the-first-axis",
        "wrong axis",
        "if dim is None else tensor.movedim(dim, 0)",
        "if dim is None else tensor",
        ("test_transforms: any_axis",),
    ),
    Mutation(
        "vmap-unfolds-runs-the-other-way",
        "swapped axes",
        "return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])",
        "return tensor.reshape(tensor.shape[0] // size, size, *tensor.shape[1:]).transpose(0, 1)",
        ("test_transforms: vmap_over_logits", "test_rectified_map: vmap"),
    ),
    Mutation(
        "class-maximum-in-its-own-dtype",
        "wrong dtype",
        "class_max = class_max.to(torch.float32).contiguous()",
        "class_max = class_max.contiguous()",
        ("test_maps: floating_dtype",),
    ),
    Mutation(
        "bad-first-maximum",
        "off by one",
        "if bad_maximum >= 0 and class_max is not None:",
        "if bad_maximum > 0 and class_max is not None:",
        ("test_maps: positive_and_finite",),
        instead=(
            (
                'if bad >= 0: raise BadInputError("class_max", bad)',
                'if bad > 0:\n        raise BadInputError("class_max", bad)',
            ),
        ),
    ),
]

CHECKS = [
    Mutation(
        "endless-numbers",
        "forgotten check",
        "if not math.isfinite(found): raise ValueError",
        "if math.isnan(found): raise ValueError",
        ("test_bad_input: finite_numbers",),
    ),
    Mutation(
        "place-of-a-label-by-the-wrong-sizes",
        "swapped axes",
        "for size in reversed(labels.shape):",
        "for size in labels.shape:",
        ("test_bad_input: named_with_its_place",),
    ),
    Mutation(
        "true-is-an-integer",
        "forgotten check",
        "if isinstance(value, bool): raise TypeError found = operator.index(value)",
        "found = operator.index(value)",
        ("test_bad_input: no_integer",),
    ),
    Mutation(
        "strided-buffer",
        "forgotten check",
        "found.dtype != dtype or found.device != device or not found.is_contiguous()",
        "found.dtype != dtype or found.device != device",
        ("test_bad_input: buffer",),
    ),
    Mutation(
        "wide-unsigned-labels-narrowed",
        "wrong dtype",
        "torch.uint32: torch.int64}",
        "torch.uint32: torch.int32}",
        ("test_distance: wide_unsigned", "test_bad_input: negative_or_huge"),
    ),
    Mutation(
        "arrays-of-the-other-byte-order",
        "forgotten check",
        "or not value.flags.writeable or not value.dtype.isnative:",
        "or not value.flags.writeable:",
        ("test_distance: memory_layout", "test_maps: numpy"),
    ),
    Mutation(
        "buffer-that-is-not-contiguous",
        "forgotten check",
        "if not writeable or not value.flags.c_contiguous:",
        "if not writeable:",
        ("test_bad_input: refused_as_a_buffer",),
    ),
]

AREAS = {"maps": MAPS, "ops": OPS, "checks": CHECKS}
