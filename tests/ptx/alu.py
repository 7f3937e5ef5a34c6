"""Instructions that compute numbers from numbers, each thread for itself.

A builder takes an `Instruction`'s modifiers and types and returns a function of arrays; `program.py` gives it decoded
operands and encodes what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx.faults import Unsupported
from ptx.values import SIGNED, UNSIGNED, Array, Type, flush_subnormal, fused_multiply_add

Compute = Callable[..., Array]


@dataclass(frozen=True)
class Operation:
    """What to compute, with the types of the result and of each operand."""

    compute: Compute
    result: Type
    sources: tuple[Type, ...]


def _wrapping(kind: Type) -> Type:
    """Sums, differences and low products of signed integers have the bits of the unsigned ones."""
    return Type("u", kind.bits, kind.count) if kind.kind in ("s", "b") else kind


def _double(kind: Type) -> Type:
    return Type("s" if kind.kind == "s" else "u", kind.bits * 2)


def _maximum(mods: list[str]) -> Compute:
    return np.maximum if "NaN" in mods else np.fmax


def _minimum(mods: list[str]) -> Compute:
    return np.minimum if "NaN" in mods else np.fmin


def _folded(function: Compute) -> Compute:
    """min and max take two operands, or three from sm_100 on."""
    return lambda first, *rest: first if not rest else _folded(function)(function(first, rest[0]), *rest[1:])


def _not_negative(function: Compute) -> Compute:
    """`.relu` of integers: 0 instead of a negative result."""
    return lambda *operands: np.maximum(function(*operands), 0)


def truncating_divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _remainder(a: Array, b: Array) -> Array:
    return a - truncating_divide(a, b) * b


def _divide(kind: Type) -> Compute:
    return np.divide if kind.is_float else truncating_divide


def high_product(a: Array, b: Array) -> Array:
    """The upper half of a product twice as wide."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[bits * 2]
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    product = [int(x) * int(y) >> 64 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return np.array([value & (2**64 - 1) for value in product], np.uint64).view(a.dtype)


def _shift_left(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    shifted = a << np.minimum(amount, bits - 1).astype(a.dtype)
    return np.where(amount < bits, shifted, a.dtype.type(0))


def _shift_right(a: Array, amount: Array) -> Array:
    bits = a.dtype.itemsize * 8
    clamped = np.minimum(amount, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":
        return a >> clamped
    return np.where(amount < bits, a >> clamped, a.dtype.type(0))


def _funnel(left: bool, wrap: bool) -> Compute:
    def shift(low: Array, high: Array, amount: Array) -> Array:
        amount = amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        if not left:
            return (both >> amount.astype(np.uint64)).astype(np.uint32)
        return ((both << amount.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)

    return shift


def _extract_bits(a: Array, position: Array, length: Array) -> Array:
    """bfe: sign-extended from the field's top bit, or from the number's where the field is longer."""
    bits = a.dtype.itemsize * 8
    position, length = (position & 255).astype(np.int64), (length & 255).astype(np.int64)
    raw = a.view(UNSIGNED[bits])
    field = _shift_right(raw, position)
    ones = np.where(length >= bits, np.uint64(2**64 - 1), (np.uint64(1) << length.clip(max=63).astype(np.uint64)) - 1)
    field = field & ones.astype(raw.dtype)
    if a.dtype.kind == "i":
        top = np.minimum(position + length - 1, bits - 1).clip(min=0)
        negative = ((raw >> top.astype(raw.dtype)) & 1).astype(bool) & (length > 0)
        field = np.where(negative, field | ~ones.astype(raw.dtype), field)
        beyond = negative & (position + length > bits)
        field = np.where(beyond, _shift_right(a, position).view(raw.dtype), field)
    return field.view(a.dtype)


def _insert_bits(a: Array, b: Array, position: Array, length: Array) -> Array:
    bits = a.dtype.itemsize * 8
    position, length = (position & 255).astype(np.int64), (length & 255).astype(np.int64)
    ones = np.where(length >= bits, np.uint64(2**64 - 1), (np.uint64(1) << length.clip(max=63).astype(np.uint64)) - 1)
    mask = _shift_left(ones.astype(a.dtype), position)
    return (b & ~mask) | (_shift_left(a, position) & mask)


def _permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)).astype(np.uint64)
        byte = (both >> ((choice & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        signs = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
        byte = np.where(choice & np.uint64(8), signs, byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * place)
    return result


def logic3(a: Array, b: Array, c: Array, table: Array) -> Array:
    result = np.zeros_like(a)
    for row in range(8):
        if int(table[0]) >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def _ones(a: Array) -> Array:
    return np.array([f"{value:b}".count("1") for value in a.tolist()], np.uint32)


def _leading_zeros(a: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.array([bits - int(value).bit_length() for value in a.tolist()], np.uint32)


def _reverse_bits(a: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.array([int(f"{value:0{bits}b}"[::-1], 2) for value in a.tolist()], a.dtype)


def _negate(a: Array) -> Array:
    return np.zeros_like(a) - a if a.dtype.kind in "iu" else -a


def _copy_sign(sign: Array, magnitude: Array) -> Array:
    return np.copysign(magnitude, sign)


def _reciprocal(a: Array) -> Array:
    return a.dtype.type(1) / a


UNARY: dict[str, Compute] = {
    "neg": _negate,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": _reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: _reciprocal(np.sqrt(a)),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "not": np.invert,
    "brev": _reverse_bits,
}
WRAPPING: dict[str, Compute] = {"add": np.add, "sub": np.subtract}
BITWISE: dict[str, Compute] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
COUNTING: dict[str, Compute] = {"popc": _ones, "clz": _leading_zeros}
MODIFIERS = {"rn", "ftz", "sat", "approx", "full", "NaN", "lo", "hi", "wide", "l", "r", "wrap", "clamp", "relu"}
U32 = Type("u", 32)


def _rounded(compute: Compute, mods: list[str], kind: Type) -> Compute:
    """Adds `.ftz` and `.sat` to an operation on floats."""
    if not kind.is_float or not {"ftz", "sat"} & set(mods):
        return compute

    def with_modifiers(*operands: Array) -> Array:
        if "ftz" in mods and kind.bits == 32:
            value = flush_subnormal(compute(*(flush_subnormal(each) for each in operands)))
        else:
            value = compute(*operands)
        if "sat" in mods:
            value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)
        return value

    return with_modifiers


def _multiply(base: str, mods: list[str], kind: Type) -> Operation:
    added = base in ("mad", "fma")
    if kind.is_float:
        compute = fused_multiply_add if added else np.multiply
        return Operation(compute, kind, (kind,) * (3 if added else 2))
    if "wide" in mods:
        wide = _double(kind)
        number = wide.number
        product: Compute = lambda a, b, *c: sum(c, a.astype(number) * b.astype(number))  # noqa: E731
        return Operation(product, wide, (kind, kind, wide)[: 3 if added else 2])
    if "hi" in mods:
        upper: Compute = lambda a, b, *c: sum(c, high_product(a, b))  # noqa: E731
        return Operation(upper, kind, (kind,) * (3 if added else 2))
    low = _wrapping(kind)
    lower: Compute = lambda a, b, *c: sum(c, a * b)  # noqa: E731
    return Operation(lower, low, (low,) * (3 if added else 2))


def _mixed(operation: Operation, narrow: Type) -> Operation:
    """`sub.f32.bf16 d, a, c`: all operands but the last have the narrower type."""
    wide, compute = operation.result, operation.compute
    widened: Compute = lambda *operands: compute(*(each.astype(wide.number) for each in operands))  # noqa: E731
    count = len(operation.sources)
    return Operation(widened, wide, (narrow,) * (count - 1) + (wide,))


def build(base: str, mods: list[str], types: list[Type], operands: int) -> Operation:
    """The operation of an instruction such as `fma.rn.f32`; `operands` counts its sources."""
    operation = _build(base, mods, types[0], operands)
    if unknown := set(mods) - MODIFIERS:
        raise Unsupported(f"unknown modifier {', '.join(sorted(unknown))}")
    if len(types) == 2:
        operation = _mixed(operation, types[1])
    return Operation(_rounded(operation.compute, mods, types[0]), operation.result, operation.sources)


def _build(base: str, mods: list[str], kind: Type, operands: int) -> Operation:
    if base in UNARY:
        return Operation(UNARY[base], kind, (kind,))
    if base in WRAPPING:
        plain = _wrapping(kind)
        return Operation(WRAPPING[base], plain, (plain, plain))
    if base in BITWISE:
        return Operation(BITWISE[base], kind, (kind, kind))
    if base in COUNTING:
        return Operation(COUNTING[base], U32, (kind,))
    if base in ("mul", "mad", "fma"):
        return _multiply(base, mods, kind)
    if base in ("max", "min"):
        function = _folded((_maximum if base == "max" else _minimum)(mods))
        if "relu" in mods:
            if kind.kind != "s":
                raise Unsupported("relu of another type than signed integers")
            function = _not_negative(function)
        return Operation(function, kind, (kind,) * operands)
    if base == "selp":
        return Operation(lambda a, b, p: np.where(p, a, b), kind, (kind, kind, Type("pred", 8)))
    if base in ("shl", "shr"):
        return Operation(_shift_left if base == "shl" else _shift_right, kind, (kind, U32))
    if base == "shf":
        return Operation(_funnel("l" in mods, "wrap" in mods), kind, (kind, kind, U32))
    others: dict[str, tuple[Compute, tuple[Type, ...]]] = {
        "div": (_divide(kind), (kind, kind)),
        "rem": (_remainder, (kind, kind)),
        "bfe": (_extract_bits, (kind, U32, U32)),
        "bfi": (_insert_bits, (kind, kind, U32, U32)),
        "prmt": (_permute_bytes, (kind, kind, U32)),
        "lop3": (logic3, (kind, kind, kind, U32)),
        "copysign": (_copy_sign, (kind, kind)),
    }
    if base not in others:
        raise Unsupported("unknown instruction")
    compute, sources = others[base]
    return Operation(compute, kind, sources)
