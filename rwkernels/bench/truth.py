"""What every answer is checked against before it is timed: SciPy per class, closed forms, and float64."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkernels.bench.inputs import Task, labels, labels_plus_one, odd_pixel, positions
from rwkernels.bench.peers import missing_module

# Pixels times classes up to which SciPy is asked outside the rows where it is the peer anyway.
SCIPY_LIMIT = 20_000_000


@dataclass(frozen=True)
class PaperRun:
    """One run of the paper's way to the map: how long it took, and what came out."""

    seconds: float
    foreground: Tensor  # Eq. 4 at the true class, [B, *S]
    distance: Tensor  # [B, *S]


def one_hot(task: Task) -> npt.NDArray[np.bool_]:
    """Bool [B, K, *S], the form that the paper's code and the boundary loss take."""
    image = labels(task).numpy()
    return np.stack([image == k for k in range(task.num_classes)], 1)


def paper_map(
    truth: npt.NDArray[np.bool_], spacing: tuple[float, ...] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
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
            np.divide(distance, -(largest[image, k] + 1e-15), out=maps[image, k], casting="unsafe")
    maps[maps == 0] = 1
    return maps, largest


@lru_cache(maxsize=8)
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
        for at, there in zip(positions(task.image_shape), odd_pixel(task), strict=True):
            squared += (at.float() - there).square()
        squared[odd_pixel(task)] = 1
        return squared.sqrt_().expand(task.shape)
    return None


def _has_scipy() -> bool:
    return missing_module("scipy.ndimage") is None


@lru_cache(maxsize=3)
def distance(task: Task, known: bool = False) -> Tensor | None:
    """The distances of a task, or None where neither a closed form nor an affordable SciPy run gives them.

    `known` says that SciPy is worth its time whatever it takes, as it is timed on this task too.
    """
    exact = _closed_form(task)
    if exact is not None:
        return exact
    affordable = known or task.pixels * task.num_classes <= SCIPY_LIMIT
    return paper_run(task).distance if affordable and _has_scipy() else None


@lru_cache(maxsize=2)
def foreground(task: Task) -> Tensor | None:
    """Eq. 4 at the true class, [B, *S]: from SciPy where it is affordable or needed anyway, else from `edt`."""
    if _has_scipy() and (task.name or task.pixels * task.num_classes <= SCIPY_LIMIT):
        return paper_run(task).foreground
    if missing_module("edt"):
        return None
    edt = importlib.import_module("edt")
    found = torch.empty(task.shape)
    spacing = task.spacing or (1.0,) * len(task.image_shape)
    for image, plus_one, values in zip(labels(task), labels_plus_one(task), found, strict=True):
        distances = edt.edt(plus_one, anisotropy=spacing, parallel=torch.get_num_threads())
        for k in range(task.num_classes):
            inside = (image == k).numpy()
            if inside.any():
                values[torch.from_numpy(inside)] = torch.from_numpy(-distances[inside] / distances[inside].max())
    return found


@lru_cache(maxsize=2)
def boundary(task: Task) -> Tensor | None:
    """The boundary map (Eq. 3) from two SciPy transforms per image and class; every class has to be present.

    None without SciPy.
    """
    if not _has_scipy():
        return None
    from scipy.ndimage import distance_transform_edt

    truth = one_hot(task)
    maps = np.empty(truth.shape, np.float32)
    for index in np.ndindex(truth.shape[:2]):
        inside = distance_transform_edt(truth[index], sampling=task.spacing)
        maps[index] = distance_transform_edt(~truth[index], sampling=task.spacing) - inside
    return torch.from_numpy(maps)


def kervadec(task: Task) -> Tensor | None:
    """The boundary map with 1 off the distances inside, as Kervadec et al. have it."""
    expected = boundary(task)
    return None if expected is None else torch.where(expected < 0, expected + 1, expected)


def dense(task: Task) -> Tensor | None:
    """The rectified map [B, K, *S] with `foreground`."""
    values = foreground(task)
    if values is None:
        return None
    found = torch.ones(task.shape[0], task.num_classes, *task.image_shape)
    return found.scatter_(1, labels(task).long().unsqueeze(1), values.unsqueeze(1))


# --- how answers differ; where there is no truth to be had, none is found to --------------------------------------


def on_host(result: Any) -> Tensor:
    """A result of any kind as a tensor on the CPU."""
    if isinstance(result, list):
        return torch.stack([on_host(one) for one in result])
    found = result if isinstance(result, Tensor) else torch.from_numpy(np.asarray(result))
    return found.detach().cpu()


def mismatch(found: Any, expected: Tensor | None, tolerance: float = 1e-5) -> str | None:
    """How `found` differs from `expected`, or None."""
    if expected is None:
        return None
    found = on_host(found)
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    found = found.to(expected.dtype)
    wrong = ~torch.isclose(found, expected, rtol=tolerance, atol=tolerance)
    count = int(wrong.sum())
    if not count:
        return None
    endless = torch.isinf(expected) & wrong
    if bool(endless.any()):
        return f"{float(found[endless][0]):.4g} where there is no other label to measure to"
    worst = float((found - expected).abs()[wrong].max())
    return f"{100 * count / found.numel():.3g} % of the values are off, by up to {worst:.3g}"


def dense_mismatch(found: Any, task: Task) -> str | None:
    """How a dense map [B, K, *S] differs from the rectified map with `foreground`, class by class."""
    expected = foreground(task)
    if expected is None:
        return None
    found = on_host(found)
    for k in range(task.num_classes):
        wrong = mismatch(found[:, k], torch.where(labels(task) == k, expected, 1.0))
        if wrong:
            return f"class {k}: {wrong}"
    return None


Part = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]
"""Some of the logits and of the gradient, and the loss of those logits; the losses of all parts add up."""


