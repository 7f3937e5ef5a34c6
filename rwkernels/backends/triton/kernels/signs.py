"""The Triton kernel that counts signs: how many entries of a pixel's gradient are negative. `triton.py` launches it.

A program holds `BLOCK` pixels with all their classes in one tile, and reads the classes once more, one at a time, for
the differences to each. Offsets come in units as in `loss.py`.
"""

import triton
import triton.language as tl

from rwkernels.backends.triton.kernels.loss import _offset


@triton.jit
def _probability(x, top, TINY: tl.constexpr, PROBABILITIES: tl.constexpr):
    """The probability, of a logit over the largest one; 0 below the smallest normal number."""
    y = x if PROBABILITIES else tl.exp(x - top)
    return tl.where(y < tl.full([], TINY, x.dtype), 0.0, y)


@triton.jit(
    do_not_specialize=[
        "values_image",
        "values_class",
        "maps_image",
        "maps_class",
        "scale_run",
        "pixels",
        "blocks",
        "images",
        "ignore_index",
    ]
)
def count_negatives(
    values,  # [B, K, pixels]: logits, or probabilities
    maps,  # dense: as the values; compact: the foreground [B, pixels]
    labels,  # [B, pixels]
    background,  # [B, pixels]; None: `background_value`
    class_scale,  # [K] or [runs, K]
    out,  # [B, pixels]
    values_image,  # strides of images and classes, in units; that of pixels is 1, or K if classes are last
    values_class,
    maps_image,
    maps_class,
    scale_run,
    pixels,  # of an image, in units
    blocks,  # programs of an image
    images,  # of a run
    ignore_index,
    background_value,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    COMPACT: tl.constexpr,
    IGNORE: tl.constexpr,
    FIRST: tl.constexpr,  # 1 leaves channel 0 out of the loss
    VALUES_LAST: tl.constexpr,
    MAPS_LAST: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    WRONG: tl.constexpr,  # count a positive entry of the true class instead of a negative one
    TINY: tl.constexpr,
    WIDE: tl.constexpr,  # an image has 2^31 elements or more
):
    """Entry k has the sign of `-sum_l y_l (z_l - z_k)`."""
    T: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    P: tl.constexpr = tl.int64 if WIDE else tl.int32
    image = tl.cast(tl.program_id(0) // blocks, tl.int64)
    run = image // images
    size = tl.cast(pixels, P) * UNIT
    pixel = tl.cast(tl.program_id(0) % blocks, P) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = pixel < size
    base = image * size
    row = tl.arange(0, ROWS)[:, None]
    known = row < K
    values += image * (tl.cast(values_image, tl.int64) * UNIT)

    at = _offset(row, pixel, values_class, UNIT, K, VALUES_LAST)
    x = tl.load(values + at, mask=inside & known, other=0.0 if PROBABILITIES else float("-inf")).to(T)
    top = tl.max(x, 0, keep_dims=True)
    y = _probability(x, top, TINY, PROBABILITIES)

    missing = tl.zeros([1, BLOCK], tl.int1)
    if labels is not None:
        WHOLE: tl.constexpr = tl.int64 if labels.dtype.element_ty == tl.int64 else tl.int32
        given = tl.load(labels + base + pixel, mask=inside, other=0).to(WHOLE)
        is_class = (given >= 0) & (given < K)
        missing = is_class == 0
        if IGNORE:
            missing = missing | (given == ignore_index)
        label = tl.where(is_class, given, -1).to(tl.int32)
    if COMPACT:
        fg = tl.load(maps + base + pixel, mask=inside, other=0.0).to(T)
        bg = tl.full([1, BLOCK], background_value, T)
        if background is not None:
            bg = tl.load(background + base + pixel, mask=inside, other=0.0).to(T)
        z = tl.where(row == label, fg, bg)
    else:
        maps += image * (tl.cast(maps_image, tl.int64) * UNIT)
        at = _offset(row, pixel, maps_class, UNIT, K, MAPS_LAST)
        z = tl.load(maps + at, mask=inside & known & (row >= FIRST), other=0.0).to(T)
    if class_scale is not None:
        z *= tl.load(class_scale + run * scale_run + row, mask=known, other=0.0).to(T)
    if FIRST:
        z = tl.where(row >= FIRST, z, 0.0)

    pull = tl.zeros([ROWS, BLOCK], T)
    for k in range(K):
        of_value = _offset(k, pixel, values_class, UNIT, K, VALUES_LAST)
        other_y = _probability(tl.load(values + of_value, mask=inside, other=0.0).to(T), top, TINY, PROBABILITIES)
        if COMPACT:
            other_z = tl.where(label == k, fg, bg)
        else:
            of_map = _offset(k, pixel, maps_class, UNIT, K, MAPS_LAST)
            other_z = tl.load(maps + of_map, mask=inside & (k >= FIRST), other=0.0).to(T)
        if class_scale is not None:
            other_z *= tl.load(class_scale + run * scale_run + k).to(T)
        if FIRST:
            other_z = tl.where(k >= FIRST, other_z, 0.0)
        pull += other_y * (other_z - z)

    hit = pull > 0
    if WRONG:
        hit = tl.where(row == label, pull < 0, hit)
    found = tl.sum((hit & (y > 0) & known).to(tl.int32), 0, keep_dims=True)
    no_number = tl.sum(((pull != pull) & known).to(tl.int32), 0, keep_dims=True)
    tl.store(out + base + pixel, tl.where(missing | (no_number > 0), -1, found), mask=inside)
