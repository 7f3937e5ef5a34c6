"""The model of the column passes against the loads of the emulated kernels, and how their work grows."""

import ptx
import pytest
import torch
from samples import scene

import rwkernels as rw
from rwkernels.backends import triton, triton_maps

sweeps = pytest.importorskip("benchmarks.sweeps", reason="benchmarks/ is not beside the tests")
pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))


def _emulated(labels, spacing):
    """Bytes that each column pass read of its field and of the least values of blocks."""
    from ptx.driver import emulated_device

    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", 90) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        found = rw.distance_transform(labels, spacing=spacing, squared=True, backend="triton")
        passes = [launch.counts.loaded for launch in device.launches if launch.name == "column_pass"]
    return found, [(counts["field"], counts["minima"]) for counts in passes]


@pytest.mark.parametrize("name", ["blobs", "one-odd-pixel", "circle", "random", "uniform", "sparse"])
@pytest.mark.parametrize(
    ("shape", "spacing", "deep"),
    [((70, 130), None, 64), ((70, 130), (1.0, 2.0), 64), ((20, 9, 21), None, 64), ((300, 40), None, 8)],
    ids=["2d", "anisotropic", "3d", "groups"],
)
def test_the_model_counts_the_loads_of_the_compiled_kernel(shape, spacing, deep, name, monkeypatch):
    monkeypatch.setattr(triton_maps, "_DEEP", deep)
    labels = scene(name, shape, dtype=torch.uint8)
    squared, loaded = _emulated(labels, spacing)
    counts, modelled = sweeps.count(labels, spacing, deep)
    known = squared.isfinite()
    torch.testing.assert_close(squared[known], modelled[known].float())
    for (field, minima), count in zip(loaded, counts, strict=True):
        each = 4 * count.lanes
        assert field == each * (8 * count.programs + 8 * count.above + 9 * count.below)
        assert minima == each * (2 * count.looks + 2 * sweeps.GROUP * count.group_looks)
