"""The code that `torch.compile` generates for a CUDA device, on a machine that has none.

    generated_code(fn, (torch.empty(2, 4, 64, 64, device="meta", requires_grad=True),))   # [forward, backward]

Inductor writes Python with Triton kernels long before anything touches a device; only then are the kernels compiled and
run. `generated` lets it come so far and stops it there:

* the inputs are fake CUDA tensors, so Dynamo, AOTAutograd and Inductor see a CUDA device everywhere;
* what they ask about the device (is there one, its properties, its streams, its Triton target) is answered for an H100;
* AOTAutograd differentiates the fake graph with `python_backward` instead of PyTorch's engine, which wants a driver;
* the few real tensors that Inductor makes on the device, to fold constants, are made on the CPU;
* the backward is compiled with the forward (`force_non_lazy_backward_lowering`), since the forward will never run;
* `GraphLowering.compile_to_module` keeps the code, and hands back a module whose `call` ends the run.

`cuda_pretended` is the context in which all this holds. It undoes all of it on leaving: attributes are put back, the
answers that torch remembers about the device and the functions that Dynamo compiled are forgotten. What stays is what a
plain FakeTensorMode leaves too (on a machine without a GPU, torch's guard of the current CUDA device does nothing), and
Inductor's tables of graph patterns, which it fills once for every type of device.

This leans on private parts of PyTorch; `why_not()` says why it cannot run with the installed version.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.python_backward import python_backward

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    gcnArchName="",
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
)

# Modules whose cached functions hold answers about the device, and hold nothing that must happen only once.
_REMEMBER_THE_DEVICE = ("torch.utils._triton", "torch._inductor.utils", "torch._inductor.codegen.cuda.cuda_env")


@dataclass(frozen=True)
class Generated:
    """One graph that Inductor compiled."""

    phase: str  # "forward" or "backward"
    code: str
    inductor_bytes: int  # Inductor's own estimate of the bytes that its kernels read and write
    no_cuda_graph_because: str | None  # why mode="reduce-overhead" would not capture it


@dataclass(frozen=True)
class Call:
    """One call of a compiled function, up to where its forward would run."""

    graphs: list[Generated]  # those that were compiled anew for it, forward first
    arguments: list[Any]  # of the forward: tensors of the caller, and numbers


class _CodeIsComplete(Exception):
    """Raised where the compiled code would start to run, with its arguments."""


def why_not() -> str | None:
    """Why the harness cannot run here, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.backends.cuda.is_built() or torch.version.hip:  # the process would end in recording autograd
        return f"torch {torch.__version__} is not built with CUDA"
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        return f"torch {torch.__version__} cannot record autograd of CUDA tensors without a CUDA device"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: Triton's kernels are plain Python functions in this process"
    return None


def generated_code(fn: Callable[..., Any], inputs: Sequence[Any], dynamic: bool = False) -> list[str]:
    """The code of every graph of `torch.compile(fn, fullgraph=True, dynamic=dynamic)(*inputs)`, forward first.

    Tensors in `inputs` (in dataclasses and containers too) only lend shape, strides, type and `requires_grad`, so they
    may lie on any device: `device="meta"` costs nothing. There is a backward graph if one of them requires grad.
    """
    return [graph.code for graph in generated(fn, inputs, dynamic)]


def generated(fn: Callable[..., Any], inputs: Sequence[Any], dynamic: bool = False) -> list[Generated]:
    """As `generated_code`, with the phase of each graph and Inductor's estimate of its traffic."""
    return calls(fn, [inputs], dynamic)[0].graphs


