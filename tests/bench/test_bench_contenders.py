"""What the benchmarks time: every answer is right, a slightly wrong one is refused, no contender is dropped."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from rwkernels.bench import joint, losses, maps, memory, names, peers, registry, session, steps, truth
from rwkernels.bench.harness import make
from rwkernels.bench.inputs import CHANNELS_LAST, CONTIGUOUS, Task, labels, logits, map_tasks

TASK = Task("small", "blobs", (2, 24, 20, 16), 3, (3.0, 1.0, 1.0))
FLAT = Task("flat", "hearts", (2, 40, 48), 4)


def judged(contender):
    contender.prepare()
    return contender.check(contender.run())


def made(makers, name):
    (contender,) = make(makers, [name])
    return contender


def right(makers, wanted):
    """All of `wanted` answer rightly, those whose library is here."""
    assert set(wanted) <= set(makers)
    for contender in make(makers, wanted):
        assert contender.missing or judged(contender) is None, contender.name


ON_CPU = [*peers.CPU_LIBRARIES]


@pytest.mark.parametrize("task", [FLAT, TASK], ids=["2d", "3d anisotropic"])
def test_all_libraries_agree_on_rectified_maps(task):
    wanted = peers.usable([name for name in ON_CPU if name != names.EDT_PER_CLASS], len(task.image_shape), task is FLAT)
    ours = [names.COMPACT, names.COMPACT_REUSED, names.DENSE, names.DENSE_REUSED, names.REFERENCE]
    right(maps.rectified_makers(task, "cpu"), [*ours, *wanted, names.EDT_FINISH])


@pytest.mark.parametrize("task", [FLAT, replace(TASK, spacing=None)], ids=["2d", "3d"])
def test_all_libraries_agree_on_boundary_maps(task):
    wanted = [name for name, single in names.TWICE.items() if single in ON_CPU]
    wanted = [name for name in wanted if peers.usable([names.TWICE[name]], len(task.image_shape), True)]
    right(maps.boundary_makers(task, "cpu"), [names.OURS, names.REUSED, names.EDT_TWICE, names.MONAI_BOUNDARY, *wanted])


def test_all_libraries_agree_on_distances():
    right(maps.distance_makers(FLAT, "cpu", known=True), [names.OURS, names.REUSED, names.EDT, *ON_CPU])


def test_an_image_with_one_label_is_wrong_in_scipy_and_right_here_and_in_edt():
    task = Task("", "single", (1, 8, 8), 2)
    makers = maps.distance_makers(task, "cpu", known=False)
    assert judged(made(makers, names.OURS)) is None
    assert judged(made(makers, names.EDT)) is None
    assert "where there is no other label" in judged(made(makers, names.SCIPY))


@pytest.mark.parametrize("make", [maps.rectified_makers, maps.boundary_makers])
def test_a_moved_label_is_noticed(make, monkeypatch):
    moved = labels(FLAT).roll(1, -1)
    monkeypatch.setattr(maps, "labels", lambda _: moved)
    wanted = names.COMPACT, names.DENSE
    found = make(FLAT, "cpu")
    assert all(judged(made(found, name)) for name in (wanted if names.COMPACT in found else (names.OURS, names.REUSED)))


def test_256_classes_are_no_overflow_where_labels_are_shifted_by_one():
    task = Task("", "random", (1, 40, 40), 256)
    assert int(labels(task).max()) == 255
    right(maps.rectified_makers(task, "cpu"), [names.COMPACT, names.EDT_FINISH, names.SCIPY])
    affordable = truth.foreground(task)
    truth.foreground.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth, "SCIPY_LIMIT", 0)
        assert truth.mismatch(truth.foreground(task), affordable) is None
    truth.foreground.cache_clear()


def test_distances_with_one_wrong_value_are_refused():
    makers = maps.distance_makers(TASK, "cpu", known=True)
    ours = made(makers, names.OURS)
    wrong = ours.run().clone()
    wrong[1, 3, 4, 5] += 0.01
    assert "by up to 0.01" in (ours.check(wrong) or "")


@pytest.mark.parametrize("dtype", list(losses.DTYPES))
@pytest.mark.parametrize("layout", ["contiguous", CHANNELS_LAST])
def test_losses_of_every_type_and_layout_are_right(dtype, layout):
    wanted = [names.DENSE, names.COMPACT, names.RECOMPUTE, names.EAGER, names.CROSS_ENTROPY, names.DICE]
    right(losses.loss_makers(FLAT, "cpu", dtype, layout), wanted)


@pytest.mark.parametrize("name", [names.DENSE, names.CROSS_ENTROPY, names.DICE])
def test_a_loss_or_a_gradient_that_is_slightly_off_is_refused(name):
    contender = made(losses.loss_makers(FLAT, "cpu"), name)
    contender.prepare()
    value = contender.run().detach()
    assert contender.check(value) is None
    assert "loss" in (contender.check(value * 1.001) or "")
    x = logits(FLAT, torch.float32, CONTIGUOUS, "cpu")
    largest = x.grad.abs().argmax()
    x.grad.view(-1)[largest] *= 1.001
    assert "gradient" in (contender.check(value) or "")


@pytest.mark.parametrize("name", [names.DENSE, names.CROSS_ENTROPY, names.DICE])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_gradient_that_is_not_finite_is_refused(name, bad, everywhere):
    contender = made(losses.loss_makers(FLAT, "cpu"), name)
    if contender.missing:
        pytest.skip(contender.missing)
    contender.prepare()
    value = contender.run().detach()
    gradient = logits(FLAT, torch.float32, CONTIGUOUS, "cpu").grad
    gradient.view(-1)[slice(None) if everywhere else slice(1)] = bad
    assert contender.check(value) == "the gradient is not finite"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_of_labels_alone_read_logits_and_labels_and_write_the_gradient(dtype):
    makers = losses.loss_makers(FLAT, "cpu", dtype)
    element = {"float32": 4, "bfloat16": 2}[dtype]
    expected = (2 * element * FLAT.num_classes + 8) * FLAT.pixels
    assert made(makers, names.CROSS_ENTROPY).moved == made(makers, names.DICE).moved == expected


def test_the_way_of_the_paper_that_is_timed_is_the_one_that_gives_the_truth():
    masks = truth.one_hot(TASK)
    timed = made(maps.rectified_makers(TASK, "cpu"), names.SCIPY).run()
    assert torch.equal(timed, torch.from_numpy(truth.paper_map(masks, TASK.spacing)[0]))


def test_the_kernel_alone_is_right_with_fresh_and_reused_gradients():
    right(losses.kernel_makers(FLAT, "cpu"), list(names.KERNELS.values()))


@pytest.mark.parametrize("title", joint.SUMS)
def test_losses_that_are_trained_together_are_right(title):
    makers = joint.joint_makers(FLAT, title, "cpu")
    wanted = [name for case in registry.cases("tiny") if case.family == f"joint loss, {title}" for name in case.names]
    right(makers, sorted(set(wanted)))
    timed = made(makers, names.FUSED)
    timed.prepare()
    assert "instead of" in timed.check(timed.run() + 1e-3)


@pytest.mark.parametrize("family", steps.FAMILIES)
def test_labels_to_gradient_is_right(family):
    wanted = [names.OURS, names.PAPER, names.PAPER_EDT, *([names.MONAI_LOSS] if family == "boundary" else [])]
    right(steps.step_makers(FLAT, family, "cpu"), wanted)


@pytest.mark.parametrize("workers", [0, 1])
def test_maps_of_a_data_loader_are_right(workers):
    right(steps.loader_makers(FLAT, workers), [names.OURS, names.SCIPY, names.EDT_PER_CLASS])


def test_a_library_that_is_not_installed_is_listed_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "edt", None)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert made(maps.rectified_makers(FLAT, "cpu"), names.SIMPLEITK).missing == "SimpleITK is not installed"
    case = next(case for case in registry.cases("tiny") if case.family == "distance")
    rows = session.measure_case(case, [1], "tiny")
    (edt,) = [row for row in rows if row.contender == names.EDT]
    assert (edt.verdict, edt.reason) == ("missing", "edt is not installed")
    assert all(row.ranked for row in rows if row.ours)


def test_a_case_that_cannot_be_set_up_gives_rows_that_say_so():
    def broken():
        raise MemoryError("no room")

    case = replace(registry.cases("tiny")[0], makers=broken)
    rows = session.measure_case(case, [1], "tiny")
    assert {row.contender for row in rows} == set(case.names)
    assert all(row.verdict == "failed" and "MemoryError" in row.reason for row in rows)
    assert session.failures(results_of(rows))


def test_an_error_while_peaks_are_measured_leaves_the_timings_alone(monkeypatch):
    def broken(*_):
        raise OSError("no process")

    monkeypatch.setattr(session, "_peaks", broken)
    case = next(case for case in registry.cases("tiny") if case.family == "distance")
    with pytest.warns(RuntimeWarning, match="no peak memory: OSError: no process"):
        rows = session.measure_case(case, [1, 2], "tiny")
    assert all(row.ranked and row.peak is None for row in rows if row.ours)


def test_an_error_on_one_number_of_threads_leaves_the_rows_of_another_alone(monkeypatch):
    race = session.interleave

    def broken(contenders, threads, *others):
        if threads == 2:
            raise RuntimeError("no threads")
        return race(contenders, threads, *others)

    monkeypatch.setattr(session, "interleave", broken)
    case = next(case for case in registry.cases("tiny") if case.family == "distance")
    rows = session.measure_case(case, [1, 2], "tiny")
    assert all(row.ranked for row in rows if row.ours and row.threads == 1)
    second = [row for row in rows if row.threads == 2]
    assert {row.contender for row in second} == set(case.names)
    assert all((row.verdict, row.reason) == ("failed", "the race failed: RuntimeError: no threads") for row in second)


def test_peaks_are_shown_on_the_rows_of_the_threads_that_they_were_measured_with(monkeypatch):
    monkeypatch.setattr(session, "_peaks", lambda *_: {names.OURS: 7})
    case = next(case for case in registry.cases("tiny") if case.family == "distance")
    rows = session.measure_case(case, [1, 2], "tiny")
    assert [row.peak for row in rows if row.contender == names.OURS] == [None, 7]


def results_of(rows):
    return SimpleNamespace(rows=rows)


@pytest.mark.parametrize("scale", ["full", "quick", "tiny"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_names_of_cases_are_unique_and_peers_and_goals_are_among_the_contenders(scale, device):
    found = registry.cases(scale, device)
    assert len({case.id for case in found}) == len(found)
    for case in found:
        known = {*case.names, registry.COPY}
        assert case.peer in known, case.id
        for goal in case.goals:
            assert goal.ours in known, case.id
            assert goal.peer in known or goal.kind == "memory", case.id


def test_every_shape_type_and_layout_is_in_the_grid_of_the_loss():
    grid = [case for case in registry.cases("full") if case.family == "loss" and case.task.pattern == "random"]
    found = {(len(case.task.image_shape), case.task.num_classes, case.dtype, case.layout) for case in grid}
    assert len(found) == 2 * 4 * 3 * 2
    assert {classes for _, classes, _, _ in found} == {2, 4, 19, 118}


def test_every_contender_that_a_case_names_can_be_made():
    for case in registry.cases("tiny"):
        assert set(case.names) <= set(case.makers()), case.id


def test_every_class_is_in_every_image_of_the_map_rows():
    for task in map_tasks("quick"):
        assert all(len(image.unique()) == task.num_classes for image in labels(task))


# --- libraries of a GPU, with stand-ins over SciPy -------------------------------------------------------------


@pytest.fixture
def stand_ins(monkeypatch):
    """CuPy, its SciPy and cuCIM as far as they are used, over NumPy."""

    def transform(image, sampling=None, float64_distances=True):
        found = ndimage.distance_transform_edt(image, sampling=sampling)
        return found if float64_distances else found.astype(np.float32)

    for name in ("cupy", "cupyx", "cupyx.scipy", "cucim", "cucim.core", "cucim.core.operations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("cupyx.scipy.ndimage", "cucim.core.operations.morphology"):
        module = ModuleType(name)
        module.distance_transform_edt = transform
        monkeypatch.setitem(sys.modules, name, module)
    streams = []
    sys.modules["cupy"].asarray = np.asarray
    sys.modules["cupy"].cuda = SimpleNamespace(ExternalStream=lambda s: streams.append(s) or nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(cuda_stream=5))
    return streams


@pytest.mark.parametrize("name", [names.CUPY, names.CUCIM])
def test_maps_of_a_gpu_library_are_built_on_the_stream_of_torch(name, stand_ins):
    library = peers.GPU_LIBRARIES[name]
    assert peers.missing_module(library.module) is None
    masks = truth.one_hot(TASK)
    images = [library.prepare(image, TASK.spacing) for image in masks]
    found = maps.gpu_per_class_map(library, images, masks.shape, "cpu")
    assert truth.foreground(TASK) is not None
    assert truth.dense_mismatch(found, TASK) is None
    twice = maps.twice_per_class(library, replace(TASK, spacing=None), "cpu")
    assert truth.mismatch(twice(), truth.boundary(replace(TASK, spacing=None))) is None
    assert set(stand_ins) == {5}


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["distance", "rectified map", "boundary map", "loss", "loss kernel"])
def test_cases_run_on_a_gpu_and_every_answer_of_ours_is_right(family):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    case = next(case for case in registry.cases("tiny", "cuda") if case.family == family)
    rows = session.measure_case(case, session.thread_counts(case), "tiny")
    ours = [row for row in rows if row.ours and row.verdict != "missing"]
    assert ours
    assert all(row.ranked and row.warm_ups > 1 and row.device == "cuda" for row in ours), [r.reason for r in ours]
    assert any(row.peak for row in ours)


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(memory.can_run() is not None, reason=str(memory.can_run()))
def test_peak_memory_is_that_of_the_gradient_for_us_and_several_for_eager():
    case = next(case for case in registry.cases("quick") if case.family == "loss" and case.task.num_classes == 118)
    gradient = 4 * case.task.pixels * case.task.num_classes
    server = memory.Server("quick")
    try:
        peaks = server.ask(case.id, [names.COMPACT, names.EAGER], 1)
    finally:
        server.close()
    assert 0.9 * gradient < peaks[names.COMPACT] < 1.3 * gradient
    assert peaks[names.EAGER] > 2 * gradient


def test_importing_the_benchmarks_imports_no_peer():
    wanted = ["edt", "cv2", "SimpleITK", "diplib", "monai", "scipy", "matplotlib", "rich", "pytest_benchmark"]
    code = (
        "import sys, importlib, pkgutil, rwkernels.bench as b\n"
        "[importlib.import_module('rwkernels.bench.' + m.name) for m in pkgutil.iter_modules(b.__path__)]\n"
        f"print([n for n in {wanted} if n in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
