"""Distances and maps of volumes that are cut into blocks: the same bits as those of the whole volume in memory."""

import gc
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from samples import SPACING, scene

import rwkernels as rw
from rwkernels.backends import reference
from rwkernels.backends.native import maps as native_maps
from rwkernels.data import class_max

da = pytest.importorskip("dask.array", reason="dask is not installed (the extra `scale`)")
pytest.importorskip("zarr", minversion="3.1.3", reason="no Zarr 3.1.3 (the extra `scale`)")
from rwkernels import scale  # noqa: E402
from rwkernels.scale import blocks, volumes  # noqa: E402
from rwkernels.scale.scratch import Scratch  # noqa: E402


def image(name, shape, dtype=np.uint8):
    return scene(name, shape, 3, batch=1)[0].numpy().astype(dtype)


def cut(labels, parts=2):
    """A dask array of about `parts` chunks an axis."""
    return da.from_array(labels, chunks=tuple(-(-n // parts) for n in labels.shape))


def in_memory(labels, **options):
    return rw.distance_transform(labels[None], spatial_dims=labels.ndim, **options)[0]


def bits(found):
    return np.asarray(found).view(np.uint32)


@pytest.fixture(autouse=True)
def scratch(tmp_path):
    """The folder of temporary stores: empty again when a test and its graphs are gone."""
    import dask

    folder = tmp_path / "scratch"
    folder.mkdir()
    with dask.config.set(temporary_directory=str(folder)):
        yield folder
    for _ in range(50):  # after an error, tasks that were running keep the store until they end
        if not list(folder.iterdir()):
            break
        gc.collect()
        time.sleep(0.02)
    assert list(folder.iterdir()) == []


CASES = [
    ("blobs", (40, 30, 36), None, False),
    ("sparse", (40, 30, 36), SPACING, True),
    ("one-odd-pixel", (17, 35, 37), SPACING, False),
    ("sparse", (17, 35, 37), None, True),
    ("blobs", (17, 35, 1), SPACING, False),
    ("one-odd-pixel", (1, 30, 31), SPACING, True),
    ("sparse", (60, 70), (0.3, 1.7), False),
    ("one-odd-pixel", (1031,), (2.5,), True),
]


@pytest.mark.parametrize(("name", "shape", "spacing", "border"), CASES, ids=lambda v: str(v))
def test_a_volume_in_blocks_has_the_bits_of_the_whole(name, shape, spacing, border):
    labels = image(name, shape)
    memory = max(labels.size * 3, 18_000)  # a third of what all of it would take; or a few whole lines
    options = {"spacing": spacing, "black_border": border}
    found = scale.distance_transform(cut(labels, 3), memory=memory, **options)
    assert found.npartitions > 1 or labels.size * 9 <= memory
    np.testing.assert_array_equal(bits(found.compute()), bits(in_memory(labels, **options)))


@pytest.fixture
def no_core(monkeypatch):
    """No call of the compiled core comes back."""

    def core():
        raise AssertionError("the compiled core was called")

    monkeypatch.setattr(native_maps, "core", core)


@pytest.mark.parametrize("options", [{}, {"squared": True, "spacing": SPACING, "black_border": True}], ids=str)
def test_the_reference_takes_the_place_of_the_core(options, no_core):
    labels = image("blobs", (9, 8, 35))
    found = scale.distance_transform(cut(labels), memory=15_000, backend="reference", **options).compute()
    expected = reference.distance(
        torch.from_numpy(labels)[None],
        options.get("spacing", (1.0,) * 3),
        options.get("squared", False),
        options.get("black_border", False),
    )
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=3e-7)


def test_the_reference_makes_the_maps_too(no_core):
    labels = image("blobs", (9, 8, 35))
    labels[2:4, 3:5] = 1
    options = {"spacing": SPACING, "ignore_index": 1}
    maps = scale.rectified_map(cut(labels), 3, memory=15_000, backend="reference", **options)
    expected = reference.rectified(torch.from_numpy(labels)[None], 3, SPACING, ignore_index=1)[0]
    np.testing.assert_allclose(maps.foreground.compute(), expected.numpy(), rtol=5e-7)
    found = scale.boundary_map(cut(labels), 3, memory=15_000, backend="reference", absent=7.0, **options)
    expected = reference.boundary(torch.from_numpy(labels)[None], 3, SPACING, absent=7.0, ignore_index=1)[0]
    np.testing.assert_allclose(found.compute(), expected.numpy(), rtol=5e-7)


def test_squared_distances_and_volumes_of_one_label():
    labels = image("blobs", (20, 24, 28))
    found = scale.distance_transform(cut(labels), spacing=SPACING, squared=True, memory=40_000)
    np.testing.assert_array_equal(bits(found), bits(in_memory(labels, spacing=SPACING, squared=True)))
    assert np.isinf(scale.distance_transform(cut(np.ones((9, 8, 7), np.uint8)), memory=3000).compute()).all()


def test_passes_of_one_axis_each_have_the_same_bits_too():
    """A plan of three stages: no two axes of this volume fit into a task."""
    labels = image("blobs", (17, 18, 66))
    job = volumes.make_job(cut(labels), spacing=None, black_border=False, spatial_dims=None, memory=20_000,
                           scratch=Scratch.within(None), classes=None, backend=None)  # fmt: skip
    assert len(job.plan.stages) == 3
    found = scale.distance_transform(cut(labels), spacing=(1.0, 0.7, 1.9), memory=20_000)
    np.testing.assert_array_equal(bits(found), bits(in_memory(labels, spacing=(1.0, 0.7, 1.9))))


@pytest.mark.parametrize("name", ["one-odd-pixel", "sparse"])
def test_long_axes_have_the_same_bits_up_to_where_float32_holds_every_square(name):
    labels = image(name, (4090, 96))
    found = scale.distance_transform(cut(labels), spacing=(1.3, 0.9), memory=1_500_000)
    np.testing.assert_array_equal(bits(found), bits(in_memory(labels, spacing=(1.3, 0.9))))


def test_distances_beyond_4096_pixels_are_within_a_rounding():
    labels = image("one-odd-pixel", (9000, 70))
    found = scale.distance_transform(cut(labels), spacing=(1.3, 0.9), memory=2_700_000).compute()
    np.testing.assert_allclose(found, in_memory(labels, spacing=(1.3, 0.9)), rtol=2.5e-7)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, ">i4", np.uint32, np.int64, np.uint64])
