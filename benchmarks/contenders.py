"""What is timed: rwkernels through its public functions, and the peers as a careful user would call them.

Whatever a peer needs in another form (labels + 1, one-hot masks, int64) is made beforehand and not timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rwkernels as rw
from benchmarks import truth
from benchmarks.harness import Contender
from benchmarks.inputs import Task, labels, logits

OURS, REUSED = "rwkernels", "rwkernels, reused buffer"
EDT, EDT_FINISH, EDT_TWICE = "edt", "edt + torch", "edt twice per class"
SCIPY = "SciPy per class"
DENSE, COMPACT = "rwkernels dense", "rwkernels compact"
EAGER, COMPILED, CROSS_ENTROPY = "eager PyTorch", "torch.compile", "F.cross_entropy"


def _absent(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError:
        return f"{module} is not installed"
    return None


# --- distances -------------------------------------------------------------------------------------------------


def _edt_distances(task: Task) -> Callable[[], list[np.ndarray]]:
    """The multi-label transform of the `edt` package, image by image; it takes 0 for background, hence labels + 1."""
    edt = importlib.import_module("edt")
    plus_one = labels(task).numpy() + 1
    spacing = task.spacing or (1.0,) * len(task.image_shape)
    return lambda: [edt.edt(image, anisotropy=spacing, parallel=torch.get_num_threads()) for image in plus_one]


@lru_cache(maxsize=2)
def _edt_once(task: Task) -> Tensor:
    return torch.from_numpy(np.stack(_edt_distances(task)()))


def _distance_check(task: Task, known: bool, other: Callable[[Task], Tensor] | None) -> Callable[[Tensor], str | None]:
    """Against the truth, or against an independent implementation where there is no affordable truth."""

    def check(found: Tensor) -> str | None:
        expected = truth.distance(task, known)
        if expected is None:
            expected = None if other is None else other(task)
        return None if expected is None else truth.mismatch(found, expected)

    return check


def distances(task: Task, *, known: bool, reused: bool) -> list[Contender]:
    """Raw multi-label distances; `known`: SciPy's answer is worth its time, as it is needed for another row too."""
    absent = _absent("edt")
    image = labels(task)
    check = _distance_check(task, known, None if absent else _edt_once)
    found = [Contender(OURS, lambda: rw.distance_transform(image, spacing=task.spacing), check)]
    if reused:
        out = torch.empty(task.shape)
        found.append(Contender(REUSED, lambda: rw.distance_transform(image, spacing=task.spacing, out=out), check))
    if absent:
        return [*found, Contender(EDT, lambda: None, missing=absent)]
    judge = _distance_check(task, known, lambda t: rw.distance_transform(labels(t), spacing=t.spacing))
    run = _edt_distances(task)
    return [*found, Contender(EDT, run, lambda result: judge(torch.from_numpy(np.stack(result))))]


def at_size(task: Task) -> str:
    """Name of our contender of a growth row."""
    return f"{OURS}, {task.title}"


def growth(*tasks: Task) -> list[Contender]:
    """Our distances at several sizes, each into a buffer of its own."""
    found = []
    for task in tasks:
        run = _bound(rw.distance_transform, labels(task), spacing=task.spacing, out=torch.empty(task.shape))
        check = _distance_check(task, False, None if _absent("edt") else _edt_once)
        found.append(Contender(at_size(task), run, check))
    return found


def _bound(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*arguments, **options)


# --- maps ------------------------------------------------------------------------------------------------------


