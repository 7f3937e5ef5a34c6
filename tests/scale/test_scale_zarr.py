"""From Zarr to Zarr: in bounded memory, whole or not at all, on threads and on a cluster of processes."""

import os

import numpy as np
import pytest
from samples import SPACING, scene

import rwkernels as rw

da = pytest.importorskip("dask.array", reason="dask is not installed (the extra `scale`)")
zarr = pytest.importorskip("zarr", minversion="3.1.3", reason="no Zarr 3.1.3 (the extra `scale`)")
from rwkernels import scale  # noqa: E402
from rwkernels.scale import blocks, volumes  # noqa: E402

SHAPE = (48, 40, 72)
LITTLE = 300_000  # bytes a task: a quarter of labels and distances


def labels_of(name, shape=SHAPE):
    return scene(name, shape, 3, batch=1)[0].numpy().astype(np.uint8)


@pytest.fixture
def source(tmp_path):
    labels = labels_of("blobs")
    zarr.create_array(str(tmp_path / "labels.zarr"), data=labels, chunks=(16, 20, 36), dimension_names=["z", "y", "x"])
    return labels


@pytest.mark.parametrize("chunks", [(16, 20, 36), (48, 7, 31), (5, 40, 72)], ids=str)
def test_a_volume_comes_out_with_the_bits_of_memory(tmp_path, chunks):
    labels = labels_of("blobs")
    stored = zarr.create_array(str(tmp_path / "labels.zarr"), data=labels, chunks=chunks)
    found = scale.distance_transform_zarr(
        tmp_path / "labels.zarr", tmp_path / "out.zarr", spacing=SPACING, memory=LITTLE, workers=2
    )
    expected = rw.distance_transform(labels[None], spacing=SPACING)[0]
    np.testing.assert_array_equal(found[:].view(np.uint32), expected.view(np.uint32))
    assert sorted(os.listdir(tmp_path)) == ["labels.zarr", "out.zarr"]
    job = volumes.make_job(stored, spacing=None, black_border=False, spatial_dims=None, memory=LITTLE, scratch=None,
                           classes=None, backend=None, grain=chunks)  # fmt: skip
    assert len(job.plan.stages) > 1
    assert job.plan.task_bytes <= LITTLE


def test_the_result_says_what_it_is(tmp_path, source):
    found = scale.distance_transform_zarr(
        tmp_path / "labels.zarr", tmp_path / "out.zarr", spacing=SPACING, squared=True
    )
    assert found.attrs["rwkernels"] == {
        "version": rw.__version__, "map": "distance", "squared": True, "spacing": list(SPACING), "black_border": False
    }  # fmt: skip
    assert found.metadata.dimension_names == ("z", "y", "x")


@pytest.mark.parametrize("given", [False, True])
def test_a_rectified_map_is_written_and_opened_again(tmp_path, source, given):
    maximum = np.array([9.0, 8.0, 7.0], np.float32) if given else None
    written = scale.rectified_map_zarr(
        tmp_path / "labels.zarr", tmp_path / "map.zarr", 3, spacing=SPACING, class_max=maximum, memory=LITTLE
    )
    maps = scale.open_map(tmp_path / "labels.zarr", tmp_path / "map.zarr")
    whole = rw.rectified_map(source[None], 3, spacing=SPACING, class_max=maximum[None] if given else None)
    np.testing.assert_array_equal(maps.foreground[:].view(np.uint32), whole.foreground[0].view(np.uint32))
    np.testing.assert_array_equal(maps.class_max, written.class_max)
    np.testing.assert_array_equal(maps.patch((3, 4, 5), (6, 7, 8)).labels[0], source[3:9, 4:11, 5:13])


@pytest.mark.parametrize("shards", [None, (16, 20, 24)])
def test_an_array_of_the_callers_is_written_in_whole_chunks(tmp_path, source, shards):
    target = zarr.create_array(
        str(tmp_path / "out.zarr"), shape=SHAPE, chunks=(8, 10, 24), shards=shards, dtype=np.float32
    )
    assert scale.distance_transform_zarr(da.from_array(source, chunks=30), target, memory=700_000, workers=2) is target
    np.testing.assert_array_equal(target[:], rw.distance_transform(source[None])[0])


