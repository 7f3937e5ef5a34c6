"""The kernels of a training step for several levels of deep supervision at once. `triton/levels.py` launches them.

Each does what the kernel does that it is named after, for one of `LEVELS` levels, which it picks by its program: those
of level l are the ones from `firsts[l]` on. What differs between levels comes as a tuple with one entry for each; the
compiler makes the choice of one an indexed load of an argument. What is compiled into a kernel is the same for all.

Integers in a tuple come as odd numbers, 2 n + 3: Triton would compile one that is 1 or a multiple of 16 into the
binary, whatever `do_not_specialize` says, and every size of an image would be compiled anew.
"""

import triton
import triton.language as tl

from rwkernels.backends.triton.kernels import columns, maps, rows
from rwkernels.backends.triton.kernels import loss as losses


@triton.jit
def _of(values, level, LEVELS: tl.constexpr):
    """The entry of a level; None if there is none for any."""
    if values is None:
        result = None
    else:
        result = values[0]
        for other in tl.static_range(1, LEVELS):
            result = tl.where(level == other, values[other], result)
    return result


@triton.jit
def _number(odd):
    return (odd - 3) >> 1


@triton.jit
def _number_of(values, level, LEVELS: tl.constexpr):
    return _number(_of(values, level, LEVELS))


@triton.jit
def _place(firsts, LEVELS: tl.constexpr):
    """The level of this program, and its number there."""
    program = tl.program_id(0)
    level = tl.zeros([], tl.int32)
    for other in tl.static_range(1, LEVELS):
        level += (program >= _number(firsts[other])).to(tl.int32)
    return level, program - _number_of(firsts, level, LEVELS)


