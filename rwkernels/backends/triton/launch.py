"""How a Triton kernel is launched, by whichever part of the GPU backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor


class Call(NamedTuple):
    """A launch: the arguments of `launch`."""

    kernel: Any
    programs: int
    threads: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


_noted: ContextVar[list[Call] | None] = ContextVar("noted", default=None)


def blocks_of(elements: int, each: int) -> int:
    """How many programs of `each` elements take `elements`."""
    return -(-elements // each)


def warps_of(threads: int) -> int:
    """How many warps so many threads are."""
    return max(threads // (64 if torch.version.hip else 32), 1)


def launch(kernel: Any, programs: int, threads: int, *arguments: Any, **constants: Any) -> None:
    """Runs `programs` programs on the device and current stream of the first argument.

    While the compiler traces, the kernel becomes part of its graph; within `noted` it is noted.
    """
    noted = _noted.get()
    if noted is not None:
        noted.append(Call(kernel, programs, threads, arguments, constants))
        return
    first = arguments[0]  # a tuple in a launch of several levels, for which `Replay` has chosen the device
    place: AbstractContextManager[Any] = nullcontext()
    if isinstance(first, FunctionalTensor):
        kernel = torch.library.wrap_triton(kernel)
    elif isinstance(first, Tensor) and first.is_cuda and first.device.index != torch.cuda.current_device():
        place = torch.cuda.device(first.device)
    with place:
        kernel[(programs,)](*arguments, **constants, num_warps=warps_of(threads))


@contextmanager
def noted() -> Iterator[list[Call]]:
    """A context in which launches are noted and do not happen."""
    calls: list[Call] = []
    token = _noted.set(calls)
    try:
        yield calls
    finally:
        _noted.reset(token)