def test_after_an_error_nothing_is_left_and_what_was_there_stays(tmp_path, source, monkeypatch):
    scale.distance_transform_zarr(tmp_path / "labels.zarr", tmp_path / "out.zarr", memory=LITTLE)
    before = zarr.open_array(str(tmp_path / "out.zarr"), mode="r")[:]
    run_stage = blocks.run_stage

    def fails(job, number, region, check):
        if number == 1 and region[1].start > 0:
            raise RuntimeError("the disk is on fire")
        return run_stage(job, number, region, check)

    monkeypatch.setattr(blocks, "run_stage", fails)
    for overwrite, name in ((True, "out.zarr"), (False, "new.zarr")):
        with pytest.raises(RuntimeError, match="on fire"):
            scale.distance_transform_zarr(
                tmp_path / "labels.zarr", tmp_path / name, memory=LITTLE, workers=2, overwrite=overwrite, squared=True
            )
        assert sorted(os.listdir(tmp_path)) == ["labels.zarr", "out.zarr"]
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "out.zarr"), mode="r")[:], before)


def test_what_exists_is_replaced_only_when_asked(tmp_path, source):
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(FileExistsError, match=r"target: '.*out.zarr' exists; overwrite=True replaces it"):
        scale.distance_transform_zarr(tmp_path / "labels.zarr", tmp_path / "out.zarr")
    found = scale.distance_transform_zarr(tmp_path / "labels.zarr", tmp_path / "out.zarr", overwrite=True)
    np.testing.assert_array_equal(found[:], rw.distance_transform(source[None])[0])


def test_a_label_out_of_range_is_named_whether_labels_are_copied_or_not(tmp_path):
    labels = labels_of("blobs")
    labels[31, 7, 71] = 77
    for chunks in ((16, 20, 36), (48, 7, 31)):
        zarr.create_array(str(tmp_path / "labels.zarr"), data=labels, chunks=chunks, overwrite=True)
        with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 77 at \(31, 7, 71\)"):
            scale.rectified_map_zarr(tmp_path / "labels.zarr", tmp_path / "map.zarr", 3, memory=LITTLE)
        assert os.listdir(tmp_path) == ["labels.zarr"]


def test_wrong_places_are_refused(tmp_path, source):
    path = tmp_path / "labels.zarr"
    zarr.create_group(str(tmp_path / "group.zarr")).create_array("a", shape=SHAPE, dtype=np.uint8)
    wrong = zarr.create_array(str(tmp_path / "wrong.zarr"), shape=SHAPE, dtype=np.float64)
    for arguments, error, message in [
        ((7, tmp_path / "o"), TypeError, "source: expected a path, a zarr.Array or a dask array"),
        (
            (tmp_path / "group.zarr", tmp_path / "o"),
            ValueError,
            r"source: expected the path of an array, got a group of",
        ),
        ((tmp_path / "none.zarr", tmp_path / "o"), FileNotFoundError, "none.zarr"),
        ((path, tmp_path / "no" / "o"), FileNotFoundError, "target: the folder"),
        ((path, "s3://bucket/o"), ValueError, "target: expected a local path"),
        ((path, wrong), ValueError, "target: expected a writeable float32 array of shape"),
        ((path, 7), TypeError, "target: expected a path or a zarr.Array"),
    ]:
        with pytest.raises(error, match=message):
            scale.distance_transform_zarr(*arguments)
    with pytest.raises(ValueError, match="target: expected another path than that of the labels"):
        scale.distance_transform_zarr(path, path, overwrite=True)
    with pytest.raises(ValueError, match="foreground: expected a map of rectified_map_zarr"):
        scale.open_map(path, path)
    assert sorted(os.listdir(tmp_path)) == ["group.zarr", "labels.zarr", "wrong.zarr"]


def test_what_a_killed_worker_had_begun_to_write_is_no_part_of_the_result(tmp_path, source, monkeypatch):
    run_stage = blocks.run_stage

    def leaves_a_part(job, number, region, check):
        (result,) = tmp_path.glob(".out.zarr.*.scratch/result")
        (result / "c").mkdir(exist_ok=True)
        (result / "c" / "0.1f.partial").touch()
        return run_stage(job, number, region, check)

    monkeypatch.setattr(blocks, "run_stage", leaves_a_part)
    scale.distance_transform_zarr(tmp_path / "labels.zarr", tmp_path / "out.zarr")
    assert list((tmp_path / "out.zarr").rglob("*.partial")) == []


@pytest.mark.large
def test_a_gigapixel_under_two_gigabytes_has_the_bits_of_memory(tmp_path):
    from benchmarks.large_volume import measure

    found = measure(tmp_path / "large", 1024, 2 << 30, "512 MiB", 1)
    print(found)
    assert found["pixels_that_differ"] == 0
    assert found["peak_bytes"] < 2 << 30
    assert found["left_behind"] == []
