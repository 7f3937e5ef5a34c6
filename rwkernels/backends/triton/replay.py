"""Launches that repeat: the same kernels with the same numbers, on buffers that are others every time.

An ordinary launch looks at each of its arguments, to find the binary that was compiled for arguments like these; a step
of several launches keeps the host busy for longer than the device. Here that is done once. Then a launch takes the
binary and its arguments, in which addresses alone are new.

That takes `JITFunction.warmup`, and a `CompiledKernel` that is launched with `kernel[grid](*arguments)`, as in Triton's
tutorial on the fused softmax. Where there is no such thing (the interpreter, a hook that compiles in its own way) an
ordinary launch is made. A user's hooks are called either way.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels.backends.triton.launch import Call, launch, warps_of

_ALIGNED = 16  # bytes: what Triton tells apart in an address


class Place(NamedTuple):
    """Where a pointer among the arguments of a `Call` points to."""

    buffer: int  # which one
    offset: int  # bytes
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        """The tensor there."""
        if self.offset == 0 and self.dtype == buffer.dtype and math.prod(self.shape) == buffer.numel():
            return buffer
        start = buffer.storage_offset() * buffer.element_size() + self.offset
        found = torch.empty(0, dtype=self.dtype, device=buffer.device)
        return found.set_(buffer.untyped_storage(), start // self.dtype.itemsize, self.shape, self.stride)


class _Pointer:
    """What Triton has to know of a tensor to choose a binary."""

    def __init__(self, place: Place, aligned: bool) -> None:
        self.dtype, self._address = place.dtype, 0 if aligned else 1
        self._bytes = sum((n - 1) * s for n, s in zip(place.shape, place.stride, strict=True)) + 1
        self._bytes *= place.dtype.itemsize

    def data_ptr(self) -> int:
        """An address as good as its own."""
        return self._address

    def ptr_range(self) -> int:
        """How many bytes it spans: AMD's binaries differ by that."""
        return self._bytes


class _Bound(NamedTuple):
    """Launches with their binaries."""

    tuples: Sequence[Callable[[Sequence[Any]], Any]]  # from pointers to the tuples of them that arguments are
    rest: tuple[Any, ...]  # arguments without a pointer
    # What runs a binary, and its arguments from pointers, tuples and rest, which follow each other.
    launches: Sequence[tuple[Callable[..., None], Callable[[Sequence[Any]], tuple[Any, ...]]]]


