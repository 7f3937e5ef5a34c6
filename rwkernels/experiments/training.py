"""One run: a network whose weights and batches depend on the seed alone, trained and scored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

import rwkernels as rw
from rwkernels.experiments import losses, metrics
from rwkernels.experiments.configuration import Run
from rwkernels.experiments.images import Images, Part
from rwkernels.extras import needs

with needs("experiments", "monai", "rwkernels.experiments"):
    from monai.networks.nets.basic_unet import BasicUNet

Rows = list[list[float]]


@dataclass
class Result:
    """What a run gave. Dice and distances have one number per class but the background.

    Attributes:
        cases: Names of the validation cases.
        dice: `[cases][classes]` after the last epoch; `nan` where neither prediction nor labels have the class.
        hausdorff: The same in mm; `inf` where only one of the two has it.
        diagonals: Of each case's image, in mm.
        epochs: Those after which the validation Dice was taken.
        dice_per_epoch: `[epochs][classes]`, mean over cases.
        loss_per_epoch: Mean training loss.
        diverged: The first epoch whose loss was not finite; training ended there.
        digest: Of the images.
        seconds: Of training and scoring.
        about: Of the data set: classes, title, description, numbers of slices.
    """

    cases: list[str] = field(default_factory=list)
    dice: Rows = field(default_factory=list)
    hausdorff: Rows = field(default_factory=list)
    diagonals: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    dice_per_epoch: Rows = field(default_factory=list)
    loss_per_epoch: list[float] = field(default_factory=list)
    diverged: int | None = None
    digest: str = ""
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


def unet(in_channels: int, num_classes: int, features: Sequence[int], seed: int) -> nn.Module:
    """A 2D U-Net of MONAI whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = BasicUNet(
            spatial_dims=2, in_channels=in_channels, out_channels=num_classes, features=tuple(features)
        )
    return network


def batches(count: int, batch_size: int, epochs: int, seed: int, steps: int | None = None) -> Iterator[list[Tensor]]:
    """One epoch after the other as a list of index tensors, shuffled by the seed alone.

    An epoch sees each of `count` slices once; with `steps` it has as many batches, and the next one goes on from there.
    """
    generator = torch.Generator().manual_seed(seed)

    def passes() -> Iterator[list[Tensor]]:
        while True:
            yield list(torch.split(torch.randperm(count, generator=generator), batch_size))

    if steps is None:
        yield from islice(passes(), epochs)
    else:
        stream = chain.from_iterable(passes())
        for _ in range(epochs):
            yield list(islice(stream, steps))


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """The predicted class of every pixel, `[N, H, W]`."""
    network.eval()
    return torch.cat([network(part).argmax(dim=1) for part in torch.split(images, batch_size)])


def train_step(
    network: nn.Module,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    gradient_clip: float | None,
) -> Tensor:
    """Takes one step of the optimiser; gives the loss before it."""
    loss: Tensor = loss_fn(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    if gradient_clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimizer.step()
    return loss.detach()


def train(run: Run, images: Images, device: torch.device | str = "cpu") -> Result:
    """Trains and scores the run's network.

    Args:
        run: The configuration.
        images: Its data set.
        device: Where to train.
    """
    begin = time.perf_counter()
    network, result = fit(run, images, device)
    result.digest, result.about = images.digest(), _about(images)
    result.cases = [name for name, _ in images.validation.groups()]
    prediction = predict(network, images.validation.images.to(device))
    result.dice, result.hausdorff = case_scores(prediction, images.validation, images.num_classes)
    result.diagonals = [_diagonal(images.validation, part) for _, part in images.validation.groups()]
    result.seconds = time.perf_counter() - begin
    return result


def fit(
    run: Run, images: Images, device: torch.device | str = "cpu", step: Callable[..., Tensor] = train_step
) -> tuple[nn.Module, Result]:
    """Trains the run's network; gives it with what was seen on the way.

    Args:
        run: The configuration.
        images: Its data set.
        device: Where to train.
        step: Called as `train_step`, for whoever wants to see more of it.
    """
    setting = run.training
    network = unet(images.train.images.shape[1], images.num_classes, setting.features, run.seed).to(device)
    loss_fn = losses.build(run.loss).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay)
    inputs, labels = images.train.images.to(device), images.train.labels.to(device)
    unseen = images.validation.images.to(device)
    result = Result()
    order = batches(len(labels), setting.batch_size, setting.epochs, run.seed, setting.steps_per_epoch)
    for epoch, parts in enumerate(order, start=1):
        network.train()
        total = 0.0
        for index in parts:
            loss = step(network, loss_fn, optimizer, inputs[index], labels[index], setting.gradient_clip)
            total += float(loss) * len(index)
        if isinstance(loss_fn, rw.CombinedLoss):
            loss_fn.step()
        result.loss_per_epoch.append(total / sum(map(len, parts)))
        if not math.isfinite(total):
            result.diverged = epoch
        if epoch % setting.evaluate_every == 0 or epoch == setting.epochs or result.diverged:
            result.epochs.append(epoch)
            scores = case_scores(predict(network, unseen), images.validation, images.num_classes, distances=False)[0]
            result.dice_per_epoch.append(torch.nanmean(torch.tensor(scores, dtype=torch.float64), dim=0).tolist())
        if result.diverged:
            break
    return network, result


def case_scores(
    prediction: Tensor, part: Part, num_classes: int, distances: bool = True
) -> tuple[list[list[float]], list[list[float]]]:
    """Dice and Hausdorff distance of every case: of the volume, if a case has several slices."""
    dice, hausdorff = [], []
    prediction = prediction.cpu()
    for _, members in part.groups():
        found, true = prediction[members], part.labels[members]
        if len(true) > 1:
            found, true = found[None], true[None]
        dice += metrics.dice(found, true, num_classes).double().tolist()
        if distances:
            spacing = part.spacing[members.start][-(true.dim() - 1) :]
            hausdorff += metrics.hausdorff(found, true, num_classes, spacing).double().tolist()
    return dice, hausdorff


def _diagonal(part: Part, members: slice) -> float:
    """Of the image from the centre of one corner pixel to the opposite one's."""
    sizes = (members.stop - members.start, *part.labels.shape[1:])
    steps = part.spacing[members.start]
    return math.dist([0.0] * 3, [(size - 1) * step for size, step in zip(sizes, steps, strict=True)])


def _about(images: Images) -> dict[str, Any]:
    return {
        "classes": list(images.classes),
        "title": images.title,
        "description": images.description,
        "train_slices": len(images.train.labels),
        "validation_slices": len(images.validation.labels),
        "shape": list(images.train.images.shape[1:]),
    }
