"""What is timed of the loss: forward and backward of a mean loss whose map is there already, and its kernel alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rwkernels as rw
from rwkernels.bench import peers, truth
from rwkernels.bench.harness import Contender, absent
from rwkernels.bench.inputs import CONTIGUOUS, Task, labels, laid_out, logits
from rwkernels.bench.maps import Maker

DENSE, COMPACT, RECOMPUTE = "rwkernels dense", "rwkernels compact", "rwkernels compact, recompute"
EAGER, COMPILED, CROSS_ENTROPY, DICE = "eager PyTorch", "torch.compile", "F.cross_entropy", "MONAI DiceLoss"
KERNELS = {
    (compact, reused): f"{COMPACT if compact else DENSE}, {'reused' if reused else 'fresh'} gradient"
    for compact in (False, True)
    for reused in (True, False)
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How far loss and gradient may be from float64, relative to the largest entry: rounding of the logits' type, and in the
# eager way of its intermediate results too.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}
# float16 is trained with a scaled loss, or most of the gradient would flush to 0: everyone's loss is scaled.
SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 65536.0}

Check = Callable[[float, Tensor], str | None]


def plain_loss(x: Tensor, z: Tensor) -> Tensor:
    """Eq. 1 as one writes it in PyTorch."""
    return (torch.softmax(x, 1) * z).mean()


@lru_cache(maxsize=1)
def loss_maps(task: Task, device: str, layout: str = CONTIGUOUS) -> tuple[rw.RectifiedMap, Tensor]:
    """The map of the loss rows, compact over int64 labels (what `F.cross_entropy` takes) and dense."""
    compact = rw.rectified_map(labels(task).long().to(device), task.num_classes)
    return compact, laid_out(compact.dense(), layout)


def training_step(
    name: str, loss: Callable[[Tensor], Tensor], x: Tensor, check: Check, scale: float = 1.0
) -> Contender:
    """Forward and backward into a fresh gradient; the last one is dropped outside the timing."""

    def run() -> Tensor:
        value = loss(x)
        (value if scale == 1 else value * scale).backward()
        return value

    def prepare() -> None:
        x.grad = None

    def judge(value: Tensor) -> str | None:
        return "no gradient" if x.grad is None else check(float(value.detach()), x.grad)

    return Contender(name, run, judge, prepare, buffer="fresh")


def _compiled(x: Tensor, z: Tensor, check: Check, scale: float) -> Contender:
    """`torch.compile` of the plain loss; compilation for a new number of threads happens before the timing."""
    compiled: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}

    def step(x: Tensor) -> Tensor:
        return compiled[torch.get_num_threads()](x, z)

    timed = training_step(COMPILED, step, x, check, scale)

    def prepare() -> None:
        threads = torch.get_num_threads()
        if threads not in compiled:
            torch.compiler.reset()
            compiled[threads] = torch.compile(plain_loss, dynamic=False)
            timed.run()
        timed.prepare()

    return Contender(COMPILED, timed.run, timed.check, prepare, buffer="fresh")


def _dice(x: Tensor, target: Tensor, tolerance: float, scale: float) -> Contender:
    missing = peers.missing_module("monai.losses")
    if missing:
        return absent(DICE, missing)
    loss = importlib.import_module("monai.losses").DiceLoss(softmax=True, to_onehot_y=True)
    with_channel = target.unsqueeze(1)

    def check(value: float, gradient: Tensor) -> str | None:
        return truth.dice_mismatch(value, gradient, x, target, tolerance, scale)

    return training_step(DICE, lambda x: loss(x, with_channel), x, check, scale)


def loss_bytes(task: Task, dtype: str) -> tuple[int, int]:
    """The least that is read and written: with a dense float32 map, and with a compact one over int64 labels."""
    element, k = DTYPES[dtype].itemsize, task.num_classes
    return (2 * element + 4) * k * task.pixels, (2 * element * k + 12) * task.pixels


def target_bytes(task: Task, dtype: str) -> int:
    """The same for a loss that reads logits and int64 labels and no map: cross-entropy, Dice."""
    return (2 * DTYPES[dtype].itemsize * task.num_classes + 8) * task.pixels


def loss_makers(task: Task, device: str, dtype: str = "float32", layout: str = CONTIGUOUS) -> dict[str, Maker]:
    """Forward and backward of the mean loss through the public functions."""
    x = logits(task, DTYPES[dtype], layout, device)
    compact, dense = loss_maps(task, device, layout)
    target = compact.labels
    tolerance, scale = TOLERANCE[dtype], SCALE[dtype]
    compact_bytes, labels_bytes = loss_bytes(task, dtype)[1], target_bytes(task, dtype)

    def cross_entropy(x: Tensor) -> Tensor:
        # In float16 its sums overflow on a CPU; autocast widens the logits as this does.
        return F.cross_entropy(x.float() if dtype == "float16" else x, target)

    def check(value: float, gradient: Tensor) -> str | None:
        return truth.loss_mismatch(value, gradient, x, dense, tolerance, scale)

    def check_cross_entropy(value: float, gradient: Tensor) -> str | None:
        return truth.cross_entropy_mismatch(value, gradient, x, target, tolerance, scale)

    def step(name: str, loss: Callable[[Tensor], Tensor], judge: Check, moved: int | None = None) -> Contender:
        made = training_step(name, loss, x, judge, scale)
        return Contender(made.name, made.run, made.check, made.prepare, buffer=made.buffer, moved=moved)

    return {
        DENSE: lambda: step(DENSE, lambda x: rw.region_wise_loss(x, dense), check),
        COMPACT: lambda: step(COMPACT, lambda x: rw.region_wise_loss(x, compact), check, compact_bytes),
        RECOMPUTE: lambda: step(
            RECOMPUTE, lambda x: rw.region_wise_loss(x, compact, recompute=True), check, compact_bytes
        ),
        EAGER: lambda: step(EAGER, lambda x: plain_loss(x, dense), check),
        COMPILED: lambda: _compiled(x, dense, check, scale),
        CROSS_ENTROPY: lambda: step(CROSS_ENTROPY, cross_entropy, check_cross_entropy, labels_bytes),
        DICE: lambda: replace(_dice(x, target, tolerance, scale), moved=labels_bytes),
    }


def _kernel(task: Task, device: str, *, compact: bool, reused: bool) -> Contender:
    from rwkernels.backends import choose
    from rwkernels.backends.problem import LossProblem

    x = logits(task, device=device).detach()
    maps, dense = loss_maps(task, device)
    problem = LossProblem(
        logits=x,
        maps=maps.foreground if compact else dense,
        labels=labels(task).to(device) if compact else None,
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
    kept = torch.empty_like(x) if reused else None

    def run() -> tuple[Tensor, Tensor]:
        grad = torch.empty_like(x) if kept is None else kept
        loss = backend.loss(problem, with_loss=True, grad=grad, upstream=None, divide=True, validate=False)
        return loss, grad

    def check(result: tuple[Any, Tensor]) -> str | None:
        return truth.loss_mismatch(float(result[0]), result[1], x, dense)

    moved = (8 * task.num_classes + 5) * task.pixels if compact else None
    return Contender(KERNELS[compact, reused], run, check, buffer="reused" if reused else "fresh", moved=moved)


def kernel_makers(task: Task, device: str) -> dict[str, Maker]:
    """The loss kernel of the backend alone: loss and gradient of given logits and map, in one pass."""

    def maker(compact: bool, reused: bool) -> Maker:
        return lambda: _kernel(task, device, compact=compact, reused=reused)

    return {name: maker(*key) for key, name in KERNELS.items()}
