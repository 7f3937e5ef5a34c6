"""What the package uses of CuPy and cuCIM, over NumPy and SciPy: their signatures and their traps, without a GPU.

Every call of the transform is written down with the device, stream and allocator that were current.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import ndimage

from rwkernels.backends import cucim

TORCH_STREAM = 0x5EA


class ndarray:
    """An array that only DLPack leads into and out of."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype, self.shape, self.ndim, self.strides = array.dtype, array.shape, array.ndim, array.strides
        self.flags = SimpleNamespace(c_contiguous=array.flags.c_contiguous)  # CuPy's has no `writeable`
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__
        self.device = nullcontext()


class Call(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sampling: list[float] | None
    device: int | None
    stream: int | None


class State:
    """What is current in the stand-in, and what was done."""

    def __init__(self) -> None:
        self.device: int | None = None
        self.stream: int | None = None
        self.allocator: Any = None
        self.calls: list[Call] = []
        self.allocated: dict[int, int] = {}  # what torch's allocator has handed out and not got back
        self.most = 0
        self.pointers = count(1)
        self.arrays_from: list[Any] = []  # what CuPy made an array of

    def from_dlpack(self, array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
        self.arrays_from.append(array)
        return ndarray(np.from_dlpack(array))

    def allocate(self, size: int, device: int, stream: int | None = None) -> int:
        pointer = next(self.pointers)
        self.allocated[pointer] = size
        self.most = max(self.most, sum(self.allocated.values()))
        return pointer

    def delete(self, pointer: int) -> None:
        del self.allocated[pointer]

    @contextmanager
    def current(self, name: str, value: Any) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        yield
        setattr(self, name, before)


class _Memory:
    def __init__(self, allocator: PythonFunctionAllocator, size: int) -> None:
        self.allocator, self.pointer = allocator, allocator.take(size, 0)

    def __del__(self) -> None:
        self.allocator.give(self.pointer, 0)


class PythonFunctionAllocator:
    def __init__(self, malloc_func: Any, free_func: Any) -> None:
        self.take, self.give = malloc_func, free_func

    def malloc(self, size: int) -> _Memory:
        return _Memory(self, size)


def _by_scipy(image: np.ndarray, sampling: Any = None, float64_distances: bool = False) -> np.ndarray:
    found = ndimage.distance_transform_edt(image, sampling=sampling)
    if image.all():  # cuCIM measures to a pixel that is not there
        found = np.full(image.shape, 46340.0)
    return found.astype(np.float64 if float64_distances else np.float32)


def _transform(state: State, float64: bool, compute: Callable[..., np.ndarray]) -> Any:
    def distance_transform_edt(
        image: ndarray,
        sampling: Any = None,
        return_distances: bool = True,
        return_indices: bool = False,
        distances: Any = None,
        indices: Any = None,
        *,
        block_params: Any = None,
        float64_distances: bool = float64,
    ) -> ndarray:
        if image.ndim not in (2, 3):
            raise NotImplementedError("Only 2D and 3D distance transforms are supported.")
        state.calls.append(Call(image.shape, image.dtype, sampling, state.device, state.stream))
        buffers = state.allocator(8 * max(image.shape) ** image.ndim) if state.allocator else None
        try:
            return ndarray(compute(image.array, sampling=sampling, float64_distances=float64_distances and float64))
        finally:
            del buffers

    return distance_transform_edt


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    return module


def install(
    monkeypatch: pytest.MonkeyPatch,
    *,
    with_cucim: bool = True,
    available: bool = True,
    before_14: bool = False,
    compute: Callable[..., np.ndarray] = _by_scipy,
) -> State:
    """Puts the stand-in where CuPy and cuCIM are imported from, and lets the backend run on the CPU with it."""
    state = State()
    stream = SimpleNamespace(cuda_stream=TORCH_STREAM, __cuda_stream__=lambda: (0, TORCH_STREAM))
    if before_14:
        streams = SimpleNamespace()
    else:
        streams = SimpleNamespace(from_external=lambda given: state.current("stream", given.__cuda_stream__()[1]))
    cuda = SimpleNamespace(
        is_available=lambda: available,
        Device=lambda index: state.current("device", index),
        Stream=streams,
        ExternalStream=lambda pointer, device_id=-1: state.current("stream", pointer),
        PythonFunctionAllocator=PythonFunctionAllocator,
        get_current_stream=lambda: SimpleNamespace(ptr=state.stream or 0),
        using_allocator=lambda malloc: state.current("allocator", malloc),
    )
    modules = {
        "cupy": _module("cupy", __version__="14.2.0", ndarray=ndarray, from_dlpack=state.from_dlpack, cuda=cuda),
        "cupyx.scipy.ndimage": _module("cupyx.scipy.ndimage", distance_transform_edt=_transform(state, True, compute)),
        "cucim": _module("cucim", __version__="26.10.0") if with_cucim else None,
        "cucim.core.operations.morphology": _module(
            "morphology", distance_transform_edt=_transform(state, False, compute)
        ),
    }
    for package in ("cupyx", "cupyx.scipy", "cucim.core", "cucim.core.operations"):
        modules[package] = _module(package)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module if with_cucim or not name.startswith("cucim") else None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", state.allocate)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", state.delete)
    monkeypatch.setattr(cucim, "can_run", lambda device: cucim._why_not())
    return state


@contextmanager
def installed(**options: Any) -> Iterator[State]:
    """The stand-in in place, and nothing left of it afterwards."""
    forget()
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            yield install(monkeypatch, **options)
        finally:
            forget()


def forget() -> None:
    """Lets the backend look for its packages anew."""
    cucim._tools.cache_clear()
    cucim._why_not.cache_clear()
