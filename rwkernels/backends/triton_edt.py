"""The Triton kernels of the distance transform: exact, batched, for all labels at once. `triton_maps.py` launches them.

Squared distance to the nearest pixel of another label, one axis after the other (Felzenszwalb & Huttenlocher 2012):

    D(y) = min over y' of (y - y')^2 + (label(y') == label(y) ? D'(y') : 0)

The label test leaves the loop. With b the squared distance to the nearest change of label along the line, what lies
beyond that change is farther than b whatever it holds, so D(y) = min(b, min over all y' of D'(y') + (y - y')^2).
The field that a pass hands on is never 0, so its sign can tell where the label changes: it is negative where the next
pixel along the next axis has another label. A pass then reads the field alone.

A program of `column_pass` holds `ROWS` x `LANES` results in the registers of one warp and goes through the line
outwards, in blocks of `ROWS` rows. The least value of every block is known (`minima`). A first sweep reads these alone,
and bounds the results from above; the second enters only blocks that can still lower a result of the program. Both stop
where the distance alone exceeds the worst result. So a line of n rows costs at most n / ROWS looks and the rows of the
blocks that were entered, which is little even where distances are large (a lone pixel, a corner).

Distances to one class (for boundary maps) take the same way, without changes of label: there the field is 0 at the
class itself. Isotropic squares are int32. A pass works in units of pixels then, and `spacing` comes in at the end;
anisotropic ones are float32 in units of `spacing`, or float64 where squares exceed int32.
"""

import triton
import triton.language as tl


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _square(steps, spacing, T: tl.constexpr):
    """Squared length of `steps` pixels; int32 counts in pixels."""
    if tl.int32 == T:
        result = steps * steps
    else:
        length = steps.to(T) * spacing
        result = length * length
    return result


@triton.jit
def _far(T: tl.constexpr):
    """More than any squared distance: int32 holds its sum with another one."""
    return tl.full([], 1 << 30, T) if tl.int32 == T else tl.full([], float("inf"), T)


