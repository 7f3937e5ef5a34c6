"""The cuCIM backend over a stand-in for CuPy and cuCIM: how it calls them, and what it does about their traps.

Its numbers are compared in every test that takes the fixture `backend`, under the name "cucim-over-scipy".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import cupy_standin
import numpy as np
import pytest
import torch
from samples import assert_same, scene, scipy_class_distance, scipy_distance
from torch.utils._python_dispatch import TorchDispatchMode

import rwkernels as rw
from rwkernels import arrays
from rwkernels.backends import cucim, reference
from rwkernels.backends.problem import MapProblem

CUDA = torch.device("cuda", 0)
MAKERS = [rw.rectified_map, rw.boundary_map, rw.class_distance_transform]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@pytest.fixture
def standin() -> Iterator[cupy_standin.State]:
    with cupy_standin.installed() as state:
        yield state


def test_sampling_is_handed_over_only_where_the_axes_differ(standin):
    labels = scene("blobs", (9, 14))
    for spacing in (None, 2.5, (0.3, 0.3)):
        found = rw.distance_transform(labels, spacing=spacing, backend="cucim")
        assert_same(found, scipy_distance(labels, spacing))
    assert [call.sampling for call in standin.calls] == [None] * len(standin.calls)
    standin.calls.clear()
    rw.rectified_map(labels, 3, spacing=(2.5, 0.4), backend="cucim")
    assert [call.sampling for call in standin.calls] == [[2.5, 0.4]] * 6


@pytest.mark.parametrize("before_14", [False, True], ids=["cupy-14", "before-14"])
@pytest.mark.parametrize("with_cucim", [True, False], ids=["cucim", "cupy-alone"])
def test_cupy_works_on_the_stream_and_memory_of_torch_and_gives_it_back(with_cucim, before_14):
    labels = scene("blobs", (9, 14, 5))
    with cupy_standin.installed(with_cucim=with_cucim, before_14=before_14) as state:
        found = rw.boundary_map(labels, 3, backend="cucim")
        assert {call.stream for call in state.calls} == {cupy_standin.TORCH_STREAM}
        assert {call.dtype for call in state.calls} == {np.dtype(np.uint8)}
        assert (state.stream, state.device, state.allocator, state.allocated) == (None, None, None, {})
        assert state.most == 8 * 14**3  # the buffers of one call: nothing stays for the next one
    assert_same(found, reference.boundary(labels, 3, (1.0, 1.0, 1.0)))


def test_masks_cross_without_a_copy(standin):
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2, 3] = False
    cucim._to_zero(mask, cucim._Metric((1.0, 1.0)))
    assert standin.arrays_from[0].data_ptr() == mask.data_ptr()


@pytest.mark.parametrize("shape", [(9, 14), (5, 4, 7), (12,)], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("black_border", [False, True])
def test_an_image_of_one_label_gets_inf_whatever_the_transform_says(standin, shape, black_border):
    labels = scene("uniform", shape)
    options = {"spatial_dims": len(shape), "backend": "cucim"}
    found = rw.distance_transform(labels, black_border=black_border, **options)
    assert_same(found, scipy_distance(labels, black_border=black_border))
    assert_same(rw.class_distance_transform(labels, 3, **options), scipy_class_distance(labels, 3))
    foreground = rw.rectified_map(labels, 3, **options).foreground
    assert torch.equal(foreground, torch.full_like(foreground, -1))
    assert rw.boundary_map(labels, 3, absent=7.0, **options)[:, 2].unique().tolist() == [7.0]


class _NoWait(TorchDispatchMode):
    """Refuses every operator whose result, or its shape, the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "aten.equal", "aten.index.")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(name in str(func) for name in self.WAITS):
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _fill(name: str, labels: torch.Tensor, num_classes: int, validate: bool) -> None:
    """Calls the backend itself: into an operator of the package no mode looks."""
    channels, image = torch.empty(2, num_classes, 9, 14), torch.empty(2, 9, 14)
    problem = MapProblem(labels, num_classes, (1.0, 1.0), None, True, 2, validate, None)
    if name == "class distance":
        cucim.fill_class_distance(channels, problem, squared=True)
    elif name == "boundary":
        cucim.fill_boundary(channels, problem, absent=7.0, inside_offset=1.0)
    else:
        count, maxima = torch.empty(2, dtype=torch.int64), torch.ones(2, num_classes)
        for given in (None, maxima):
            cucim.fill_rectified(image, count, problem._replace(class_max=given))


@pytest.mark.parametrize("num_classes", [3, 12])
@pytest.mark.parametrize("name", ["class distance", "boundary", "rectified"])
def test_nothing_waits_for_the_device_where_the_classes_are_known(standin, name, num_classes):
    labels = scene("without-class-one", (9, 14))
    with _NoWait():
        _fill(name, labels, num_classes, validate=False)
    with pytest.raises(RuntimeError, match=r"nonzero\S* waits for the device"), _NoWait():
        _fill(name, labels, num_classes, validate=True)


def test_distances_between_labels_of_any_value_wait_to_learn_the_labels(standin):
    labels = torch.tensor([2**62, -(2**62), -(2**63)])[scene("blobs", (9, 14))]
    problem = MapProblem(labels, 0, (1.0, 1.0), None, False, None, False, None)
    with pytest.raises(RuntimeError, match=r"unique\S* waits for the device"), _NoWait():
        cucim.fill_distance(torch.empty(2, 9, 14), problem, squared=False)


