"""Maps and loss, forward and backward: rwkernels against what a training loop does without it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import rwkernels as rw
from rwkernels.demo.training import Settings, batches, build_network, timed_loss
from rwkernels.experiments.mni152 import Slices

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


def measure(slices: Slices, settings: Settings, device: torch.device) -> list[Speed]:
    """Time both ways on the batches of the first epoch, in turn, so that a busy machine hits both alike."""
    network = build_network(settings, device)
    with torch.no_grad():
        inputs = [(network(images), labels) for images, labels in next(batches(slices.train, settings))]
    return [
        _compare("RRW", usual_rectified_loss, rw.RegionWiseLoss("rectified"), inputs),
        _compare("RW-Boundary", usual_boundary_loss, rw.BoundaryLoss(), inputs),
    ]


def usual_rectified_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """RRW loss (Eq. 1 and 4) the usual way: one SciPy transform per image and class, then eager PyTorch."""
    maps = np.ones(logits.shape, np.float32)
    for channels, image in zip(maps, labels.cpu().numpy(), strict=True):
        for k, channel in enumerate(channels):
            inside = image == k
            if inside.any():
                distance = distance_transform_edt(inside)
                channel[inside] = -distance[inside] / distance.max()
    return _eager_loss(logits, maps)


def usual_boundary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """RW-Boundary loss (Eq. 1 and 3) the usual way: two SciPy transforms per image and class."""
    maps = np.zeros(logits.shape, np.float32)
    for channels, image in zip(maps, labels.cpu().numpy(), strict=True):
        for k, channel in enumerate(channels):
            inside = image == k
            if inside.any():
                channel[...] = distance_transform_edt(~inside) - distance_transform_edt(inside)
    return _eager_loss(logits, maps)


def _eager_loss(logits: Tensor, maps: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    return (logits.softmax(dim=1) * torch.from_numpy(maps).to(logits.device)).mean()


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
