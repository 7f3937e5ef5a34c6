"""RectifiedMap as a value: written out, moved, cropped, pickled, collated, compiled, exported, vmapped."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from choices import CPU_BACKENDS, pairwise
from samples import assert_same, one_hot, scene
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, default_collate

import rwkernels as rw
from rwkernels.backends import native

KINDS = ["number-background", "pixel-background", "class-scale", "ignored-pixels"]
kinds = pytest.mark.parametrize("kind", KINDS)


def _map(kind, shape=(5, 34), batch=2):
    labels = scene("blobs", shape, num_classes=4, batch=batch)
    if kind == "number-background":
        return rw.rectified_map(labels, 4)
    if kind == "pixel-background":
        return rw.rectify(rw.boundary_map(labels, 4), labels)
    if kind == "class-scale":
        return rw.scale_classes(rw.rectified_map(labels, 4), [0.5, 1.0, 2.0, 4.0])
    labels[:, 1:3, 4:20] = -1
    return rw.rectified_map(labels, 4, ignore_index=-1)


def _assert_equal_maps(found, expected):
    assert found.num_classes == expected.num_classes
    assert found.ignore_index == expected.ignore_index
    assert torch.equal(found.labels, expected.labels)
    assert found.count.item() == expected.count.item()
    assert torch.equal(found.dense(torch.float64), expected.dense(torch.float64))


# --- dense -----------------------------------------------------------------------------------------------------


@pairwise(
    backend=CPU_BACKENDS,
    kind=KINDS,
    dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16],
    label_dtype=[torch.uint8, torch.int16, torch.int64],
)
def test_dense_is_foreground_at_the_true_class_and_background_elsewhere(backend, kind, dtype, label_dtype):
    maps = _map(kind)
    known = (maps.labels != -1).unsqueeze(1)
    true_class = one_hot(maps.labels.clamp(min=0), 4)
    background = maps.background.unsqueeze(1) if isinstance(maps.background, torch.Tensor) else maps.background
    expected = true_class * maps.foreground.unsqueeze(1).double() + (1 - true_class) * background
    if maps.class_scale is not None:
        expected = expected * maps.class_scale.view(1, -1, 1, 1).double()
    expected = torch.where(known, expected, 0.0)
    ignored = 255 if label_dtype == torch.uint8 and maps.ignore_index is not None else maps.ignore_index
    narrow = rw.RectifiedMap(
        maps.labels.to(label_dtype), maps.foreground, maps.background, 4, maps.class_scale, ignored
    )
    found = narrow.dense(dtype, backend=backend)
    assert found.dtype == dtype
    rtol = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=0)


def test_dense_is_float32_by_default_whatever_the_foreground_is(backend):
    maps = _map("number-background").to(torch.float64)
    assert_same(maps.dense(backend=backend), maps.dense(torch.float64, backend=backend))


def test_dense_keeps_the_precision_of_a_float64_map(backend):
    labels = torch.tensor([[[0, 1]]])
    maps = rw.RectifiedMap(labels, torch.full((1, 1, 2), 1 + 1e-12, dtype=torch.float64), num_classes=2)
    assert maps.dense(torch.float64, backend=backend)[0, 0, 0, 0].item() == 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dense_writes_into_out_in_its_dtype(backend, dtype):
    maps = _map("pixel-background")
    out = torch.full((2, 4, 5, 34), math.nan, dtype=dtype)
    found = maps.dense(out=out, backend=backend)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(out, maps.dense(dtype, backend=backend))


@pytest.mark.parametrize(
    ("dtype", "out", "message"),
    [
        (None, torch.empty(2, 4, 5, 35), "out: expected shape"),
        (None, torch.empty(2, 4, 34, 5).transpose(2, 3), "out: expected a contiguous"),
        (torch.float64, torch.empty(2, 4, 5, 34), "out: expected a contiguous torch.float64"),
        (None, torch.empty(2, 4, 5, 34, device="meta"), "out: expected a contiguous torch.float32 tensor on cpu"),
    ],
    ids=["shape", "strides", "dtype", "device"],
)
def test_dense_refuses_a_buffer_that_does_not_fit(dtype, out, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        _map("number-background").dense(dtype, out=out)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float32"], ids=str)
def test_dense_refuses_a_dtype_that_is_not_floating(dtype):
    with pytest.raises(TypeError, match=r"^dtype: expected a floating dtype"):
        _map("number-background").dense(dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foreground": torch.zeros(2, 5, 2)}, r"foreground: expected shape \[2, 5, 34\]"),
        ({"background": torch.zeros(2, 5, 2)}, r"background: expected shape \[2, 5, 34\]"),
        ({"class_scale": torch.zeros(3)}, r"class_scale: expected shape \[4\]"),
        ({"foreground": torch.zeros(2, 5, 34, device="meta")}, "foreground: expected a tensor on cpu"),
    ],
    ids=["foreground", "background", "class-scale", "device"],
)
def test_dense_refuses_parts_that_do_not_fit_together_and_reads_nothing_beyond_them(backend, changes, message):
    """The constructor checks no values, so the first reader has to."""
    parts = {"labels": scene("blobs", (5, 34)), "foreground": torch.zeros(2, 5, 34), "num_classes": 4, **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        rw.RectifiedMap(**parts).dense(backend=backend)


def test_dense_takes_a_scalar_tensor_as_background(backend):
    labels = scene("blobs", (5, 34))
    maps = rw.RectifiedMap(labels, torch.zeros(2, 5, 34), torch.tensor(3.0), num_classes=3)
    assert_same(maps.dense(backend=backend), 3 * (1 - one_hot(labels, 3)))


def test_dense_takes_boolean_labels(backend):
    labels = scene("blobs", (5, 34), num_classes=2)
    found = rw.RectifiedMap(labels.bool(), torch.zeros(2, 5, 34), num_classes=2).dense(backend=backend)
    assert_same(found, 1 - one_hot(labels, 2))


# --- moving and copying ----------------------------------------------------------------------------------------


@kinds
def test_to_changes_the_floating_dtype_and_keeps_the_labels(kind):
    maps = _map(kind)
    for moved in (maps.to(torch.float64), maps.to("cpu", torch.float64), maps.to(torch.empty(0).double())):
        assert moved.foreground.dtype == torch.float64
        assert moved.labels.dtype == torch.int64
        if isinstance(maps.background, torch.Tensor):
            assert moved.background.dtype == torch.float64
        _assert_equal_maps(moved, maps)


@kinds
def test_to_moves_every_tensor_to_the_device(kind):
    moved = _map(kind).to("meta")
    for leaf in pytree.tree_leaves(moved):
        assert leaf.device.type == "meta"


def test_to_refuses_an_integer_dtype_that_would_destroy_the_map():
    with pytest.raises(TypeError, match=r"^dtype: expected a floating dtype"):
        _map("number-background").to(torch.int32)


def test_to_turns_a_numpy_map_into_a_map_of_tensors():
    labels = scene("blobs", (5, 34))
    maps = rw.rectified_map(labels.numpy(), 3)
    _assert_equal_maps(maps.to("cpu"), rw.rectified_map(labels, 3))


@kinds
@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch-save"])
def test_a_map_survives_copying(kind, way, tmp_path):
    maps = _map(kind)
    if way == "pickle":
        found = pickle.loads(pickle.dumps(maps))
    elif way == "deepcopy":
        found = copy.deepcopy(maps)
    else:
        torch.save(maps, tmp_path / "maps.pt")
        found = torch.load(tmp_path / "maps.pt", weights_only=False)
    assert found.foreground.data_ptr() != maps.foreground.data_ptr()
    _assert_equal_maps(found, maps)


# --- cropping --------------------------------------------------------------------------------------------------

CROPS = {
    "one-image": slice(1, 2),
    "rows": (slice(None), slice(1, 4)),
    "box": (slice(None), slice(1, 4), slice(3, 18)),
    "columns": (..., slice(10, None, 3)),
    "image-list": torch.tensor([1, 0, 1]),
}


@kinds
@pytest.mark.parametrize("crop", CROPS)
def test_a_crop_of_a_map_is_the_crop_of_its_dense_map(backend, kind, crop):
    maps = _map(kind)
    found = maps[CROPS[crop]]
    index = CROPS[crop]
    expected = maps.dense(backend=backend).movedim(1, -1)[index].movedim(-1, 1)
    if crop == "columns":
        expected = maps.dense(backend=backend)[..., 10::3]
    assert torch.equal(found.dense(backend=backend), expected)
    assert found.count.item() == (maps.labels[index] != -1).sum().item()


def test_a_map_has_the_length_the_shape_and_the_device_of_its_labels():
    maps = _map("number-background", (3, 4, 5), batch=3)
    assert len(maps) == 3
    assert maps.shape == (3, 3, 4, 5)
    assert maps.device == torch.device("cpu")
    assert [part.labels.shape for part in maps] == [(3, 4, 5)] * 3


def test_a_numpy_map_is_cropped_like_its_arrays():
    labels = scene("blobs", (5, 34)).numpy()
    crop = rw.rectified_map(labels, 3)[:, 1:4, 3:18]
    assert isinstance(crop.foreground, np.ndarray)
    np.testing.assert_array_equal(crop.dense(), rw.rectified_map(labels, 3).dense()[:, :, 1:4, 3:18])


# --- collation -------------------------------------------------------------------------------------------------


@kinds
def test_collation_of_samples_is_the_batch_they_came_from(kind):
    maps = _map(kind, batch=3)
    _assert_equal_maps(default_collate(list(maps)), maps)


def test_collation_reaches_maps_inside_a_sample():
    maps = _map("ignored-pixels")
    found = default_collate([{"map": maps[0], "name": "a"}, {"map": maps[1], "name": "b"}])
    _assert_equal_maps(found["map"], maps)


def test_collation_mixes_number_and_pixel_backgrounds():
    maps = _map("pixel-background")
    plain = rw.active_contour_map(maps.labels, 4)
    found = default_collate([plain[0], maps[1]])
    assert torch.equal(found.dense()[0], plain.dense()[0])
    assert torch.equal(found.dense()[1], maps.dense()[1])
    found = default_collate([plain[0], rw.scale_pixels(plain, 3.0)[1]])
    assert torch.equal(found.dense()[1], 3 * plain.dense()[1])


@pytest.mark.parametrize("kind", ["number-background", "pixel-background", "class-scale"])
def test_collation_of_numpy_samples_gives_a_batch_of_tensors(kind):
    labels = scene("blobs", (5, 34), num_classes=4).numpy()
    maps = rw.rectified_map(labels, 4)
    if kind == "pixel-background":
        maps = rw.rectify(rw.boundary_map(labels, 4), labels)
    if kind == "class-scale":
        maps = rw.scale_classes(maps, np.array([0.5, 1.0, 2.0, 4.0]))
    _assert_equal_maps(default_collate([maps[0], maps[1]]), maps.to("cpu"))


def test_collation_refuses_samples_that_do_not_belong_together():
    labels = scene("blobs", (5, 34))
    three, four = rw.rectified_map(labels, 3)[0], rw.rectified_map(labels, 4)[0]
    with pytest.raises(ValueError, match=r"^maps: expected one num_classes and ignore_index"):
        default_collate([three, four])
    with pytest.raises(ValueError, match=r"^maps: expected one num_classes and ignore_index"):
        default_collate([three, rw.rectified_map(labels, 3, ignore_index=-1)[0]])
    with pytest.raises(ValueError, match=r"^maps: expected one class_scale"):
        default_collate([three, rw.scale_classes(rw.rectified_map(labels, 3), [1.0, 2.0, 3.0])[0]])


# The reference runs on PyTorch's threads.
THREADS = 2 if native.can_run(torch.device("cpu")) is None else 1


class Samples(Dataset):
    """Builds the map of every sample where it is loaded, as a training set does."""

    def __init__(self, labels, as_numpy=False):
        self.labels, self.as_numpy = labels, as_numpy

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        labels = self.labels[index : index + 1]
        torch.set_num_threads(THREADS)
        maps = rw.rectified_map(labels.numpy() if self.as_numpy else labels, 4, ignore_index=-1)
        torch.set_num_threads(1)  # PyTorch's own threads hang in a process that was forked from one that used them
        return maps[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("as_numpy", [False, True], ids=["tensors", "arrays"])
def test_a_data_loader_yields_the_maps_of_its_batches(workers, as_numpy, restore_threads):
    """The workers are forked after the parent has used its thread pool, whose threads they do not have."""
    torch.set_num_threads(THREADS)
    labels = scene("blobs", (370, 401), num_classes=4, batch=4)
    labels[:, 20:30, 40:90] = -1
    expected = rw.rectified_map(labels, 4, ignore_index=-1)
    loader = DataLoader(
        Samples(labels, as_numpy),
        batch_size=2,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        timeout=60 if workers else 0,
    )
    batches = list(loader)
    assert len(batches) == 2
    for index, batch in enumerate(batches):
        _assert_equal_maps(batch, expected[2 * index : 2 * index + 2])


# --- pytree, compiler, export, vmap ----------------------------------------------------------------------------


@kinds
def test_a_map_is_a_pytree_of_its_tensors(kind):
    maps = _map(kind)
    leaves, spec = pytree.tree_flatten(maps)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    _assert_equal_maps(pytree.tree_unflatten(leaves, spec), maps)
    dumped = pytree.treespec_loads(pytree.treespec_dumps(spec))
    _assert_equal_maps(pytree.tree_unflatten(leaves, dumped), maps)
    names = [str(path[0]) for path, _ in pytree.tree_flatten_with_path(maps)[0]]
    assert names[:2] == [".labels", ".foreground"]


@kinds
def test_a_map_goes_into_a_compiled_function(kind):
    maps = _map(kind)
    compiled = torch.compile(lambda m: m.dense(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(maps), maps.dense())


def test_a_map_comes_out_of_a_compiled_function():
    labels = scene("blobs", (5, 34))
    labels[0, 2, 3:9] = -1

    def build(labels):
        return rw.rectified_map(labels, 3, spacing=(2.0, 0.5), ignore_index=-1)

    _assert_equal_maps(torch.compile(build, fullgraph=True, backend="aot_eager")(labels), build(labels))


@pytest.mark.parametrize("make", ["distance", "class-distance", "boundary", "rectify", "scale"])
def test_every_map_function_compiles_into_one_graph(make):
    labels = scene("blobs", (5, 34))

    def build(labels):
        if make == "distance":
            return rw.distance_transform(labels, spacing=0.5)
        if make == "class-distance":
            return rw.class_distance_transform(labels, 3)
        boundary = rw.boundary_map(labels, 3)
        if make == "boundary":
            return boundary
        if make == "rectify":
            return rw.rectify(boundary, labels).dense()
        return rw.scale_classes(rw.active_contour_map(labels, 3), [1.0, 2.0, 3.0], by="label").dense()

    found = torch.compile(build, fullgraph=True, backend="aot_eager")(labels)
    assert torch.equal(found, build(labels))


def test_a_compiled_function_still_refuses_a_bad_label():
    compiled = torch.compile(lambda labels: rw.rectified_map(labels, 3).dense(), fullgraph=True, backend="aot_eager")
    compiled(scene("blobs", (5, 34)))
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 7 at \(1, 2, 30\)"):
        compiled(_with_bad_label())


def _with_bad_label():
    labels = scene("blobs", (5, 34))
    labels[1, 2, 30] = 7
    return labels


def test_a_compiled_function_takes_other_sizes_without_a_new_graph():
    compiled = torch.compile(
        lambda labels: rw.rectified_map(labels, 3).dense(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in ((5, 34), (7, 9), (3, 40)):
        labels = scene("blobs", shape)
        assert torch.equal(compiled(labels), rw.rectified_map(labels, 3).dense())


class Dense(torch.nn.Module):
    def forward(self, maps):
        return maps.dense()


class Build(torch.nn.Module):
    def forward(self, labels):
        return rw.rectified_map(labels, 3)


def test_export_takes_a_map_and_gives_one():
    maps = _map("number-background")
    program = torch.export.export(Dense(), (maps,))
    assert torch.equal(program.module()(maps), maps.dense())
    labels = scene("blobs", (5, 34))
    program = torch.export.export(Build(), (labels,))
    _assert_equal_maps(program.module()(labels), rw.rectified_map(labels, 3))


@pytest.mark.parametrize("ignore_index", [None, -1])
def test_vmap_over_groups_of_images_is_the_larger_batch(backend, ignore_index):
    labels = scene("blobs", (5, 34), batch=6).view(3, 2, 5, 34).clone()
    labels[1, 0, 2, 3:9] = 0 if ignore_index is None else ignore_index

    def build(labels):
        return rw.rectified_map(labels, 3, ignore_index=ignore_index, backend=backend)

    maps = torch.vmap(build)(labels)
    expected = build(labels.flatten(0, 1))
    assert torch.equal(maps.foreground.flatten(0, 1), expected.foreground)
    assert maps.count.item() == expected.count.item()
    dense = torch.vmap(lambda m: m.dense(backend=backend))(maps)
    assert torch.equal(dense.flatten(0, 1), expected.dense(backend=backend))


@pytest.mark.parametrize("make", [rw.boundary_map, rw.class_distance_transform], ids=lambda f: f.__name__)
def test_vmap_of_a_dense_map_is_the_larger_batch(backend, make):
    labels = scene("blobs", (5, 34), batch=6).view(2, 3, 5, 34)
    found = torch.vmap(lambda labels: make(labels, 3, backend=backend), in_dims=1)(labels)
    expected = make(labels.transpose(0, 1).flatten(0, 1), 3, backend=backend)
    assert torch.equal(found.flatten(0, 1), expected)