def compact_maps(task: Task) -> list[Contender]:
    """Labels to the compact rectified map, against the paper's way."""
    image = labels(task)
    out = torch.empty(task.shape)

    def check(maps: rw.RectifiedMap) -> str | None:
        return truth.mismatch(maps.foreground, truth.paper_run(task).foreground) if truth.has_scipy() else None

    def build(out: Tensor | None = None) -> rw.RectifiedMap:
        return rw.rectified_map(image, task.num_classes, spacing=task.spacing, out=out)

    found = [Contender(OURS, build, check), Contender(REUSED, lambda: build(out), check)]
    if not truth.has_scipy():
        return [*found, Contender(SCIPY, lambda: None, missing="scipy is not installed")]
    seconds = truth.paper_run(task).seconds
    if seconds > 6:
        return [*found, Contender(SCIPY, lambda: None, seconds=seconds)]
    masks = truth.one_hot(task)
    return [*found, Contender(SCIPY, lambda: truth.paper_map(masks, task.spacing))]


def _edt_rectified(task: Task, out: Tensor) -> Callable[[], Tensor]:
    distance = _edt_distances(task)
    index = labels(task).long()

    def run() -> Tensor:
        for b, found in enumerate(distance()):
            d = torch.from_numpy(found)
            largest = torch.zeros(task.num_classes)
            largest.scatter_reduce_(0, index[b].flatten(), d.flatten(), "amax")
            foreground = d.div_(largest.take(index[b])).neg_()
            out[b].fill_(1).scatter_(0, index[b : b + 1], foreground.unsqueeze(0))
        return out

    return run


def dense_maps(task: Task) -> list[Contender]:
    """Labels to the dense rectified map, both sides into a buffer of their own; and ours into a fresh one."""
    image, k = labels(task), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)
    out, foreground = torch.empty(shape), torch.empty(task.shape)

    def check(found: Tensor) -> str | None:
        return truth.dense_mismatch(found, task, truth.paper_run(task).foreground) if truth.has_scipy() else None

    def reused() -> Any:
        return rw.rectified_map(image, k, spacing=task.spacing, out=foreground).dense(out=out)

    def fresh() -> Any:
        return rw.rectified_map(image, k, spacing=task.spacing).dense()

    found = [Contender(REUSED, reused, check), Contender(OURS, fresh, check)]
    absent = _absent("edt")
    if absent:
        return [*found, Contender(EDT_FINISH, lambda: torch.empty(0), missing=absent)]
    return [*found, Contender(EDT_FINISH, _edt_rectified(task, torch.empty(shape)), check)]


def _edt_boundary(task: Task, out: np.ndarray) -> Callable[[], np.ndarray]:
    edt = importlib.import_module("edt")
    masks = truth.one_hot(task)
    others = ~masks

    def run() -> np.ndarray:
        threads = torch.get_num_threads()
        for index in np.ndindex(masks.shape[:2]):
            inside = edt.edt(masks[index], parallel=threads)
            outside = edt.edt(others[index], parallel=threads)
            np.subtract(outside, inside, out=out[index])
        return out

    return run


def boundary_maps(task: Task) -> list[Contender]:
    """Labels to the boundary map, both sides into a buffer of their own; and ours into a fresh one."""
    image, k = labels(task), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)
    out = torch.empty(shape)

    def check(found: Tensor) -> str | None:
        return truth.mismatch(found, truth.boundary(task)) if truth.has_scipy() else None

    found = [
        Contender(REUSED, lambda: rw.boundary_map(image, k, out=out), check),
        Contender(OURS, lambda: rw.boundary_map(image, k), check),
    ]
    absent = _absent("edt")
    if absent:
        return [*found, Contender(EDT_TWICE, lambda: None, missing=absent)]
    run = _edt_boundary(task, np.empty(shape, np.float32))
    return [*found, Contender(EDT_TWICE, run, lambda result: check(torch.from_numpy(result)))]


# --- loss ------------------------------------------------------------------------------------------------------


def plain_loss(x: Tensor, z: Tensor) -> Tensor:
    """Eq. 1 as one writes it in PyTorch."""
    return (torch.softmax(x, 1) * z).mean()


@lru_cache(maxsize=1)
def _loss_maps(task: Task) -> tuple[rw.RectifiedMap, Tensor]:
    """The map of the loss rows, compact over int64 labels (what `F.cross_entropy` takes) and dense."""
    compact = rw.rectified_map(labels(task).long(), task.num_classes)
    return compact, compact.dense()