def test_labels_of_every_integer_type(dtype):
    labels = image("blobs", (12, 20, 18), np.int64)
    wide = labels.astype(dtype)
    if wide.dtype.itemsize == 8:
        wide[labels == 2] = np.iinfo(wide.dtype).max  # farther apart than any table
    expected = in_memory((labels != 0).astype(np.uint8) if dtype is bool else labels)
    np.testing.assert_array_equal(scale.distance_transform(cut(wide), memory=20_000).compute(), expected)


def test_axes_before_the_spatial_ones_count_images():
    labels = np.stack([image(name, (40, 70)) for name in ("blobs", "uniform", "sparse")])
    found = scale.distance_transform(cut(labels), spatial_dims=2, spacing=(1.0, 2.0), memory=12_000)
    np.testing.assert_array_equal(bits(found), bits(rw.distance_transform(labels, spacing=(1.0, 2.0))))
    maps = scale.rectified_map(cut(labels), 3, spatial_dims=2, memory=12_000)
    np.testing.assert_array_equal(bits(maps.foreground), bits(rw.rectified_map(labels, 3).foreground))
    np.testing.assert_array_equal(maps.class_max.compute(), class_max(labels, 3))


@pytest.mark.parametrize(
    ("name", "ignore_index"),
    [("blobs", None), ("blobs", 200), ("without-class-one", 0), ("without-class-one", -1), ("uniform", None),
     ("uniform", 0)],
)  # fmt: skip
def test_a_rectified_map_has_the_bits_of_the_whole(name, ignore_index):
    labels = image(name, (20, 33, 24), np.int16)
    if ignore_index is not None:
        labels[3:6, 10:20, 5:9] = ignore_index
    options = {"spacing": SPACING, "ignore_index": ignore_index}
    whole = rw.rectified_map(labels[None], 3, **options)
    maps = scale.rectified_map(cut(labels), 3, memory=60_000, **options)
    np.testing.assert_array_equal(bits(maps.foreground), bits(whole.foreground[0]))
    np.testing.assert_array_equal(maps.class_max.compute(), class_max(labels[None], 3, **options)[0])


