"""What every answer is checked against before it is timed: SciPy per class, closed forms, and float64."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import Task, labels, odd_pixel

# Pixels times classes up to which SciPy is asked outside the rows where it is the peer anyway.
SCIPY_LIMIT = 20_000_000


@dataclass(frozen=True)
class PaperRun:
    """One run of the paper's way to the map: how long it took, and what came out."""

    seconds: float
    foreground: Tensor  # Eq. 4 at the true class, [B, *S]
    distance: Tensor  # [B, *S]


def one_hot(task: Task) -> np.ndarray:
    """bool [B, K, *S], the form that the paper's code and the boundary loss take."""
    image = labels(task).numpy()
    return np.stack([image == k for k in range(task.num_classes)], 1)


def paper_map(truth: np.ndarray, spacing: tuple[float, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """The rectified map as the paper's code makes it, and the largest distance of every class and image.

    One SciPy distance transform per image and class, each divided by its maximum; what stays 0 becomes 1.
    """
    from scipy.ndimage import distance_transform_edt

    maps = np.zeros(truth.shape, np.float32)
    largest = np.zeros(truth.shape[:2])
    for image in range(truth.shape[0]):
        for k in range(truth.shape[1]):
            distance = distance_transform_edt(truth[image, k], sampling=spacing)
            largest[image, k] = distance.max()
            maps[image, k] = -distance / (largest[image, k] + 1e-15)
    maps[maps == 0] = 1
    return maps, largest


@cache
def paper_run(task: Task) -> PaperRun:
    """The paper's way, timed once."""
    truth = one_hot(task)
    start = time.perf_counter()
    maps, largest = paper_map(truth, task.spacing)
    seconds = time.perf_counter() - start
    index = labels(task).long()
    foreground = torch.from_numpy(maps).gather(1, index.unsqueeze(1)).squeeze(1)
    per_image = torch.from_numpy(largest).gather(1, index.flatten(1)).view(index.shape)
    distance = (-foreground * per_image).float()
    for image, values in zip(labels(task), distance, strict=True):
        if bool((image == image.flatten()[0]).all()):
            values.fill_(torch.inf)  # SciPy measures to a place outside of an image with one label
    return PaperRun(seconds, foreground, distance)


def _closed_form(task: Task) -> Tensor | None:
    if task.pattern == "single":
        return torch.full(task.shape, torch.inf)
    if task.pattern == "checkerboard":
        return torch.ones(task.shape)
    if task.pattern in ("centre", "corner"):
        squared = torch.zeros(task.image_shape)
        for axis, (side, there) in enumerate(zip(task.image_shape, odd_pixel(task), strict=True)):
            view = [1] * len(task.image_shape)
            view[axis] = -1
            squared += (torch.arange(side, dtype=torch.float32) - there).square().view(view)
        squared[odd_pixel(task)] = 1
        return squared.sqrt_().expand(task.shape)
    return None


def has_scipy() -> bool:
    try:
        import scipy.ndimage  # noqa: F401
    except ImportError:
        return False
    return True


@lru_cache(maxsize=3)
def distance(task: Task, known: bool = False) -> Tensor | None:
    """The distances of a task, or None where neither a closed form nor an affordable SciPy run gives them.

    `known` says that SciPy is worth its time whatever it takes, as it is timed on this task too.
    """
    exact = _closed_form(task)
    if exact is not None:
        return exact
    affordable = known or task.pixels * task.num_classes <= SCIPY_LIMIT
    return paper_run(task).distance if affordable and has_scipy() else None


@lru_cache(maxsize=2)
def boundary(task: Task) -> Tensor:
    """The boundary map (Eq. 3) from two SciPy transforms per image and class; every class has to be present."""
    from scipy.ndimage import distance_transform_edt

    truth = one_hot(task)
    maps = np.empty(truth.shape, np.float32)
    for index in np.ndindex(truth.shape[:2]):
        inside = distance_transform_edt(truth[index], sampling=task.spacing)
        maps[index] = distance_transform_edt(~truth[index], sampling=task.spacing) - inside
    return torch.from_numpy(maps)


def mismatch(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> str | None:
    """How `found` differs from `expected`, or None."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    wrong = ~torch.isclose(found, expected, rtol=tolerance, atol=tolerance)
    count = int(wrong.sum())
    if not count:
        return None
    worst = float((found - expected).abs()[wrong].max())
    return f"{100 * count / found.numel():.3g} % of the values are off, by up to {worst:.3g}"


def dense_mismatch(found: Tensor, task: Task, foreground: Tensor) -> str | None:
    """How a dense map [B, K, *S] differs from the rectified map with `foreground`, class by class."""
    for k in range(task.num_classes):
        expected = torch.where(labels(task) == k, foreground, 1.0)
        wrong = mismatch(found[:, k], expected)
        if wrong:
            return f"class {k}: {wrong}"
    return None


def loss_mismatch(loss: float, gradient: Tensor, logits: Tensor, maps: Tensor) -> str | None:
    """How a mean loss and its gradient differ from the reference in float64, a run of pixels at a time."""
    from rwkernels.backends import reference

    total, worst, largest = 0.0, 0.0, 0.0
    flat = [tensor.detach().flatten(2) for tensor in (logits, maps, gradient)]
    run = max(1, (1 << 24) // (logits.shape[0] * logits.shape[1]))
    for x, z, g in zip(*[tensor.split(run, 2) for tensor in flat], strict=True):
        x, z = x.double(), z.double()
        total += float(reference.pixel_loss(x, z).sum())
        expected = reference.pixel_gradient(x, z).div_(logits.numel())
        worst = max(worst, float((g - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    expected_loss = total / logits.numel()
    if not abs(loss - expected_loss) <= 1e-5 * max(abs(expected_loss), 1e-2):
        return f"loss {loss} instead of {expected_loss}"
    if not worst <= 1e-5 * largest:
        return f"the gradient is off by up to {worst / largest:.2g} of its largest entry"
    return None


def cross_entropy_mismatch(loss: float, gradient: Tensor, logits: Tensor, target: Tensor) -> str | None:
    """The same for the mean cross-entropy: gradient softmax minus one-hot, over the number of pixels."""
    total, worst = 0.0, 0.0
    count = target.numel()
    flat = [tensor.detach().flatten(2) for tensor in (logits, target.unsqueeze(1), gradient)]
    run = max(1, (1 << 24) // (logits.shape[0] * logits.shape[1]))
    for x, t, g in zip(*[tensor.split(run, 2) for tensor in flat], strict=True):
        log_softmax = torch.log_softmax(x.double(), 1)
        total -= float(log_softmax.gather(1, t).sum())
        expected = log_softmax.exp_().scatter_add_(1, t, torch.full(t.shape, -1.0, dtype=torch.float64))
        worst = max(worst, float((g - expected / count).abs().max()))
    if not abs(loss - total / count) <= 1e-5 * total / count:
        return f"loss {loss} instead of {total / count}"
    return None if worst <= 1e-5 / count else f"the gradient is off by up to {worst * count:.2g}"
