"""What is timed from labels to the gradient of the logits, and of a data loader that makes maps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import rwkernels as rw
from rwkernels.bench import peers, truth
from rwkernels.bench.harness import Contender, absent
from rwkernels.bench.inputs import Task, labels, logits
from rwkernels.bench.losses import plain_loss, training_step
from rwkernels.bench.maps import Maker, on_host
from rwkernels.bench.peers import Mask, Spacing

OURS = "rwkernels"
PAPER, PAPER_EDT = "SciPy per class + eager", "edt per class + eager"
MONAI_LOSS = "MONAI BoundaryLoss"
FAMILIES = ("rectified", "boundary")


def class_map(mask_distances: Callable[[Any], Any], masks: Mask, family: str, spacing: Spacing) -> Any:
    """The map [K, *S] of one image from a transform of binary images, as the paper's code makes it (Eq. 3 and 4)."""
    maps = np.zeros(masks.shape, np.float32)
    if family == "boundary":
        for k, (far, near) in enumerate(
            zip(mask_distances((~masks, spacing)), mask_distances((masks, spacing)), strict=True)
        ):
            if masks[k].any():
                np.subtract(far, near, out=maps[k], casting="unsafe")
        return maps
    for k, distance in enumerate(mask_distances((masks, spacing))):
        np.divide(distance, -(distance.max() + 1e-15), out=maps[k], casting="unsafe")
    maps[maps == 0] = 1
    return maps


def _masks(image: Tensor, num_classes: int) -> Mask:
    found: Mask = image.numpy()[None] == np.arange(num_classes).reshape(-1, *[1] * image.dim())
    return found


def _usual_loss(library: str, task: Task, family: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The paper's way: on every step the maps of the batch from its labels, then `(softmax * map).mean()`."""
    transform = peers.CPU_LIBRARIES[library].distances
    images = labels(task)

    def step(x: Tensor) -> Tensor:
        maps = [class_map(transform, _masks(image, task.num_classes), family, task.spacing) for image in images]
        return loss(x, torch.from_numpy(np.stack(maps)).to(x.device))

    return step


def _expected_map(task: Task, family: str) -> Tensor:
    if family == "boundary":
        return truth.boundary(task)
    index = labels(task).long().unsqueeze(1)
    dense = torch.ones(task.shape[0], task.num_classes, *task.image_shape)
    return dense.scatter_(1, index, truth.paper_run(task).foreground.unsqueeze(1))


def step_makers(task: Task, family: str, device: str) -> dict[str, Maker]:
    """Labels to gradient, everything that happens anew at every step included."""
    x = logits(task, device=device)
    image = labels(task).to(device)

    def check(value: float, gradient: Tensor) -> str | None:
        return truth.loss_mismatch(value, gradient, x, _expected_map(task, family)) if truth.has_scipy() else None

    def ours() -> Contender:
        loss = rw.RegionWiseLoss(family, spacing=task.spacing)
        return training_step(OURS, lambda x: loss(x, image), x, check)

    def usual(name: str, library: str) -> Contender:
        missing = peers.CPU_LIBRARIES[library].missing
        if missing:
            return absent(name, missing)
        return training_step(name, _usual_loss(library, task, family, plain_loss), x, check)

    def monai() -> Contender:
        missing = peers.missing_module("monai.losses")
        if missing or not hasattr(importlib.import_module("monai.losses"), "BoundaryLoss"):
            return absent(MONAI_LOSS, missing or "this release of MONAI has no BoundaryLoss")
        loss = importlib.import_module("monai.losses").BoundaryLoss(softmax=True, to_onehot_y=True)
        target = image.long().unsqueeze(1)

        def check_kervadec(value: float, gradient: Tensor) -> str | None:
            """It takes 1 off the distances inside, as Kervadec et al. do."""
            if not truth.has_scipy():
                return None
            expected = truth.boundary(task)
            return truth.loss_mismatch(value, gradient, x, torch.where(expected < 0, expected + 1, expected))

        return training_step(MONAI_LOSS, lambda x: loss(x, target), x, check_kervadec)

    return {
        OURS: ours,
        PAPER: lambda: usual(PAPER, peers.SCIPY),
        PAPER_EDT: lambda: usual(PAPER_EDT, peers.EDT_PER_CLASS),
        MONAI_LOSS: monai,
    }


# --- data loader -----------------------------------------------------------------------------------------------


class Slices(Dataset[Tensor]):
    """Label images with the rectified map of each, made when it is asked for: dense [K, *S]."""

    def __init__(self, task: Task, library: str | None) -> None:
        self.images, self.num_classes, self.spacing, self.library = (
            labels(task),
            task.num_classes,
            task.spacing,
            library,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index]
        if self.library is None:
            found: Tensor = rw.rectified_map(image[None], self.num_classes, spacing=self.spacing).dense()[0]
            return found
        transform = peers.CPU_LIBRARIES[self.library].distances
        masks = _masks(image, self.num_classes)
        return torch.from_numpy(class_map(transform, masks, "rectified", self.spacing))


def loader_makers(task: Task, workers: int) -> dict[str, Maker]:
    """One pass over the data set in batches of 4, with so many worker processes that stay alive."""

    def loading(name: str, library: str | None) -> Contender:
        missing = None if library is None else peers.CPU_LIBRARIES[library].missing
        if missing:
            return absent(name, missing)
        loader = DataLoader(Slices(task, library), batch_size=4, num_workers=workers, persistent_workers=workers > 0)

        def check(batches: list[Tensor]) -> str | None:
            if not truth.has_scipy():
                return None
            return truth.dense_mismatch(on_host(torch.cat(batches)), task, truth.paper_run(task).foreground)

        return Contender(name, lambda: list(loader), check, buffer="fresh")

    return {
        OURS: lambda: loading(OURS, None),
        peers.SCIPY: lambda: loading(peers.SCIPY, peers.SCIPY),
        peers.EDT_PER_CLASS: lambda: loading(peers.EDT_PER_CLASS, peers.EDT_PER_CLASS),
    }
