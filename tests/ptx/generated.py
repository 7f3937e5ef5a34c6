"""Runs the code that `torch.compile` generates for a CUDA device on tensors of the CPU.

The module is executed as Inductor wrote it: Inductor's runtime compiles every kernel, the user's and its own, from the
signature, the constants and the attributes that stand in the code, and makes its launchers. Only the device is not
there: kernels run as PTX in the emulator, buffers are tensors of the CPU, filled with what no kernel computes, and
operators that the code leaves whole run on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ptx.driver import Device, Launch, emulated_device

Number = int | float


def _the_first(tuner: Any, *_: Any, **__: Any) -> dict[Any, int]:
    """Stands in for the timings of a kernel's configurations: an emulator has none."""
    return {launcher: place for place, launcher in enumerate(tuner.launchers)}


@contextmanager
def _no_gpu() -> Iterator[Device]:
    import torch._inductor.config as inductor_config
    from torch._inductor.async_compile import CompiledTritonKernels
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from benchmarks import inductor

    with ExitStack() as stack:
        for patch in inductor.device_patches():
            stack.enter_context(patch)
        for name, answer in {
            "torch._inductor.runtime.triton_heuristics.AutotuneCache.create": lambda *_: None,  # would outlive us
            "torch.cuda._DeviceGuard": lambda index: nullcontext(),
            "torch.cuda.set_device": lambda index: None,
            "torch._dynamo.device_interface.DeviceGuard": lambda interface, index: nullcontext(),
            "torch._inductor.runtime.triton_helpers.set_driver_to_gpu": lambda: None,
        }.items():
            stack.enter_context(mock.patch(name, answer))
        stack.enter_context(mock.patch.object(CachingAutotuner, "benchmark_all_configs", _the_first))
        stack.enter_context(inductor_config.patch(compile_threads=1, use_static_triton_launcher=False))
        for loaded in (PyCodeCache, CompiledTritonKernels):  # kernels that know another device
            loaded.cache_clear()
            stack.callback(loaded.cache_clear)
        yield stack.enter_context(emulated_device("cuda", 90))


def _empty(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A buffer in which nothing looks as if it had been computed."""
    buffer = torch.empty_strided(tuple(size), tuple(stride), dtype=dtype)
    return buffer.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max)


def _load(code: str) -> dict[str, Any]:
    """The names of the generated module, its kernels compiled."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    names: dict[str, Any] = {"__name__": "generated", "__file__": "generated.py"}
    exec(compile(code, "<generated>", "exec"), names)
    names |= {"empty_strided_cuda": _empty, "get_raw_stream": lambda index: 0}
    for kernel in names.values():
        if isinstance(kernel, CachingAutotuner):
            for result in kernel.compile_results:
                result.kernel.run.compiled = result.kernel
    return names


@dataclass(frozen=True)
class Run:
    """What running forward and backward gave."""

    loss: Tensor
    gradients: list[Tensor]  # of the arguments that have one
    launches: list[Launch]


def run_generated(code: Sequence[str], arguments: Sequence[Tensor | Number], upstream: Tensor | None = None) -> Run:
    """Runs a forward of one result and its backward; `arguments` are those of the forward graph."""
    gradients = []
    with _no_gpu() as device:
        loss, *saved = _load(code[0])["call"](list(arguments))
        if len(code) > 1:
            numbers = [value for value in saved if not isinstance(value, Tensor)]
            tensors = [value for value in saved if isinstance(value, Tensor)]
            upstream = torch.ones_like(loss) if upstream is None else upstream
            gradients = _load(code[1])["call"]([*numbers, *tensors, upstream])
    return Run(loss, [gradient for gradient in gradients if gradient is not None], device.launches)
