"""One network per loss: an experiment on the MNI152 template, its steps timed and its gradients looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rwkernels.demo.evaluation import Scores, score, share_with_several_negatives
from rwkernels.experiments import configuration, training
from rwkernels.experiments.configuration import Data, Experiment, Loss, Run, Task
from rwkernels.experiments.images import Images


def experiment(seed: int, epochs: int) -> Experiment:
    """The compared losses and how their networks are trained: the same for all, and not tuned on the results."""
    setting = configuration.Training(
        epochs=epochs,
        batch_size=2,
        learning_rate=2e-3,
        weight_decay=0.0,
        gradient_clip=None,
        features=(8, 16, 32, 64, 64, 8),
    )
    losses = (
        Loss("RRW", maps="rectified"),
        Loss("RW-Boundary", maps="boundary"),
        Loss("cross-entropy", region="cross_entropy"),
        Loss("CE fading to RRW", "cross_entropy", "rectified", "gradual", alpha_step=1 / epochs),
    )
    return Experiment("demo", "comparison", "Demo", (Task(Data("mni152", {"step": 1}), setting),), losses, (seed,))


@dataclass
class Training:
    """What one loss did: curves, final scores, and where the time went."""

    name: str
    dice: list[list[float]] = field(default_factory=list)
    """Validation Dice after every epoch, one number per class but the rest."""
    several_negatives: list[float] = field(default_factory=list)
    """Per epoch: share of training pixels whose gradient had more than one negative entry."""
    steps: int = 0
    train_seconds: float = 0.0
    loss_seconds: float = 0.0
    """The part of `train_seconds` spent on maps and loss, forward and backward."""
    final: Scores | None = None

    @property
    def loss_share(self) -> float:
        """Share of the training time that went into maps and loss."""
        return self.loss_seconds / self.train_seconds


def train(run: Run, images: Images, device: torch.device) -> Training:
    """Train the network of a run, and score it on the validation slices after every epoch."""
    result = Training(run.loss.name)
    steps = math.ceil(len(images.train.labels) / run.training.batch_size)
    shares: list[float] = []
    # disable=None: a bar on a terminal, silence in a pipe or a log file.
    with tqdm(total=run.training.epochs * steps, desc=f"{result.name:<17}", unit="step", disable=None) as bar:

        def watched(*given: Any) -> Tensor:
            begin = now(device)
            loss, gradient, loss_seconds = train_step(*given[:-1])  # no clipping
            result.train_seconds += now(device) - begin
            result.loss_seconds += loss_seconds
            shares.append(share_with_several_negatives(gradient))
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
            bar.update()
            return loss

        network, seen = training.fit(run, images, device, watched)
    result.dice = seen.dice_per_epoch
    result.several_negatives = torch.tensor(shares, dtype=torch.float64).view(-1, steps).mean(dim=1).tolist()
    result.steps = len(shares)
    prediction = training.predict(network, images.validation.images.to(device))
    result.final = score(prediction, images.validation.labels)
    return result


def train_step(
    network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Take one optimiser step; return loss, gradient with respect to the logits, seconds for maps and loss.

    The backward pass is cut at the logits, which changes no number and lets the loss be timed by itself.
    """
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


def now(device: torch.device) -> float:
    """Return the clock in seconds once all work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