class Replay:
    """Calls whose pointers are `Place`s. It holds no tensor, and several threads may call it."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = tuple(calls)
        self._places = tuple(dict.fromkeys(place for call in calls for place in _places(call.arguments)))
        self._where = [(place.buffer, place.offset) for place in self._places]
        triton = importlib.import_module("triton")
        self._drivers, self._knobs = triton.runtime.driver, getattr(triton, "knobs", None)
        self._compiles = all(isinstance(call.kernel, triton.JITFunction) for call in calls)
        # Of one driver, and by what else chooses a binary: Triton's settings, and the buffers that are not aligned.
        self._bound: tuple[Any, dict[Any, _Bound | None]] = (None, {})

    def __call__(self, buffers: Sequence[Tensor]) -> None:
        """Launches on the device and current stream of the first buffer."""
        first = buffers[0]
        if first.is_cuda and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                self._run(buffers)
        else:
            self._run(buffers)

    def _run(self, buffers: Sequence[Tensor]) -> None:
        bases = [buffer.data_ptr() for buffer in buffers]
        found = self._binaries(bases) if self._compiles else None
        if found is None:
            self._launch(buffers)
            return
        pointers = self._pointers(bases, buffers)
        values = [*pointers, *[make(pointers) for make in found.tuples], *found.rest]
        driver = self._drivers.active
        stream = driver.get_current_stream(driver.get_current_device())
        for run, arguments in found.launches:
            run(*arguments(values), stream=stream)

    def _pointers(self, bases: Sequence[int], _: Sequence[Tensor]) -> list[Any]:
        """What stands for every place in the arguments of a binary: its address."""
        return [bases[buffer] + offset for buffer, offset in self._where]

    def _binaries(self, bases: Sequence[int]) -> _Bound | None:
        """What is launched; None where launches have to be ordinary ones."""
        unaligned: tuple[int, ...] = ()
        if functools.reduce(operator.or_, bases) % _ALIGNED:
            unaligned = tuple(index for index, base in enumerate(bases) if base % _ALIGNED)
        key = (unaligned, *self._settings())
        driver = self._drivers.active
        of_driver, kept = self._bound
        if of_driver is not driver:
            kept = {}
            self._bound = (driver, kept)
        try:
            return kept[key]
        except KeyError:
            found = kept[key] = self._bind(unaligned)
            return found

    def _settings(self) -> tuple[Any, ...]:
        """What an ordinary launch looks at beside its arguments."""
        knobs = self._knobs
        if knobs is None:
            return ()
        runtime = knobs.runtime
        mode = getattr(knobs.compilation, "instrumentation_mode", None)
        return runtime.debug, mode, getattr(runtime, "add_stages_inspection_hook", None)

    def _bind(self, unaligned: tuple[int, ...]) -> _Bound | None:
        number = {place: index for index, place in enumerate(self._places)}
        getters: list[Callable[[Sequence[Any]], Any]] = []
        rest: list[Any] = []
        launches = []
        for call in self._calls:
            run = _binary(call, unaligned)
            if run is None:
                return None
            found: list[tuple[str, int]] = []
            for value in _all_arguments(call):
                if isinstance(value, Place):
                    found.append(("place", number[value]))
                elif isinstance(value, tuple) and any(isinstance(each, Place) for each in value):
                    getters.append(_getter([number[each] for each in value]))
                    found.append(("tuple", len(getters) - 1))
                else:
                    rest.append(value)
                    found.append(("rest", len(rest) - 1))
            launches.append((run, found))
        first = {"place": 0, "tuple": len(number)}
        first["rest"] = first["tuple"] + len(getters)
        chosen = [(run, _getter([first[kind] + index for kind, index in found])) for run, found in launches]
        return _Bound(getters, tuple(rest), chosen)

    def _launch(self, buffers: Sequence[Tensor]) -> None:
        """By ordinary launches."""
        tensors = {place: place.of(buffers[place.buffer]) for place in self._places}

        def tensor(value: Any) -> Any:
            if isinstance(value, Place):
                return tensors[value]
            return tuple(map(tensor, value)) if isinstance(value, tuple) else value

        for call in self._calls:
            launch(call.kernel, call.programs, call.threads, *map(tensor, call.arguments), **call.constants)


def _places(value: Any) -> list[Place]:
    if isinstance(value, Place):
        return [value]
    return [place for each in value for place in _places(each)] if isinstance(value, tuple) else []


def _getter(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(indices) == 1:
        return lambda values: (values[indices[0]],)
    return operator.itemgetter(*indices)


def _all_arguments(call: Call) -> list[Any]:
    """The arguments for every parameter of the kernel, in order."""
    given: list[Any] = list(call.arguments)
    for parameter in list(inspect.signature(call.kernel.fn).parameters.values())[len(given) :]:
        given.append(call.constants.get(parameter.name, parameter.default))
    return given


def _binary(call: Call, unaligned: Sequence[int]) -> Callable[..., None] | None:
    """A function that launches the binary of a call, given an argument for every parameter; None if there is none."""

    def pointer(value: Any) -> Any:
        if isinstance(value, Place):
            return _Pointer(value, value.buffer not in unaligned and value.offset % _ALIGNED == 0)
        return tuple(map(pointer, value)) if isinstance(value, tuple) else value

    arguments = map(pointer, call.arguments)
    grid = (call.programs, 1, 1)
    compiled = call.kernel.warmup(*arguments, grid=grid, num_warps=warps_of(call.threads), **call.constants)
    if not hasattr(type(compiled), "__getitem__"):  # None where a hook has refused to compile
        return None
    run: Callable[..., None] = compiled[grid]
    return run