def _runs(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All of them flat over the pixels, a run of pixels at a time, so that float64 copies stay small."""
    flat = [tensor.detach().cpu().flatten(2) for tensor in (logits, *others)]
    run = max(1, (1 << 24) // (logits.shape[0] * logits.shape[1]))
    return zip(*[tensor.split(run, 2) for tensor in flat], strict=True)


def _step_mismatch(loss: float, parts: Iterable[Part], tolerance: float, scale: float) -> str | None:
    """How a loss and its gradient, taken `scale` times, differ from what autograd finds in float64, part by part."""
    total, worst, largest = 0.0, 0.0, 0.0
    for logits, gradient, loss_of in parts:
        x = logits.double().requires_grad_()
        value = loss_of(x)
        (expected,) = torch.autograd.grad(scale * value, x)
        total += float(value.detach())
        off = float((gradient - expected).abs().max())
        worst = max(worst, off) if math.isfinite(off) else math.inf  # `max` drops a NaN
        largest = max(largest, float(expected.abs().max()))
    if not abs(loss - total) <= tolerance * max(abs(total), 1e-2):
        return f"loss {loss} instead of {total}"
    if not math.isfinite(worst):
        return "the gradient is not finite"
    if not worst <= tolerance * largest:
        return f"the gradient is off by up to {worst / largest:.2g} of its largest entry"
    return None


def loss_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, maps: Tensor | None, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """How a mean loss and its gradient, taken `scale` times, differ from Eq. 1 in float64."""
    if maps is None:
        return None
    runs = _runs(logits, gradient, maps)
    parts = ((x, g, lambda x, z=z: (torch.softmax(x, 1) * z).sum() / logits.numel()) for x, g, z in runs)
    return _step_mismatch(loss, parts, tolerance, scale)


def cross_entropy_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, target: Tensor, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """The same for the mean cross-entropy."""
    runs = _runs(logits, gradient, target.unsqueeze(1))
    parts = ((x, g, lambda x, t=t: F.cross_entropy(x, t[:, 0], reduction="sum") / target.numel()) for x, g, t in runs)
    return _step_mismatch(loss, parts, tolerance, scale)


def joint_mismatch(
    loss: float,
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    maps: Tensor | None,
    kind: str,
    tolerance: float = 1e-5,
) -> str | None:
    """The same for a sum of losses, `kind` being its name in `CombinedLoss`, and of the region-wise loss of `maps`."""
    images = len(logits)

    def summed(x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        y, p = torch.softmax(x, 0), torch.log_softmax(x, 0).gather(0, t[None])
        total = x.new_zeros(())
        if kind.startswith("dice"):
            truth = torch.zeros_like(y).scatter_(0, t[None], 1.0)
            ratio = (2 * (y * truth).sum(1) + 1e-5) / (y.sum(1) + truth.sum(1) + 1e-5)
            total = total + (1 - ratio).mean()
        if kind in ("dice_ce", "cross_entropy"):
            total = total - p.mean()
        if kind == "dice_focal":
            total = total - ((1 - p.exp()).square() * p).mean() / len(y)
        if z is not None:
            total = total + (y * z).mean()
        return total / images

    parts = []
    for image in range(images):
        t, z = target[image].cpu().flatten(), None if maps is None else maps[image].cpu().flatten(1)
        parts.append(
            (logits[image].detach().cpu().flatten(1), gradient[image].cpu().flatten(1), partial(summed, t=t, z=z))
        )
    return _step_mismatch(loss, parts, tolerance, 1.0)


def dice_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, target: Tensor, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """The same for MONAI's Dice loss: 1 - (2 sum(y t) + s) / (sum y + sum t + s), s = 1e-5, over images and classes."""

    def dice(x: Tensor, t: Tensor) -> Tensor:
        y = torch.softmax(x.flatten(1), 0)
        truth = torch.zeros_like(y).scatter_(0, t.flatten()[None], 1.0)
        ratio = (2 * (y * truth).sum(1) + 1e-5) / (y.sum(1) + truth.sum(1) + 1e-5)
        return (1 - ratio).sum() / (logits.shape[0] * logits.shape[1])

    images = zip(logits.detach().cpu(), gradient.cpu(), target.cpu(), strict=True)
    return _step_mismatch(loss, ((x, g, partial(dice, t=t)) for x, g, t in images), tolerance, scale)
