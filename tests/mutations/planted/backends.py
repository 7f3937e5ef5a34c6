"""Mistakes in the backends: what calls the core, the reference, what launches Triton kernels, and the kernels."""

from __future__ import annotations

from plant import Mutation

BACKENDS = [
    Mutation(
        "native-gradient-not-copied",
        "missing copy",
        "return grad if in_place else grad.clone()",
        "return grad",
        ("test_autograd: graph or gradients or backwards",),
    ),
    Mutation(
        "native-divides-at-once",
        "swapped bool",
        "reference.gradient_scale(problem, upstream, divide)",
        "reference.gradient_scale(problem, upstream, True)",
        ("test_autograd: half_precision", "test_loss: every_dtype"),
        instead=(
            (
                "image_scale, pixel_scale = gradient_scale(problem, upstream, divide) image_sums",
                "image_scale, pixel_scale = gradient_scale(problem, upstream, True)\n    image_sums",
            ),
        ),
    ),
    Mutation(
        "native-spacing-of-missing-axes",
        "swapped axes",
        "(*[1.0] * (3 - axes), *spacing)",
        "(*spacing, *[1.0] * (3 - axes))",
        ("test_distance: spacing",),
        instead=(
            (
                "spacing=problem.spacing, black_border=problem.black_border,",
                "spacing=problem.spacing[::-1],\n        black_border=problem.black_border,",
            ),
        ),
    ),
    Mutation(
        "native-border-of-one-pass",
        "ignored option",
        "bounded=black_border,",
        "bounded=False,",
        ("test_axis_pass",),
        instead=(
            (
                "shape=lines if lines[2] != 1 else lines[:2], black_border=black_border)",
                "shape=lines if lines[2] != 1 else lines[:2], black_border=False)",
            ),
        ),
    ),
    Mutation(
        "environment-before-the-argument",
        "wrong order",
        "wanted = override or os.environ.get(ENVIRONMENT_VARIABLE)",
        "wanted = os.environ.get(ENVIRONMENT_VARIABLE) or override",
        ("test_backends", "test_bad_input: backend"),
    ),
    Mutation(
        "reference-divisor-of-all-runs",
        "wrong divisor",
        "elements = logits[:, 0].numel() // problem.runs * problem.channels",
        "elements = logits[:, 0].numel() * problem.channels",
        ("test_transforms: own_divisor or vmap_over_logits",),
    ),
    Mutation(
        "reference-label-that-wraps",
        "forgotten check",
        "if limits.min <= value <= limits.max: return labels == value",
        "if value <= limits.max: return labels == value",
        ("test_reference: cannot_hold",),
    ),
    Mutation(
        "reference-ratio-above-one",
        "forgotten clamp",
        "(d / divisor).clamp(max=1.0)",
        "(d / divisor)",
        ("test_reference: stops_at_one",),
    ),
    Mutation(
        "reference-second-derivative",
        "wrong sign",
        "return dy * (maps - loss) - y * (dy * maps).sum(1, keepdim=True)",
        "return dy * (maps - loss) + y * (dy * maps).sum(1, keepdim=True)",
        ("test_reference: second_derivative",),
    ),
    Mutation(
        "reference-class-scales-of-runs",
        "wrong order",
        "class_scale = class_scale.repeat_interleave(len(maps) // max(len(class_scale), 1), 0)",
        "class_scale = class_scale.repeat(len(maps) // max(len(class_scale), 1), 1)",
        ("test_transforms: class_scales",),
    ),
    Mutation(
        "reference-channel-that-is-left-out",
        "ignored option",
        "if problem.include_background: return scale",
        "if problem.include_background or scale is not None: return scale",
        ("test_loss: combination_of_options or pair_of_options",),
    ),
    Mutation(
        "triton-unit-of-pixels-alone",
        "dropped operand",
        "if all(value % unit == 0 for value in values):",
        "if values[0] % unit == 0:",
        ("test_triton_launcher: unit",),
    ),
    Mutation(
        "triton-gradient-of-another-layout",
        "dropped operand",
        "if here is not None and there is not None and here.last == there.last:",
        "if here is not None and there is not None:",
        ("test_triton_ptx: layout or channels_last",),
    ),
    Mutation(
        "triton-smaller-field-of-a-buffer",
        "wrong size",
        "if dtype.itemsize > memory.element_size():",
        "if dtype.itemsize >= memory.element_size():",
        ("test_triton_edt_binaries: scratch",),
    ),
]

KERNELS = [
    Mutation(
        "kernel-nothing-left-to-count",
        "forgotten clamp",
        "elements = tl.maximum(elements * tl.sum(counted), 1)",
        "elements = elements * tl.sum(counted)",
        ("test_triton_ptx: nothing_left",),
    ),
    Mutation(
        "kernel-offset-of-32-bits",
        "wrong dtype",
        "k * (tl.cast(class_stride, tl.int64) * UNIT) + pixel",
        "k * (class_stride * UNIT) + pixel",
        ("test_triton_ptx: offsets",),
    ),
    Mutation(
        "kernel-count-of-the-first-run",
        "wrong index",
        "tl.load(count + run * images + image, mask=image < images, other=0)",
        "tl.load(count + image, mask=image < images, other=0)",
        ("test_triton_ptx: vmap",),
    ),
    Mutation(
        "kernel-sums-of-the-first-run",
        "wrong index",
        "tl.load(partials + run * parts + part, mask=part < parts, other=0.0)",
        "tl.load(partials + part, mask=part < parts, other=0.0)",
        ("test_triton_ptx: vmap",),
    ),
    Mutation(
        "kernel-ignored-pixels-in-the-gradient",
        "ignored option",
        "if IGNORE: g = tl.where(counts, g, 0.0)",
        "",
        ("test_triton_ptx: never_used",),
    ),
    Mutation(
        "kernel-right-border-of-a-row",
        "off by one",
        "after = tl.minimum(after, width)",
        "after = tl.minimum(after, width - 1)",
        ("test_triton_edt: border",),
    ),
    Mutation(
        "kernel-rows-of-the-block-above",
        "off by one",
        "away = _further(nearest, gap, ROWS - 1 - s + t, spacing, T)",
        "away = _further(nearest, gap, ROWS - s + t, spacing, T)",
        ("test_triton_edt: straight_edge",),
    ),
    Mutation(
        "kernel-ratio-above-one",
        "forgotten clamp",
        "ratio = tl.where(value >= farthest(T), 1.0, tl.minimum(ratio, 1.0))",
        "ratio = tl.where(value >= farthest(T), 1.0, ratio)",
        ("test_triton_edt: stops_at_one",),
    ),
    Mutation(
        "kernel-label-change-of-the-next-axis",
        "wrong sign",
        "best = signed(best, later & (given != after))",
        "best = signed(best, later & (given == after))",
        ("test_triton_edt: squared_distances",),
    ),
    Mutation(
        "kernel-signs-of-underflowed-classes",
        "dropped mask",
        "found = tl.sum((hit & (y > 0) & known).to(tl.int32), 0, keep_dims=True)",
        "found = tl.sum((hit & known).to(tl.int32), 0, keep_dims=True)",
        ("test_triton_signs: interpreted",),
    ),
]

AREAS = {"backends": BACKENDS, "kernels": KERNELS}
