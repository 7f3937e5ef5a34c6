"""The cases: which contenders race on which input, against whom the ratios are, and the goals.

A case holds the names of its contenders, so that all can be listed without making an input. `cases` gives them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from rwkernels.bench import joint, losses, maps, names, peers, steps
from rwkernels.bench.harness import COPY, Contender, Maker, in_a_loop, make
from rwkernels.bench.inputs import (
    CHANNELS_LAST,
    CONTIGUOUS,
    Task,
    adversarial_tasks,
    batch_tasks,
    class_tasks,
    loop_tasks,
    loss_grid,
    loss_tasks,
    map_tasks,
    size_tasks,
    small_tasks,
)

Makers = Callable[[], dict[str, Maker]]
# Time per pixel may grow by this power of the number of pixels: a little above linear, as caches end somewhere.
LINEAR = 1.1


@dataclass(frozen=True)
class Goal:
    """What is wanted of `ours` against `peer`.

    `kind` is "faster" (peer over ours, at least the goal), "within" (ours over peer, at most the goal) or "memory"
    (peak memory over the bytes of `peer`, which is the gradient).
    """

    ours: str
    peer: str
    goal: float | None
    kind: str = "faster"


@dataclass(frozen=True)
class Point:
    """Where a case lies on a scaling curve. `curve` names the curve, `limit` is the exponent that ours may have."""

    curve: str
    axis: str
    value: int
    fitted: bool = True
    limit: float | None = None


@dataclass(frozen=True)
class Case:
    """One input of one family. `moved` is the least that must be read and written, in bytes."""

    family: str
    task: Task
    names: tuple[str, ...]
    peer: str  # ratios of all contenders are against this one
    moved: int
    makers: Makers
    goals: tuple[Goal, ...] = ()
    effort: float = 3.0  # seconds for one number of threads, on two cores at 3 GHz
    dtype: str = "float32"
    layout: str = CONTIGUOUS
    device: str = "cpu"
    point: Point | None = None
    unit: str = ""  # "map": results are also told as maps per second
    threads: str = "1 and all"  # "all" for a case whose processes are its threads; "sweep": 1, 2, 4, ...
    memory: str = "all"  # whose peak is measured: "all", "ours" (and the peer's) or "" for nobody's

    @property
    def id(self) -> str:
        """Its name everywhere: `--only` matches it, pytest and pytest-benchmark show it."""
        variant = [self.dtype] if self.dtype != "float32" else []
        variant += [self.layout] if self.layout != CONTIGUOUS else []
        where = [self.device] if self.device != "cpu" else []
        return ", ".join([f"{self.family}: {self.task.title}", *variant, *where])

    def make(self) -> list[Contender]:
        """The contenders, in the order of their names; inputs are made now."""
        return make(self.makers(), self.names)


def _ours(device: str, *more: str) -> list[str]:
    """Our own backends besides the default one."""
    return [names.CUCIM_BACKEND] if device == "cuda" else list(more)


def _isotropic(task: Task) -> bool:
    return task.spacing is None or len(set(task.spacing)) == 1


def _distance_cases(scale: str, device: str) -> Iterable[Case]:
    for task in map_tasks(scale):
        own = _ours(device)
        racing = (names.OURS, names.REUSED, *own, names.EDT)
        effort = 2.5 + 3e-7 * task.pixels
        yield Case(
            "distance", task, racing, names.EDT, 5 * task.pixels,
            partial(maps.distance_makers, task, device, known=True),
            (Goal(names.OURS, names.EDT, 8),), effort,
        )  # fmt: skip


def _hard_cases(scale: str, device: str) -> Iterable[Case]:
    for task in adversarial_tasks(scale):
        racing = [names.OURS, names.EDT]
        if task.pattern == "single" and len(task.image_shape) == 2:
            racing += [names.SCIPY, names.OPENCV, names.SIMPLEITK, names.DIPLIB]
        yield Case(
            "hard distance", task, tuple(racing), names.EDT, 5 * task.pixels,
            partial(maps.distance_makers, task, device, known=False),
            (Goal(names.OURS, names.EDT, 4),), 2.5 + 3e-7 * task.pixels,
        )  # fmt: skip


def _rectified_cases(scale: str, device: str) -> Iterable[Case]:
    for task in map_tasks(scale):
        large, many = task.pixels > 5_000_000, task.num_classes > 16
        own = _ours(device, *([names.REFERENCE] if task.name == "T1" and scale != "quick" else []))
        ours = [names.COMPACT, names.COMPACT_REUSED, names.DENSE, names.DENSE_REUSED, *own]
        others = [names.SCIPY, names.EDT_FINISH, names.MONAI, names.OPENCV, names.SIMPLEITK, names.DIPLIB]
        if large or many:  # minutes each: a wrapper of SciPy, and two that T2 shows well behind `edt`
            others = [names.SCIPY, names.EDT_FINISH, names.OPENCV]
        if many and scale == "quick":
            others = [names.SCIPY, names.EDT_FINISH]
        if device == "cuda":
            others = [names.SCIPY, names.CPU_AND_COPIES, names.CUCIM, names.CUPY, names.SAM3, names.MONAI]
        racing = tuple(ours + peers.usable(others, len(task.image_shape), _isotropic(task)))
        goals = [Goal(names.COMPACT, names.SCIPY, 1500 if many else 100), Goal(names.DENSE_REUSED, names.SCIPY, None)]
        if device == "cpu":
            goals.append(Goal(names.DENSE_REUSED, names.EDT_FINISH, 5 if many else 7))
        else:
            goals.append(Goal(names.COMPACT, names.CUCIM, None))
        yield Case(
            "rectified map", task, racing, names.SCIPY, 5 * task.pixels,
            partial(maps.rectified_makers, task, device), tuple(goals),
            4 + 3e-6 * task.pixels + 4e-7 * task.pixels * task.num_classes, memory="ours" if large or many else "all",
        )  # fmt: skip


def _boundary_cases(scale: str, device: str) -> Iterable[Case]:
    for task in [task for task in map_tasks(scale) if task.name in ("T1", "T2")]:
        twice = [name for name, single in names.TWICE.items() if single in peers.CPU_LIBRARIES]
        if device == "cuda":
            twice = [names.SCIPY_TWICE, *(n for n, single in names.TWICE.items() if single in peers.GPU_LIBRARIES)]
        racing = [names.OURS, names.REUSED, *([names.EDT_TWICE] if device == "cpu" else [])]
        for name in twice:
            racing += [name] if peers.usable([names.TWICE[name]], len(task.image_shape), _isotropic(task)) else []
        racing.append(names.MONAI_BOUNDARY)
        peer = names.EDT_TWICE if device == "cpu" else names.SCIPY_TWICE
        goals = (
            Goal(names.REUSED, peer, 12),
            Goal(names.OURS, peer, None),
            Goal(names.REUSED, names.SCIPY_TWICE, None),
        )
        yield Case(
            "boundary map", task, tuple(racing), peer, (1 + 4 * task.num_classes) * task.pixels,
            partial(maps.boundary_makers, task, device), goals,
            4 + 6e-6 * task.pixels,
        )  # fmt: skip


_LOSS_NAMES = (
    names.DENSE, names.COMPACT, names.RECOMPUTE, names.EAGER, names.COMPILED, names.CROSS_ENTROPY, names.DICE,
)  # fmt: skip


def _loss_case(
    task: Task, device: str, dtype: str, layout: str, goals: tuple[Goal, ...], effort: float, compiled: bool
) -> Case:
    racing = tuple(name for name in _LOSS_NAMES if compiled or name != names.COMPILED)
    goals = tuple(goal for goal in goals if compiled or goal.peer != names.COMPILED)
    return Case(
        "loss", task, racing, names.EAGER, losses.loss_bytes(task, dtype)[0],
        lambda: losses.loss_makers(task, device, dtype, layout), goals, effort, dtype, layout,
    )  # fmt: skip


def _loss_cases(scale: str, device: str) -> Iterable[Case]:
    for task in loss_tasks(scale):
        many = task.num_classes > 16
        goals = (
            Goal(names.DENSE, names.EAGER, 3 if many else 4),
            Goal(names.DENSE, names.COMPILED, 2 if many else 2.5),
            Goal(names.COMPACT, names.CROSS_ENTROPY, 1),
            Goal(names.DENSE, "its gradient", 1.05, "memory"),
            Goal(names.COMPACT, "its gradient", 1.05, "memory"),
        )
        effort = 6 + 2e-7 * task.pixels * task.num_classes
        yield _loss_case(task, device, "float32", CONTIGUOUS, goals, effort, scale != "tiny" or task.pixels > 4000)
    for task in loss_grid(scale):
        for dtype in losses.DTYPES:
            for layout in (CONTIGUOUS, CHANNELS_LAST):
                if scale == "quick" and layout == CHANNELS_LAST and dtype != "float32":
                    continue
                compared = (Goal(names.COMPACT, names.CROSS_ENTROPY, None), Goal(names.DENSE, names.COMPILED, None))
                # Compiling takes 2 seconds and more for every case and number of threads.
                compiled = scale == "full" and layout == CONTIGUOUS and dtype != "float16"
                yield replace(_loss_case(task, device, dtype, layout, compared, 4, compiled), memory="ours")


def _kernel_cases(scale: str, device: str) -> Iterable[Case]:
    for task in loss_tasks(scale)[:2]:
        dense, compact = names.KERNELS[False, True], names.KERNELS[True, True]
        goals = (Goal(dense, COPY, 1.6, "within"), Goal(compact, dense, 1.0, "within"))
        yield Case(
            "loss kernel", task, tuple(names.KERNELS.values()), COPY, 12 * task.num_classes * task.pixels,
            partial(losses.kernel_makers, task, device), goals, 3,
        )  # fmt: skip


def _joint_cases(scale: str, device: str) -> Iterable[Case]:
    """Losses that are trained together, against each by itself and against the region-wise loss alone."""
    for task in loss_tasks(scale):
        many = task.num_classes > 16
        for title in joint.SUMS:
            joined, dice = title.endswith("rectified"), title.startswith("Dice")
            racing = [names.FUSED, *([names.COMPACT] if joined else [])]
            racing += [names.WITH_MONAI] if dice else []
            racing += [names.WITH_NNUNET] if title in ("Dice + rectified", "Dice + cross-entropy") else []
            racing += [names.WITH_PYTORCH] if title == "cross-entropy + rectified" else []
            racing += [] if scale == "tiny" or title == "Dice + focal" else [names.COMPILED]
            peer = names.WITH_MONAI if dice else names.WITH_PYTORCH
            goals = [Goal(names.FUSED, "its gradient", 1.05, "memory")]
            goals += [
                Goal(names.FUSED, name, 4 if many else 7) for name in racing if name.startswith(("MONAI", "nnU-Net"))
            ]
            goals += [Goal(names.FUSED, names.COMPILED, 4)] if dice and names.COMPILED in racing else []
            goals += [Goal(names.FUSED, names.COMPACT, 2 if dice else 1.3, "within")] if joined else []
            yield Case(
                f"joint loss, {title}", task, tuple(racing), peer, losses.target_bytes(task, "float32"),
                partial(joint.joint_makers, task, title, device), tuple(goals),
                6 + 3e-7 * task.pixels * task.num_classes, memory="ours",
            )  # fmt: skip


def _step_cases(scale: str, device: str) -> Iterable[Case]:
    for task in [task for task in map_tasks(scale) if task.name in ("T1", "T2")[: 1 if scale == "quick" else 2]]:
        for family in steps.FAMILIES:
            racing = [names.OURS, names.PAPER, names.PAPER_EDT]
            racing += [names.MONAI_LOSS] if family == "boundary" else []
            yield Case(
                f"labels to gradient, {family}", task, tuple(racing), names.PAPER,
                (1 + 8 * task.num_classes) * task.pixels, partial(steps.step_makers, task, family, device),
                (Goal(names.OURS, names.PAPER_EDT, None),), 3 + 6e-6 * task.pixels,
            )  # fmt: skip


def _small_cases(_: str, device: str) -> Iterable[Case]:
    """Where a call costs more than its pixels: against a loss of PyTorch's own core, and against the paper's way."""
    tiny, demo = small_tasks()
    for task, goal in (
        (tiny, Goal(names.OURS, names.CROSS_ENTROPY, 2, "within")),
        (demo, Goal(names.OURS, names.PAPER, 12)),
    ):
        yield Case(
            "labels to gradient, small", task, (names.OURS, names.CROSS_ENTROPY, names.PAPER, names.PAPER_EDT),
            names.PAPER, (1 + 8 * task.num_classes) * task.pixels,
            partial(steps.step_makers, task, "rectified", device), (goal,), 3, memory="",
        )  # fmt: skip
        yield replace(
            _loss_case(task, device, "float32", CONTIGUOUS, (), 3, compiled=False),
            family="loss, small", goals=(Goal(names.COMPACT, names.CROSS_ENTROPY, 1.5, "within"),), memory="",
        )  # fmt: skip


def _loop_cases(scale: str, device: str) -> Iterable[Case]:
    """Alone, and right after a parallel operator of torch: threads of our own would wait behind those of torch."""
    if device != "cpu":
        return
    for task in loop_tasks(scale):
        for family, own, others in (("loss", names.COMPACT, (names.CROSS_ENTROPY,)), ("map", names.COMPACT_REUSED, ())):
            of_task = losses.loss_makers if family == "loss" else maps.rectified_makers
            racing = [name for alone in (own, *others) for name in (alone, names.IN_A_LOOP[alone])]
            moved = losses.loss_bytes(task, "float32")[1] if family == "loss" else 5 * task.pixels
            yield Case(
                f"{family} in a loop", task, tuple(racing), own, moved, partial(_in_loops, of_task, task, device),
                (Goal(names.IN_A_LOOP[own], own, 1.1, "within"),), 2 + 1e-7 * task.pixels * task.num_classes, memory="",
            )  # fmt: skip


def _in_loops(of_task: Callable[[Task, str], dict[str, Maker]], task: Task, device: str) -> dict[str, Maker]:
    makers = of_task(task, device)
    return makers | {loop: in_a_loop(makers[name]) for name, loop in names.IN_A_LOOP.items() if name in makers}


def _loader_cases(scale: str, device: str) -> Iterable[Case]:
    """Maps made in the worker processes of a data loader; they are the same whatever the network runs on."""
    if device != "cpu":
        return
    shapes = {"full": (32, 256, 256), "quick": (8, 256, 256), "tiny": (8, 32, 32)}
    task = Task("", "hearts", shapes[scale], 4)
    for workers in {"full": (0, 1, 2), "quick": (0, 2), "tiny": (0, 1)}[scale]:
        yield Case(
            f"data loader, {workers} workers", task, (names.OURS, names.SCIPY, names.EDT_PER_CLASS), names.SCIPY,
            (1 + 4 * task.num_classes) * task.pixels, partial(steps.loader_makers, task, workers),
            effort=3, unit="map", threads="all", memory="",
        )  # fmt: skip


# --- scaling ---------------------------------------------------------------------------------------------------


def _map_point(task: Task, point: Point, device: str, scale: str) -> Case:
    work = task.pixels * task.num_classes
    racing = [names.COMPACT_REUSED]
    if device == "cpu":
        racing += [names.EDT_FINISH] if work <= 70_000_000 else []
        racing += [names.SCIPY] if work <= 5_000_000 else []
        peer = names.EDT_FINISH if names.EDT_FINISH in racing else names.COMPACT_REUSED
    else:
        racing += [names.CUCIM] if work <= 70_000_000 else []
        peer = names.CUCIM if names.CUCIM in racing else names.COMPACT_REUSED
    return Case(
        f"scaling, {point.curve}", task, tuple(racing), peer, 5 * task.pixels,
        lambda: maps.rectified_makers(task, device), (), 0.7 + 1e-7 * work, point=point, memory="",
    )  # fmt: skip


def _loss_point(task: Task, point: Point, device: str) -> Case:
    racing = [names.COMPACT, names.DENSE, names.EAGER]
    return Case(
        f"scaling, {point.curve}", task, tuple(racing), names.EAGER, losses.loss_bytes(task, "float32")[0],
        lambda: losses.loss_makers(task, device), (), 0.7 + 1e-7 * task.pixels * task.num_classes, point=point,
        memory="",
    )  # fmt: skip


def _hard_point(task: Task, point: Point, device: str) -> Case:
    return Case(
        f"scaling, {point.curve}", task, (names.REUSED,), names.REUSED, 5 * task.pixels,
        lambda: maps.distance_makers(task, device, known=False), (), 0.6 + 1e-7 * task.pixels, point=point,
        memory="",
    )  # fmt: skip


# From so many pixels on a call is fitted: below, the call itself is what costs.
_FITTED = 60_000
_HARD = ("single", "centre", "corner", "checkerboard", "random", "sparse", "circle")


def _scaling_cases(scale: str, device: str) -> Iterable[Case]:
    least = 0 if scale == "tiny" else _FITTED
    for axes in (2, 3):
        for task in size_tasks(scale, axes):
            point = Point(f"map, pixels, {axes}D", "pixels", task.pixels, task.pixels >= least, LINEAR)
            yield _map_point(task, point, device, scale)
            point = replace(point, curve=f"loss, pixels, {axes}D", limit=None)  # it leaves the caches on the way
            yield _loss_point(task, point, device)
    for task in class_tasks(scale):
        yield _map_point(task, Point("map, classes", "classes", task.num_classes), device, scale)
        if scale != "quick":
            yield _loss_point(task, Point("loss, classes", "classes", task.num_classes), device)
    for task in batch_tasks(scale):
        yield _map_point(task, Point("map, batch", "batch", task.shape[0]), device, scale)
        if scale != "quick":
            yield _loss_point(task, Point("loss, batch", "batch", task.shape[0]), device)
    for case in (
        _map_point(map_tasks(scale)[1], Point("map, threads", "threads", 0), device, scale),
        _loss_point(loss_tasks(scale)[1], Point("loss, threads", "threads", 0), device),
    ):
        if device == "cpu":
            yield replace(case, threads="sweep")
    for pattern in _HARD if scale == "full" else _HARD[:1]:
        shapes = {"full": (1024, 2048, 4096), "quick": (512, 1024), "tiny": (16, 32)}[scale]
        for side in shapes:
            task = Task(pattern, pattern, (1, side, side), 4 if pattern == "random" else 2)
            point = Point(f"distance, pixels, {pattern}", "pixels", task.pixels, True, LINEAR)
            yield _hard_point(task, point, device)


_FAMILIES = (
    _distance_cases, _hard_cases, _rectified_cases, _boundary_cases, _loss_cases, _kernel_cases, _joint_cases,
    _step_cases, _small_cases, _loop_cases, _loader_cases, _scaling_cases,
)  # fmt: skip


def cases(scale: str, device: str = "cpu") -> list[Case]:
    """All cases on `device` ("cpu" or "cuda"), in the order in which they run."""
    found = [replace(case, device=device) for family in _FAMILIES for case in family(scale, device)]
    if scale == "quick":
        found = [_quicker(case) for case in found]
    if scale != "full":  # goals and limits are set for the full inputs
        found = [replace(case, point=case.point and replace(case.point, limit=None)) for case in found]
    return [replace(case, effort=case.effort * _pace(case, scale)) for case in found]


# Seconds that a case of a family really takes, over what its formula says.
_PACES: dict[str, dict[str, float]] = {
    "full": {
        "distance": 2.0, "hard distance": 0.75, "rectified map": 0.35, "boundary map": 1.15, "loss": 2.1,
        "loss grid": 0.75, "loss kernel": 1.6, "labels to gradient": 0.4, "data loader": 1.5, "scaling": 1.5,
    },
    "quick": {"loss grid": 0.15, "data loader": 0.5, "scaling": 1.8, "loss": 0.4, "boundary map": 0.8},
    "tiny": {},
}  # fmt: skip
_PACE = {"full": 1.0, "quick": 0.35, "tiny": 0.3}


def _pace(case: Case, scale: str) -> float:
    name = "loss grid" if case.family == "loss" and case.task.pattern == "random" else case.family.split(",")[0]
    return _PACES[scale].get(name, _PACE[scale])


def _quicker(case: Case) -> Case:
    """A case of a quick run: one thread and the peaks of ours and of the peer for the main rows only."""
    main = case.family == "loss" and bool(case.goals) and case.task.pattern != "random"
    main = main or (case.family == "rectified map" and case.task.name in ("T1", "T2"))
    threads = "all" if case.threads == "1 and all" and not main else case.threads
    return replace(case, threads=threads, memory="ours" if main else "")