def test_a_rectified_map_over_given_distances():
    labels = image("blobs", (20, 33, 24))
    given = np.array([4.5, 2.0, 30.0], np.float32)
    whole = rw.rectified_map(labels[None], 3, class_max=given[None], black_border=True)
    maps = scale.rectified_map(cut(labels), 3, class_max=given, black_border=True, memory=40_000)
    np.testing.assert_array_equal(bits(maps.foreground), bits(whole.foreground[0]))
    with pytest.raises(ValueError, match=r"class_max: .* got 0.0 for class 1 of image 0"):
        scale.rectified_map(cut(labels), 3, class_max=[1.0, 0.0, 1.0], memory=40_000).foreground.compute()


@pytest.mark.parametrize("border", [False, True])
def test_a_boundary_map_has_the_bits_of_the_whole(border):
    labels = image("without-class-one", (14, 18, 22), np.int16)
    labels[2:4, 3:9, 5:9] = -1
    options = {"spacing": SPACING, "black_border": border, "ignore_index": -1, "absent": 7.0}
    whole = rw.boundary_map(labels[None], 3, **options)[0]
    found = scale.boundary_map(cut(labels), 3, memory=60_000, **options)
    np.testing.assert_array_equal(found.compute(), whole)


def test_an_offset_of_a_boundary_map_costs_one_rounding():
    """In memory it is one fused operation, where the processor has it."""
    labels = image("blobs", (14, 18, 22))
    whole = rw.boundary_map(labels[None], 3, spacing=SPACING, inside_offset=0.3)[0]
    found = scale.boundary_map(cut(labels), 3, spacing=SPACING, inside_offset=0.3, memory=60_000)
    np.testing.assert_allclose(found.compute(), whole, rtol=1.3e-7, atol=1e-7)


def test_maps_without_distances_are_made_block_by_block():
    labels = cut(image("blobs", (9, 8, 7)))
    assert (scale.constant_map(labels, 3, alpha=2.0, beta=5.0).foreground.compute() == -5).all()
    contour = scale.active_contour_map(labels, 3)
    assert (contour.foreground.compute() == 0).all()
    assert contour.background == 1.0
    assert contour.foreground.chunks == labels.chunks
    with pytest.raises(ValueError, match=r"expected integers in \[0, 2\), got 2 at"):
        scale.active_contour_map(labels, 2).foreground.compute()


def test_a_patch_of_a_map_goes_into_the_loss():
    labels = image("blobs", (20, 24, 28))
    maps = scale.rectified_map(cut(labels), 3, ignore_index=1, memory=50_000)
    logits = torch.randn(1, 3, 8, 9, 10)
    whole = rw.rectified_map(torch.from_numpy(labels)[None], 3, ignore_index=1)
    expected = rw.region_wise_loss(logits, whole[:, 4:12, 5:14, 6:16])
    patch = maps.patch((4, 5, 6), (8, 9, 10))
    assert rw.region_wise_loss(logits, patch) == expected
    with pytest.raises(ValueError, match="start, size: expected a box within"):
        maps.patch((15, 5, 6), (8, 9, 10))


