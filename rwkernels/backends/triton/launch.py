"""How a Triton kernel is launched, by whichever part of the GPU backend."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor


def blocks_of(elements: int, each: int) -> int:
    """How many programs of `each` elements take `elements`."""
    return -(-elements // each)


def launch(kernel: Any, programs: int, threads: int, *arguments: Any, **constants: Any) -> None:
    """Runs `programs` programs on the device and current stream of the first argument.

    While the compiler traces, the kernel becomes part of its graph.
    """
    first: Tensor = arguments[0]
    place: AbstractContextManager[Any] = nullcontext()
    if isinstance(first, FunctionalTensor):
        kernel = torch.library.wrap_triton(kernel)
    elif first.is_cuda and first.device.index != torch.cuda.current_device():
        place = torch.cuda.device(first.device)
    warps = threads // (64 if torch.version.hip else 32)
    with place:
        kernel[(programs,)](*arguments, **constants, num_warps=max(warps, 1))