@pytest.mark.parametrize(("num_classes", "calls"), [(1, 1), (2, 2), (4, 4), (8, 8), (9, 8), (118, 14)])
def test_many_classes_take_two_transforms_for_every_bit(standin, num_classes, calls):
    labels = torch.arange(19 * 14).reshape(1, 19, 14) // 2 % num_classes
    foreground = rw.rectified_map(labels, num_classes, backend="cucim").foreground
    assert len(standin.calls) == calls
    assert_same(foreground, reference.rectified(labels, num_classes, (1.0, 1.0)))


def test_labels_out_of_range_bound_the_classes_and_hold_nan(standin):
    labels = torch.tensor([[0, 0, 9, 1, 1, -5, 2, 2, 300, 11, 11, 11]])
    for num_classes in (3, 12):
        found = rw.rectified_map(labels, num_classes, spatial_dims=1, validate=False, backend="cucim").foreground
        expected = reference.rectified(labels, num_classes, (1.0,))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0, equal_nan=True)
        found = rw.boundary_map(labels, num_classes, spatial_dims=1, validate=False, backend="cucim")
        expected = reference.boundary(labels, num_classes, (1.0,))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0, equal_nan=True)


def test_cupy_alone_gives_float32_too_and_says_so():
    labels = scene("blobs", (9, 14))
    with cupy_standin.installed(with_cucim=False) as state:
        assert_same(rw.class_distance_transform(labels, 3, backend="cucim"), scipy_class_distance(labels, 3))
        assert len(state.calls) == 6
        status = next(status for status in rw.backends() if (status.name, status.device) == ("cucim", "cpu"))
        assert str(status).startswith("cucim on cpu: can run with CuPy 14.2.0, as cuCIM cannot be imported (")
    with cupy_standin.installed():
        assert cucim.note() == "with cuCIM 26.10.0"


@pytest.fixture
def cuda_build(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """A build of torch with CUDA, as far as the backend asks."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cupy_standin.forget()
    yield monkeypatch
    cupy_standin.forget()


def test_a_missing_cupy_a_missing_device_and_another_vendor_are_named(cuda_build):
    can_run = cucim.can_run
    assert can_run(torch.device("cpu")) == "it computes on NVIDIA GPUs only"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        assert can_run(CUDA).startswith("cupy cannot be imported (")
    with cupy_standin.installed(available=False):
        assert can_run(CUDA) == "cupy finds no CUDA device that it can use"
    with cupy_standin.installed():
        assert can_run(CUDA) is None
        cuda_build.setattr(torch.version, "hip", "6.4")
        assert can_run(CUDA) == "it computes on NVIDIA GPUs only"


def test_it_is_no_part_of_a_cuda_graph(cuda_build):
    can_run = cucim.can_run
    with cupy_standin.installed():
        cuda_build.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert can_run(CUDA).startswith("a CUDA graph is being captured")


@makers
def test_cupy_arrays_come_in_and_go_out_as_such(standin, make):
    labels = scene("blobs", (9, 14))
    found = make(cupy_standin.ndarray(labels.numpy()), 3, spacing=(2.0, 0.5), backend="cucim")
    expected = make(labels, 3, spacing=(2.0, 0.5), backend="reference")
    if make is rw.rectified_map:
        assert isinstance(found.labels, cupy_standin.ndarray)
        assert found.labels.array.ctypes.data == labels.data_ptr()
        found, expected = found.foreground, expected.foreground
    assert isinstance(found, cupy_standin.ndarray)
    np.testing.assert_allclose(found.array, expected.numpy(), rtol=1e-6)


def test_a_cupy_buffer_is_written_and_a_cupy_class_maximum_taken(standin):
    labels, out = scene("blobs", (9, 14)), np.zeros((2, 9, 14), np.float32)
    given, buffer = cupy_standin.ndarray(labels.numpy()), cupy_standin.ndarray(out)
    rw.distance_transform(given, out=buffer)
    np.testing.assert_allclose(out, scipy_distance(labels).numpy(), rtol=1e-6)
    maxima = cupy_standin.ndarray(np.full((2, 3), 100.0))
    maps = rw.rectified_map(given, 3, class_max=maxima)
    np.testing.assert_allclose(maps.foreground.array, -out / 100, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^out: expected a contiguous, writeable array"):
        rw.distance_transform(given, out=cupy_standin.ndarray(out.transpose(0, 2, 1)))


def test_a_cupy_array_is_read_on_its_own_device(standin):
    entered = []

    class Device(nullcontext):
        def __enter__(self):
            entered.append("device")

    value = cupy_standin.ndarray(np.zeros((1, 2, 3), np.int64))
    value.device = Device()
    value.__dlpack__ = lambda inner=value.__dlpack__, **given: entered.append("dlpack") or inner(**given)
    rw.distance_transform(value)
    assert entered == ["device", "dlpack"]


@pytest.mark.parametrize(("pointer", "stream"), [(0, "default"), (1, "default"), (0x77, 0x77)])
def test_torch_keeps_the_memory_of_a_result_for_the_stream_of_cupy(standin, monkeypatch, pointer, stream):
    recorded: list[object] = []
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer: pointer)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "default")
    monkeypatch.setattr(standin, "stream", pointer)
    values = np.ones(3, np.float32)
    result = SimpleNamespace(
        is_cuda=True,
        device=CUDA,
        record_stream=recorded.append,
        __dlpack__=values.__dlpack__,
        __dlpack_device__=values.__dlpack_device__,
    )
    assert arrays._to_cupy(result).array.ctypes.data == values.ctypes.data
    assert recorded == [stream]


def test_an_array_is_known_though_cupy_is_blocked(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert rw.distance_transform(np.array([[[0, 0, 1]]])).tolist() == [[[2, 1, 1]]]
