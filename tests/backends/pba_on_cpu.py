"""cuCIM's and CuPy's own transform without a GPU: their Python code over NumPy, their CUDA kernels compiled by g++.

The threads of a block take turns, from one `__syncthreads` to the next, and blocks follow each other. What depends on
the order of threads is not seen here, nor how a GPU compiles them; that they compile is checked with NVRTC.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

LIBRARIES = ("cucim.core.operations.morphology", "cupyx.scipy.ndimage")

_SHIM = """
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <vector>
using std::abs;
#define __global__
#define __device__ static
#define __shared__ static
struct Place { int x, y, z; };
static Place blockIdx, threadIdx, blockDim;
struct short2 { short x, y; };
struct int2 { int x, y; };
static short2 make_short2(int x, int y) { return {short(x), short(y)}; }
static int2 make_int2(int x, int y) { return {x, y}; }
static int max(int a, int b) { return a > b ? a : b; }
static ucontext_t turn;
static std::vector<ucontext_t> threads(1024);
static std::vector<std::vector<char>> stacks(1024, std::vector<char>(1 << 14));
static std::vector<char> finished(1024);
static int running;
static std::function<void()> body;
static void __syncthreads() { swapcontext(&threads[running], &turn); }
static void enter() {
    body();
    finished[running] = 1;
}
static void launch(const int* grid, const int* block, bool waits, std::function<void()> kernel) {
    body = kernel;
    blockDim = {block[0], block[1], block[2]};
    int count = block[0] * block[1] * block[2];
    for (int b = 0; b < grid[0] * grid[1]; ++b) {
        blockIdx = {b % grid[0], b / grid[0], 0};
        for (int t = 0; t < count && waits; ++t) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks[t].data();
            threads[t].uc_stack.ss_size = stacks[t].size();
            threads[t].uc_link = &turn;
            makecontext(&threads[t], enter, 0);
        }
        for (int t = 0; t < count; ++t) finished[t] = 0;
        for (bool any = true; any;) {
            any = false;
            for (int t = 0; t < count; ++t) {
                if (finished[t]) continue;
                running = t;
                threadIdx = {t % block[0], t / block[0] % block[1], t / (block[0] * block[1])};
                waits ? void(swapcontext(&turn, &threads[t])) : enter();
                any = any || !finished[t];
            }
        }
    }
}
"""

_ELEMENTWISE = """
#include <cmath>
#include <cstddef>
template <class T> struct Raw {
    char* data; const long* sizes; const long* steps; long axes;
    const long* shape() const { return sizes; }
    T& operator[](long i) const {
        char* at = data;
        for (long axis = axes - 1; axis >= 0; i /= sizes[axis--]) at += i % sizes[axis] * steps[axis];
        return *reinterpret_cast<T*>(at);
    }
};
"""

_C_TYPES = {
    "u1": "unsigned char",
    "b1": "bool",
    "i2": "short",
    "i4": "int",
    "i8": "long",
    "f4": "float",
    "f8": "double",
}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def _compiled(source: str) -> ctypes.CDLL:
    name = Path(_folder().name) / hashlib.sha256(source.encode()).hexdigest()[:16]
    name.with_suffix(".cpp").write_text(source)
    command = ["g++", "-O1", "-w", "-shared", "-fPIC", "-std=c++17", f"{name}.cpp", "-o", f"{name}.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(f"{name}.so")


def kernels_of(code: str) -> dict[str, list[str]]:
    """The kernels of a CUDA source, and the types of their parameters."""
    found = re.findall(r"__global__ void (\w+)\(([^)]*)\)", code)
    return {name: [re.sub(r"\w+$", "", each.strip()).strip() for each in given.split(",")] for name, given in found}


class RawModule:
    """A CUDA source whose kernels run on the CPU."""

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        launchers = []
        for name, types in kernels_of(code).items():
            given = [f"({t})a[{i}]" if t.endswith("*") else f"*({t}*)a[{i}]" for i, t in enumerate(types)]
            waits = (
                "true" if "__syncthreads" in re.split(rf"void {name}\b", code)[1].split("__global__")[0] else "false"
            )
            launchers.append(
                f'extern "C" void launch_{name}(const int* grid, const int* block, void** a) '
                f"{{ launch(grid, block, {waits}, [&] {{ {name}({', '.join(given)}); }}); }}"
            )
        self.library = _compiled("\n".join([_SHIM, code, *launchers]))

    def get_function(self, name: str) -> Callable[..., None]:
        function = getattr(self.library, f"launch_{name}")

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            kept = [_pointer(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(kept))(*(pointer for pointer, _ in kept))
            function((ctypes.c_int * 3)(*grid, *[1] * (3 - len(grid))), (ctypes.c_int * 3)(*block), pointers)

        return launch


def _pointer(argument: Any) -> tuple[int | None, object]:
    """Where an argument lies, and what keeps it there."""
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.ctypes.data, argument
    value = ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int(argument)
    return ctypes.addressof(value), value


class ElementwiseKernel:
    """CuPy's kernel of one statement for every element, on the CPU."""

    def __init__(self, in_params: str, out_params: str, operation: str, options: tuple[str, ...] = ()) -> None:
        self.parameters = [given.split() for given in f"{in_params}, {out_params}".split(", ")]
        self.operation = operation

    def __call__(self, *arrays: np.ndarray, size: int | None = None) -> None:
        types, lines = {}, []
        for at, ((*raw, letter, name), array) in enumerate(zip(self.parameters, arrays, strict=True)):
            types[letter] = _C_TYPES[array.dtype.str[1:]]
            values = f"{name}{'' if raw else '_values'}"
            lines.append(f"const Raw<{letter}> {values}{{(char*)data[{at}], shapes[{at}], strides[{at}], axes[{at}]}};")
            if not raw:
                size = array.size
        each = [f"{letter}& {name} = {name}_values[i];" for *raw, letter, name in self.parameters if not raw]
        names = [f"typedef {c_type} {letter};" for letter, c_type in types.items()]
        head = 'extern "C" void run(long size, void** data, long** shapes, long** strides, long* axes) {'
        loop = ["for (long i = 0; i < size; ++i) {", *each, self.operation, "}}"]
        source = "\n".join([_ELEMENTWISE, *names, head, *lines, *loop])
        assert size is not None
        longs = [[(ctypes.c_long * array.ndim)(*of(array)) for array in arrays] for of in (np.shape, _strides)]
        tables = [(ctypes.c_void_p * len(arrays))(*map(ctypes.addressof, each)) for each in longs]
        data = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        axes = (ctypes.c_long * len(arrays))(*(array.ndim for array in arrays))
        _compiled(source).run(ctypes.c_long(size), data, *tables, axes)


