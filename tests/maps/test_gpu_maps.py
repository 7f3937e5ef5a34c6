"""Distances and maps on CUDA: the comparisons of `test_distance.py` and `test_maps.py`, on every backend there."""

from __future__ import annotations

import pytest
import torch
from samples import SPACING, assert_same, one_hot, scene, scenes, scipy_class_distance, scipy_distance, shapes
from torch.utils import _pytree as pytree

import rwkernels as rw
from rwkernels.backends import load, reference

pytestmark = pytest.mark.gpu

dtypes = pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str
)


@scenes
@shapes
@pytest.mark.parametrize("black_border", [False, True], ids=["open", "black-border"])
def test_distance_is_what_scipy_gives_class_by_class(gpu_backend, name, shape, black_border):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    options = {"black_border": black_border, "spatial_dims": len(shape), "backend": gpu_backend}
    found = rw.distance_transform(labels.cuda(), **options)
    assert found.is_cuda
    assert_same(found, scipy_distance(labels, black_border=black_border))
    found = rw.distance_transform(labels.cuda(), spacing=spacing, **options)
    assert_same(found, scipy_distance(labels, spacing, black_border))


@scenes
def test_squared_distances_are_exact_integers(gpu_backend, name):
    labels = scene(name, (37, 45))
    found = rw.distance_transform(labels.cuda(), squared=True, backend=gpu_backend)
    assert torch.equal(found.cpu(), scipy_distance(labels).square().round().float())


@pytest.mark.parametrize("name", ["checkerboard", "one-odd-pixel", "circle", "sparse"])
@pytest.mark.parametrize("shape", [(257, 300), (40, 33, 47)], ids=["2d", "3d"])
def test_images_that_are_hard_for_a_windowed_search_are_exact(gpu_backend, name, shape):
    labels = scene(name, shape, batch=1)
    assert_same(rw.distance_transform(labels.cuda(), backend=gpu_backend), scipy_distance(labels))


@dtypes
def test_every_label_dtype_gives_the_same_distances_and_maps(gpu_backend, dtype):
    labels = scene("random", (13, 37), num_classes=2)
    given = labels.to("cuda", dtype)
    assert_same(rw.distance_transform(given, backend=gpu_backend), scipy_distance(labels))
    assert_same(rw.class_distance_transform(given, 3, backend=gpu_backend), scipy_class_distance(labels, 3))
    maps = rw.rectified_map(given, 3, backend=gpu_backend)
    assert_same(maps.foreground, reference.rectified(labels, 3, (1.0, 1.0)))


def test_labels_of_any_value_and_strides_are_read_right(gpu_backend):
    index = scene("blobs", (26, 37))
    labels = torch.tensor([2**62, -(2**62), -(2**63)])[index].cuda().transpose(1, 2)
    assert_same(rw.distance_transform(labels, backend=gpu_backend), scipy_distance(index.transpose(1, 2)))


@scenes
@shapes
def test_class_distance_and_boundary_map_are_what_scipy_gives(gpu_backend, name, shape):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    options = {"spacing": spacing, "spatial_dims": len(shape), "backend": gpu_backend}
    outside = scipy_class_distance(labels, 4, spacing)
    assert_same(rw.class_distance_transform(labels.cuda(), 4, **options), outside)
    expected = torch.where(one_hot(labels, 4) == 1, -scipy_distance(labels, spacing).unsqueeze(1), outside)
    expected = torch.where(expected.isinf(), 0.0, expected)
    assert_same(rw.boundary_map(labels.cuda(), 4, **options), expected)


