"""The harness itself: what it must refuse, and how it takes turns."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import contenders, report, truth
from benchmarks.harness import Contender, Effort, Measured, interleave, ratio
from benchmarks.inputs import Task, labels, map_tasks
from benchmarks.rows import Case, Comparison

TASK = Task("small", "blobs", (2, 24, 20, 16), 3, (3.0, 1.0, 1.0))


def test_contenders_take_turns_after_one_checked_run_each() -> None:
    order: list[str] = []
    racing = [Contender(name, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    measured = interleave(racing, 1, Effort(0.0, 3))
    assert "".join(order) == "ab" + "ababab"
    assert [len(measured[name].seconds) for name in "ab"] == [3, 3]


def test_a_turn_repeats_short_runs_until_it_has_lasted() -> None:
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        time.sleep(0.001)

    racing = [Contender(name, lambda name=name: run(name)) for name in "ab"]  # type: ignore[misc]
    measured = interleave(racing, 1, Effort(0.0, 2, turn=0.005))
    turns = [len(list(runs)) for _, runs in itertools.groupby(order[2:])]
    assert len(turns) == 4
    assert all(1 < runs <= 5 for runs in turns)
    assert all(len(m.seconds) == 2 and m.median >= 0.001 for m in measured.values())


def test_a_wrong_answer_is_named_and_not_timed() -> None:
    measured = interleave(
        [Contender("a", lambda: 1, lambda _: "off by one"), Contender("b", lambda: 1)], 1, Effort(0, 2)
    )
    assert measured["a"] == Measured("a", [], "wrong: off by one")
    assert len(measured["b"].seconds) == 2


def test_a_contender_that_raises_does_not_stop_the_others() -> None:
    measured = interleave([Contender("a", lambda: 1 // 0), Contender("b", lambda: 1)], 1, Effort(0, 2))
    assert "ZeroDivisionError" in (measured["a"].refused or "")
    assert len(measured["b"].seconds) == 2


def test_a_missing_peer_leaves_the_row_in_the_table_unranked() -> None:
    racing = [Contender("rwkernels", lambda: 1), Contender("peer", lambda: 1, missing="peer is not installed")]
    case = Case("row", TASK, 64, lambda: racing, (Comparison("rwkernels", "peer", 2.0),))
    (line,) = report.run(case, racing, 1, "quick")
    assert line.met is None
    assert not line.ours_fails
    assert "not ranked: peer missing: peer is not installed" in report.table([line])


def test_ratio_is_that_of_the_medians_with_the_quartiles_of_the_turns() -> None:
    value, spread = ratio(Measured("a", [2.0, 4.0, 6.0]), Measured("b", [1.0, 2.0, 1.0]))
    assert value == 4.0
    assert spread == (2.0, 4.0)


def test_growth_is_the_exponent_of_the_pixels() -> None:
    racing = [Contender("rwkernels, 2n", lambda: 1, seconds=0.8), Contender("rwkernels, n", lambda: 1, seconds=0.1)]
    compared = (Comparison("rwkernels, 2n", "rwkernels, n", 1.1, "growth"),)
    (line,) = report.run(Case("growth", TASK, 64, lambda: racing, compared), racing, 1, "quick")
    assert math.isclose(line.ratio, 1.0)
    assert line.met


@pytest.mark.parametrize("make", [contenders.compact_maps, contenders.dense_maps, contenders.boundary_maps])
def test_contenders_of_maps_are_right_and_a_moved_label_is_noticed(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    task = replace(TASK, spacing=None)
    assert all(contender.check(contender.run()) is None for contender in make(task))
    moved = labels(task).roll(1, -1)
    monkeypatch.setattr(contenders, "labels", lambda _: moved)
    assert all(contender.check(contender.run()) for contender in make(task)[:2])


def test_distances_with_one_wrong_value_are_refused() -> None:
    ours, _, edt = contenders.distances(TASK, known=True, reused=True)
    assert ours.check(ours.run()) is None
    assert edt.check(edt.run()) is None
    wrong = ours.run().clone()
    wrong[1, 3, 4, 5] += 0.01
    assert "by up to 0.01" in (ours.check(wrong) or "")


def test_an_image_with_one_label_has_no_finite_distance() -> None:
    expected = truth.distance(Task("", "single", (1, 8, 8), 2))
    assert expected is not None
    assert bool(torch.isinf(expected).all())
    for contender in contenders.distances(Task("", "single", (1, 8, 8), 2), known=False, reused=False):
        assert contender.check(contender.run()) is None
        assert contender.check(torch.ones(1, 8, 8) if contender.name == "rwkernels" else [torch.ones(8, 8).numpy()])


def test_a_loss_and_a_gradient_that_are_slightly_off_are_refused() -> None:
    x = torch.randn(2, 3, 5, 7)
    z = torch.randn(2, 3, 5, 7)
    x.requires_grad_()
    loss = contenders.plain_loss(x, z)
    (gradient,) = torch.autograd.grad(loss, x)
    assert truth.loss_mismatch(loss.item(), gradient, x, z) is None
    assert "loss" in (truth.loss_mismatch(loss.item() * 1.001, gradient, x, z) or "")
    gradient[1, 2, 3, 4] *= 1.01
    assert "gradient" in (truth.loss_mismatch(loss.item(), gradient, x, z) or "")


def test_every_class_is_in_every_image_of_the_map_rows() -> None:
    for task in map_tasks("quick"):
        assert all(len(image.unique()) == task.num_classes for image in labels(task))
    hearts = labels(map_tasks("full")[0])
    assert 0.03 < float((hearts > 0).float().mean()) < 0.05
