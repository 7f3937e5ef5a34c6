"""Instructions that compare, convert and rearrange: setp, cvt, mov of packed registers."""

from __future__ import annotations

import numpy as np

from ptx.alu import Compute, Operation
from ptx.faults import Unsupported
from ptx.values import Array, Type, flush_subnormal

COMPARE: dict[str, Compute] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
COMBINE: dict[str, Compute] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
INTEGRAL: dict[str, Compute] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
HALVES = ("f16x2", "bf16x2")


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def comparison(mods: list[str], kind: Type) -> Compute:
    """The condition of `setp` or `set`; on NaN only the unordered conditions (`equ`, `neu`, ..., `nan`) hold."""
    name, *unknown = mods or ["none"]
    if unknown or not (name in COMPARE or name in ("num", "nan") or (name[-1] == "u" and name[:-1] in COMPARE)):
        raise Unsupported(f"unknown condition {'.'.join(mods)}")
    if name in ("num", "nan"):
        return _unordered if name == "nan" else lambda a, b: ~_unordered(a, b)
    if not kind.is_float:
        return COMPARE[name]
    if name not in COMPARE:
        ordered = COMPARE[name[:-1]]
        return lambda a, b: ordered(a, b) | _unordered(a, b)
    if name == "ne":  # NumPy's is unordered
        return lambda a, b: (a != b) & ~_unordered(a, b)
    return COMPARE[name]


def _to_integer(values: Array, target: np.dtype) -> Array:
    """Saturates; NaN becomes zero."""
    limits = np.iinfo(target)
    wide = values.astype(np.float64)
    inside = np.where((wide > limits.min) & (wide < limits.max), wide, 0).astype(target)
    result = np.where(wide >= limits.max, target.type(limits.max), inside)
    return np.where(wide <= limits.min, target.type(limits.min), result)


def _saturated_integer(values: Array, target: np.dtype) -> Array:
    limits, own = np.iinfo(target), np.iinfo(values.dtype)
    return values.clip(max(limits.min, own.min), min(limits.max, own.max)).astype(target)


def conversion(mods: list[str], target: Type, source: Type) -> Operation:
    """`cvt`, from one number to one number."""
    integral = next((INTEGRAL[mod] for mod in mods if mod in INTEGRAL), None)
    known = {*INTEGRAL, "rn", "rz", "ftz", "sat", "relu"}
    if set(mods) - known or ("rz" in mods and target.is_float):
        raise Unsupported("unknown rounding or modifier of cvt")

    def convert(values: Array) -> Array:
        if "ftz" in mods and source == Type("f", 32):
            values = flush_subnormal(values)
        if integral is not None:
            values = integral(values)
        if target.is_float:
            values = values.astype(target.number)
            if "relu" in mods:
                values = np.where(values > 0, values, np.where(np.isnan(values), values, 0)).astype(target.number)
            if "sat" in mods:
                values = np.where(np.isnan(values), 0, values.clip(0, 1)).astype(target.number)
            return values
        if source.is_float:
            return _to_integer(values, target.number)
        return _saturated_integer(values, target.number) if "sat" in mods else values.astype(target.number)

    return Operation(convert, target, (source,))


def packed_conversion(mods: list[str], target: Type, source: Type) -> Operation:
    """`cvt.rn.bf16x2.f32 d, a, b`: the first operand becomes the upper half."""
    single = conversion(mods, Type(target.kind, target.bits), source).compute

    def convert(upper: Array, lower: Array) -> Array:
        return np.stack([single(lower), single(upper)], axis=1).reshape(-1)

    return Operation(convert, target, (source, source))


def join(parts: list[Array], held: np.dtype) -> Array:
    """`mov d, {a, b, ...}`: the first part has the lowest bits."""
    width = held.itemsize // len(parts)
    return np.stack([part.astype(f"u{width}", copy=False) for part in parts], axis=1).reshape(-1).view(held)


def split(whole: Array, count: int) -> list[Array]:
    """`mov {a, b, ...}, s`."""
    parts = whole.view(f"u{whole.dtype.itemsize // count}").reshape(-1, count)
    return [np.ascontiguousarray(parts[:, place]) for place in range(count)]