@scenes
@shapes
@pytest.mark.parametrize("ignore_index", [None, -1])
def test_rectified_map_is_the_reference_rounded(gpu_backend, name, shape, ignore_index):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    if ignore_index is not None:
        labels[:, : max(shape[0] // 3, 1)] = ignore_index
    maps = rw.rectified_map(
        labels.cuda(), 4, spacing=spacing, ignore_index=ignore_index, spatial_dims=len(shape), backend=gpu_backend
    )
    foreground = reference.rectified(labels, 4, spacing, ignore_index=ignore_index)
    assert_same(maps.foreground, foreground)
    assert maps.count.is_cuda
    assert maps.count.item() == (labels != -1).sum().item()
    assert_same(maps.dense(backend=gpu_backend), reference.dense(labels, foreground, 1.0, 4, ignore_index=ignore_index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dense_takes_every_floating_dtype(gpu_backend, dtype):
    labels = scene("blobs", (5, 34))
    boundary = rw.boundary_map(labels, 3)
    maps = rw.scale_classes(rw.rectify(boundary, labels), [0.5, 2.0, 4.0])
    found = maps.to("cuda").dense(dtype, backend=gpu_backend)
    torch.testing.assert_close(found.cpu(), maps.dense(dtype), rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=0)


def test_a_class_maximum_is_taken_and_a_bad_one_refused_where_it_is_checked(gpu_backend):
    labels = torch.tensor([[[0, 0, 0, 1, 1, 2]]], device="cuda")
    maxima = torch.tensor([[2.0, 4.0, 8.0]], device="cuda")
    maps = rw.rectified_map(labels, 3, class_max=maxima, backend=gpu_backend)
    assert maps.foreground.flatten().tolist() == [-1, -1, -0.5, -0.25, -0.25, -0.125]
    maxima[0, 1] = 0
    with pytest.raises(ValueError, match=r"^class_max: expected .*, got 0.0 for class 1 of image 0$"):
        rw.rectified_map(labels, 3, class_max=maxima, validate=True, backend=gpu_backend)


@pytest.mark.parametrize(
    "make", [rw.rectified_map, rw.boundary_map, rw.class_distance_transform], ids=lambda f: f.__name__
)
def test_label_values_are_checked_on_request_only(gpu_backend, make):
    labels = torch.zeros(1, 13, 40, dtype=torch.int64, device="cuda")
    labels[0, 12, 31] = 7
    make(labels, 4, backend=gpu_backend)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"^labels: expected integers in \[0, 4\), got 7 at \(0, 12, 31\)$"):
        make(labels, 4, validate=True, backend=gpu_backend)


def test_labels_out_of_range_that_are_not_checked_hold_nan(gpu_backend):
    labels = torch.tensor([[[0, 9, -5, 1, 2**40]]], device="cuda")
    dense = rw.rectified_map(labels, 2, backend=gpu_backend).dense(backend=gpu_backend)
    assert dense[0, 0, 0].isnan().tolist() == [False, True, True, False, True]


def test_arguments_on_another_device_are_refused_and_not_copied():
    labels = scene("blobs", (5, 34)).cuda()
    with pytest.raises(ValueError, match=r"^class_max: expected a tensor on cuda:0 like labels"):
        rw.rectified_map(labels, 3, class_max=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^out: expected a contiguous torch.float32 tensor on cuda:0"):
        rw.distance_transform(labels, out=torch.empty(2, 5, 34))
    with pytest.raises(ValueError, match=r"^labels: expected a tensor on cpu like maps"):
        rw.rectify(torch.zeros(2, 3, 5, 34), labels)


def test_out_is_written_where_it_lies(gpu_backend):
    labels = scene("blobs", (5, 34))
    out = torch.empty(2, 3, 5, 34, device="cuda")
    found = rw.boundary_map(labels.cuda(), 3, out=out, backend=gpu_backend)
    assert found.data_ptr() == out.data_ptr()
    assert_same(out, reference.boundary(labels, 3, (1.0, 1.0)))


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7)], ids=["no-image", "no-pixel"])
def test_an_empty_batch_or_image_gives_an_empty_map(gpu_backend, shape):
    labels = torch.zeros(shape, dtype=torch.int64, device="cuda")
    assert rw.distance_transform(labels, backend=gpu_backend).shape == shape
    assert rw.boundary_map(labels, 3, backend=gpu_backend).shape == (shape[0], 3, *shape[1:])
    assert rw.rectified_map(labels, 3, ignore_index=-1, backend=gpu_backend).count.item() == 0


def test_repeated_runs_give_the_same_bits(gpu_backend):
    labels = scene("blobs", (130, 170), batch=3).cuda()
    first = rw.rectified_map(labels, 3, spacing=(0.7, 1.3), backend=gpu_backend).foreground
    for _ in range(3):
        again = rw.rectified_map(labels, 3, spacing=(0.7, 1.3), backend=gpu_backend).foreground
        assert torch.equal(first, again)


def test_a_map_moves_to_the_device_from_page_locked_memory():
    labels = scene("blobs", (5, 34))
    pinned = rw.rectify(rw.boundary_map(labels, 3), labels).pin_memory()
    assert all(leaf.is_pinned() for leaf in pytree.tree_leaves(pinned))
    moved = pinned.to("cuda", non_blocking=True)
    assert torch.equal(moved.dense().cpu(), pinned.dense())


@pytest.fixture
def cupy():
    """CuPy, where the backend that needs it can run."""
    reason = load("cucim").can_run(torch.device("cuda"))
    if reason is not None:
        pytest.skip(f"backend 'cucim' cannot run on CUDA: {reason}")
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("shape", [(257, 300), (40, 33, 47)], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ["blobs", "sparse", "one-odd-pixel"])
def test_triton_and_cucim_and_scipy_agree(cupy, name, shape):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    found = {}
    for backend in ("triton", "cucim"):
        reason = load(backend).can_run(torch.device("cuda"))
        if reason is not None:
            pytest.skip(f"backend {backend!r} cannot run on CUDA: {reason}")
        found[backend] = rw.class_distance_transform(labels.cuda(), 3, spacing=spacing, backend=backend)
        assert_same(found[backend], scipy_class_distance(labels, 3, spacing))
    assert_same(found["triton"], found["cucim"].double())


def test_the_transform_of_sam3_gives_the_distances_of_every_class(gpu_backend):
    """Another exact transform in Triton: binary, of 2D images, one row or column a program."""
    sam3 = pytest.importorskip("sam3.model.edt", reason="sam3 is not installed", exc_type=ImportError)
    labels = scene("blobs", (257, 300)).cuda()
    found = rw.class_distance_transform(labels, 3, backend=gpu_backend)
    for k in range(3):
        assert_same(found[:, k], sam3.edt_triton(labels != k))


def test_cucim_works_on_the_stream_of_torch_and_leaves_the_pool_of_cupy_alone(cupy):
    labels = scene("blobs", (257, 300))
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        given = torch.zeros((2, 257, 300), dtype=torch.int64, device="cuda")
        torch.cuda._sleep(20_000_000)  # whoever does not wait for this stream sees zeros
        given.copy_(labels)
        found = rw.rectified_map(given, 3, backend="cucim").foreground
    stream.synchronize()
    assert_same(found, reference.rectified(labels, 3, (1.0, 1.0)))
    assert pool.total_bytes() == before


def test_cucim_is_refused_by_name_while_a_graph_is_captured(cupy):
    labels = scene("blobs", (13, 37)).cuda()
    refused = pytest.raises(ValueError, match=r"^backend: 'cucim' cannot run on cuda:0: a CUDA graph is being captured")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), refused:
        rw.rectified_map(labels, 3, backend="cucim")


