"""The cuCIM backend over cuCIM's and CuPy's own code: their kernels run on the CPU, and compile for GPUs with NVRTC."""

from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from itertools import chain

import cupy_standin
import numpy as np
import pba_on_cpu
import pytest
import torch
from samples import assert_same, scene, scipy_class_distance, scipy_distance

import rwkernels as rw
from rwkernels.backends import reference

SHAPES = [(13, 37), (67, 5), (131,), (3, 19, 28), (9, 17, 1)]
SPACING = (2.5, 0.4, 1.3)
NAMES = ("random", "blobs", "one-odd-pixel", "sparse", "uniform")
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
scenes = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=pba_on_cpu.LIBRARIES, ids=["cucim", "cupy"])
def transform(request) -> Iterator[Callable[..., np.ndarray]]:
    """The transform of a library, on the CPU; the backend runs over it."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    cupy = pba_on_cpu.numpy_as_cupy(RawModule=pba_on_cpu.RawModule, ElementwiseKernel=pba_on_cpu.ElementwiseKernel)
    name = request.param
    with (
        pba_on_cpu.transform(name, cupy) as compute,
        cupy_standin.installed(with_cucim=name.startswith("cucim"), compute=compute),
    ):
        yield compute


@scenes
@shapes
def test_distances_and_maps_by_their_kernels_are_right(transform, name, shape):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    options = {"spatial_dims": len(shape), "backend": "cucim"}
    for step in (None, spacing):
        for border in (False, True):
            found = rw.distance_transform(labels, spacing=step, black_border=border, **options)
            assert_same(found, scipy_distance(labels, step, border))
    found = rw.class_distance_transform(labels, 4, spacing=spacing, **options)
    assert_same(found, scipy_class_distance(labels, 4, spacing))
    maps = rw.rectified_map(labels, 4, spacing=spacing, **options)
    assert_same(maps.foreground, reference.rectified(labels, 4, spacing))
    found = rw.boundary_map(labels, 4, spacing=spacing, absent=3.0, inside_offset=0.5, **options)
    assert_same(found, reference.boundary(labels, 4, spacing, 3.0, 0.5))


@pytest.mark.parametrize("shape", [(257, 300), (40, 33, 47)], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ["one-odd-pixel", "circle"])
def test_far_distances_by_their_kernels_are_right(transform, name, shape):
    labels, spacing = scene(name, shape, batch=1), SPACING[: len(shape)]
    squared = rw.distance_transform(labels, squared=True, backend="cucim")
    assert torch.equal(squared, scipy_distance(labels).square().round().float())
    assert_same(rw.distance_transform(labels, spacing=spacing, backend="cucim"), scipy_distance(labels, spacing))


@pytest.mark.parametrize("shape", [(13, 37), (3, 19, 35)], ids=["2d", "3d"])
def test_an_image_without_a_zero_is_what_their_transform_gets_wrong(transform, shape):
    found = transform(np.ones(shape, np.uint8))
    assert np.isfinite(found).all()
    assert found.max() > 1
    labels = torch.ones((1, *shape), dtype=torch.int64)
    assert rw.distance_transform(labels, backend="cucim").isinf().all()


class _Recorder:
    """In place of a module of kernels: keeps their source and how they are launched, and runs nothing."""

    sources: list[str]
    launches: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        self.sources.append(code)

    def get_function(self, name):
        return lambda grid, block, arguments: self.launches.append((name, grid, block))


def _nothing(**_: object) -> Callable[..., None]:
    """In place of an elementwise kernel."""
    return lambda *arrays, size=None: None


def _recorded(library: str, shape: tuple[int, ...], sampling: tuple[float, ...] | None) -> type[_Recorder]:
    recorder = type("Recorder", (_Recorder,), {"sources": [], "launches": []})
    cupy = pba_on_cpu.numpy_as_cupy(RawModule=recorder, ElementwiseKernel=_nothing)
    with pba_on_cpu.transform(library, cupy) as transform:
        transform(np.ones(shape, np.uint8), sampling=sampling, float64_distances=False)
    return recorder


def _wide_sources(library: str) -> list[str]:
    """The sources for images whose coordinates take more bits; memory for those would be much."""
    pytest.importorskip(library, exc_type=ImportError)
    flat, deep = (importlib.import_module(f"{library}._pba_{axes}d") for axes in (2, 3))
    return [
        flat.get_pba2d_src.__wrapped__(block_size_2d=32, marker=-(2**30), pixel_int2_t="int2"),
        deep.get_pba3d_src.__wrapped__(block_size_3d=32, size_max=2048),
    ]


def _nvrtc() -> ctypes.CDLL:
    """NVRTC of torch's own CUDA libraries."""
    found = importlib.util.find_spec("nvidia")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    paths = chain.from_iterable(glob.glob(f"{folder}/**/libnvrtc.so.*", recursive=True) for folder in folders)
    path = next(paths, None)
    if path is None:
        pytest.skip("torch's CUDA libraries with NVRTC are missing")
    return ctypes.CDLL(path)


def _cubin(source: str, architecture: str) -> bytes:
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"pba.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    result = nvrtc.nvrtcCompileProgram(program, 1, options)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert result == 0, log.value.decode()
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    binary = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetCUBIN(program, binary) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("library", pba_on_cpu.LIBRARIES, ids=["cucim", "cupy"])
class TestWithNvrtc:
    @pytest.mark.parametrize("spacing", [None, SPACING], ids=["even", "uneven"])
    @pytest.mark.parametrize("shape", [(256, 256), (128, 128, 128)], ids=["2d", "3d"])
    def test_their_kernels_compile_as_our_call_asks_for_them(self, library, shape, spacing, architecture):
        recorder = _recorded(library, shape, spacing and spacing[: len(shape)])
        (source,) = recorder.sources
        binary = _cubin(source, architecture)
        assert binary[:4] == b"\x7fELF"
        for name, grid, block in recorder.launches:
            assert f".text.{name}\0".encode() in binary
            assert np.prod(block) <= 1024
            assert all(size <= limit for size, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False))

    def test_their_kernels_for_larger_images_compile(self, library, architecture):
        for source in _wide_sources(library):
            binary = _cubin(source, architecture)
            assert all(f".text.{name}\0".encode() in binary for name in pba_on_cpu.kernels_of(source))
