"""The slow and obviously right version of what is made for storing and sending: codes, labels, orders of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rwkernels.backends.problem import first_bad_label, is_label

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode_values(codes: Tensor, values: Tensor) -> bool:
    """See `Backend`. A product of 24 and 16 bits is exact in float64, so that only `round` rounds."""
    if not bool(((values >= -1) & (values <= 0)).all()):
        return False
    steps = torch.iinfo(codes.dtype).max
    codes.copy_(values.double().mul_(-steps).round_().to(torch.int32))
    return True


def decode_values(values: Tensor, codes: NDArray[Any]) -> None:
    """See `Backend`. 0 - 0 is 0, where dividing by -steps gives -0."""
    steps, written = np.float32(np.iinfo(codes.dtype).max), values.view(-1).numpy()
    np.divide(codes.reshape(-1), steps, out=written, dtype=np.float32)
    np.subtract(np.float32(0), written, out=written)


def pack_labels(labels: Tensor, num_classes: int, ignore_index: int | None, bits: int) -> Tensor | None:
    """See `Backend`."""
    if first_bad_label(labels, num_classes, ignore_index) >= 0:
        return None
    ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else is_label(labels, ignore_index)
    codes = torch.where(ignored, num_classes, labels.long()).view(-1).numpy().astype(np.uint8)
    packed = np.zeros(-(-codes.size * bits // 8), np.uint8)
    for plane in range(8 // bits):
        part = codes[plane * packed.size : (plane + 1) * packed.size]
        packed[: part.size] |= part << plane * bits
    return torch.from_numpy(packed)


def unpack_labels(packed: NDArray[Any], bits: int, labels: NDArray[Any]) -> None:
    """See `Backend`."""
    for plane in range(8 // bits):
        part = labels[plane * packed.size : (plane + 1) * packed.size]
        part[:] = packed[: part.size] >> plane * bits & (1 << bits) - 1


def reverse_axes(values: NDArray[Any], out: NDArray[Any]) -> None:
    """See `Backend`."""
    np.copyto(out, values)


def advise_huge_pages(tensor: Tensor) -> None:
    """See `Backend`. Nothing of the result depends on it."""
