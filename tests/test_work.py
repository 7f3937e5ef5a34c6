"""The model of the column passes against the loads of the emulated kernels, and how their work grows."""

import ptx
import pytest
import test_triton_edt_binaries as binaries
import torch
from samples import scene

import rwkernels as rw
from rwkernels.backends import triton, triton_maps

work = pytest.importorskip("benchmarks.work", reason="benchmarks/ is not beside the tests")
sweeps = pytest.importorskip("benchmarks.sweeps", reason="benchmarks/ is not beside the tests")
pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))


def _emulated(labels, spacing):
    """Numbers that each column pass read of its field and of the least values of blocks."""
    from ptx.driver import emulated_device

    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", 90) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        found = rw.distance_transform(labels, spacing=spacing, squared=True, backend="triton")
        passes = [launch for launch in device.launches if launch.name == "column_pass"]
    sizes = [launch.arguments["field"].element_size() for launch in passes]
    loaded = [launch.counts.loaded for launch in passes]
    return found, [
        (each["field"] // size, each["minima"] // size) for each, size in zip(loaded, sizes, strict=True)
    ]


@pytest.mark.parametrize("name", ["blobs", "one-odd-pixel", "circle", "random", "uniform", "sparse"])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((70, 130), None),
        ((70, 130), (1.0, 2.0)),
        ((20, 9, 21), None),
        ((20, 9, 21), (2.0, 1.0, 1.0)),
        ((400, 40), None),
    ],
    ids=["2d", "anisotropic", "3d", "anisotropic-along-z", "far"],
)
def test_the_model_counts_the_loads_of_the_compiled_kernel(shape, spacing, name):
    labels = scene(name, shape, dtype=torch.uint8)
    squared, loaded = _emulated(labels, spacing)
    counts, modelled = sweeps.count(labels, spacing)
    torch.testing.assert_close(squared, torch.where(modelled >= sweeps.FAR, torch.inf, modelled.float()))
    for numbers, searches in zip(loaded, counts, strict=True):
        assert numbers == (sum(each.field for each in searches), sum(each.minima for each in searches))


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0)], ids=["int32", "float32"])
def test_the_instructions_of_the_prediction_are_those_of_the_binaries(spacing):
    launches = binaries._launches(
        ("cuda", 90), torch.zeros(1, 16, 256, dtype=torch.uint8), binaries.MAKERS["rectified"], spacing
    )
    (column,) = [launch for launch in launches if launch.name == "column_pass"]
    pieces = work.PIECES[column.arguments["LANES"]]
    entered = [len(span) for span in binaries.entered_blocks(column.sass)]
    assert entered == pytest.approx([pieces.above, pieces.below], rel=0.1)
    whole = sum(name != "NOP" for _, name, _ in binaries._instructions(column.sass))
    assert whole - sum(entered) - 2 * pieces.look == pytest.approx(pieces.program, rel=0.15)
    rectify = launches[-1]
    assert len(binaries._instructions(rectify.sass)) == pytest.approx(work.RECTIFY, rel=0.1)


def test_work_grows_little_with_the_length_of_a_line():
    """A line of one label and a pixel of another is looked at in groups; only blocks that matter are entered."""
    for name in ("one-odd-pixel", "uniform", "circle"):
        small, large = (sweeps.count(scene(name, (n, n), batch=1, dtype=torch.uint8))[0][0] for n in (256, 1024))
        assert large.looks / large.programs < 40
        assert large.group_looks / large.programs <= 2 * 1024 / (sweeps.ROWS * sweeps.GROUP)
        assert large.candidates / 1024**2 < 2 * small.candidates / 256**2


def test_cucim_launches_as_its_source_says():
    """For a label image of 256 x 256 and 4 classes: mask, pack, zeros, 9 + 3 passes, zeros, distance."""
    task = work.Task("", "hearts", (1, 256, 256), 4)
    assert work.cucim(task).launches == 4 * 16
    assert work.cucim(work.Task("", "blobs", (1, 16, 64, 64), 3)).launches == 3 * 12
