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
    return any(name in sys.modules and isinstance(value, sys.modules[name].ndarray) for name in ("numpy", "cupy"))


def to_tensor(value: Any) -> tuple[Any, Back]:
    """A tensor over the memory of `value`, and the way back to its kind; anything but an array is left as it is."""
    if not is_array(value):
        return value, _same
    numpy, cupy = sys.modules["numpy"], sys.modules.get("cupy")
    if isinstance(value, numpy.ndarray):
        if value.dtype.kind not in "biufc":  # no tensor holds strings or objects
            return value, _same
        if any(stride < 0 for stride in value.strides) or not value.flags.writeable or not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="), order="C")  # what from_numpy cannot view
        return torch.from_numpy(value), lambda tensor: tensor.numpy()
    assert cupy is not None
    return torch.utils.dlpack.from_dlpack(value), cupy.from_dlpack


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
