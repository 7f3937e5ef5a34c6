"""Maps and loss, forward and backward: rwkernels against what a training loop does without it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import rwkernels as rw
from rwkernels.bench.names import SCIPY
from rwkernels.bench.peers import CPU_LIBRARIES
from rwkernels.bench.steps import paper_loss
from rwkernels.demo.training import timed_loss
from rwkernels.experiments.configuration import Run
from rwkernels.experiments.images import Images
from rwkernels.experiments.training import batches, unet

_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Median seconds per batch of one family of maps, and how far the two results are apart."""

    name: str
    usual_seconds: float
    fused_seconds: float
    gradient_difference: float
    """Largest difference of the two gradients, relative to the largest entry."""

    @property
    def ratio(self) -> float:
        """How many times faster rwkernels is."""
        return self.usual_seconds / self.fused_seconds


def measure(run: Run, images: Images, device: torch.device) -> list[Speed]:
    """Time both ways on the batches of the first epoch, in turn, so that a busy machine hits both alike."""
    network = unet(1, images.num_classes, run.training.features, run.seed).to(device)
    seen, labels = images.train.images.to(device), images.train.labels.to(device)
    order = next(batches(len(labels), run.training.batch_size, 1, run.seed))
    with torch.no_grad():
        inputs = [(network(seen[part]), labels[part]) for part in order]
    return [
        _compare("RRW", partial(usual_loss, "rectified"), rw.RegionWiseLoss("rectified"), inputs),
        _compare("RW-Boundary", partial(usual_loss, "boundary"), rw.BoundaryLoss(), inputs),
    ]


def usual_loss(family: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss (Eq. 1, with the map of Eq. 3 or 4) the usual way: SciPy per image and class, then eager PyTorch."""
    return paper_loss(CPU_LIBRARIES[SCIPY], family, logits, labels.cpu())


def _compare(
    name: str,
    usual: Callable[[Tensor, Tensor], Tensor],
    fused: Callable[[Tensor, Tensor], Tensor],
    inputs: list[tuple[Tensor, Tensor]],
) -> Speed:
    _, expected, _ = timed_loss(usual, *inputs[0])
    _, got, _ = timed_loss(fused, *inputs[0])
    seconds: dict[str, list[float]] = {"usual": [], "fused": []}
    for _ in range(_ROUNDS):
        for logits, labels in inputs:
            seconds["usual"].append(timed_loss(usual, logits, labels)[2])
            seconds["fused"].append(timed_loss(fused, logits, labels)[2])
    return Speed(
        name,
        statistics.median(seconds["usual"]),
        statistics.median(seconds["fused"]),
        float((got - expected).abs().max() / expected.abs().max()),
    )