@triton.jit
def row_pass(
    labels,  # [outer, n, width]; for classes, one image serves `classes` runs of rows
    out,  # the field [outer, n, width]
    minima,  # [outer, blocks, width]; None: left to `block_minima`
    maxima,  # [batch, classes], set to 0 here; may be None
    count,  # [batch], set to 0 here with them
    n,
    width,
    blocks,
    batch,
    classes,
    slices,  # of an image, for classes: rows [slices, n, width]
    ignore_index,
    spacing,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    K_TILE: tl.constexpr,
    CLASSES: tl.constexpr,  # distances to every class instead of to another label
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """Squared distances within rows, signed for the next axis, and the least of every `ROWS` rows."""
    T: tl.constexpr = out.dtype.element_ty
    FAR = _far(T)
    program = tl.program_id(0)
    if maxima is not None:  # before any program of the last pass adds to them
        k = tl.arange(0, K_TILE)
        tl.store(maxima + tl.cast(program, tl.int64) * classes + k, 0, mask=(k < classes) & (program < batch))
        tl.store(count + program, tl.cast(0, tl.int64), mask=program < batch)
    outer = tl.cast(program // blocks, tl.int64)
    block = program % blocks
    y = block * ROWS + tl.arange(0, ROWS)[:, None]
    x = tl.arange(0, WIDTH)[None, :]
    inside = (y < n) & (x < width)
    source = outer
    if CLASSES:
        source = outer // (classes * slices) * slices + outer % slices
    labels += source * n * width
    at = labels + y * width + x
    here = tl.load(at, mask=inside, other=0)
    if CLASSES:
        starts = inside & (here == outer // slices % classes)
        if IGNORE:
            starts = starts & (here != ignore_index)
        ends = starts
    else:
        starts = inside & (x > 0)
        starts = starts & (here != tl.load(at - 1, mask=starts, other=0))
        ends = inside & (x < width - 1)
        ends = ends & (here != tl.load(at + 1, mask=ends, other=0))
        if BORDER:
            starts = starts | (x == 0)
            ends = ends | (x == width - 1)
    NEVER: tl.constexpr = 1 << 20
    before = tl.associative_scan(tl.where(starts, x, -NEVER), 1, _larger)
    after = tl.associative_scan(tl.where(ends, x, NEVER), 1, _smaller, reverse=True)
    steps = tl.minimum(x - before, after - x)
    if not CLASSES:  # to the pixel beyond the change
        steps += 1
    field = tl.where(steps <= width, _square(steps, spacing, T), FAR)
    lowest = tl.where(inside, field, FAR)
    if not CLASSES:
        next_row = inside & (y < n - 1)
        next_row = next_row & (here != tl.load(at + width, mask=next_row, other=0))
        last_row = inside & (y > 0)
        last_row = last_row & (here != tl.load(at - width, mask=last_row, other=0))
        field = tl.where(next_row, -field, field)
        lowest = tl.where(next_row | last_row, tl.zeros_like(lowest), lowest)
    tl.store(out + outer * n * width + y * width + x, field, mask=inside)
    if minima is not None:
        lowest = tl.min(lowest, 0, keep_dims=True)
        tl.store(minima + (outer * blocks + block) * width + x, lowest, mask=x < width)


@triton.jit
def block_minima(field, minima, n, inner, blocks, strips, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The least value of every `ROWS` rows of a field [outer, n, inner]; 0 where a label changes."""
    T: tl.constexpr = field.dtype.element_ty
    FAR = _far(T)
    strip = tl.program_id(0) % strips
    block = tl.program_id(0) // strips % blocks
    outer = tl.cast(tl.program_id(0) // strips // blocks, tl.int64)
    x = strip * LANES + tl.arange(0, LANES)[None, :]
    y = block * ROWS + tl.arange(0, ROWS)[:, None]
    at = field + outer * n * inner + tl.cast(y, tl.int64) * inner + x
    mine = (y < n) & (x < inner)
    here = tl.load(at, mask=mine, other=FAR)
    above = tl.load(at - inner, mask=mine & (y > 0), other=FAR)
    lowest = tl.where((here < 0) | (above < 0), tl.zeros_like(here), here)
    lowest = tl.min(lowest, 0, keep_dims=True)
    tl.store(minima + (outer * blocks + block) * inner + x, lowest, mask=x < inner)


@triton.jit
def _finished(squared, spacing, SQUARED: tl.constexpr, T: tl.constexpr):
    """The distance in units of `spacing`, float32; inf if there is none."""
    far = squared >= _far(T)
    if tl.int32 == T:
        value = squared.to(tl.float32)
        value = value * (spacing * spacing) if SQUARED else tl.sqrt(value) * spacing
    else:
        value = squared if SQUARED else tl.sqrt(squared)
    return tl.where(far, float("inf"), value.to(tl.float32))


@triton.jit
def column_pass(
    field,  # [outer, n, inner]
    minima,  # [outer, blocks, inner]
    out,  # what `GIVES` says
    labels,  # as the field; for classes [outer / classes, n, inner]
    inside,  # float32, as the labels: distances to another label, for a boundary map
    maxima,  # [batch, classes]
    count,  # [batch]
    n,
    inner,
    blocks,
    strips,  # programs side by side
    classes,
    slices,  # of an image: the length of the next axis
    ignore_index,
    spacing,  # along this axis; in the last pass of isotropic ones, of all
    absent,
    inside_offset,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    GIVES: tl.constexpr,  # "field" for the next axis, "distance", "squared", "rectified", "boundary"
    CLASSES: tl.constexpr,
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """One axis of the transform: `ROWS` x `LANES` results."""
    T: tl.constexpr = field.dtype.element_ty
    FAR = _far(T)
    strip = tl.program_id(0) % strips
    block = tl.program_id(0) // strips % blocks
    outer = tl.cast(tl.program_id(0) // strips // blocks, tl.int64)
    x = strip * LANES + tl.arange(0, LANES)[None, :]
    t = tl.arange(0, ROWS)[:, None]
    y = block * ROWS + t
    lane = x < inner
    mine = lane & (y < n)
    row_of = field + outer * n * inner + x
    low_of = minima + outer * blocks * inner + x

    best = tl.abs(tl.load(row_of + tl.cast(y, tl.int64) * inner, mask=mine, other=0))
    if BORDER:
        best = tl.minimum(best, tl.where(mine, _square(tl.minimum(y + 1, n - y), spacing, T), tl.zeros_like(best)))
    for s in tl.static_range(ROWS):  # the program's own rows
        row = tl.load(
            row_of + tl.cast(block * ROWS + s, tl.int64) * inner, mask=lane & (block * ROWS + s < n), other=FAR
        )
        best = tl.minimum(best, tl.abs(row) + _square(t - s, spacing, T))
        if not CLASSES and s + 1 < ROWS:
            change = tl.where(row < 0, tl.zeros_like(row), FAR)
            best = tl.minimum(best, change + _square(tl.where(t <= s, s + 1 - t, t - s), spacing, T))

    # Bounds from above: some pixel of a block is as low as its minimum, at most one row beyond its far end.
    gap = 1
    above = block - 1
    below = block + 1
    while ((above >= 0) | (below < blocks)) & (_square(tl.cast(gap, tl.int32), spacing, T) < tl.max(best)):
        low = tl.load(low_of + tl.cast(above, tl.int64) * inner, mask=lane & (above >= 0), other=FAR)
        best = tl.minimum(best, low + _square(gap + ROWS + t, spacing, T))
        low = tl.load(low_of + tl.cast(below, tl.int64) * inner, mask=lane & (below < blocks), other=FAR)
        best = tl.minimum(best, low + _square(gap + ROWS + (ROWS - 1 - t), spacing, T))
        gap += ROWS
        above -= 1
        below += 1

    # The blocks that can lower a result, from near to far.
    gap = 1
    above = block - 1
    below = block + 1
    while ((above >= 0) | (below < blocks)) & (_square(tl.cast(gap, tl.int32), spacing, T) < tl.max(best)):
        nearest = _square(tl.cast(gap, tl.int32), spacing, T)
        low = tl.load(low_of + tl.cast(above, tl.int64) * inner, mask=lane & (above >= 0), other=FAR)
        if tl.max((low + nearest < tl.max(best, 0, keep_dims=True)).to(tl.int32)) > 0:
            for s in tl.static_range(ROWS):
                row = tl.load(row_of + tl.cast(above * ROWS + ROWS - 1 - s, tl.int64) * inner, mask=lane, other=FAR)
                # Negative: the next row, nearer by one, has another label than this one.
                best = tl.minimum(best, tl.maximum(row, tl.zeros_like(row)) + _square(gap + s + t, spacing, T))
        low = tl.load(low_of + tl.cast(below, tl.int64) * inner, mask=lane & (below < blocks), other=FAR)
        if tl.max((low + nearest < tl.max(best, 0, keep_dims=True)).to(tl.int32)) > 0:
            nearer = tl.load(row_of + tl.cast(below * ROWS - 1, tl.int64) * inner, mask=lane, other=FAR)
            for s in tl.static_range(ROWS):
                at = below * ROWS + s
                row = tl.load(row_of + tl.cast(at, tl.int64) * inner, mask=lane & (at < n), other=FAR)
                value = tl.where(nearer < 0, tl.zeros_like(row), tl.abs(row))
                best = tl.minimum(best, value + _square(gap + s + (ROWS - 1 - t), spacing, T))
                nearer = row
        gap += ROWS
        above -= 1
        below += 1

    here = outer * n * inner + tl.cast(y, tl.int64) * inner + x
    if GIVES == "field":
        if not CLASSES:
            later = mine & (outer % slices < slices - 1)
            given = tl.load(labels + here, mask=mine, other=0)
            changes = later & (given != tl.load(labels + here + tl.cast(n, tl.int64) * inner, mask=later, other=0))
            best = tl.where(changes, -best, best)
        tl.store(out + here, best, mask=mine)
    elif GIVES == "boundary":
        there = outer // classes * n * inner + tl.cast(y, tl.int64) * inner + x
        given = tl.load(labels + there, mask=mine, other=0)
        own = tl.load(inside + there, mask=mine, other=0.0)
        own = tl.where(own == float("inf"), 0.0, inside_offset - own)
        value = _finished(best, spacing, False, T)
        value = tl.where(given == outer % classes, own, tl.where(value == float("inf"), absent, value))
        if IGNORE:
            value = tl.where(given == ignore_index, 0.0, value)
        tl.store(out + here, value, mask=mine)
    elif GIVES == "rectified":
        tl.store(out + here, best, mask=mine)
        given = tl.load(labels + here, mask=mine, other=0)
        counts = mine
        if IGNORE:
            counts = counts & (given != ignore_index)
        tl.atomic_add(count + outer, tl.sum(counts.to(tl.int32)).to(tl.int64))
        BITS: tl.constexpr = maxima.dtype.element_ty
        bits = best.to(BITS, bitcast=True)  # of numbers that are not negative: ordered as they are
        label = tl.where(mine & (given >= 0) & (given < classes), given.to(tl.int32), -1)
        left = tl.max(label)
        while left >= 0:  # one class that the program holds after the other
            tl.atomic_max(maxima + outer * classes + left, tl.max(tl.where(label == left, bits, tl.zeros_like(bits))))
            label = tl.where(label == left, -1, label)
            left = tl.max(label)
    else:
        tl.store(out + here, _finished(best, spacing, GIVES == "squared", T), mask=mine)


@triton.jit
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
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
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


@triton.jit
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
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
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
