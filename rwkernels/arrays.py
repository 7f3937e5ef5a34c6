"""NumPy and CuPy arrays in, the same kind out. Neither is imported before an array of its kind arrives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Back = Callable[[Tensor], Any]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def is_array(value: object) -> bool:
    """Whether `value` is a NumPy or CuPy array."""
    return any(isinstance(value, getattr(sys.modules.get(name), "ndarray", ())) for name in ("numpy", "cupy"))


def _to_cupy(tensor: Tensor) -> Any:
    """A CuPy array over the memory of `tensor`, in order on the stream that is CuPy's current one.

    When the array is gone, torch must not hand its memory out before that stream is done with it.
    """
    cupy = sys.modules["cupy"]
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            pointer = cupy.cuda.get_current_stream().ptr
            # Up to 2 are CUDA's names of the default stream.
            known = torch.cuda.ExternalStream(pointer) if pointer > 2 else torch.cuda.default_stream()
            tensor.record_stream(known)
    return cupy.from_dlpack(tensor)


def to_tensor(value: Any) -> tuple[Any, Back]:
    """A tensor over the memory of `value`, and the way back to its kind; anything but an array is left as it is."""
    if not is_array(value):
        return value, _same
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray):
        if value.dtype.kind not in "biufc":  # no tensor holds strings or objects
            return value, _same
        if any(stride < 0 for stride in value.strides) or not value.flags.writeable or not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="), order="C")  # what from_numpy cannot view
        return torch.from_numpy(value), lambda tensor: tensor.numpy()
    with value.device:  # CuPy looks for the stream to wait for on its current device
        return torch.utils.dlpack.from_dlpack(value), _to_cupy


def to_buffer(value: Any) -> Any:
    """A tensor over the memory of the array `value` that a caller wants written; other values as they are."""
    if is_array(value) and hasattr(value, "flags") and getattr(value, "dtype", None) is not None:
        writeable = getattr(value.flags, "writeable", True)
        if not writeable or not value.flags.c_contiguous:
            raise ValueError(
                "out: expected a contiguous, writeable array, got "
                f"{'one' if writeable else 'a read-only one'} of strides {list(value.strides)}"
            )
    return to_tensor(value)[0]
