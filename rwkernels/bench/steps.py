"""What is timed from labels to the gradient of the logits, and of a data loader that makes maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import rwkernels as rw
from rwkernels.bench import peers, truth
from rwkernels.bench.harness import Contender, Maker
from rwkernels.bench.inputs import Task, labels, logits
from rwkernels.bench.losses import plain_loss, training_step
from rwkernels.bench.names import CROSS_ENTROPY, EDT_PER_CLASS, MONAI_LOSS, OURS, PAPER, PAPER_EDT, SCIPY
from rwkernels.bench.peers import Mask, Spacing

FAMILIES = ("rectified", "boundary")


def class_map(library: peers.Library, image: Tensor, num_classes: int, family: str, spacing: Spacing) -> Any:
    """The map [K, *S] of one label image as the paper's code makes it (Eq. 3 and 4), of a library of the CPU."""
    masks: Mask = image.numpy()[None] == np.arange(num_classes).reshape(-1, *[1] * image.dim())
    maps = np.zeros(masks.shape, np.float32)
    if family == "rectified":
        peers.rectify(library.distances((masks, spacing)), maps)
        return maps
    pairs = zip(library.distances((~masks, spacing)), library.distances((masks, spacing)), strict=True)
    for k, (far, near) in enumerate(pairs):
        if masks[k].any():
            np.subtract(far, near, out=maps[k], casting="unsafe")
    return maps


def paper_loss(library: peers.Library, family: str, x: Tensor, images: Tensor, spacing: Spacing = None) -> Tensor:
    """The paper's way: the maps of the batch from its labels, then `(softmax * map).mean()`."""
    maps = [class_map(library, image, x.shape[1], family, spacing) for image in images]
    return plain_loss(x, torch.from_numpy(np.stack(maps)).to(x.device))


def step_makers(task: Task, family: str, device: str) -> dict[str, Maker]:
    """Labels to gradient, everything that happens anew at every step included."""
    x = logits(task, device=device)
    image = labels(task).to(device)

    def check(value: float, gradient: Tensor, expected: Callable[[Task], Tensor | None]) -> str | None:
        return truth.loss_mismatch(value, gradient, x, expected(task))

    check_map = partial(check, expected=truth.boundary if family == "boundary" else truth.dense)

    def ours(name: str) -> Contender:
        loss = rw.RegionWiseLoss(family, spacing=task.spacing)
        return training_step(name, lambda x: loss(x, image), x, check_map)

    def usual(name: str, library: str) -> Contender:
        step = partial(paper_loss, peers.library(library, "cpu"), family, images=labels(task), spacing=task.spacing)
        return training_step(name, step, x, check_map)

    def monai(name: str) -> Contender:
        loss = peers.monai_boundary_loss()(softmax=True, to_onehot_y=True)
        target = image.long().unsqueeze(1)
        return training_step(name, lambda x: loss(x, target), x, partial(check, expected=truth.kervadec))

    def cross_entropy(name: str) -> Contender:
        target = image.long()
        mismatch = partial(truth.cross_entropy_mismatch, logits=x, target=target, tolerance=1e-5)
        return training_step(name, lambda x: F.cross_entropy(x, target), x, mismatch)

    return {
        OURS: ours,
        CROSS_ENTROPY: cross_entropy,
        PAPER: partial(usual, library=SCIPY),
        PAPER_EDT: partial(usual, library=EDT_PER_CLASS),
        MONAI_LOSS: monai,
    }


# --- data loader -----------------------------------------------------------------------------------------------


class Slices(Dataset[Tensor]):
    """Label images with the rectified map of each, made when it is asked for: dense [K, *S]."""

    def __init__(self, task: Task, library: peers.Library | None) -> None:
        self.images, self.task, self.library = labels(task), task, library

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image, task = self.images[index], self.task
        if self.library is None:
            found: Tensor = rw.rectified_map(image[None], task.num_classes, spacing=task.spacing).dense()[0]
            return found
        return torch.from_numpy(class_map(self.library, image, task.num_classes, "rectified", task.spacing))


def loader_makers(task: Task, workers: int) -> dict[str, Maker]:
    """One pass over the data set in batches of 4, with so many worker processes that stay alive."""

    def loading(name: str) -> Contender:
        library = None if name == OURS else peers.library(name, "cpu")
        loader = DataLoader(Slices(task, library), batch_size=4, num_workers=workers, persistent_workers=workers > 0)

        def check(batches: list[Tensor]) -> str | None:
            return truth.dense_mismatch(torch.cat(batches), task)

        return Contender(name, lambda: list(loader), check, buffer="fresh")

    return dict.fromkeys((OURS, SCIPY, EDT_PER_CLASS), loading)
