"""The Triton kernels of the loss: one pass over logits and map writes loss and gradient. `triton.py` launches them.

A program holds `BLOCK` pixels with all their classes in registers: a tuple of `PARTS` tiles of `ROWS` classes each.
Few classes are a part of one row each, so that nothing but the sum over pixels leaves a thread; of many, a part is
spread over threads, and the sums over classes go through the warp.

Sizes and strides that run along pixels come in units of `UNIT`, a power of two that divides them all. So the compiler
sees by itself which accesses are aligned, and makes them 128 bits wide: a hint can be wrong, a product cannot. Offsets
of images and classes are int64. A pointer may be None: what needs it is then left out of the binary. No integer is
specialised on its value, so that few binaries serve all sizes.
"""

import triton
import triton.language as tl


@triton.jit
def _elements(count, divisor, images, run):
    """N * K of run `run` of images.

    `divisor` is N * K; or K alone, and `count` holds the pixels that count of every image.
    """
    elements = tl.cast(divisor, tl.int64)
    if count is not None:
        counted = tl.zeros([32], tl.int64)
        for first in range(0, images, 32):
            image = first + tl.arange(0, 32)
            counted += tl.load(count + run * images + image, mask=image < images, other=0)
        elements = tl.maximum(elements * tl.sum(counted), 1)
    return elements


@triton.jit
def _incoming(upstream, run, T: tl.constexpr):
    """The incoming gradient of run `run` of images, 1 if there is none."""
    factor = tl.full([], 1.0, T)
    if upstream is not None:
        factor = tl.cast(tl.load(upstream + run), T)
    return factor


@triton.jit
def _offset(k, pixel, class_stride, UNIT: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr):
    """Offset of classes `k` of pixels `pixel` in their image; `LAST` if classes lie next to each other."""
    return pixel * K + k if LAST else k * (tl.cast(class_stride, tl.int64) * UNIT) + pixel


