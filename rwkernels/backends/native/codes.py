"""What the C++ core makes for storing and sending: codes of maps, packed labels, axes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rwkernels.backends.native import core, described, refused, threads, written

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fill_rectified_codes(
    codes: Tensor,
    largest: Tensor,
    count: Tensor,
    work: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_max: Tensor | None,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> tuple[int, int]:
    """`fill_rectified` with its foreground as codes [B, *S], and the largest distances of the images, float32 [B, K].

    `work` has room for as many float32 as there are labels. No code stands for NaN: labels ought to be checked.
    """
    problem = described(
        labels,
        num_classes,
        ignore_index,
        spacing=spacing,
        black_border=black_border,
        class_max=class_max,
        validate=validate,
    )
    return refused(
        core().rectified,
        problem,
        field=written(work),
        count=count.data_ptr(),
        codes=written(codes),
        code_bytes=codes.element_size(),
        largest=largest.data_ptr(),
    )


def encode_values(codes: Tensor, values: Tensor) -> bool:
    """Codes of float32 values in [-1, 0], both contiguous; whether all values were."""
    good: bool = core().encode_values(
        values=values.data_ptr(),
        count=values.numel(),
        bytes=codes.element_size(),
        codes=written(codes),
        threads=threads(),
    )
    return good


def decode_values(values: Tensor, codes: NDArray[Any]) -> None:
    """The float32 values of codes, both contiguous."""
    core().decode_values(
        codes=codes.ctypes.data,
        count=codes.size,
        bytes=codes.itemsize,
        values=written(values),
        threads=threads(),
    )


def pack_labels(labels: Tensor, num_classes: int, ignore_index: int | None, bits: int) -> Tensor | None:
    """The codes of contiguous labels in `bits` bits each, the first one lowest; None if one is no class.

    The code of an ignored label is `num_classes`.
    """
    packed = torch.empty(-(-labels.numel() * bits // 8), dtype=torch.uint8)
    problem = described(labels, num_classes, ignore_index, shape=(1, labels.numel()))
    good: bool = core().pack_labels(problem, bits=bits, packed=packed.data_ptr())
    return packed if good else None


def unpack_labels(packed: NDArray[Any], bits: int, labels: NDArray[Any]) -> None:
    """What `pack_labels` took, as flat uint8."""
    core().unpack_labels(packed=packed.ctypes.data, count=labels.size, bits=bits, labels=labels.ctypes.data)


def reverse_axes(values: NDArray[Any], out: NDArray[Any]) -> None:
    """Copies bytes [X, Y, Z], the first axis fastest in memory, into an array whose last axis is the fastest."""
    core().reverse_axes(bytes=values.ctypes.data, out=out.ctypes.data, shape=values.shape, threads=threads())
