"""One network per loss: the same initial weights, the same batches in the same order, the same optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

import rwkernels as rw
from rwkernels.demo.evaluation import Scores, dice_per_class, score, share_with_several_negatives
from rwkernels.experiments import training as shared
from rwkernels.experiments.mni152 import CLASS_NAMES, Block, Slices

NUM_CLASSES = len(CLASS_NAMES)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; the same for every loss and none tuned on the results."""

    seed: int = 0
    epochs: int = 30
    batch_size: int = 2
    learning_rate: float = 2e-3
    features: tuple[int, ...] = (8, 16, 32, 64, 64, 8)

    def steps_per_epoch(self, slices: int) -> int:
        """Return the number of batches that `slices` slices make."""
        return math.ceil(slices / self.batch_size)


@dataclass
class Training:
    """What one loss did: curves, final scores, and where the time went."""

    name: str
    dice: list[tuple[float, ...]] = field(default_factory=list)
    """Validation Dice after every epoch, one number per class but the rest."""
    several_negatives: list[float] = field(default_factory=list)
    """Per epoch: share of training pixels whose gradient had more than one negative entry."""
    train_seconds: float = 0.0
    loss_seconds: float = 0.0
    """The part of `train_seconds` spent on maps and loss, forward and backward."""
    final: Scores | None = None

    @property
    def loss_share(self) -> float:
        """Share of the training time that went into maps and loss."""
        return self.loss_seconds / self.train_seconds


def losses(epochs: int) -> dict[str, nn.Module]:
    """Return the compared losses by name. All take (logits, labels); maps are built anew in every step."""
    return {
        "RRW": rw.RegionWiseLoss("rectified"),
        "RW-Boundary": rw.BoundaryLoss(),
        "cross-entropy": nn.CrossEntropyLoss(),
        "CE fading to RRW": rw.CombinedLoss(
            nn.CrossEntropyLoss(), rw.RegionWiseLoss("rectified"), schedule="gradual", alpha_step=1 / epochs
        ),
    }


def build_network(settings: Settings, device: torch.device) -> nn.Module:
    """Return a 2D U-Net whose initial weights depend on the seed alone."""
    return shared.unet(1, NUM_CLASSES, settings.features, settings.seed).to(device)


def batches(block: Block, settings: Settings) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield one epoch after the other as a list of (images, labels), shuffled by the seed alone."""
    for order in shared.batches(len(block.labels), settings.batch_size, settings.epochs, settings.seed):
        yield [(block.images[part], block.labels[part]) for part in order]


def train(name: str, criterion: nn.Module, slices: Slices, settings: Settings, device: torch.device) -> Training:
    """Train a fresh network with `criterion` and score it on the validation block after every epoch."""
    result = Training(name)
    criterion = criterion.to(device)
    network = build_network(settings, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * settings.steps_per_epoch(len(slices.train.labels))
    # disable=None: a bar on a terminal, silence in a pipe or a log file.
    with tqdm(total=steps, desc=f"{name:<17}", unit="step", disable=None) as bar:
        for epoch in batches(slices.train, settings):
            shares = []
            for images, labels in epoch:
                begin = now(device)
                loss, gradient, loss_seconds = train_step(network, criterion, optimizer, images, labels)
                result.train_seconds += now(device) - begin
                result.loss_seconds += loss_seconds
                shares.append(share_with_several_negatives(gradient))
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
                bar.update()
            if isinstance(criterion, rw.CombinedLoss):
                criterion.step()
            result.several_negatives.append(sum(shares) / len(shares))
            result.dice.append(dice_per_class(predict(network, slices.validation), slices.validation.labels))
    result.final = score(predict(network, slices.validation), slices.validation.labels)
    return result


def train_step(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Take one optimiser step; return loss, gradient with respect to the logits, seconds for maps and loss.

    The backward pass is cut at the logits, which changes no number and lets the loss be timed by itself.
    """
    network.train()
    optimizer.zero_grad()
    logits = network(images)
    loss, gradient, seconds = timed_loss(criterion, logits, labels)
    logits.backward(gradient)
    optimizer.step()
    return loss, gradient, seconds


def timed_loss(
    criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Return loss, its gradient with respect to the logits, and the seconds both took together."""
    leaf = logits.detach().requires_grad_()
    begin = now(logits.device)
    loss = criterion(leaf, labels)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient, now(logits.device) - begin


def predict(network: nn.Module, block: Block) -> Tensor:
    """Return the predicted class of every pixel, [N, H, W]."""
    return shared.predict(network, block.images)


def now(device: torch.device) -> float:
    """Return the clock in seconds once all work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
