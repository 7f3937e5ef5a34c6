"""The Triton kernels that make maps of distances and of labels: they only stream. `triton/maps.py` launches them."""

import triton
import triton.language as tl

from rwkernels.backends.triton.kernels.columns import finished
from rwkernels.backends.triton.kernels.field import farthest


@triton.jit(do_not_specialize=["units", "blocks", "classes", "ignore_index"])
def rectify(
    squared,  # [B, pixels]
    labels,
    maxima,  # [B, classes]: the largest squared distances, as bits
    class_max,  # [B, classes], float32: largest distances; None: those of `maxima`
    out,
    units,  # of an image, `UNIT` pixels each
    blocks,
    classes,
    ignore_index,
    spacing,
    program,  # its number; None: that of the launch
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """Foreground of Eq. 4: minus the distance over the largest of its class."""
    T: tl.constexpr = squared.dtype.element_ty
    if program is None:
        program = tl.program_id(0)
    image = tl.cast(program // blocks, tl.int64)
    block = tl.cast(program % blocks, tl.int64) * BLOCK
    pixels = tl.cast(units, tl.int64) * UNIT
    first = image * pixels + block
    pixel = tl.arange(0, BLOCK)
    mask = pixel < tl.minimum(units - block // UNIT, BLOCK).to(tl.int32) * UNIT
    value = tl.load(squared + first + pixel, mask=mask, other=0)
    given = tl.load(labels + first + pixel, mask=mask, other=0)
    is_class = (given >= 0) & (given < classes)
    label = tl.where(is_class, given, 0).to(tl.int32)
    if class_max is None:
        largest = tl.load(maxima + image * classes + label).to(T, bitcast=True)
        if tl.int32 == T:  # the square root of the ratio, without a division
            ratio = value.to(tl.float32) * tl.rsqrt(value.to(tl.float32) * largest.to(tl.float32))
        else:
            ratio = tl.sqrt((value / largest).to(tl.float32))
        ratio = tl.where(value >= largest, 1.0, ratio)  # both are infinite where there is one class
    else:
        ratio = finished(value, spacing, False, T) / tl.load(class_max + image * classes + label)
        ratio = tl.where(value >= farthest(T), 1.0, tl.minimum(ratio, 1.0))
    result = tl.where(is_class, -ratio, float("nan"))
    if IGNORE:
        result = tl.where(given == ignore_index, 0.0, result)
    tl.store(out + first + pixel, result, mask=mask)


@triton.jit(do_not_specialize=["pixels", "blocks", "classes", "ignore_index"])
def write_dense(
    out,  # [B, K, pixels]
    labels,
    foreground,
    background,
    class_scale,  # [K]
    pixels,
    blocks,
    classes,
    ignore_index,
    background_value,
    BLOCK: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """The dense map that a compact one stands for: reads a pixel once and writes all its classes."""
    image = tl.cast(tl.program_id(0) // blocks, tl.int64)
    pixel = tl.cast(tl.program_id(0) % blocks, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    given = tl.load(labels + image * pixels + pixel, mask=mask, other=0)
    fg = tl.load(foreground + image * pixels + pixel, mask=mask, other=0.0).to(tl.float32)
    bg = tl.full([BLOCK], background_value, tl.float32)
    if background is not None:
        bg = tl.load(background + image * pixels + pixel, mask=mask, other=0.0).to(tl.float32)
    bad = (given < 0) | (given >= classes)
    bg = tl.where(bad, float("nan"), bg)
    keep = mask
    if IGNORE:
        keep = keep & (given != ignore_index)
    out += image * classes * pixels + pixel
    for k in range(classes):
        value = tl.where(given == k, fg, bg)
        if class_scale is not None:
            value *= tl.load(class_scale + k).to(tl.float32)
        tl.store(out, tl.where(keep, value, 0.0).to(out.dtype.element_ty), mask=mask)
        out += pixels
