"""What passes of the distance transform hand on to each other on a GPU: a field of squared distances, with signs.

A field is negative where the next pixel along the next axis has another label. What a pixel holds for those on the
other side of that change is 0: they are as near to it as to each other.

Isotropic squares are counted in pixels: the row pass leaves `coded` ones of 16 bits, other passes int32. Anisotropic
ones are float32 in units of `spacing`; squares beyond int32 are float64. Results below `NEAR` pixels are looked for in
16 bits without a sign (uint16), which the compiler packs: two numbers in a register, two operations in one.
"""

import triton
import triton.language as tl

NEAR = tl.constexpr(166)  # a code of 15 bits and a squared distance of NEAR + 2 * 8 rows, added, fit into 16 bits
NEVER = tl.constexpr(1 << 20)  # steps: more than a row is wide
_BEYOND = tl.constexpr(1 << 30)  # more than any square of int32, which also holds their sum


@triton.jit
def square(steps, spacing, T: tl.constexpr):
    """Squared length of `steps` pixels; integers count in pixels."""
    if T.is_floating():
        length = steps.to(T) * spacing
        result = length * length
    else:
        result = (steps * steps).to(T)
    return result


@triton.jit
def farthest(T: tl.constexpr):
    """No result of type T is larger."""
    if tl.uint16 == T:
        result = tl.full([], NEAR * NEAR, T)
    else:
        result = tl.full([], _BEYOND, T) if tl.int32 == T else tl.full([], float("inf"), T)
    return result


@triton.jit
def coded(steps, T: tl.constexpr):
    """Squares of steps within a row; as int16 the steps themselves follow from `NEAR` on, up to 32767 for none."""
    if tl.int16 == T:
        result = tl.where(steps < NEAR, steps * steps, tl.minimum(steps + (NEAR * NEAR - NEAR), 32767)).to(T)
    else:
        none = steps >= NEVER // 2
        result = tl.where(none, farthest(T), square(tl.where(none, 0, steps), 1.0, T))
    return result


@triton.jit
def value_of(held, unit, T: tl.constexpr):
    """The square that a field without signs stands for, as T. Floating ones count in `unit`, a squared spacing."""
    if tl.uint16 == T:
        result = tl.minimum(held, 32767).to(T) if held.dtype == tl.int32 else held.to(T)
    elif held.dtype.is_floating():
        result = held.to(T) * unit
    else:
        if held.dtype == tl.int16:
            code = held.to(tl.int32)
            steps = code - (NEAR * NEAR - NEAR)
            squared = tl.where(code < NEAR * NEAR, code, steps * steps)
            none = code == 32767
        else:
            squared = held
            none = held >= _BEYOND
        if T.is_floating():
            squared = squared.to(T) * unit
        result = tl.where(none, farthest(T), squared)
    return result


@triton.jit
def signed(value, changes):
    """Negative where `changes`: the sign bit alone, which costs less than a complement to take away again."""
    if value.dtype.is_floating():
        result = tl.where(changes, -value, value)
    else:
        LOWEST: tl.constexpr = -32768 if value.dtype == tl.int16 else -(1 << 31)
        result = tl.where(changes, value | tl.full([], LOWEST, value.dtype), value)
    return result


@triton.jit
def plain(row):
    """A field without its signs."""
    return tl.abs(row) if row.dtype.is_floating() else row & (0x7FFF if row.dtype == tl.int16 else 0x7FFFFFFF)


@triton.jit
def from_below(row, unit, T: tl.constexpr):
    """What a row holds for those below it: 0 if the next row, nearer by one, has another label."""
    return value_of(tl.maximum(row, tl.zeros_like(row)), unit, T)


@triton.jit
def from_above(row, nearer, unit, T: tl.constexpr):
    """What a row holds for those above it, likewise; `nearer` is the row before it."""
    value = value_of(plain(row), unit, T)
    if tl.uint16 == T:  # 0 or more than any value, by operations that work on two halves of a register
        sign = (nearer >> 16).to(tl.int16) if nearer.dtype == tl.int32 else nearer
        result = tl.minimum(value, (~sign & tl.full([], -32768, tl.int16)).to(T))
    else:
        result = tl.where(nearer < 0, tl.zeros_like(value), value)
    return result
