"""Volumes larger than memory on a cluster of processes, one of which is killed while it works."""

import os
import signal

import numpy as np
import pytest
from samples import scene

import rwkernels as rw

da = pytest.importorskip("dask.array", reason="dask is not installed (the extra `scale`)")
distributed = pytest.importorskip("distributed", reason="distributed is not installed (the extra `scale`)")
zarr = pytest.importorskip("zarr", minversion="3.1.3", reason="no Zarr 3.1.3 (the extra `scale`)")
from rwkernels import scale  # noqa: E402

SHAPE = (48, 40, 72)
LITTLE = 300_000  # bytes a task: a quarter of labels and distances


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path_factory.mktemp("workers")),
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield


@pytest.fixture
def labels():
    return scene("blobs", SHAPE, 3, batch=1)[0].numpy().astype(np.uint8)


def kills_its_worker(marker, place):
    """A function of blocks whose worker dies at block `place`, once."""

    def same(block, block_info=None):
        if block_info[None]["chunk-location"] == place and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    return same


def test_a_cluster_of_processes_gives_the_same_bits(tmp_path, labels):
    zarr.create_array(str(tmp_path / "labels.zarr"), data=labels, chunks=(16, 20, 36))
    found = scale.rectified_map_zarr(tmp_path / "labels.zarr", tmp_path / "map.zarr", 3, memory=LITTLE)
    lazy = scale.distance_transform(da.from_array(labels, chunks=20), memory=LITTLE, scratch=tmp_path)
    np.testing.assert_array_equal(lazy.persist().compute(), rw.distance_transform(labels[None])[0])
    np.testing.assert_array_equal(found.foreground[:], rw.rectified_map(labels[None], 3).foreground[0])


def test_a_worker_killed_while_labels_are_copied_costs_no_pixel(tmp_path, labels):
    lazy = da.from_array(labels, chunks=20).map_blocks(kills_its_worker(tmp_path / "killed", (1, 1, 2)), dtype=np.uint8)
    found = scale.rectified_map_zarr(lazy, tmp_path / "map.zarr", 3, memory=LITTLE)
    assert (tmp_path / "killed").exists()
    np.testing.assert_array_equal(found.foreground[:], rw.rectified_map(labels[None], 3).foreground[0])
    assert sorted(os.listdir(tmp_path)) == ["killed", "map.zarr"]


def test_a_worker_killed_in_the_last_stage_costs_no_pixel(tmp_path, labels):
    """What it held, finished blocks among it, is made again from the temporary store."""
    lazy = scale.distance_transform(da.from_array(labels, chunks=20), memory=LITTLE, scratch=tmp_path)
    place = tuple(n - 1 for n in lazy.numblocks)
    assert lazy.npartitions > 3
    found = lazy.map_blocks(kills_its_worker(tmp_path / "killed", place), dtype=np.float32).compute()
    assert (tmp_path / "killed").exists()
    np.testing.assert_array_equal(found, rw.distance_transform(labels[None])[0])