def test_a_label_out_of_range_is_named_with_its_place_in_the_volume():
    labels = image("blobs", (20, 24, 28))
    labels[13, 2, 27] = 9
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 9 at \(13, 2, 27\)"):
        scale.rectified_map(cut(labels), 3, memory=50_000).foreground.compute()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.zeros((4, 4), int)}, TypeError, "labels: expected a dask array"),
        ({"labels": lambda: da.zeros((4, 4), dtype=float)}, TypeError, "labels: expected integer labels, got Array of"),
        ({"labels": lambda: da.from_array(np.arange(9))[da.from_array(np.arange(9)) > 3]}, ValueError,
         "labels: expected known lengths"),
        ({"spacing": (1.0, 2.0)}, ValueError, "spacing: expected one number or 3"),
        ({"spacing": 0.0}, ValueError, "spacing: expected positive numbers"),
        ({"spacing": (1e-9, 1.0, 1e9)}, ValueError, "spacing: expected a ratio of at most 1e12"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims: expected 1, 2 or 3 of the 3 axes"),
        ({"memory": 100}, ValueError, "memory: expected at least [0-9]+ bytes for tasks that hold whole lines"),
        ({"memory": 0}, ValueError, "memory: expected an integer >= 1"),
        ({"squared": 1}, TypeError, "squared: expected True or False"),
        ({"black_border": None}, TypeError, "black_border: expected True or False"),
        ({"scratch": "/no/such/folder"}, ValueError, "scratch: expected an existing folder"),
        ({"backend": "triton"}, ValueError, "backend: 'triton' cannot run on cpu"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_runs(change, error, message):
    options = {"labels": cut(image("blobs", (20, 24, 28))), **change}
    labels = options.pop("labels")
    with pytest.raises(error, match=message):
        scale.distance_transform(labels() if callable(labels) else labels, **options)


def test_the_least_memory_that_an_error_names_is_enough():
    labels = image("blobs", (5, 6, 40))
    with pytest.raises(ValueError, match="memory: expected at least") as error:
        scale.distance_transform(cut(labels), memory=100)
    least = int(str(error.value).split("at least ")[1].split()[0])
    found = scale.distance_transform(cut(labels), memory=least)
    np.testing.assert_array_equal(bits(found), bits(in_memory(labels)))
    with pytest.raises(ValueError, match="memory"):
        scale.distance_transform(cut(labels), memory=least - 1)


def test_arrays_without_pixels():
    assert scale.distance_transform(da.zeros((0, 5, 6), dtype=np.uint8)).compute().shape == (0, 5, 6)
    maps = scale.rectified_map(da.zeros((0, 5, 6), dtype=np.uint8), 2)
    assert maps.foreground.compute().shape == (0, 5, 6)


def test_a_part_that_is_missing_is_an_error_and_no_number(monkeypatch):
    found = scale.distance_transform(cut(image("blobs", (20, 24, 28))), memory=30_000)
    run_stage = blocks.run_stage

    def loses_what_was_written(job, number, region, check):
        if number == 1:
            shutil.rmtree(job.scratch.folder / "field0" / "c", ignore_errors=True)
        return run_stage(job, number, region, check)

    monkeypatch.setattr(blocks, "run_stage", loses_what_was_written)
    with pytest.raises(RuntimeError, match="field0: a part that an earlier stage should have written is missing"):
        found.compute(scheduler="synchronous")


def test_the_temporary_store_goes_with_the_graph_and_with_nothing_else(scratch):
    labels = image("blobs", (20, 24, 28))
    found = scale.distance_transform(cut(labels), memory=30_000)
    assert list(scratch.iterdir()) == []  # nothing ran
    first = found.compute()
    (store,) = scratch.iterdir()
    part = found[5:9]  # another collection over the same graph
    del found
    gc.collect()
    pickle.loads(pickle.dumps(Scratch(store, owned=False)))
    gc.collect()
    assert store.exists()
    np.testing.assert_array_equal(part.compute(), first[5:9])
    del part
    gc.collect()
    assert not store.exists()


def test_a_store_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the temporary store .* is gone"):
        Scratch(tmp_path / "gone", owned=False).open("field0")


WITHOUT = """
import sys
import rwkernels
assert not {'dask', 'zarr', 'distributed'} & set(sys.modules), 'the package imports what is optional'
sys.modules['dask'] = None
try:
    import rwkernels.scale
except ImportError as error:
    print(error)
del sys.modules['dask']
import dask.array
sys.modules['zarr'] = None
for at in ((3, 10, 14), sys.version_info):
    sys.version_info = at
    try:
        import rwkernels.scale
    except ImportError as error:
        print(error)
"""


def test_without_dask_or_zarr_or_a_python_for_it_the_import_says_so():
    found = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    dask, python, zarr = found.splitlines()
    assert dask.startswith("rwkernels.scale needs dask and Zarr 3, and dask ")
    assert python.endswith("which needs Python 3.11 or later; this is Python 3.10")
    assert zarr.startswith("rwkernels.scale needs dask and Zarr 3, and zarr ")
    assert dask.endswith('pip install "rwkernels[scale]"')
    assert zarr.endswith('pip install "rwkernels[scale]"')
