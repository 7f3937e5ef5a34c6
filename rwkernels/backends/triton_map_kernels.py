"""The Triton kernels that make maps of distances and of labels: they only stream. `triton_maps.py` launches them."""

import triton
import triton.language as tl

from rwkernels.backends.triton_edt import _far, _finished


@triton.jit(do_not_specialize=["pixels", "blocks", "classes", "ignore_index"])
def rectify(
    squared,  # [B, pixels]
    labels,
    maxima,  # [B, classes]: the largest squared distances, as bits
    class_max,  # [B, classes], float32: largest distances; None: those of `maxima`
    out,
    pixels,
    blocks,
    classes,
    ignore_index,
    spacing,
    BLOCK: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """Foreground of Eq. 4: minus the distance over the largest of its class."""
    T: tl.constexpr = squared.dtype.element_ty
    image = tl.cast(tl.program_id(0) // blocks, tl.int64)
    pixel = tl.cast(tl.program_id(0) % blocks, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    value = tl.load(squared + image * pixels + pixel, mask=mask, other=0)
    given = tl.load(labels + image * pixels + pixel, mask=mask, other=0)
    is_class = mask & (given >= 0) & (given < classes)
    entry = image * classes + tl.where(is_class, given, 0).to(tl.int32)
    if class_max is None:
        largest = tl.load(maxima + entry, mask=is_class, other=1).to(T, bitcast=True)
        ratio = tl.sqrt(value.to(tl.float32) / largest.to(tl.float32))
    else:
        ratio = _finished(value, spacing, False, T) / tl.load(class_max + entry, mask=is_class, other=1.0)
        ratio = tl.minimum(ratio, 1.0)
    result = -tl.where(value >= _far(T), 1.0, ratio)
    result = tl.where(is_class, result, float("nan"))
    if IGNORE:
        result = tl.where(given == ignore_index, 0.0, result)
    tl.store(out + image * pixels + pixel, result, mask=mask)


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