def _strides(array: np.ndarray) -> tuple[int, ...]:
    return array.strides


def numpy_as_cupy(**kernels: Any) -> SimpleNamespace:
    """What the transform uses of CuPy, over NumPy."""
    names = (
        "int16 int32 int64 float32 float64 ndarray dtype iinfo zeros zeros_like empty empty_like squeeze asarray stack "
        "unique atleast_1d pad"
    )
    return SimpleNamespace(**{name: getattr(np, name) for name in names.split()}, **kernels)


@contextmanager
def transform(library: str, cupy: SimpleNamespace) -> Iterator[Callable[..., Any]]:
    """`distance_transform_edt` of `library`, over `cupy` in place of CuPy."""
    package = pytest.importorskip(library, exc_type=ImportError)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("_distance_transform", "_pba_2d", "_pba_3d"):
            module = importlib.import_module(f"{library}.{name}")
            for alias in {"cupy", "cp"} & set(vars(module)):
                monkeypatch.setattr(module, alias, cupy)
            if hasattr(module, "pad"):
                monkeypatch.setattr(module, "pad", np.pad)
            for function, value in list(vars(module).items()):
                if hasattr(value, "__wrapped__"):  # memoized for every device, of which there is none
                    monkeypatch.setattr(module, function, value.__wrapped__)
        yield package.distance_transform_edt
