"""The types of PTX, and how a register's bits become numbers and numbers a register's bits.

A register is an array with one unsigned integer for each thread (a bool for a predicate). Arithmetic happens in the
declared precision: bfloat16, which NumPy lacks, is widened to float32 without loss and rounded back after each
instruction. A fused multiply-add is evaluated in the next wider type and rounded once more; that differs from a single
rounding in about one case of 2**29.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

Array = np.ndarray
UNSIGNED = {8: np.dtype("u1"), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
SIGNED = {8: np.dtype("i1"), 16: np.dtype("i2"), 32: np.dtype("i4"), 64: np.dtype("i8")}
FLOAT = {16: np.dtype("f2"), 32: np.dtype("f4"), 64: np.dtype("f8")}
TYPE = re.compile(r"(bf|[busf])(8|16|32|64)(x2)?|pred")


@dataclass(frozen=True)
class Type:
    """`kind` is "b", "u", "s", "f", "bf" or "pred"; a packed type holds `count` numbers of `bits` bits each."""

    kind: str
    bits: int
    count: int = 1

    @property
    def is_float(self) -> bool:
        return self.kind in ("f", "bf")

    @property
    def raw(self) -> np.dtype:
        """The dtype of a register that holds it."""
        return np.dtype(bool) if self.kind == "pred" else UNSIGNED[self.bits * self.count]

    @property
    def number(self) -> np.dtype:
        """The dtype that arithmetic happens in."""
        if self.kind == "pred":
            return np.dtype(bool)
        if self.kind == "bf":
            return FLOAT[32]
        return {"f": FLOAT, "s": SIGNED}.get(self.kind, UNSIGNED)[self.bits]


@cache
def type_of(name: str) -> Type | None:
    """The type of that name; None where the name is none of a type."""
    match = TYPE.fullmatch(name)
    if match is None:
        return None
    if name == "pred":
        return Type("pred", 8)
    return Type(match[1], int(match[2]), 2 if match[3] else 1)


def widen_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_to_bfloat16(values: Array) -> Array:
    """To nearest, ties to even; any NaN becomes the canonical one."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def decoder(kind: Type, held: np.dtype) -> Callable[[Array], Array]:
    """A function from registers of dtype `held` to numbers; a register wider than its type gives its low bits."""
    if kind.kind == "pred":
        return lambda raw: raw
    raw_type, number = kind.raw, kind.number
    narrow = held != raw_type
    if kind.kind == "bf":
        return lambda raw: widen_bfloat16((raw.astype(raw_type) if narrow else raw).view(np.uint16))
    if narrow:
        return lambda raw: raw.astype(raw_type).view(number)
    if number == raw_type:
        return lambda raw: raw
    return lambda raw: raw.view(number)


def encoder(kind: Type, held: np.dtype) -> Callable[[Array], Array]:
    """The inverse of `decoder`: signed numbers are sign-extended into a wider register, others zero-extended."""
    if kind.kind == "pred":
        return lambda numbers: numbers
    raw_type, number = kind.raw, kind.number
    if kind.kind == "bf":
        narrow: Callable[[Array], Array] = lambda numbers: round_to_bfloat16(numbers).view(raw_type)  # noqa: E731
    else:
        narrow = lambda numbers: numbers.astype(number, copy=False).view(raw_type)  # noqa: E731
    if held == raw_type:
        return narrow
    if kind.kind == "s":
        extended = SIGNED[held.itemsize * 8]
        return lambda numbers: numbers.astype(number, copy=False).astype(extended).view(held)
    return lambda numbers: narrow(numbers).astype(held)


def literal(text: str, kind: Type) -> np.generic:
    """The bits of an immediate operand, as a scalar of the type's raw dtype."""
    if kind.kind == "pred":
        return np.bool_(int(text, 0) != 0)
    if text[:2].lower() in ("0f", "0d") and kind.is_float | (len(text) in (10, 18)):
        bits = int(text[2:], 16)
        if kind.bits * kind.count == len(text[2:]) * 4:
            return kind.raw.type(bits)
        value = np.array(bits, UNSIGNED[len(text[2:]) * 4]).view(FLOAT[len(text[2:]) * 4])
        return encoder(kind, kind.raw)(value.astype(kind.number).reshape(1))[0]
    size = kind.raw.itemsize * 8
    if kind.is_float and ("." in text or "e" in text.lower()) and not text.lower().startswith("0x"):
        return encoder(kind, kind.raw)(np.array([float(text)], kind.number))[0]
    return kind.raw.type(int(text.rstrip("U"), 0) & ((1 << size) - 1))


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """`a * b + c` in the dtype of its arguments, rounded as if once (see the module's text)."""
    if a.dtype.itemsize < 8:
        return (a.astype(np.float64) * b + c).astype(c.dtype)
    product = a * b
    error = _product_error(a, b, product)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    return np.where(np.isfinite(total) & np.isfinite(error), total + (lost + error), total)


def _product_error(a: Array, b: Array, product: Array) -> Array:
    """What rounding took from a product of doubles (Dekker 1971)."""
    split = np.float64(2**27 + 1)
    a_high, b_high = a * split - (a * split - a), b * split - (b * split - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def flush_subnormal(values: Array) -> Array:
    """`.ftz`: a subnormal becomes a zero of its sign."""
    return values * (np.abs(values) >= np.finfo(values.dtype).tiny)
