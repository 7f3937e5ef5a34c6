"""The Triton kernels of the distance transform: exact, batched, for all labels at once. `triton/maps.py` launches them.

Squared distance to the nearest pixel of another label, one axis after the other (Felzenszwalb & Huttenlocher 2012):

    D(y) = min over y' of (y - y')^2 + (label(y') == label(y) ? D'(y') : 0)

The label test leaves the loop. With b the squared distance to the nearest change of label along the line, what lies
beyond that change is farther than b whatever it holds, so D(y) = min(b, min over all y' of D'(y') + (y - y')^2).
The field that a pass hands on is negative where the next pixel along the next axis has another label, so that a pass
reads the field alone (`triton_edt_field.py`).

A program of `column_pass` holds `ROWS` x `LANES` results in the registers of one warp and goes through the line
outwards, in blocks of `ROWS` rows. The least value of every block is known (`minima`). A first sweep reads these alone,
`GROUP` blocks each way at once, and bounds what the worst result of each column can be; the second enters only blocks
that can still lower a result of the program. Both stop where the distance alone exceeds the worst bound. So a line of n
rows costs at most 2 n / (ROWS * GROUP) looks at groups, some at single blocks, and the rows of the blocks that were
entered, which is little even where distances are large (a lone pixel, a corner).

Isotropic distances are counted in pixels, exactly, and `spacing` comes in at the end. A program looks for those below
`NEAR` pixels in 16 bits, which the compiler packs: two results in a register, two candidates in an instruction. Where
one of its results is not that near, it does the work again in 32 bits. The row pass leaves `coded` squares of 16 bits.
Anisotropic squares are float32 in units of `spacing`, and squares beyond int32 are float64.

Distances to one class (for boundary maps) take the same way, without changes of label: there the field is 0 at the
class itself.
"""

import triton
import triton.language as tl

