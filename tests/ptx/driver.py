"""A device that is not there: Triton compiles for it and launches on it, and no GPU is needed.

Within `emulated_device("cuda", 90)` an ordinary launch with torch tensors of the CPU takes Triton's own way: its
launcher specialises the arguments and its compiler makes the PTX and the binary. Then the emulator runs the PTX on the
memory of the tensors. With `run=False`, and on AMD, launches are only recorded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from ptx import binary
from ptx.cta import BUDGET, Grid
from ptx.memory import Counts
from ptx.run import run_ptx
from ptx.values import Type, encoder, type_of

MAX_SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148, 120: 188}
HIP_SHARED, HIP_MULTIPROCESSORS = 65536, 304
SCALARS = {"fp16": "f16", "bf16": "bf16", "fp32": "f32", "f32": "f32", "fp64": "f64"}

_indices = itertools.count(1000)  # each device has its own, because Triton keeps compiled kernels by index


@dataclass
class Launch:
    """One launch. `compiled` is Triton's CompiledKernel; `counts` is None where nothing ran."""

    name: str
    compiled: Any
    grid: Grid
    arguments: dict[str, Any]  # by name, all that the caller gave, constexprs too
    constants: dict[str, Any]  # by name: constexprs, None, integers that Triton took for 1
    signature: dict[str, Any]  # Triton's type of each parameter, such as "*fp32"
    divisible: frozenset[str]  # parameters that Triton takes for multiples of 16
    counts: Counts | None = None

    @property
    def asm(self) -> dict[str, Any]:
        return self.compiled.asm

    @property
    def metadata(self) -> Any:
        return self.compiled.metadata

    @property
    def num_warps(self) -> int:
        return self.metadata.num_warps

    @property
    def shared(self) -> int:
        return self.metadata.shared

    @property
    def ptx(self) -> str:
        return self.asm["ptx"]

    @property
    def sass(self) -> str:
        return binary.sass(self.asm["cubin"])

    @property
    def resources(self) -> binary.Resources:
        if "cubin" in self.asm:
            return binary.cuda_resources(self.asm["cubin"], self.shared)
        return binary.hip_resources(self.asm["amdgcn"], self.shared)


@dataclass
class Device:
    """What `emulated_device` gives; `launches` are in order."""

    target: GPUTarget
    index: int
    runs: bool
    budget: int
    launches: list[Launch] = field(default_factory=list)
    functions: set[Any] = field(default_factory=set)

    def properties(self, _index: int) -> dict[str, Any]:
        cuda = self.target.backend == "cuda"
        return {
            "max_shared_mem": MAX_SHARED.get(self.target.arch, 101376) if cuda else HIP_SHARED,
            "multiprocessor_count": MULTIPROCESSORS.get(self.target.arch, 100) if cuda else HIP_MULTIPROCESSORS,
            "max_num_regs": 65536,
            "warpSize": self.target.warp_size,
            "sm_clock_rate": 1_500_000,
            "mem_clock_rate": 2_000_000,
            "mem_bus_width": 5120,
            "arch": self.target.arch,
        }

    def launcher(self, source: Any, metadata: Any) -> _Launcher:
        return _Launcher(self, source, metadata)


