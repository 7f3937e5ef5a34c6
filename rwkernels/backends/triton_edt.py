"""The Triton kernels of the distance transform: exact, batched, for all labels at once. `triton_maps.py` launches them.

Squared distance to the nearest pixel of another label, one axis after the other (Felzenszwalb & Huttenlocher 2012):

    D(y) = min over y' of (y - y')^2 + (label(y') == label(y) ? D'(y') : 0)

The label test leaves the loop. With b the squared distance to the nearest change of label along the line, what lies
beyond that change is farther than b whatever it holds, so D(y) = min(b, min over all y' of D'(y') + (y - y')^2).
The field that a pass hands on is never 0, so its sign can tell where the label changes: it is negative where the next
pixel along the next axis has another label. A pass then reads the field alone.

A program of `column_pass` holds `ROWS` x `LANES` results in the registers of one warp and goes through the line
outwards, in blocks of `ROWS` rows. The least value of every block is known (`minima`). A first sweep reads these alone,
and bounds what the worst result of each column can be; the second enters only blocks that can still lower a result of
the program. Both stop where the distance alone exceeds the worst bound. Far out in long lines they look at `GROUP`
blocks at once. So a line of n rows costs at most 2 n / (ROWS * GROUP) such looks, some at single blocks, and the rows
of the blocks that were entered, which is little even where distances are large (a lone pixel, a corner).

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


@triton.jit(do_not_specialize=["n", "width", "blocks", "batch", "classes", "slices", "ignore_index"])
def row_pass(
    labels,  # [outer, n, width]; for classes, one image serves `classes` runs of rows
    out,  # the field [outer, n, width]
    minima,  # [outer, blocks, width]
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
    TILE: tl.constexpr,  # rows that a program holds at once
    K_TILE: tl.constexpr,
    CLASSES: tl.constexpr,  # distances to every class instead of to another label
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """Squared distances within rows, signed for the next axis, and the least of every `ROWS` rows."""
    T: tl.constexpr = out.dtype.element_ty
    FAR = _far(T)
    NEVER: tl.constexpr = 1 << 20
    program = tl.program_id(0)
    if maxima is not None:  # before any program of the last pass adds to them
        k = tl.arange(0, K_TILE)
        tl.store(maxima + tl.cast(program, tl.int64) * classes + k, 0, mask=(k < classes) & (program < batch))
        tl.store(count + program, tl.cast(0, tl.int64), mask=program < batch)
    run = program // blocks  # divided as int32: a division of int64 is a call
    block = program % blocks
    source = run
    if CLASSES:
        source = run // (classes * slices) * slices + run % slices
    outer = tl.cast(run, tl.int64)
    x = tl.arange(0, WIDTH)[None, :]
    lowest = tl.full([1, WIDTH], FAR, T)
    for step in range(0, ROWS, TILE):
        first = block * ROWS + step
        t = tl.arange(0, TILE)[:, None]
        y = first + t
        inside = (y < n) & (x < width)
        start = tl.cast(first, tl.int64) * width
        first_label = labels + (tl.cast(source, tl.int64) * n * width + start)
        at = t * width + x
        here = tl.load(first_label + at, mask=inside, other=0)
        if CLASSES:
            starts = inside & (here == run // slices % classes)
            if IGNORE:
                starts = starts & (here != ignore_index)
            ends = starts
        else:
            starts = inside & (x > 0)
            starts = starts & (here != tl.load(first_label - 1 + at, mask=starts, other=0))
            ends = inside & (x < width - 1)
            ends = ends & (here != tl.load(first_label + 1 + at, mask=ends, other=0))
            if BORDER:
                starts = starts | (x == 0)
                ends = ends | (x == width - 1)
        before = tl.associative_scan(tl.where(starts, x, -NEVER), 1, _larger)
        after = tl.associative_scan(tl.where(ends, x, NEVER), 1, _smaller, reverse=True)
        steps = tl.minimum(x - before, after - x)
        if not CLASSES:  # to the pixel beyond the change
            steps += 1
        field = tl.where(steps <= width, _square(steps, spacing, T), FAR)
        low = tl.where(inside, field, FAR)
        if not CLASSES:
            next_row = inside & (y < n - 1)
            next_row = next_row & (here != tl.load(first_label + width + at, mask=next_row, other=0))
            last_row = inside & (y > 0)
            last_row = last_row & (here != tl.load(first_label - width + at, mask=last_row, other=0))
            field = tl.where(next_row, -field, field)
            low = tl.where(next_row | last_row, tl.zeros_like(low), low)
        tl.store(out + (outer * n * width + start) + at, field, mask=inside)
        lowest = tl.minimum(lowest, tl.min(low, 0, keep_dims=True))
    tl.store(minima + (outer * blocks + block) * width + x, lowest, mask=x < width)


@triton.jit(do_not_specialize=["n", "inner", "blocks", "strips"])
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
def _further(nearest, gap, rows: tl.constexpr, spacing):
    """Squared length of `gap + rows` rows, from that of `gap`.

    Only int32 makes use of `nearest`. It is a sum there, not a product: the compiler would merge a product with the
    addition to a row, and lose the one instruction that adds and takes the minimum.
    """
    T: tl.constexpr = nearest.dtype
    if tl.int32 == T:
        result = nearest + (2 * rows * gap + rows * rows)
    else:
        result = _square(tl.cast(gap + rows, tl.int32), spacing, T)
    return result


@triton.jit
def _from_below(row):
    """What a row holds for those below it: 0 if the next row, nearer by one, has another label."""
    return tl.maximum(row, tl.zeros_like(row))


@triton.jit
def _from_above(row, nearer):
    """What a row holds for those above it, likewise; `nearer` is the row before it."""
    return tl.where(nearer < 0, tl.zeros_like(row), tl.abs(row))


@triton.jit
def _highest(values):
    """The largest of a tile of numbers that are not negative; float32 has no reduction of its own on most devices."""
    if values.dtype == tl.float32:
        result = tl.max(values.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    else:
        result = tl.max(values)
    return result


@triton.jit
def _goes_on(gap, above, below, blocks, worst, spacing):
    """Whether blocks are left, and as near as the worst result."""
    T: tl.constexpr = worst.dtype
    return ((above >= 0) | (below < blocks)) & (_square(tl.cast(gap, tl.int32), spacing, T) < _highest(worst))


@triton.jit
def _can_lower(low, nearest, worst):
    """Whether what is as low as `low`, at a squared distance of `nearest`, is less than some result."""
    if low.dtype == tl.int32:
        result = tl.max(worst - low) > nearest
    else:
        result = tl.max((low + nearest < worst).to(tl.int32)) > 0
    return result


@triton.jit
def _lowest(low_of, above, below, inner, blocks, COUNT: tl.constexpr):
    """The least value of `COUNT` blocks each way; past an end, that of the last block there."""
    low = tl.load(low_of + tl.cast(tl.maximum(above, 0), tl.int64) * inner)
    for each in tl.static_range(COUNT):
        if each > 0:
            low = tl.minimum(low, tl.load(low_of + tl.cast(tl.maximum(above - each, 0), tl.int64) * inner))
        low = tl.minimum(low, tl.load(low_of + tl.cast(tl.minimum(below + each, blocks - 1), tl.int64) * inner))
    return low


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


@triton.jit(do_not_specialize=["n", "inner", "blocks", "strips", "classes", "slices", "ignore_index"])
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
    GROUP: tl.constexpr,  # blocks that are looked at together, further out
    DEEP: tl.constexpr,  # whether the line is long enough for that
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
    run = tl.program_id(0) // strips // blocks  # divided as int32: a division of int64 is a call
    outer = tl.cast(run, tl.int64)
    x = strip * LANES + tl.arange(0, LANES)[None, :]
    t = tl.arange(0, ROWS)[:, None]
    y = block * ROWS + t
    mine = (y < n) & (x < inner)
    # What is outside is read as what lies at the edge, where it is as low and nearer: no load needs a mask.
    column = tl.minimum(x, inner - 1)
    row_of = field + outer * n * inner + column
    low_of = minima + outer * blocks * inner + column

    best = tl.where(mine, FAR, tl.zeros([ROWS, LANES], T))
    if BORDER:
        best = tl.minimum(best, _square(tl.minimum(y + 1, n - y), spacing, T))
    rows = row_of + tl.cast(block * ROWS, tl.int64) * inner
    last = n - 1 - block * ROWS
    nearer = tl.zeros([1, LANES], T)
    for s in tl.static_range(ROWS):  # the program's own rows
        row = tl.load(rows + tl.minimum(s, last) * inner)
        own = tl.where(t > s, _from_below(row), tl.where(t < s, _from_above(row, nearer), tl.abs(row)))
        best = tl.minimum(best, own + _square(t - s, spacing, T))
        nearer = row
    best = tl.where(mine, best, tl.zeros_like(best))

    # Bounds from above: some pixel of a block is as low as its minimum, at most one row beyond its far end.
    worst = tl.max(best, 0, keep_dims=True)
    gap = 1
    above = block - 1
    below = block + 1
    while _goes_on(gap, above, below, blocks, worst, spacing) & ((not DEEP) | (gap < GROUP * ROWS)):
        low = _lowest(low_of, above, below, inner, blocks, 1)
        worst = tl.minimum(worst, low + _square(tl.cast(gap + 2 * ROWS - 1, tl.int32), spacing, T))
        gap += ROWS
        above -= 1
        below += 1
    if DEEP:
        while _goes_on(gap, above, below, blocks, worst, spacing):
            low = _lowest(low_of, above, below, inner, blocks, GROUP)
            worst = tl.minimum(worst, low + _square(tl.cast(gap + (GROUP + 1) * ROWS - 1, tl.int32), spacing, T))
            gap += GROUP * ROWS
            above -= GROUP
            below += GROUP

    # The blocks that can lower a result, from near to far.
    gap = 1
    nearest = _square(tl.cast(gap, tl.int32), spacing, T)
    above = block - 1
    below = block + 1
    while _goes_on(gap, above, below, blocks, worst, spacing):
        steps = blocks
        if DEEP:
            low = _lowest(low_of, above, below, inner, blocks, GROUP)
            steps = tl.where(_can_lower(low, nearest, worst), GROUP, 0)
            if steps == 0:
                nearest = _further(nearest, gap, GROUP * ROWS, spacing)
                gap += GROUP * ROWS
                above -= GROUP
                below += GROUP
        while (steps > 0) & _goes_on(gap, above, below, blocks, worst, spacing):
            low_above = tl.load(low_of + tl.cast(tl.maximum(above, 0), tl.int64) * inner)
            low_below = tl.load(low_of + tl.cast(tl.minimum(below, blocks - 1), tl.int64) * inner)
            if (above >= 0) & _can_lower(low_above, nearest, worst):
                rows = row_of + tl.cast(above * ROWS + ROWS - 1, tl.int64) * inner
                for s in tl.static_range(ROWS):
                    value = _from_below(tl.load(rows))
                    rows -= inner
                    for u in tl.static_range(ROWS):
                        candidate = value + _further(nearest, gap, s + u, spacing)
                        best = tl.minimum(best, tl.where(t == u, candidate, FAR))
                worst = tl.minimum(worst, tl.max(best, 0, keep_dims=True))
            if (below < blocks) & _can_lower(low_below, nearest, worst):
                rows = row_of + tl.cast(below * ROWS - 1, tl.int64) * inner
                left = n - below * ROWS
                nearer = tl.load(rows)
                for s in tl.static_range(ROWS):
                    rows += tl.where(s < left, inner, 0)
                    row = tl.load(rows)
                    value = _from_above(row, nearer)
                    for u in tl.static_range(ROWS):
                        candidate = value + _further(nearest, gap, s + u, spacing)
                        best = tl.minimum(best, tl.where(t == ROWS - 1 - u, candidate, FAR))
                    nearer = row
                worst = tl.minimum(worst, tl.max(best, 0, keep_dims=True))
            nearest = _further(nearest, gap, ROWS, spacing)
            gap += ROWS
            above -= 1
            below += 1
            steps -= 1

    here = outer * n * inner + tl.cast(y, tl.int64) * inner + x
    if GIVES == "field":
        if not CLASSES:
            later = mine & (run % slices < slices - 1)
            given = tl.load(labels + here, mask=mine, other=0)
            changes = later & (given != tl.load(labels + here + tl.cast(n, tl.int64) * inner, mask=later, other=0))
            best = tl.where(changes, -best, best)
        tl.store(out + here, best, mask=mine)
    elif GIVES == "boundary":
        there = tl.cast(run // classes, tl.int64) * n * inner + tl.cast(y, tl.int64) * inner + x
        given = tl.load(labels + there, mask=mine, other=0)
        own = tl.load(inside + there, mask=mine, other=0.0)
        own = tl.where(own == float("inf"), 0.0, inside_offset - own)
        value = _finished(best, spacing, False, T)
        value = tl.where(given == run % classes, own, tl.where(value == float("inf"), absent, value))
        value = tl.where((given >= 0) & (given < classes), value, float("nan"))
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
