"""The model of the column passes against the loads of the emulated kernels, and how their work grows."""

from dataclasses import asdict

import ptx
import pytest
import test_triton_edt_binaries as binaries
import torch
from samples import scene

import rwkernels as rw
from rwkernels.backends import triton

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
    return found, [(each["field"] // size, each["minima"] // size) for each, size in zip(loaded, sizes, strict=True)]


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


@pytest.mark.parametrize(
    ("shape", "spacing", "fields"),
    [((1, 16, 256), None, ["int16"]), ((1, 8, 16, 256), None, ["int16", "int32"]),
     ((1, 8, 256), (1.0, 2.0), ["float32"]), ((1, 8, 16, 256), (2.0, 1.0, 1.0), ["int16", "int32"])],
    ids=["2d", "3d", "anisotropic", "anisotropic-along-z"],
)  # fmt: skip
def test_the_instructions_of_the_prediction_are_those_of_the_binaries(shape, spacing, fields):
    def close(number):
        return pytest.approx(number, rel=0.1)

    launches = binaries._launches(
        ("cuda", 90), torch.zeros(shape, dtype=torch.uint8), binaries.MAKERS["rectified"], spacing
    )
    columns = [launch for launch in launches if launch.name == "column_pass"]
    for launch, field in zip(columns, fields, strict=True):
        searches, end = binaries.pieces(launch.sass)
        kinds = ["uint16", "int32"] if launch.arguments["SQUARES"] == "int32" else ["float32"]
        for kind, found in zip(kinds, searches, strict=True):
            assert found == {name: close(each) for name, each in asdict(work.PIECES[kind, field]).items()}
        assert end == close(work.END[launch.arguments["GIVES"]])
    for launch in launches:
        count = binaries.count(launch.sass)
        if launch.name == "rectify":
            assert count == close(work.RECTIFY[columns[-1].arguments["SQUARES"]])
        elif launch.name == "block_minima":
            assert count == close(work.MINIMA)
        elif launch.name == "row_pass":
            threads, pixels = 32 * launch.compiled.metadata.num_warps, 8 * 256
            assert count * threads / pixels == close(work.ROW[256])


def test_work_grows_little_with_the_length_of_a_line():
    """A line of one label and a pixel of another is looked at in groups; only blocks that matter are entered."""
    for name in ("one-odd-pixel", "uniform", "circle"):
        small, large = (_total(scene(name, (n, n), batch=1, dtype=torch.uint8)) for n in (256, 1024))
        assert large["looks"] < 32
        assert large["groups"] <= 2 * 2 * 1024 / (sweeps.ROWS * sweeps.GROUP)  # in 16 bits, and in 32
        assert large["candidates"] < 2 * small["candidates"]


def _total(labels):
    """What the searches of a 2D transform do: looks of a program, and candidates of a pixel."""
    (searches,), _ = sweeps.count(labels)
    programs = searches[0].programs
    return {
        "looks": sum(each.looks for each in searches) / programs,
        "groups": sum(each.bounds + each.groups for each in searches) / programs,
        "candidates": sum(each.candidates for each in searches) / labels.numel(),
    }


def test_cucim_launches_as_its_source_says():
    """For a label image of 256 x 256 and 4 classes: mask, pack, zeros, 9 + 3 passes, zeros, distance."""
    task = work.Task("", "hearts", (1, 256, 256), 4)
    assert work.cucim(task).launches == 4 * 16
    assert work.cucim(work.Task("", "blobs", (1, 16, 64, 64), 3)).launches == 3 * 12


def test_a_time_is_measured_with_the_clock_of_the_device_or_the_reason_told():
    task = work.Task("", "blobs", (1, 24, 30), 3)
    cpu = torch.device("cpu")
    assert float(work.measured(task, "reference", cpu, runs=3)) > 0
    reason = work.load("cucim").can_run(cpu)
    assert work.measured(task, "cucim", cpu) == f"not measured ({reason})"
    if not torch.cuda.is_available():
        assert "measured" not in work.report(task)


@pytest.mark.gpu
def test_measured_times_stand_beside_predicted_ones_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert "measured us" in work.report(work.Task("", "blobs", (1, 64, 64), 3))