@triton.jit(
    do_not_specialize=[
        "logits_image",
        "logits_class",
        "maps_image",
        "maps_class",
        "grad_image",
        "grad_class",
        "scale_run",
        "pixels",
        "blocks",
        "images",
        "divisor",
        "ignore_index",
    ]
)
def region_wise(
    logits,  # [B, K, pixels]
    maps,  # dense: as the logits; compact: the foreground [B, pixels]
    labels,  # [B, pixels]
    background,  # [B, pixels]; None: `background_value`
    class_scale,  # [K] or [runs, K]
    pixel_scale,  # [B, pixels]: multiplies the gradient
    upstream,  # [runs]: multiplies the gradient
    count,  # [B]
    grad,  # as the logits
    loss,  # [B, pixels], or the sum of every program
    logits_image,  # strides of images and classes, in units; that of pixels is 1, or K if classes are last
    logits_class,
    maps_image,
    maps_class,
    grad_image,
    grad_class,
    scale_run,
    pixels,  # of an image, in units
    blocks,  # programs of an image
    images,  # of a run
    divisor,
    ignore_index,
    background_value,
    weight,  # of the loss: multiplies the gradient; None: 1
    program,  # its number; None: that of the launch
    K: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    COMPACT: tl.constexpr,
    IGNORE: tl.constexpr,
    FIRST: tl.constexpr,  # 1 leaves channel 0 out of the sum
    MEAN: tl.constexpr,  # divide the gradient by N * K
    PER_PIXEL: tl.constexpr,
    LOGITS_LAST: tl.constexpr,  # channels_last; the gradient is as the logits
    MAPS_LAST: tl.constexpr,
    WIDE: tl.constexpr,  # an image has 2^31 elements or more
):
    """Eq. 1 and Eq. 2 of `BLOCK` pixels of one image."""
    T: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    P: tl.constexpr = tl.int64 if WIDE else tl.int32
    RECTIFIED: tl.constexpr = (COMPACT and class_scale is None) and FIRST == 0  # two values a pixel
    if program is None:
        program = tl.program_id(0)
    image = tl.cast(program // blocks, tl.int64)
    run = image // images
    size = tl.cast(pixels, P) * UNIT
    pixel = tl.cast(program % blocks, P) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = pixel < size
    base = image * size
    row = tl.arange(0, ROWS)[:, None]

    # Everything is asked for before anything is used.
    logits += image * (tl.cast(logits_image, tl.int64) * UNIT)
    x = ()
    for part in tl.static_range(PARTS):
        k = part * ROWS + row
        mask = inside & (k < K)
        at = _offset(k, pixel, logits_class, UNIT, K, LOGITS_LAST)
        x += (tl.load(logits + at, mask=mask, other=float("-inf")).to(T),)
    if labels is not None:
        WHOLE: tl.constexpr = tl.int64 if labels.dtype.element_ty == tl.int64 else tl.int32
        given = tl.load(labels + base + pixel, mask=inside, other=0).to(WHOLE)
    if COMPACT:
        fg = tl.load(maps + base + pixel, mask=inside, other=0.0).to(T)
        bg = tl.full([1, BLOCK], background_value, T)
        if background is not None:
            bg = tl.load(background + base + pixel, mask=inside, other=0.0).to(T)
    z = ()
    if not COMPACT:
        maps += image * (tl.cast(maps_image, tl.int64) * UNIT)
        for part in tl.static_range(PARTS):
            k = part * ROWS + row
            mask = inside & (k < K) & (k >= FIRST)
            at = _offset(k, pixel, maps_class, UNIT, K, MAPS_LAST)
            z += (tl.load(maps + at, mask=mask, other=0.0).to(T),)

    if grad is not None:
        incoming = _incoming(upstream, run, T)
        if MEAN:
            elements = _elements(count, divisor, images, run)
        if pixel_scale is not None:
            of_pixel = tl.load(pixel_scale + base + pixel, mask=inside, other=0.0).to(T)

    counts = inside
    if labels is not None:
        is_class = (given >= 0) & (given < K)
        label = tl.broadcast_to(tl.where(is_class, given, -1).to(tl.int32), [ROWS, BLOCK])
        if IGNORE:
            counts = inside & (given != ignore_index)
    if COMPACT and not RECTIFIED:
        for part in tl.static_range(PARTS):
            z += (tl.where(part * ROWS + row == label, fg, bg),)
    if class_scale is not None or FIRST:
        scaled = ()
        for part in tl.static_range(PARTS):
            k = part * ROWS + row
            w = tl.full([ROWS, 1], 1.0, T)
            if class_scale is not None:
                w = tl.load(class_scale + run * scale_run + k, mask=k < K, other=0.0).to(T)
            scaled += (z[part] * tl.where(k >= FIRST, w, 0.0),)
        z = scaled

    highest = x[0]
    for part in tl.static_range(1, PARTS):
        highest = tl.maximum(highest, x[part])
    highest = tl.max(highest, 0, keep_dims=True)
    e = ()
    total = tl.zeros([ROWS, BLOCK], T)
    weighted = tl.zeros([ROWS, BLOCK], T)
    for part in tl.static_range(PARTS):
        e += (tl.exp(x[part] - highest),)
        total += e[part]
        if RECTIFIED:
            weighted += tl.where(part * ROWS + row == label, e[part], 0.0)
        else:
            weighted += e[part] * z[part]
    norm = 1.0 / tl.sum(total, 0, keep_dims=True)
    value = tl.sum(weighted, 0, keep_dims=True) * norm
    if RECTIFIED:
        rise = (fg - bg) * value
        value = bg + rise
    if labels is not None:  # a label that is no class has no loss
        value = tl.where(is_class, value, float("nan"))
    if loss is not None:
        counted = tl.where(counts, value, 0.0)
        if PER_PIXEL:
            tl.store(loss + base + pixel, counted, mask=inside)
        else:
            tl.store(loss + program, tl.sum(counted))
    if grad is not None:
        if weight is not None:
            incoming = incoming * weight
        if MEAN:
            incoming = incoming / tl.cast(elements, T)
        factor = tl.full([1, BLOCK], 1.0, T) * incoming
        if pixel_scale is not None:
            factor *= of_pixel
        if labels is not None:
            factor = tl.where(is_class, factor, float("nan"))
        grad += image * (tl.cast(grad_image, tl.int64) * UNIT)
        for part in tl.static_range(PARTS):
            k = part * ROWS + row
            y = e[part] * norm
            g = rise * factor * (tl.where(k == label, 1.0, 0.0) - y) if RECTIFIED else y * factor * (z[part] - value)
            if IGNORE:
                g = tl.where(counts, g, 0.0)
            at = _offset(k, pixel, grad_class, UNIT, K, LOGITS_LAST)
            tl.store(grad + at, g.to(grad.dtype.element_ty), mask=inside & (k < K))


@triton.jit
def loss_of_run(partials, count, divisor, parts, images, run, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The loss of a run of images from the sums of its programs: in float64, always in the same order."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        total += tl.load(partials + run * parts + part, mask=part < parts, other=0.0).to(tl.float64)
    value = tl.sum(total)
    if MEAN:
        value = value / tl.cast(_elements(count, divisor, images, run), tl.float64)
    return value


@triton.jit(do_not_specialize=["divisor", "parts", "images"])
def finish_loss(partials, loss, count, divisor, parts, images, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The loss of every run of images."""
    run = tl.cast(tl.program_id(0), tl.int64)
    value = loss_of_run(partials, count, divisor, parts, images, run, MEAN, BLOCK)
    tl.store(loss + run, value.to(loss.dtype.element_ty))


@triton.jit(do_not_specialize=["size", "blocks", "images", "divisor"])
def scale_gradient(
    grad,
    out,  # None: `grad` itself, which is not touched where the factor is 1
    upstream,
    count,
    size,  # elements of a run, in units
    blocks,  # programs of a run
    images,
    divisor,
    weight,  # of the loss, if the gradient is without it; None: 1
    program,  # its number; None: that of the launch
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    MEAN: tl.constexpr,
):
    """The kept gradient times the incoming one."""
    T: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    if program is None:
        program = tl.program_id(0)
    run = tl.cast(program // blocks, tl.int64)
    elements = tl.cast(size, tl.int64) * UNIT
    at = tl.cast(program % blocks, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = _incoming(upstream, run, T)
    if weight is not None:
        factor = factor * weight
    if MEAN:
        factor = factor / tl.cast(_elements(count, divisor, images, run), T)
    touched = elements
    if out is None:
        out = grad
        touched = tl.where(factor != 1.0, elements, 0)
    mask = at < touched
    value = tl.load(grad + run * elements + at, mask=mask).to(T) * factor
    tl.store(out + run * elements + at, value.to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pixels", "blocks", "ignore_index"])
def count_pixels(labels, count, pixels, blocks, ignore_index, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Adds to `count` the pixels of every image that are not ignored. Integers: the order does not matter."""
    image = tl.cast(tl.program_id(0) // blocks, tl.int64)
    size = tl.cast(pixels, tl.int64) * UNIT
    pixel = tl.cast(tl.program_id(0) % blocks, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + image * size + pixel, mask=pixel < size, other=0)
    counts = (pixel < size) & (label != ignore_index)
    tl.atomic_add(count + image, tl.sum(counts.to(tl.int32)).to(tl.int64))
