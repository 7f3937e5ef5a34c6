"""Labels as they travel: in the narrowest form that holds them, down to one bit for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

BITS = {"uint1": 1, "uint2": 2, "uint4": 4, "uint8": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64}
"""Of one label. Those of less than a byte are packed, see `pack`."""
Bytes = npt.NDArray[np.uint8]


def unpacked_dtype(dtype: str) -> str:
    """The dtype that labels have once they are unpacked."""
    return "uint8" if BITS[dtype] < 8 else dtype


def pack(labels: Bytes, bits: int) -> Bytes:
    """Flat labels below `2 ** bits` in 1, 2 or 4 bits each.

    Byte j of m holds labels j, m + j, 2 m + j, ..., the first in its lowest bits.
    """
    size = -(-len(labels) * bits // 8)
    packed: Bytes = labels[:size].copy()
    shifted = np.empty(size, np.uint8)
    for plane in range(1, 8 // bits):
        part = labels[plane * size : (plane + 1) * size]
        packed[: len(part)] |= np.multiply(part, 1 << plane * bits, out=shifted[: len(part)])
    return packed


def unpack(packed: Bytes, bits: int, out: Bytes) -> None:
    """Writes what `pack` took to `out`."""
    size, lowest = len(packed), np.uint8((1 << bits) - 1)
    for plane in range(8 // bits):
        part = out[plane * size : (plane + 1) * size]
        np.right_shift(packed[: len(part)], np.uint8(plane * bits), out=part)
        np.bitwise_and(part, lowest, out=part)


def travelling(labels: Tensor, num_classes: int, ignore_index: int | None) -> tuple[str, Bytes, int | None]:
    """dtype, bytes and ignored label of the labels on their way.

    An ignored label outside of [0, K) becomes K. Labels that are no classes travel unchanged, for the service to name.
    The bytes are new in any case: the caller may write over its labels before they are sent once more.
    """
    plain = labels.contiguous().numpy().reshape(-1)
    another = ignore_index is not None and not 0 <= ignore_index < num_classes
    codes = num_classes + another
    if codes > 256:
        return *_narrowed(plain), ignore_index
    ignored = plain == ignore_index if another else None
    kept = plain if ignored is None else np.where(ignored, plain.dtype.type(0), plain)
    if kept.size and (kept.max() >= num_classes or kept.min() < 0):
        return *_narrowed(plain), ignore_index
    found = kept.astype(np.uint8, copy=False)
    if ignored is not None:
        np.putmask(found, ignored, num_classes)
        ignore_index = num_classes
    for bits in (1, 2, 4):
        if codes <= 1 << bits:
            return f"uint{bits}", pack(found, bits), ignore_index
    return "uint8", found.copy() if found is plain else found, ignore_index


def _narrowed(labels: npt.NDArray[Any]) -> tuple[str, Bytes]:
    """The labels in the narrowest dtype of whole bytes that holds them all."""
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    for dtype in ("uint8", "int8", "int16", "int32", "int64"):
        info = np.iinfo(dtype)
        if info.min <= lowest and highest <= info.max:
            break
    return dtype, labels.astype(np.dtype(dtype).newbyteorder("<")).view(np.uint8)
