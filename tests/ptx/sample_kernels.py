"""Small Triton kernels, each with a trait of the loss kernels, for the tests of the emulator."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    tl.store(out + offsets, tl.load(x + offsets, inside) + tl.load(y + offsets, inside), inside)


@triton.jit
def add_past_the_end(x, y, out, size, BLOCK: tl.constexpr):
    """The planted mistake is `<=`."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets <= size
    tl.store(out + offsets, tl.load(x + offsets, inside) + tl.load(y + offsets, inside), inside)


@triton.jit
def add_one_to_rows(x, out, stride, HINT: tl.constexpr, BLOCK: tl.constexpr):
    """With `HINT` it takes the start of each row for a multiple of 16: the planted mistake, where the stride is odd."""
    start = tl.program_id(0) * stride
    if HINT:
        start = tl.multiple_of(start, 16)
    offsets = start + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets) + 1)


@triton.jit
def _row(x, batch, k, size, pixels, inside, K: tl.constexpr):
    start = (batch.to(tl.int64) * K + k) * size
    return tl.load(x + start + pixels, inside, other=0.0).to(tl.float32)


@triton.jit
def softmax_unrolled(x, weight, out, size, K: tl.constexpr, BLOCK: tl.constexpr, HAS_WEIGHT: tl.constexpr):
    """Classes in registers, one tuple entry each; `weight` may be None."""
    batch = tl.program_id(1)
    pixels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < size
    values = ()
    for k in tl.static_range(K):
        values += (_row(x, batch, k, size, pixels, inside, K),)
    top = values[0]
    for k in tl.static_range(1, K):
        top = tl.maximum(top, values[k])
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        total += tl.exp(values[k] - top)
    for k in tl.static_range(K):
        share = tl.exp(values[k] - top) / total
        if HAS_WEIGHT:
            share *= tl.load(weight + k)
        place = out + (batch.to(tl.int64) * K + k) * size + pixels
        tl.store(place, share.to(out.dtype.element_ty), inside)


@triton.jit
def softmax_tile(x, labels, partial, size, K: tl.constexpr, K_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Writes one sum a program: the log-probability of each pixel's label, by reductions over a [K_PAD, BLOCK] tile."""
    batch = tl.program_id(1).to(tl.int64)
    pixels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    classes = tl.arange(0, K_PAD)
    inside = pixels < size
    tile = (classes < K)[:, None] & inside[None, :]
    address = x + batch * K * size + classes[:, None].to(tl.int64) * size + pixels[None, :]
    values = tl.load(address, tile, other=float("-inf")).to(tl.float32)
    values = tl.where(inside[None, :], values, 0.0)
    top = tl.max(values, axis=0)
    log_total = tl.log(tl.sum(tl.exp(values - top[None, :]), axis=0)) + top
    label = tl.load(labels + batch * size + pixels, inside, other=0)
    chosen = tl.sum(tl.where(classes[:, None] == label[None, :], values, 0.0), axis=0)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + program, tl.sum(tl.where(inside, chosen - log_total, 0.0), axis=0))


@triton.jit
def sum_in_double(x, out, size, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(x + offsets, offsets < size, other=0).to(tl.float64)
    tl.store(out, tl.sum(total))


@triton.jit
def count_labels(labels, counts, size, K: tl.constexpr, BLOCK: tl.constexpr):
    """Integer atomics, and an early exit on an empty first count: `counts[K] != 0` says to do nothing."""
    if tl.load(counts + K) != 0:
        return
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + offsets, offsets < size, other=K)
    for k in tl.static_range(K):
        tl.atomic_add(counts + k, tl.sum((label == k).to(counts.dtype.element_ty)))


@triton.jit
def never_ends(flag, out):
    value = tl.load(flag)
    while value == 0:
        value = tl.load(flag, volatile=True)
    tl.store(out, value)


@triton.jit
def copy_rows(x, out, stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The start of each row; without `WIDE` its offset overflows 32 bits in a large tensor."""
    row = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + columns, tl.load(x + row * stride + columns))
