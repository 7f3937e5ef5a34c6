"""The rows of the table: which contenders race on which input, and the goal of each ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import contenders as c
from benchmarks.harness import COPY, Contender
from benchmarks.inputs import Task, adversarial_tasks, halved, loss_tasks, map_tasks

# Time per pixel may grow by this power of the number of pixels: a little above linear, as caches end somewhere.
LINEAR = 1.1


@dataclass(frozen=True)
class Comparison:
    """Two contenders of a case and what is wanted of them.

    `kind` is "faster" (peer over ours, at least the goal), "within" (ours over peer, at most the goal), "growth"
    (exponent of the time from `peer`, the smaller size, to `ours`) or "memory" (peak over the gradient's bytes).
    `moved` is the least that `ours` must read and write, where that is not what the case says.
    """

    ours: str
    peer: str
    goal: float | None
    kind: str = "faster"
    moved: int | None = None


@dataclass(frozen=True)
class Case:
    """One input of one row. `moved` is the least that must be read and written, in bytes; `effort` in seconds."""

    row: str
    task: Task
    moved: int
    make: Callable[[], list[Contender]]
    comparisons: tuple[Comparison, ...]
    effort: float = 5.0

    @property
    def id(self) -> str:
        return f"{self.row} {self.task.title}"


def _distance_cases(scale: str) -> list[Case]:
    cases = []
    for task in map_tasks(scale):
        compared = (Comparison(c.OURS, c.EDT, 8), Comparison(c.REUSED, c.EDT, None))
        make = _bound(c.distances, task, known=True, reused=True)
        cases.append(Case("distance", task, 5 * task.pixels, make, compared, 2 + 4e-7 * task.pixels * task.num_classes))
    for task in adversarial_tasks(scale):
        make = _bound(c.distances, task, known=False, reused=False)
        cases.append(
            Case("distance, hard", task, 5 * task.pixels, make, (Comparison(c.OURS, c.EDT, 4),), 3 + 4e-7 * task.pixels)
        )
    return cases


def _growth_cases(scale: str) -> list[Case]:
    cases = []
    for task in (*adversarial_tasks(scale), map_tasks(scale)[1]):
        compared = (Comparison(c.at_size(task), c.at_size(halved(task)), LINEAR, "growth"),)
        cases.append(Case("growth", task, 5 * task.pixels, _bound(c.growth, halved(task), task), compared, 3))
    return cases


def _map_cases(scale: str) -> list[Case]:
    cases = []
    for task in map_tasks(scale):
        goal = 1500 if task.name == "T4" else 100
        compared = (Comparison(c.OURS, c.SCIPY, goal), Comparison(c.REUSED, c.SCIPY, None))
        cases.append(Case("compact map", task, 5 * task.pixels, _bound(c.compact_maps, task), compared, 15))
    for task in map_tasks(scale):
        goal = 5 if task.name == "T4" else 7
        compared = (Comparison(c.REUSED, c.EDT_FINISH, goal), Comparison(c.OURS, c.EDT_FINISH, None))
        moved = (1 + 4 * task.num_classes) * task.pixels
        cases.append(Case("dense map", task, moved, _bound(c.dense_maps, task), compared, 15))
    for task in map_tasks(scale)[:2]:
        compared = (Comparison(c.REUSED, c.EDT_TWICE, 12), Comparison(c.OURS, c.EDT_TWICE, None))
        moved = (1 + 4 * task.num_classes) * task.pixels
        cases.append(Case("boundary map", task, moved, _bound(c.boundary_maps, task), compared, 10))
    return cases


def _loss_cases(scale: str) -> list[Case]:
    cases = []
    for task in loss_tasks(scale):
        many = task.num_classes > 16
        names = [c.DENSE, c.EAGER, c.COMPILED]
        compared: tuple[Comparison, ...] = (
            Comparison(c.DENSE, c.EAGER, 3 if many else 4),
            Comparison(c.DENSE, c.COMPILED, 2 if many else 2.5),
        )
        moved = 12 * task.num_classes * task.pixels
        cases.append(Case("loss fwd+bwd", task, moved, _bound(c.losses, task, names), compared, 20))
        names = [c.COMPACT, c.CROSS_ENTROPY]
        moved = (8 * task.num_classes + 12) * task.pixels
        compared = (Comparison(c.COMPACT, c.CROSS_ENTROPY, 1),)
        cases.append(Case("compact loss", task, moved, _bound(c.losses, task, names), compared, 8))
        if not many:
            cases += _kernel_cases(task)
    return cases


def _kernel_cases(task: Task) -> list[Case]:
    def make() -> list[Contender]:
        variants = [(False, True), (True, True), (False, False)]
        return [c.kernel(task, compact=compact, reuse=reuse) for compact, reuse in variants]

    dense, compact = f"{c.DENSE}, reused gradient", f"{c.COMPACT}, reused gradient"
    compared = (
        Comparison(dense, COPY, 1.6, "within"),
        Comparison(compact, dense, 1.0, "within", (8 * task.num_classes + 5) * task.pixels),
        Comparison(f"{c.DENSE}, fresh gradient", COPY, None, "within"),
    )
    return [Case("loss kernel", task, 12 * task.num_classes * task.pixels, make, compared, 6)]


def _memory_cases(scale: str) -> list[Case]:
    """Peak memory of forward and backward beyond its inputs; measured in a process of its own (`memory.py`)."""
    compared = (
        Comparison(c.DENSE, "its gradient", 1.05, "memory"),
        Comparison(c.COMPACT, "its gradient", 1.05, "memory"),
        Comparison(c.EAGER, "its gradient", None, "memory"),
    )
    tasks = loss_tasks(scale)
    return [Case("peak memory", task, 0, _bound(c.losses, task, [c.DENSE]), compared, 15) for task in tasks]


def _bound(function: Callable[..., list[Contender]], *arguments: Any, **options: Any) -> Callable[[], list[Contender]]:
    return lambda: function(*arguments, **options)


def cases(scale: str) -> list[Case]:
    """All cases, in the order of the table."""
    families = (_distance_cases, _growth_cases, _map_cases, _loss_cases, _memory_cases)
    return [case for make in families for case in make(scale)]
