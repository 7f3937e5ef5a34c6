"""What is timed of losses that are trained together: forward and backward of their sum, the map being there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rwkernels as rw
from rwkernels.bench import names, peers, truth
from rwkernels.bench.harness import Contender, Maker
from rwkernels.bench.inputs import Task, logits
from rwkernels.bench.losses import loss_maps, training_step

# Which losses are summed: by the name of the sum, that of ours without the map.
SUMS = {
    "Dice + rectified": "dice",
    "cross-entropy + rectified": "cross_entropy",
    "Dice + cross-entropy": "dice_ce",
    "Dice + focal": "dice_focal",
}
TOLERANCE = 2e-5  # of float32: a sum of losses, each rounded on its own, in which Dice subtracts from 1

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits [B, K, *S] and labels [B, 1, *S]


def _monai(kind: str) -> Loss:
    found = peers.need("monai.losses")
    if kind == "dice_ce":
        joined: Loss = found.DiceCELoss(softmax=True, to_onehot_y=True)
        return joined
    dice: Loss = found.DiceLoss(softmax=True, to_onehot_y=True)
    if kind == "dice":
        return dice
    focal: Loss = found.FocalLoss(use_softmax=True, to_onehot_y=True)
    return lambda x, y: dice(x, y) + focal(x, y)


def _nnunet(kind: str) -> Loss:
    """nnU-Net's own, per image and with the background, as MONAI's are; its Dice is 1 smaller."""
    dice = peers.need("nnunetv2.training.loss.dice").MemoryEfficientSoftDiceLoss
    options = {"batch_dice": False, "do_bg": True, "smooth": 1e-5, "ddp": False}
    if kind == "dice":
        alone = dice(apply_nonlin=partial(torch.softmax, dim=1), **options)
        return lambda x, y: 1 + alone(x, y)
    compound = peers.need("nnunetv2.training.loss.compound_losses").DC_and_CE_loss(options, {}, dice_class=dice)
    return lambda x, y: 1 + compound(x, y)


def _plain(kind: str) -> Loss:
    """The sum as one writes it in PyTorch, with the probabilities shared."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(())
        probabilities = torch.softmax(x, 1)
        if kind.startswith("dice"):
            one_hot = torch.zeros_like(x).scatter_(1, y, 1.0)
            axes = tuple(range(2, x.dim()))
            both = (probabilities * one_hot).sum(axes)
            total = total + (1 - (2 * both + 1e-5) / (probabilities.sum(axes) + one_hot.sum(axes) + 1e-5)).mean()
        if kind in ("dice_ce", "cross_entropy"):
            total = total + F.cross_entropy(x, y[:, 0])
        return total

    return loss


def _mismatch(kind: str, task: Task, device: str, joined: bool) -> Callable[..., str | None]:
    x = logits(task, device=device)
    compact, dense = loss_maps(task, device)
    return partial(truth.joint_mismatch, logits=x, target=compact.labels, maps=dense if joined else None, kind=kind,
                   tolerance=TOLERANCE)  # fmt: skip


def _compiled(name: str, loss: Callable[[Tensor], Tensor], x: Tensor, check: Any) -> Contender:
    """`torch.compile` of a loss; compilation for a new number of threads happens before the timing."""
    compiled: dict[int, Callable[[Tensor], Tensor]] = {}
    timed = training_step(name, lambda x: compiled[torch.get_num_threads()](x), x, check)

    def prepare() -> None:
        threads = torch.get_num_threads()
        if threads not in compiled:
            torch.compiler.reset()
            compiled[threads] = torch.compile(loss, dynamic=False)
            timed.run()
        timed.prepare()

    return replace(timed, prepare=prepare)


def joint_makers(task: Task, title: str, device: str) -> dict[str, Maker]:
    """Forward and backward of a sum of losses: by one operator, and each on its own as other libraries have them."""
    kind, joined = SUMS[title], title.endswith("rectified")
    x = logits(task, device=device)
    compact, dense = loss_maps(task, device)
    target = compact.labels.unsqueeze(1)
    check = _mismatch(kind, task, device, joined)

    def step(loss: Callable[[Tensor], Tensor]) -> Maker:
        return lambda name: training_step(name, loss, x, check)

    def added(make: Callable[[str], Loss]) -> Maker:
        """A loss of another library; beside a map, our region-wise loss is added to it."""

        def maker(name: str) -> Contender:
            other = make(kind)
            if not joined:
                return training_step(name, lambda x: other(x, target), x, check)
            both = rw.CombinedLoss(other, rw.RegionWiseLoss())
            return training_step(name, lambda x: both(x, target, compact), x, check)

        return maker

    def compiled(name: str) -> Contender:
        plain = _plain(kind)

        def loss(x: Tensor) -> Tensor:
            total = plain(x, target)
            return total + (torch.softmax(x, 1) * dense).mean() if joined else total

        return _compiled(name, loss, x, check)

    if joined:
        fused = rw.CombinedLoss(kind, "rectified")
        ours = step(lambda x: fused(x, target, compact))
    else:
        alone = {"dice_ce": rw.DiceCELoss, "dice_focal": rw.DiceFocalLoss}[kind]()
        ours = step(lambda x: alone(x, target))
    region_wise = partial(truth.loss_mismatch, logits=x, maps=dense)
    return {
        names.FUSED: ours,
        names.COMPACT: lambda name: training_step(name, lambda x: rw.region_wise_loss(x, compact), x, region_wise),
        names.WITH_MONAI: added(_monai),
        names.WITH_NNUNET: added(_nnunet),
        names.WITH_PYTORCH: added(_plain),
        names.COMPILED: compiled,
    }