def test_cupy_arrays_come_in_and_go_out_in_the_order_of_their_stream(gpu_backend, cupy):
    labels = scene("blobs", (257, 300))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        given = cupy.asarray(labels.numpy())
        found = rw.boundary_map(given, 3, backend=gpu_backend)
        assert isinstance(found, cupy.ndarray)
        doubled = found * 2
        out = cupy.empty(labels.shape, cupy.float32)
        rw.distance_transform(given, out=out, backend=gpu_backend)
    stream.synchronize()
    expected = reference.boundary(labels, 3, (1.0, 1.0))
    assert_same(torch.from_numpy(cupy.asnumpy(doubled)), 2 * expected)
    assert_same(torch.from_numpy(cupy.asnumpy(out)), scipy_distance(labels))


# --- the kernels of Triton, and what surrounds them ---------------------------------------------------------------


@scenes
@pytest.mark.parametrize("shape", [(16, 600, 90), (1, 1100, 130), (2, 40, 33, 47)], ids=["batch", "long", "volume"])
def test_triton_gives_the_integers_of_scipy(name, shape):
    labels = scene(name, shape[1:], batch=shape[0], dtype=torch.uint8)
    found = rw.distance_transform(labels.cuda(), squared=True, backend="triton")
    assert torch.equal(found.cpu(), scipy_distance(labels).square().round().float())


def _step(logits, labels):
    loss = rw.RegionWiseLoss("rectified", ignore_index=255, backend="triton")(logits, labels)
    return loss, torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("shape", [(64, 96), (24, 32, 40)], ids=["2d", "3d"])
def test_a_step_from_labels_waits_for_nothing(shape):
    labels = scene("blobs", shape, dtype=torch.uint8).cuda()
    logits = torch.randn(2, 3, *shape, device="cuda", requires_grad=True)
    _step(logits, labels)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(logits, labels)
        for make in (rw.distance_transform, lambda x, **k: rw.boundary_map(x, 3, **k)):
            make(labels, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(64, 96), (24, 32, 40)], ids=["2d", "3d"])
def test_a_captured_step_follows_the_labels_of_its_replay(shape):
    first, second = (scene(name, shape, dtype=torch.uint8).cuda() for name in ("blobs", "sparse"))
    labels = first.clone()
    logits = torch.randn(2, 3, *shape, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _step(logits, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = _step(logits, labels)
    for given in (second, first, second):
        labels.copy_(given)
        graph.replay()
        expected = _step(logits, given)
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("shape", [(4, 512, 512), (1, 96, 128, 128)], ids=["2d", "3d"])
def test_a_rectified_map_takes_eight_bytes_a_pixel_beside_itself(shape):
    labels = torch.randint(4, shape, device="cuda", dtype=torch.uint8)
    rw.rectified_map(labels, 4, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    maps = rw.rectified_map(labels, 4, backend="triton")
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= (4 + 8) * labels.numel() + (1 << 21)  # PyTorch rounds allocations up
    assert maps.foreground.shape == labels.shape