def calls(fn: Callable[..., Any], inputs: Sequence[Sequence[Any]], dynamic: bool | None = None) -> list[Call]:
    """What `torch.compile(fn, fullgraph=True, dynamic=dynamic)` makes of one call after the other."""
    found = []
    graphs: list[Generated] = []
    with cuda_pretended(graphs):
        compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic)
        for each in inputs:
            leaves, structure = pytree.tree_flatten(tuple(each))
            fakes = [on_cuda(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            given = {id(fake): leaf for fake, leaf in zip(fakes, leaves, strict=True)}
            graphs.clear()
            try:
                compiled(*pytree.tree_unflatten(fakes, structure))
                arguments = []  # nothing was left to run
            except _CodeIsComplete as stop:
                arguments = [given.get(id(value), value) for value in stop.args[0]]
            found.append(Call(sorted(graphs, key=lambda graph: graph.phase == "backward"), arguments))
    return found


def on_cuda(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return fake.requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def cuda_pretended(graphs: list[Generated]) -> Iterator[None]:
    """A context of fake tensors on an H100 in which compiled graphs are kept in `graphs` and not run."""
    reason = why_not()
    if reason:
        raise RuntimeError(f"no code can be generated for a CUDA device: {reason}")
    from torch._dynamo.device_interface import get_registered_device_interfaces

    get_registered_device_interfaces()  # registers every device that is there, once: do not let it see ours
    _forget()
    try:
        with contextlib.ExitStack() as stack:
            for patch in _patches(graphs):
                stack.enter_context(patch)
            stack.enter_context(FakeTensorMode())
            yield
    finally:
        _forget()


def _forget() -> None:
    from torch._inductor.runtime.hints import DeviceProperties

    torch._dynamo.reset()
    DeviceProperties.create.cache_clear()
    for name in _REMEMBER_THE_DEVICE:
        for function in vars(sys.modules.get(name, SimpleNamespace())).values():
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()


def _patches(graphs: list[Generated]) -> list[Any]:
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering

    return [
        *device_patches(),
        python_backward(),
        mock.patch.object(
            UniformValueConstantFolder, "_deduce_value", _on_the_cpu(UniformValueConstantFolder._deduce_value)
        ),
        mock.patch.object(GraphLowering, "compile_to_module", functools.partialmethod(_keep_code, graphs)),
        inductor_config.patch(compile_threads=1, fx_graph_cache=False, cpp_wrapper=False),
        functorch_config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
    ]


class _OnTheCpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs or {}))
        return func(*args, **kwargs)


def _on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes its tensors on the CPU: Inductor computes constants of a graph as real tensors."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        with _OnTheCpu():
            return function(*args)

    return wrapper


def _keep_code(graph: Any, graphs: list[Generated]) -> Any:
    def call(arguments: list[Any]) -> NoReturn:
        raise _CodeIsComplete(list(arguments))

    code = graph.codegen()[0]
    phase = "backward" if graph.is_backward else "forward"
    graphs.append(Generated(phase, getattr(code, "value", code), graph.count_bytes()[0], _no_cuda_graph(graph)))
    return SimpleNamespace(call=call, __file__=f"{phase}.py", __name__=phase, key=None)


def _no_cuda_graph(graph: Any) -> str | None:
    from torch._inductor.cudagraph_utils import check_multiple_devices_or_any_cpu_nodes

    if graph.mutated_inputs:
        return f"it changes its inputs {sorted(graph.mutated_inputs)}"
    reason: str | None = graph.disable_cudagraphs_reason
    return reason or check_multiple_devices_or_any_cpu_nodes(graph.device_node_mapping)


def device_patches() -> list[Any]:
    """Patches that answer every question about the device that comes up on the way to the code."""
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from triton.backends.compiler import GPUTarget

    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * H100.major + H100.minor, H100.warp_size),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
    )
    properties = staticmethod(lambda device=None: H100)
    answers: dict[str, Callable[..., Any]] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_properties": lambda device=None: H100,
        "torch.cuda.get_device_capability": lambda device=None: (H100.major, H100.minor),
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.cuda.get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch.cuda._exchange_device": lambda index: 0,
        "torch.cuda._maybe_exchange_device": lambda index: 0,
        "torch.accelerator.is_available": lambda: False,  # else Dynamo asks for the current stream
    }
    return [
        *[mock.patch(name, answer) for name, answer in answers.items()],
        mock.patch.object(CudaInterface, "get_device_properties", properties),
        mock.patch.object(CudaInterface.Worker, "get_device_properties", properties),
        mock.patch.object(triton.runtime.driver, "_active", target),
        mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True)),
    ]