@triton.jit(do_not_specialize=["batch", "classes", "ignore_index"])
def row_pass_levels(
    firsts,
    labels,
    out,
    minima,
    maxima,
    count,
    n,
    units,
    blocks,
    batch,
    classes,
    slices,
    ignore_index,
    UNIT: tl.constexpr,
    LANES: tl.constexpr,
    EACH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    CLASSES: tl.constexpr,
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `rows.row_pass`."""
    level, program = _place(firsts, LEVELS)
    rows.row_pass(
        _of(labels, level, LEVELS),
        _of(out, level, LEVELS),
        _of(minima, level, LEVELS),
        _of(maxima, level, LEVELS),
        _of(count, level, LEVELS),
        _number_of(n, level, LEVELS),
        _number_of(units, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        batch,
        classes,
        _number_of(slices, level, LEVELS),
        ignore_index,
        program,
        UNIT,
        LANES,
        EACH,
        ROWS,
        TILE,
        K_TILE,
        CLASSES,
        BORDER,
        IGNORE,
    )


@triton.jit
def block_minima_levels(
    firsts,
    field,
    minima,
    n,
    units,
    blocks,
    strips,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `columns.block_minima`."""
    level, program = _place(firsts, LEVELS)
    columns.block_minima(
        _of(field, level, LEVELS),
        _of(minima, level, LEVELS),
        _number_of(n, level, LEVELS),
        _number_of(units, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        _number_of(strips, level, LEVELS),
        program,
        UNIT,
        ROWS,
        LANES,
    )


@triton.jit(do_not_specialize=["classes", "ignore_index"])
def column_pass_levels(
    firsts,
    field,
    minima,
    out,
    labels,
    inside,
    maxima,
    count,
    n,
    units,
    blocks,
    strips,
    classes,
    slices,
    ignore_index,
    unit,
    spacing,
    absent,
    inside_offset,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    SQUARES: tl.constexpr,
    GIVES: tl.constexpr,
    CLASSES: tl.constexpr,
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
    WIDE: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `columns.column_pass`."""
    level, program = _place(firsts, LEVELS)
    columns.column_pass(
        _of(field, level, LEVELS),
        _of(minima, level, LEVELS),
        _of(out, level, LEVELS),
        _of(labels, level, LEVELS),
        inside,
        _of(maxima, level, LEVELS),
        _of(count, level, LEVELS),
        _number_of(n, level, LEVELS),
        _number_of(units, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        _number_of(strips, level, LEVELS),
        classes,
        _number_of(slices, level, LEVELS),
        ignore_index,
        _of(unit, level, LEVELS),
        _of(spacing, level, LEVELS),
        absent,
        inside_offset,
        program,
        UNIT,
        ROWS,
        LANES,
        GROUP,
        SQUARES,
        GIVES,
        CLASSES,
        BORDER,
        IGNORE,
        WIDE,
    )


@triton.jit(do_not_specialize=["classes", "ignore_index"])
def rectify_levels(
    firsts,
    squared,
    labels,
    maxima,
    class_max,
    out,
    units,
    blocks,
    classes,
    ignore_index,
    spacing,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    IGNORE: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `maps.rectify`."""
    level, program = _place(firsts, LEVELS)
    maps.rectify(
        _of(squared, level, LEVELS),
        _of(labels, level, LEVELS),
        _of(maxima, level, LEVELS),
        class_max,
        _of(out, level, LEVELS),
        _number_of(units, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        classes,
        ignore_index,
        _of(spacing, level, LEVELS),
        program,
        UNIT,
        BLOCK,
        IGNORE,
    )


@triton.jit(do_not_specialize=["scale_run", "images", "ignore_index"])
def region_wise_levels(
    firsts,
    logits,
    maps,
    labels,
    background,
    class_scale,
    pixel_scale,
    upstream,
    count,
    grad,
    loss,
    logits_image,
    logits_class,
    maps_image,
    maps_class,
    grad_image,
    grad_class,
    scale_run,
    pixels,
    blocks,
    images,
    divisor,
    ignore_index,
    background_value,
    weight,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    COMPACT: tl.constexpr,
    IGNORE: tl.constexpr,
    FIRST: tl.constexpr,
    MEAN: tl.constexpr,
    PER_PIXEL: tl.constexpr,
    LOGITS_LAST: tl.constexpr,
    MAPS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `loss.region_wise`."""
    level, program = _place(firsts, LEVELS)
    losses.region_wise(
        _of(logits, level, LEVELS),
        _of(maps, level, LEVELS),
        _of(labels, level, LEVELS),
        background,
        class_scale,
        pixel_scale,
        upstream,
        _of(count, level, LEVELS),
        _of(grad, level, LEVELS),
        _of(loss, level, LEVELS),
        _number_of(logits_image, level, LEVELS),
        _number_of(logits_class, level, LEVELS),
        _number_of(maps_image, level, LEVELS),
        _number_of(maps_class, level, LEVELS),
        _number_of(grad_image, level, LEVELS),
        _number_of(grad_class, level, LEVELS),
        scale_run,
        _number_of(pixels, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        images,
        _number_of(divisor, level, LEVELS),
        ignore_index,
        background_value,
        _of(weight, level, LEVELS),
        program,
        K,
        PARTS,
        ROWS,
        BLOCK,
        UNIT,
        COMPACT,
        IGNORE,
        FIRST,
        MEAN,
        PER_PIXEL,
        LOGITS_LAST,
        MAPS_LAST,
        WIDE,
    )


@triton.jit(do_not_specialize=["images"])
def finish_loss_levels(
    partials,
    loss,
    count,
    divisor,
    parts,
    images,
    weight,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """The weighted sum of the losses of all levels, see `loss.finish_loss`: one program."""
    total = tl.zeros([], tl.float64)
    for level in tl.static_range(LEVELS):
        counted = None
        if count is not None:
            counted = count[level]
        divided = _number(divisor[level])
        value = losses.loss_of_run(partials[level], counted, divided, _number(parts[level]), images, 0, MEAN, BLOCK)
        total += value * weight[level]
    tl.store(loss, total.to(loss.dtype.element_ty))


@triton.jit(do_not_specialize=["images"])
def scale_gradient_levels(
    firsts,
    grad,
    out,
    upstream,
    count,
    size,
    blocks,
    images,
    divisor,
    weight,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    MEAN: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """See `loss.scale_gradient`."""
    level, program = _place(firsts, LEVELS)
    losses.scale_gradient(
        _of(grad, level, LEVELS),
        _of(out, level, LEVELS),
        upstream,
        _of(count, level, LEVELS),
        _number_of(size, level, LEVELS),
        _number_of(blocks, level, LEVELS),
        images,
        _number_of(divisor, level, LEVELS),
        _of(weight, level, LEVELS),
        program,
        BLOCK,
        UNIT,
        MEAN,
    )
