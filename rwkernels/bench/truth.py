"""What every answer is checked against before it is timed: SciPy per class, closed forms, and float64."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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


def _runs(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All of them flat over the pixels, a run of pixels at a time, so that float64 copies stay small."""
    flat = [tensor.detach().cpu().flatten(2) for tensor in (logits, *others)]
    run = max(1, (1 << 24) // (logits.shape[0] * logits.shape[1]))
    return zip(*[tensor.split(run, 2) for tensor in flat], strict=True)


def _off(so_far: float, difference: Tensor) -> float:
    """The larger of `so_far` and what is in `difference`; infinite if that is not finite (`max` drops a NaN)."""
    found = float(difference.abs().max())
    return max(so_far, found) if math.isfinite(found) else math.inf


def _judged(loss: float, expected_loss: float, worst: float, largest: float, tolerance: float) -> str | None:
    if not abs(loss - expected_loss) <= tolerance * max(abs(expected_loss), 1e-2):
        return f"loss {loss} instead of {expected_loss}"
    if not math.isfinite(worst):
        return "the gradient is not finite"
    if not worst <= tolerance * largest:
        return f"the gradient is off by up to {worst / largest:.2g} of its largest entry"
    return None


def loss_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, maps: Tensor | None, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """How a mean loss and its gradient, taken `scale` times, differ from the reference in float64."""
    if maps is None:
        return None
    from rwkernels.backends import reference

    total, worst, largest = 0.0, 0.0, 0.0
    for x, z, g in _runs(logits, maps, gradient):
        x, z = x.double(), z.double()
        total += float(reference.pixel_loss(x, z).sum())
        expected = reference.pixel_gradient(x, z).mul_(scale / logits.numel())
        worst = _off(worst, g - expected)
        largest = max(largest, float(expected.abs().max()))
    return _judged(loss, total / logits.numel(), worst, largest, tolerance)


def cross_entropy_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, target: Tensor, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """The same for the mean cross-entropy: gradient softmax minus one-hot, over the number of pixels."""
    total, worst = 0.0, 0.0
    count = target.numel()
    for x, t, g in _runs(logits, target.unsqueeze(1), gradient):
        log_softmax = torch.log_softmax(x.double(), 1)
        total -= float(log_softmax.gather(1, t).sum())
        expected = log_softmax.exp_().scatter_add_(1, t, torch.full(t.shape, -1.0, dtype=torch.float64))
        worst = _off(worst, g - expected * (scale / count))
    return _judged(loss, total / count, worst, scale / count, tolerance)


def dice_mismatch(
    loss: float, gradient: Tensor, logits: Tensor, target: Tensor, tolerance: float = 1e-5, scale: float = 1.0
) -> str | None:
    """The same for MONAI's Dice loss: 1 - (2 sum(y t) + s) / (sum y + sum t + s), s = 1e-5, over images and classes."""
    smooth, images_classes = 1e-5, logits.shape[0] * logits.shape[1]
    total, worst, largest = 0.0, 0.0, 0.0
    for x, t, g in zip(logits.detach().cpu(), target.cpu(), gradient.cpu(), strict=True):
        y = torch.softmax(x.double().flatten(1), 0)
        truth = torch.zeros_like(y).scatter_(0, t.flatten()[None], 1.0)
        above = 2 * (y * truth).sum(1, keepdim=True) + smooth
        below = y.sum(1, keepdim=True) + truth.sum(1, keepdim=True) + smooth
        total += float((1 - above / below).sum())
        slope = truth.mul_(2 * below).sub_(above).div_(-(below.square()) * (images_classes / scale))
        expected = y * (slope - (y * slope).sum(0, keepdim=True))
        worst = _off(worst, g.flatten(1) - expected)
        largest = max(largest, float(expected.abs().max()))
    return _judged(loss, total / images_classes, worst, largest, tolerance)
