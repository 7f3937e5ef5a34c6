"""The Triton kernel of the distance transform along rows, the first pass. `triton/maps.py` launches it."""

import triton
import triton.language as tl

from rwkernels.backends.triton.kernels.field import NEVER, coded, farthest, signed


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _larger_before(all_a, before_a, all_b, before_b):
    """Combines two neighbouring runs of a scan: the largest of all, and the largest of all but the last."""
    return tl.maximum(all_a, all_b), tl.maximum(all_a, before_b)


@triton.jit
def _smaller_before(all_a, before_a, all_b, before_b):
    return tl.minimum(all_a, all_b), tl.minimum(all_a, before_b)


@triton.jit
def _apart(values, COUNT: tl.constexpr):
    """A tile [rows, lanes * COUNT] as `COUNT` tiles [rows, lanes]: the pixels of a thread, which follow each other."""
    if COUNT == 1:
        result = (values,)
    else:
        even, odd = tl.split(tl.reshape(values, [values.shape[0], values.shape[1] // 2, 2]))
        evens = _apart(even, COUNT // 2)
        odds = _apart(odd, COUNT // 2)
        result = ()
        for j in tl.static_range(COUNT // 2):
            result = result + (evens[j], odds[j])  # noqa: RUF005
    return result


@triton.jit
def _together(parts, COUNT: tl.constexpr):
    """The inverse of `_apart`."""
    if COUNT == 1:
        result = parts[0]
    else:
        evens = ()
        odds = ()
        for j in tl.static_range(COUNT // 2):
            evens = evens + (parts[2 * j],)  # noqa: RUF005
            odds = odds + (parts[2 * j + 1],)  # noqa: RUF005
        both = tl.join(_together(evens, COUNT // 2), _together(odds, COUNT // 2))
        result = tl.reshape(both, [both.shape[0], both.shape[1] * 2])
    return result


@triton.jit
def _steps(starts, width, EACH: tl.constexpr, INCLUSIVE: tl.constexpr, BORDER: tl.constexpr):
    """Steps from every pixel of rows to the nearest pixel of another label, or to the nearest start itself.

    `starts` are `EACH` tiles [rows, lanes], the pixels of a thread: where a label differs from the one before it. A
    thread goes through its own pixels; what lies in others comes in by two scans of one number for each thread.
    """
    shape: tl.constexpr = starts[0].shape
    LANES: tl.constexpr = shape[1]
    first = tl.arange(0, LANES)[None, :] * EACH
    last_start = tl.full(shape, -NEVER, tl.int32)
    next_start = tl.full(shape, NEVER, tl.int32)
    lasts = ()
    nexts = ()
    for j in tl.static_range(EACH):
        last_start = tl.where(starts[j], j, last_start)
        lasts = lasts + (last_start,)  # noqa: RUF005
        nexts = (next_start,) + nexts  # noqa: RUF005
        next_start = tl.where(starts[EACH - 1 - j], EACH - 1 - j, next_start)
    never = tl.full(shape, NEVER, tl.int32)
    _, before = tl.associative_scan((first + last_start, -never), 1, _larger_before)
    _, after = tl.associative_scan((first + next_start, never), 1, _smaller_before, reverse=True)
    if BORDER:
        before = tl.maximum(before, 0)
        after = tl.minimum(after, width)
    before -= first
    after -= first
    steps = ()
    for j in tl.static_range(EACH):
        back = j - tl.maximum(lasts[j], before)
        if not INCLUSIVE:  # the pixel before the start
            back += 1
        steps = steps + (tl.minimum(back, tl.minimum(nexts[j], after) - j),)  # noqa: RUF005
    return steps


@triton.jit(do_not_specialize=["n", "units", "blocks", "batch", "classes", "slices", "ignore_index"])
def row_pass(
    labels,  # [outer, n, width]; for classes, one image serves `classes` runs of rows
    out,  # the field [outer, n, width]
    minima,  # [outer, blocks, width]
    maxima,  # [batch, classes], set to 0 here; may be None
    count,  # [batch], set here with them: the pixels of an image, or 0 if the last pass counts them
    n,
    units,  # of a row, `UNIT` pixels each
    blocks,
    batch,
    classes,
    slices,  # of an image: rows [slices, n, width]
    ignore_index,
    program,  # its number; None: that of the launch
    UNIT: tl.constexpr,
    LANES: tl.constexpr,
    EACH: tl.constexpr,  # pixels of a thread at once, next to each other
    ROWS: tl.constexpr,
    TILE: tl.constexpr,  # rows that a program holds at once
    K_TILE: tl.constexpr,
    CLASSES: tl.constexpr,  # distances to every class instead of to another label
    BORDER: tl.constexpr,
    IGNORE: tl.constexpr,
):
    """Squared distances within rows, signed for the next axis, and the least of every `ROWS` rows."""
    T: tl.constexpr = out.dtype.element_ty
    WIDTH: tl.constexpr = LANES * EACH
    if program is None:
        program = tl.program_id(0)
    width = units * UNIT
    if maxima is not None:  # before any program of the last pass adds to them
        k = tl.arange(0, K_TILE)
        tl.store(maxima + tl.cast(program, tl.int64) * classes + k, 0, mask=(k < classes) & (program < batch))
        counted = tl.cast(0, tl.int64) if IGNORE else tl.cast(slices, tl.int64) * n * width
        tl.store(count + program, counted, mask=program < batch)
    run = program // blocks  # divided as int32: a division of int64 is a call
    block = program % blocks
    source = run
    if CLASSES:
        source = run // (classes * slices) * slices + run % slices
    x = tl.arange(0, WIDTH)[None, :]
    first = tl.arange(0, LANES)[None, :] * EACH
    lowest = tl.full([1, WIDTH], 32767 if tl.int16 == T else farthest(T), T)
    for step in range(0, ROWS, TILE):
        start = block * ROWS + step
        t = tl.arange(0, TILE)[:, None]
        y = start + t
        mine = (y < n) & (x < width)
        at = t * width
        row = labels + (tl.cast(source, tl.int64) * n + start) * width
        here = tl.load(row + at + x, mask=mine, other=0)
        pixels = _apart(here, EACH)
        starts = ()
        for j in tl.static_range(EACH):
            if CLASSES:
                is_start = (pixels[j] == run // slices % classes) & (y < n) & (first + j < width)
                if IGNORE:
                    is_start = is_start & (pixels[j] != ignore_index)
            elif j == 0:
                is_start = (y < n) & (first > 0) & (first < width)
                is_start = is_start & (pixels[0] != tl.load(row + at + (first - 1), mask=is_start, other=0))
            else:
                is_start = pixels[j] != pixels[j - 1]
                if UNIT < EACH:
                    is_start = is_start & (first + j < width)
            starts = starts + (is_start,)  # noqa: RUF005
        field = coded(_together(_steps(starts, width, EACH, CLASSES, BORDER), EACH), T)
        low = field
        if not CLASSES:
            below = mine & (y < n - 1)
            field = signed(field, below & (here != tl.load(row + (at + width) + x, mask=below, other=0)))
            above = mine & ((t == 0) & (y > 0))  # the signs of the other rows tell
            above = above & (here != tl.load(row + (at - width) + x, mask=above, other=0))
            low = tl.where(above, tl.zeros_like(field), field)
        tl.store(out + (tl.cast(run, tl.int64) * n + start) * width + at + x, field, mask=mine)
        low = tl.where(y < n, low, lowest)
        lowest = tl.minimum(lowest, tl.reduce(low, 0, _smaller, keep_dims=True))
    lowest = tl.maximum(lowest, tl.zeros_like(lowest))  # where a label changes
    tl.store(minima + (tl.cast(run, tl.int64) * blocks + block) * width + x, lowest, mask=x < width)