from rwkernels.backends.triton.kernels.field import (
    NEAR,
    farthest,
    from_above,
    from_below,
    plain,
    signed,
    square,
    value_of,
)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit(do_not_specialize=["n", "units", "blocks", "strips"])
def block_minima(
    field,
    minima,
    n,
    units,
    blocks,
    strips,
    program,  # its number; None: that of the launch
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The least value of every `ROWS` rows of a field [outer, n, inner]; 0 where a label changes."""
    T: tl.constexpr = field.dtype.element_ty
    if program is None:
        program = tl.program_id(0)
    inner = units * UNIT
    strip = program % strips
    block = program // strips % blocks
    outer = tl.cast(program // strips // blocks, tl.int64)
    x = strip * LANES + tl.arange(0, LANES)[None, :]
    column = x < inner
    row = field + (outer * n + block * ROWS) * inner + x
    lowest = tl.load(row - inner, mask=column & (block > 0), other=0)
    lowest = tl.where(lowest < 0, tl.zeros_like(lowest), farthest(T))
    left = n - block * ROWS
    for s in tl.static_range(ROWS):
        lowest = tl.minimum(lowest, tl.load(row, mask=column, other=0))
        row += tl.where(s + 1 < left, inner, 0)
    lowest = tl.maximum(lowest, tl.zeros_like(lowest))
    tl.store(minima + (outer * blocks + block) * inner + x, lowest, mask=column)


@triton.jit
def _further(nearest, gap, rows, spacing, T: tl.constexpr):
    """Squared length of `gap + rows` rows, from that of `gap`.

    Only integers make use of `nearest`. It is a sum there, not a product: the compiler would merge a product with the
    addition to a row, and lose the one instruction that adds and takes the minimum.
    """
    return square(gap + rows, spacing, T) if T.is_floating() else nearest + (2 * rows * gap + rows * rows)


@triton.jit
def _largest(values):
    """The largest of a tile of numbers that are not negative; float32 has no reduction of its own on most devices."""
    if values.dtype == tl.float32:
        result = tl.max(values.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    else:
        result = tl.max(values)
    return result


@triton.jit
def _goes_on(nearest, above, below, blocks, worst):
    """Whether blocks are left, and as near as the worst result."""
    return ((above >= 0) | (below < blocks)) & (nearest < _largest(worst))


@triton.jit
def _can_lower(low, nearest, worst):
    """Whether what is as low as `low`, at a squared distance of `nearest`, is less than some result."""
    if worst.dtype == tl.uint16:
        result = tl.max(worst.to(tl.int16) - low.to(tl.int16)) > nearest
    elif worst.dtype == tl.int32:
        result = tl.max(worst - low) > nearest
    else:
        result = tl.max((low + nearest < worst).to(tl.int32)) > 0
    return result


@triton.jit
def _lowest(low_of, column, above, below, inner, blocks, unit, COUNT: tl.constexpr, T: tl.constexpr):
    """The least value of `COUNT` blocks each way; past an end, that of the last block there."""
    each = tl.arange(0, 2 * COUNT)[:, None]
    up = tl.maximum(above - each, 0)
    down = tl.minimum(below + (each - COUNT), blocks - 1)
    low = tl.load(low_of + tl.where(each < COUNT, up, down) * inner, mask=column, other=0)
    return value_of(tl.reduce(low, 0, _smaller, keep_dims=True), unit, T)


@triton.jit
def _row(tile, t, s):
    """Row `s` of a tile, [1, lanes]. A thread holds all rows of a lane, so that nothing of this is left to do."""
    BITS: tl.constexpr = tl.core.get_int_dtype(tile.dtype.primitive_bitwidth, True)
    bits = tile.to(BITS, bitcast=True)
    return tl.reduce(tl.where(t == s, bits, 0), 0, _either, keep_dims=True).to(tile.dtype, bitcast=True)


@triton.jit
def _rows_before(tile, first, t, ROWS: tl.constexpr):
    """The row before each of a tile, `first` before the first."""
    before = tl.broadcast_to(first, tile.shape)
    for s in tl.static_range(1, ROWS):
        before = tl.where(t == s, _row(tile, t, s - 1), before)
    return before


@triton.jit
def _held(row_of, column, block, n, inner, t, unit, ROWS: tl.constexpr, CLASSES: tl.constexpr, T: tl.constexpr):
    """What the rows of a block hold for those below, for those above, and for themselves.

    Beyond the end of the line the last row is read again, where it is as low and nearer. 0 beside the lanes.
    """
    y = block * ROWS + t
    rows = tl.load(row_of + tl.minimum(y, n - 1) * inner, mask=column, other=0)
    itself = value_of(plain(rows), unit, T)
    down = itself
    up = itself
    if not CLASSES:
        first = tl.load(row_of + tl.maximum(block * ROWS - 1, 0) * inner, mask=column & (block > 0), other=0)
        down = from_below(rows, unit, T)
        up = from_above(rows, _rows_before(rows, first, t, ROWS), unit, T)
    return down, up, itself


@triton.jit
def _nearest(
    line,  # see `column_pass`
    block,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    CLASSES: tl.constexpr,
    BORDER: tl.constexpr,
    T: tl.constexpr,
):
    """Squared distances of the rows of a block, as T; uint16: exact below NEAR, otherwise NEAR squared."""
    row_of, low_of, column, n, inner, blocks, unit, spacing = line
    S: tl.constexpr = T if T.is_floating() else tl.int32  # of one number
    FAR = farthest(T)
    t = tl.arange(0, ROWS)[:, None]
    best = tl.full([ROWS, LANES], 0, T) + FAR
    if BORDER:
        y = block * ROWS + t
        border = square(tl.maximum(tl.minimum(y + 1, n - y), 0), spacing, S)
        best = tl.minimum(best, tl.minimum(border, FAR.to(S)).to(T))
    down, up, itself = _held(row_of, column, block, n, inner, t, unit, ROWS, CLASSES, T)
    for s in tl.static_range(ROWS):  # the program's own rows
        value = tl.where(t == s, itself, tl.where(t > s, _row(down, t, s), _row(up, t, s)))
        best = tl.minimum(best, value + square(t - s, spacing, T))

    # Bounds from above: some pixel of a block is as low as its minimum, at most one row beyond its far end.
    worst = tl.reduce(best, 0, _larger, keep_dims=True)
    gap = 1
    nearest = square(tl.cast(gap, tl.int32), spacing, S)
    above = block - 1
    below = block + 1
    while _goes_on(nearest, above, below, blocks, worst):
        low = _lowest(low_of, column, above, below, inner, blocks, unit, GROUP, T)
        furthest = _further(nearest, gap, (GROUP + 1) * ROWS - 1, spacing, T)
        worst = tl.minimum(worst, low + tl.minimum(furthest, FAR.to(S)).to(T))
        nearest = _further(nearest, gap, GROUP * ROWS, spacing, T)
        gap += GROUP * ROWS
        above -= GROUP
        below += GROUP

    # The blocks that can lower a result, from near to far.
    gap = 1
    nearest = square(tl.cast(gap, tl.int32), spacing, S)
    above = block - 1
    below = block + 1
    while _goes_on(nearest, above, below, blocks, worst):
        steps = GROUP
        if gap > 1:  # of the first ones some always can
            low = _lowest(low_of, column, above, below, inner, blocks, unit, GROUP, T)
            if not _can_lower(low, nearest, worst):
                steps = 0
                nearest = _further(nearest, gap, GROUP * ROWS, spacing, T)
                gap += GROUP * ROWS
                above -= GROUP
                below += GROUP
        while (steps > 0) & _goes_on(nearest, above, below, blocks, worst):
            low_above = tl.load(low_of + tl.maximum(above, 0) * inner, mask=column, other=0)
            low_below = tl.load(low_of + tl.minimum(below, blocks - 1) * inner, mask=column, other=0)
            if (above >= 0) & _can_lower(value_of(low_above, unit, T), nearest, worst):
                down, up, itself = _held(row_of, column, above, n, inner, t, unit, ROWS, CLASSES, T)
                for s in tl.static_range(ROWS):
                    away = _further(nearest, gap, ROWS - 1 - s + t, spacing, T)
                    best = tl.minimum(best, _row(down, t, s) + away.to(T))
                worst = tl.minimum(worst, tl.reduce(best, 0, _larger, keep_dims=True))
            if (below < blocks) & _can_lower(value_of(low_below, unit, T), nearest, worst):
                down, up, itself = _held(row_of, column, below, n, inner, t, unit, ROWS, CLASSES, T)
                for s in tl.static_range(ROWS):
                    away = _further(nearest, gap, s + (ROWS - 1 - t), spacing, T)
                    best = tl.minimum(best, _row(up, t, s) + away.to(T))
                worst = tl.minimum(worst, tl.reduce(best, 0, _larger, keep_dims=True))
            nearest = _further(nearest, gap, ROWS, spacing, T)
            gap += ROWS
            above -= 1
            below += 1
            steps -= 1
    return best


@triton.jit
def finished(squared, spacing, SQUARED: tl.constexpr, T: tl.constexpr):
    """The distance in units of `spacing`, float32; inf if there is none."""
    far = squared >= farthest(T)
    if tl.int32 == T:
        value = squared.to(tl.float32)
        value = value * (spacing * spacing) if SQUARED else tl.sqrt(value) * spacing
    else:
        value = squared if SQUARED else tl.sqrt(squared)
    return tl.where(far, float("inf"), value.to(tl.float32))


@triton.jit(do_not_specialize=["n", "units", "blocks", "strips", "classes", "slices", "ignore_index"])
def column_pass(
    field,  # [outer, n, inner]
    minima,  # [outer, blocks, inner]
    out,  # what `GIVES` says
    labels,  # as the field; for classes [outer / classes, n, inner]
    inside,  # float32, as the labels: distances to another label, for a boundary map
    maxima,  # [batch, classes]
    count,  # [batch]
    n,
    units,  # of a row of the field, `UNIT` each
    blocks,
    strips,  # programs side by side
    classes,
    slices,  # of an image: the length of the next axis
    ignore_index,
    unit,  # of an integer field, if squares are floating
    spacing,  # along this axis; in the last pass of isotropic ones, of all
    absent,
    inside_offset,
    program,  # its number; None: that of the launch
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,  # blocks that are looked at together
    SQUARES: tl.constexpr,  # type of the squares: "int32", "float32", "float64"
    GIVES: tl.constexpr,  # "field" for the next axis, "distance", "squared", "rectified", "boundary"
    CLASSES: tl.constexpr,
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
    WIDE: tl.constexpr,  # a line and what lies beside it have 2^31 elements or more
):
    """One axis of the transform: `ROWS` x `LANES` results."""
    T: tl.constexpr = tl.int32 if SQUARES == "int32" else tl.float32 if SQUARES == "float32" else tl.float64
    P: tl.constexpr = tl.int64 if WIDE else tl.int32
    if program is None:
        program = tl.program_id(0)
    strip = program % strips
    block = program // strips % blocks
    run = program // strips // blocks  # divided as int32: a division of int64 is a call
    outer = tl.cast(run, tl.int64)
    inner = tl.cast(units, P) * UNIT
    x = strip * LANES + tl.arange(0, LANES)[None, :]
    y = block * ROWS + tl.arange(0, ROWS)[:, None]
    column = x < inner
    row_of = field + outer * n * inner + x  # pointers to the first row, and to the least values of the first block
    low_of = minima + outer * blocks * inner + x
    line = (row_of, low_of, column, n, inner, blocks, unit, spacing)
    if tl.int32 == T:
        best = _nearest(line, block, ROWS, LANES, GROUP, CLASSES, BORDER, tl.uint16).to(T)
        if tl.max(best) >= NEAR * NEAR:
            best = _nearest(line, block, ROWS, LANES, GROUP, CLASSES, BORDER, T)
    else:
        best = _nearest(line, block, ROWS, LANES, GROUP, CLASSES, BORDER, T)

    mine = (y < n) & column
    here = tl.cast(y, P) * inner + x
    out += outer * n * inner
    if GIVES == "field":
        if not CLASSES:
            labels += outer * n * inner
            later = mine & (run % slices < slices - 1)
            given = tl.load(labels + here, mask=later, other=0)
            after = tl.load(labels + tl.cast(n, tl.int64) * inner + here, mask=later, other=0)
            best = signed(best, later & (given != after))
        tl.store(out + here, best, mask=mine)
    elif GIVES == "boundary":
        there = tl.cast(run // classes, tl.int64) * n * inner
        given = tl.load(labels + there + here, mask=mine, other=0)
        own = tl.load(inside + there + here, mask=mine, other=0.0)
        own = tl.where(own == float("inf"), 0.0, inside_offset - own)
        value = finished(best, spacing, False, T)
        value = tl.where(given == run % classes, own, tl.where(value == float("inf"), absent, value))
        value = tl.where((given >= 0) & (given < classes), value, float("nan"))
        if IGNORE:
            value = tl.where(given == ignore_index, 0.0, value)
        tl.store(out + here, value, mask=mine)
    elif GIVES == "rectified":
        tl.store(out + here, best, mask=mine)
        given = tl.load(labels + outer * n * inner + here, mask=mine, other=0)
        if IGNORE:
            counts = mine & (given != ignore_index)
            tl.atomic_add(count + outer, tl.sum(counts.to(tl.int32)).to(tl.int64))
        BITS: tl.constexpr = maxima.dtype.element_ty
        bits = best.to(BITS, bitcast=True)  # of numbers that are not negative: ordered as they are
        label = tl.where(mine & (given >= 0) & (given < classes), given.to(tl.int32), -1)
        left = tl.max(label)
        maxima += outer * classes
        if (left >= 0) & (tl.min(label) == left):
            tl.atomic_max(maxima + left, tl.max(bits))
            left = -1
        while left >= 0:  # one class that the program holds after the other
            tl.atomic_max(maxima + left, tl.max(tl.where(label == left, bits, tl.zeros_like(bits))))
            label = tl.where(label == left, -1, label)
            left = tl.max(label)
    else:
        tl.store(out + here, finished(best, spacing, GIVES == "squared", T), mask=mine)
