"""What the C++ core makes for storing and sending: codes of maps, packed labels, axes in another order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rwkernels.backends.native.compiled import address, code, core, grid, refuse, written
from rwkernels.backends.problem import MapProblem
from rwkernels.backends.threads import threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fill_rectified_codes(codes: Tensor, largest: Tensor, count: Tensor, problem: MapProblem, *, work: Tensor) -> None:
    """See `Backend`."""
    sizes, axes, steps = grid(problem.labels, problem.spacing)
    bad = core().rectified_codes(
        labels=problem.labels.data_ptr(),
        code=code(problem.labels),
        field=written(work),
        codes=written(codes),
        code_bytes=codes.element_size(),
        largest=largest.data_ptr(),
        count=count.data_ptr(),
        dims=sizes,
        axes=axes,
        spacing=steps,
        num_classes=problem.num_classes,
        class_max=address(problem.class_max),
        ignore=problem.ignore_index,
        black_border=problem.black_border,
        validate=problem.validate,
        threads=threads(),
    )
    refuse(bad)


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
    packed = torch.empty(-(-labels.numel() * bits // 8), dtype=torch.uint8)
    good: bool = core().pack_labels(
        labels=labels.data_ptr(),
        code=code(labels),
        count=labels.numel(),
        num_classes=num_classes,
        ignore=ignore_index,
        bits=bits,
        packed=packed.data_ptr(),
    )
    return packed if good else None


def unpack_labels(packed: NDArray[Any], bits: int, labels: NDArray[Any]) -> None:
    """See `Backend`."""
    core().unpack_labels(packed=packed.ctypes.data, count=labels.size, bits=bits, labels=labels.ctypes.data)


def reverse_axes(values: NDArray[Any], out: NDArray[Any]) -> None:
    """See `Backend`."""
    core().reverse_axes(values.ctypes.data, out.ctypes.data, *values.shape, threads=threads())