def _training_step(
    name: str, loss: Callable[[Tensor], Tensor], x: Tensor, check: Callable[[float, Tensor], str | None]
) -> Contender:
    """Forward and backward into a fresh gradient; the last one is dropped outside the timing."""

    def run() -> float:
        value = loss(x)
        value.backward()
        return float(value.detach())

    def prepare() -> None:
        x.grad = None

    def judge(value: float) -> str | None:
        return "no gradient" if x.grad is None else check(value, x.grad)

    return Contender(name, run, judge, prepare)


def _compiled(x: Tensor, z: Tensor, check: Callable[[float, Tensor], str | None]) -> Contender:
    """`torch.compile` of the plain loss; compilation for a new number of threads happens before the timing."""
    compiled: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}

    def step(x: Tensor) -> Tensor:
        return compiled[torch.get_num_threads()](x, z)

    timed = _training_step(COMPILED, step, x, check)

    def prepare() -> None:
        threads = torch.get_num_threads()
        if threads not in compiled:
            torch.compiler.reset()
            compiled[threads] = torch.compile(plain_loss, dynamic=False)
            timed.run()
        timed.prepare()

    try:
        prepare()
    except Exception as error:
        return Contender(COMPILED, lambda: None, missing=f"torch.compile fails here ({type(error).__name__})")
    return Contender(COMPILED, timed.run, timed.check, prepare)


def losses(task: Task, names: Sequence[str]) -> list[Contender]:
    """Forward and backward of the mean loss in float32, through the public function."""
    x = logits(task)
    compact, dense = _loss_maps(task)
    target = compact.labels

    def check(value: float, gradient: Tensor) -> str | None:
        return truth.loss_mismatch(value, gradient, x, dense)

    def check_cross_entropy(value: float, gradient: Tensor) -> str | None:
        return truth.cross_entropy_mismatch(value, gradient, x, target)

    makers: dict[str, Callable[[], Contender]] = {
        DENSE: lambda: _training_step(DENSE, lambda x: rw.region_wise_loss(x, dense), x, check),
        COMPACT: lambda: _training_step(COMPACT, lambda x: rw.region_wise_loss(x, compact), x, check),
        EAGER: lambda: _training_step(EAGER, lambda x: plain_loss(x, dense), x, check),
        COMPILED: lambda: _compiled(x, dense, check),
        CROSS_ENTROPY: lambda: _training_step(
            CROSS_ENTROPY, lambda x: F.cross_entropy(x, target), x, check_cross_entropy
        ),
    }
    return [makers[name]() for name in names]


def kernel(task: Task, *, compact: bool, reuse: bool) -> Contender:
    """The loss kernel of the CPU backend alone: loss and gradient of given logits and map, in one pass."""
    from rwkernels.backends import LossProblem, choose

    x = logits(task).detach()
    maps, dense = _loss_maps(task)
    problem = LossProblem(
        logits=x,
        maps=maps.foreground if compact else dense,
        labels=labels(task) if compact else None,
        background=None,
        class_scale=None,
        image_count=None,
        background_value=1.0,
        ignore_index=None,
        include_background=True,
        reduction="mean",
        validate=False,
        backend=None,
        groups=0,
    )
    backend = choose(x.device, "loss")
    kept = torch.empty_like(x) if reuse else None

    def run() -> tuple[float, Tensor]:
        grad = torch.empty_like(x) if kept is None else kept
        loss, _ = backend.loss(problem, with_loss=True, grad=grad, upstream=None, divide=True, validate=False)
        return float(loss), grad

    def check(result: tuple[float, Tensor]) -> str | None:
        return truth.loss_mismatch(result[0], result[1], x, dense)

    name = f"{COMPACT if compact else DENSE}, {'reused' if reuse else 'fresh'} gradient"
    return Contender(name, run, check)
