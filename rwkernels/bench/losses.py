"""What is timed of the loss: forward and backward of a mean loss whose map is there already, and its kernel alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rwkernels as rw
from rwkernels.bench import names, peers, truth
from rwkernels.bench.harness import Contender, Maker
from rwkernels.bench.inputs import CONTIGUOUS, Task, labels, laid_out, logits

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
    name: str,
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    check: Check,
    scale: float = 1.0,
    moved: int | None = None,
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

    return Contender(name, run, judge, prepare, buffer="fresh", moved=moved)


def _compiled(name: str, x: Tensor, z: Tensor, check: Check, scale: float) -> Contender:
    """`torch.compile` of the plain loss; compilation for a new number of threads happens before the timing."""
    compiled: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}
    timed = training_step(name, lambda x: compiled[torch.get_num_threads()](x, z), x, check, scale)

    def prepare() -> None:
        threads = torch.get_num_threads()
        if threads not in compiled:
            torch.compiler.reset()
            compiled[threads] = torch.compile(plain_loss, dynamic=False)
            timed.run()
        timed.prepare()

    return replace(timed, prepare=prepare)


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

    check = partial(truth.loss_mismatch, logits=x, maps=dense, tolerance=tolerance, scale=scale)

    def step(loss: Callable[[Tensor], Tensor], moved: int | None = None) -> Maker:
        return lambda name: training_step(name, loss, x, check, scale, moved)

    def of_labels(name: str, loss: Callable[[Tensor], Tensor], mismatch: Callable[..., str | None]) -> Contender:
        check = partial(mismatch, logits=x, target=target, tolerance=tolerance, scale=scale)
        return training_step(name, loss, x, check, scale, labels_bytes)

    def dice(name: str) -> Contender:
        loss = peers.need("monai.losses").DiceLoss(softmax=True, to_onehot_y=True)
        with_channel = target.unsqueeze(1)
        return of_labels(name, lambda x: loss(x, with_channel), truth.dice_mismatch)

    return {
        names.DENSE: step(lambda x: rw.region_wise_loss(x, dense)),
        names.COMPACT: step(lambda x: rw.region_wise_loss(x, compact), compact_bytes),
        names.RECOMPUTE: step(lambda x: rw.region_wise_loss(x, compact, recompute=True), compact_bytes),
        names.EAGER: step(lambda x: plain_loss(x, dense)),
        names.COMPILED: lambda name: _compiled(name, x, dense, check, scale),
        names.CROSS_ENTROPY: lambda name: of_labels(name, cross_entropy, truth.cross_entropy_mismatch),
        names.DICE: dice,
    }


def _kernel(name: str, task: Task, device: str, *, compact: bool, reused: bool) -> Contender:
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
    return Contender(name, run, check, buffer="reused" if reused else "fresh", moved=moved)


def kernel_makers(task: Task, device: str) -> dict[str, Maker]:
    """The loss kernel of the backend alone: loss and gradient of given logits and map, in one pass."""
    return {
        name: partial(_kernel, task=task, device=device, compact=compact, reused=reused)
        for (compact, reused), name in names.KERNELS.items()
    }
