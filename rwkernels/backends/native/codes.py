"""What the C++ core makes for storing and sending: codes of maps, packed labels, axes in another order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rwkernels.backends.native.compiled import checked, core, described, flat, written
from rwkernels.backends.problem import MapProblem
from rwkernels.backends.threads import threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fill_rectified_codes(codes: Tensor, largest: Tensor, count: Tensor, problem: MapProblem, *, work: Tensor) -> None:
    """See `Backend`."""
    checked(
        core().rectified,
        described(problem),
        field=written(work),
        count=count.data_ptr(),
        codes=written(codes),
        code_bytes=codes.element_size(),
        largest=largest.data_ptr(),
    )


def encode_values(codes: Tensor, values: Tensor) -> bool:
    """See `Backend`."""
    good: bool = core().encode_values(
        values=values.data_ptr(),
        count=values.numel(),
        bytes=codes.element_size(),
        codes=written(codes),
        threads=threads(),
    )
    return good


def decode_values(values: Tensor, codes: NDArray[Any]) -> None:
    """See `Backend`."""
    core().decode_values(
        codes=codes.ctypes.data,
        count=codes.size,
        bytes=codes.itemsize,
        values=written(values),
        threads=threads(),
    )


def pack_labels(labels: Tensor, num_classes: int, ignore_index: int | None, bits: int) -> Tensor | None:
    """See `Backend`."""
    packed = labels.new_empty(-(-labels.numel() * bits // 8), dtype=torch.uint8)
    good: bool = core().pack_labels(flat(labels, num_classes, ignore_index), bits=bits, packed=packed.data_ptr())
    return packed if good else None


def unpack_labels(packed: NDArray[Any], bits: int, labels: NDArray[Any]) -> None:
    """See `Backend`."""
    core().unpack_labels(packed=packed.ctypes.data, count=labels.size, bits=bits, labels=labels.ctypes.data)


def reverse_axes(values: NDArray[Any], out: NDArray[Any]) -> None:
    """See `Backend`."""
    core().reverse_axes(bytes=values.ctypes.data, out=out.ctypes.data, shape=values.shape, threads=threads())
