"""Labels as they travel: in the narrowest form that holds them, down to one bit for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkernels.backends import default
from rwkernels.service.wire.memory import Bytes

BITS = {"uint1": 1, "uint2": 2, "uint4": 4, "uint8": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64}
"""Of one label. Those of less than a byte are packed, see `pack`."""
_MOST_CLASSES = 254
"""That are packed: the core needs a code for labels of no class beside theirs."""


def unpacked_dtype(dtype: str) -> str:
    """The dtype that labels have once they are unpacked."""
    return "uint8" if BITS[dtype] < 8 else dtype


def pack(labels: Tensor, num_classes: int, ignore_index: int | None, bits: int) -> Bytes | None:
    """Labels as codes of 1, 2, 4 or 8 bits each; None if one is no class. `ignore_index` becomes `num_classes`.

    Byte j of m holds codes j, m + j, 2 m + j, ..., the first in its lowest bits.
    """
    backend = default(labels.device, "pack_labels")
    packed = backend.pack_labels(labels.contiguous(), num_classes, ignore_index, bits)
    return None if packed is None else packed.numpy()


def unpack(packed: Bytes, bits: int, out: Bytes) -> None:
    """Writes the codes that `pack` made to `out`."""
    default(torch.device("cpu"), "unpack_labels").unpack_labels(packed, bits, out)


def travelling(labels: Tensor, num_classes: int, ignore_index: int | None) -> tuple[str, Bytes, int | None]:
    """dtype, bytes and ignored label of the labels on their way.

    An ignored label outside of [0, K) becomes K. Labels that are no classes travel unchanged, for the service to name.
    The bytes are new in any case: the caller may write over its labels before they are sent once more.
    """
    another = ignore_index is not None and not 0 <= ignore_index < num_classes
    codes = num_classes + another
    bits = next((bits for bits in (1, 2, 4, 8) if codes <= 1 << bits), None)
    if bits is not None and num_classes <= _MOST_CLASSES:
        packed = pack(labels, num_classes, ignore_index if another else None, bits)
        if packed is not None:
            return f"uint{bits}", packed, num_classes if another else ignore_index
    return *_narrowed(labels.contiguous().numpy().reshape(-1)), ignore_index


def _narrowed(labels: npt.NDArray[Any]) -> tuple[str, Bytes]:
    """The labels in the narrowest dtype of whole bytes that holds them all."""
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    for dtype in ("uint8", "int8", "int16", "int32", "int64"):
        info = np.iinfo(dtype)
        if info.min <= lowest and highest <= info.max:
            break
    return dtype, labels.astype(np.dtype(dtype).newbyteorder("<")).view(np.uint8)