class _Launcher:
    """What Triton calls to launch one compiled kernel."""

    def __init__(self, device: Device, source: Any, metadata: Any) -> None:
        self.device, self.source, self.metadata = device, source, metadata
        self.names: list[str] = list(source.fn.arg_names)
        self.compiled: Any = None  # set by who compiled the kernel without Triton's own cache

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
        launch_metadata, enter, leave, *arguments = rest
        if enter is not None:
            enter(launch_metadata)
        launch = self._record((int(x), int(y), int(z)), arguments)
        self.device.functions.add(self.source.fn)
        self.device.launches.append(launch)
        if self.device.runs:
            emulate(launch, self.device.budget)
        if leave is not None:
            leave(launch_metadata)

    def _compiled(self) -> Any:
        """The CompiledKernel that this launcher belongs to: Triton does not pass it."""
        if self.compiled is not None:
            return self.compiled
        kernels = self.source.fn.device_caches[self.device.index][0].values()
        return next(kernel for kernel in kernels if kernel._run is self)

    def _record(self, grid: Grid, arguments: list[Any]) -> Launch:
        def named(path: Any) -> str:
            path = path if isinstance(path, tuple) else (path,)
            first = self.names[path[0]] if isinstance(path[0], int) else path[0]
            return ".".join([first, *map(str, path[1:])])

        divisible = {
            named(path) for path, attributes in self.source.attrs.items() if ["tt.divisibility", 16] in attributes
        }
        return Launch(
            name=self.metadata.name,
            compiled=self._compiled(),
            grid=grid,
            arguments=dict(zip(self.names, arguments, strict=True)),
            constants={named(path): value for path, value in self.source.constants.items()},
            signature=dict(self.source.signature),
            divisible=frozenset(divisible),
        )


def _flatten(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The parameters that the binary has: tuples become their entries, constants vanish."""
    if isinstance(kind, tuple):
        for place, (inner, each) in enumerate(zip(kind, value, strict=True)):
            yield from _flatten(f"{name}[{place}]", inner, each)
    elif kind != "constexpr":
        yield name, kind, value


def _scalar_bits(kind: str, value: Any) -> int:
    if kind in SCALARS:
        type_ = type_of(SCALARS[kind]) or Type("f", 32)
        return int(encoder(type_, type_.raw)(np.array([value], type_.number))[0])
    return int(value) & (2 ** int(kind[1:].replace("1", "8") if kind in ("i1", "u1") else kind[1:]) - 1)


def emulate(launch: Launch, budget: int = BUDGET, start: int = 0) -> None:
    """Runs a recorded launch, from CTA `start` on, on the memory of its tensors; `launch.counts` tells what it did."""
    arguments = []
    for declared, type_ in launch.signature.items():
        for name, kind, value in _flatten(declared, type_, launch.arguments[declared]):
            if not kind.startswith("*"):
                value = _scalar_bits(kind, value)
            elif not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                raise TypeError(f"{name}: expected a tensor of the CPU, got {value!r}")
            arguments.append((name, value))
    if launch.metadata.global_scratch_size or launch.metadata.profile_scratch_size:
        raise NotImplementedError(f"kernel {launch.name} needs scratch memory")
    launch.counts = run_ptx(launch.ptx, arguments, launch.grid, launch.shared, budget, start)


class _Driver(DriverBase):
    """What Triton asks a driver for, answered for a device that is not there."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.launcher_cls = device.launcher
        self.utils = SimpleNamespace(
            get_device_properties=device.properties,
            # Module, function, registers, spills, threads; no module, so that Triton has none to unload later.
            load_binary=lambda name, binary, shared, index: (None, name, 0, 0, 1024),
            unload_module=lambda module: None,
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> GPUTarget:
        return self.device.target

    def get_current_device(self) -> int:
        return self.device.index

    def set_current_device(self, index: int) -> None:
        pass

    def get_current_stream(self, _index: int | None = None) -> int:
        return 0

    def get_device_capability(self, _index: int | None = None) -> tuple[int, int]:
        arch = self.device.target.arch
        return divmod(arch, 10) if isinstance(arch, int) else (9, 4)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("a device that is not there has no speed")


@contextmanager
def emulated_device(backend: str, arch: int | str, run: bool = True, budget: int = BUDGET) -> Iterator[Device]:
    """Triton's device for the time of a `with` block: ("cuda", 80) or ("hip", "gfx942"), which never runs.

    `budget` bounds the instructions of each group of CTAs that run together.
    """
    warp_size = 64 if backend == "hip" and str(arch).startswith("gfx9") else 32
    device = Device(GPUTarget(backend, arch, warp_size), next(_indices), run and backend == "cuda", budget)
    config = triton.runtime.driver
    before = config._active
    config.set_active(_Driver(device))
    try:
        yield device
    finally:
        config.set_active(before)
        for function in device.functions:
            function.device_caches.pop(device.index, None)
