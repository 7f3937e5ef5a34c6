"""Label images that expose mistakes, and slow truths that share no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

Shape = tuple[int, ...]


def _grid(shape: Shape) -> list[np.ndarray]:
    return list(np.meshgrid(*map(np.arange, shape), indexing="ij"))


def _random(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, shape)


def _blobs(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    """Every pixel takes the class of the nearest of a few random points."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, shape, (3 * num_classes, len(shape)))
    away = sum((axis[..., None] - points[:, i]) ** 2 for i, axis in enumerate(_grid(shape)))
    return (np.argmin(away, -1) % num_classes).reshape(shape)


def _one_odd_pixel(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    labels = np.zeros(shape, int)
    labels[tuple(np.random.default_rng(seed).integers(0, shape))] = num_classes - 1
    return labels


def _checkerboard(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    return (np.asarray(sum(_grid(shape))) + seed) % num_classes


def _circle(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    away = sum(((axis - size / 2) / max(size, 2)) ** 2 for axis, size in zip(_grid(shape), shape, strict=True))
    return np.where(np.asarray(away) < 0.16, num_classes - 1, seed % 2)


def _sparse(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < 0.01, random.integers(1, num_classes, shape), 0)


def _uniform(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    return np.full(shape, seed % num_classes)


def _without_class_one(shape: Shape, num_classes: int, seed: int) -> np.ndarray:
    labels = _blobs(shape, num_classes, seed)
    return np.where(labels == 1, 0, labels)


SCENES: dict[str, Callable[[Shape, int, int], np.ndarray]] = {
    "random": _random,
    "blobs": _blobs,
    "one-odd-pixel": _one_odd_pixel,
    "checkerboard": _checkerboard,
    "circle": _circle,
    "sparse": _sparse,
    "uniform": _uniform,
    "without-class-one": _without_class_one,
}
SHAPES = [(131,), (13, 37), (67, 5), (33, 1), (3, 19, 35), (9, 17, 1)]
SPACING = (2.5, 0.4, 1.3)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
scenes = pytest.mark.parametrize("name", SCENES)
ROW = torch.tensor([[[0, 0, 0, 1, 1, 2]]])  # distances 3 2 1 1 1 1


def scene(name: str, shape: Shape, num_classes: int = 3, batch: int = 2, dtype: torch.dtype = torch.int64) -> Tensor:
    """Labels [batch, *shape] of the scene `name`; every image differs, every call gives the same."""
    images = [SCENES[name](shape, num_classes, seed) for seed in range(batch)]
    return torch.as_tensor(np.stack(images)).to(dtype)


def steps(spacing: float | Sequence[float] | None, axes: int) -> list[float]:
    """The spacing of every axis."""
    if isinstance(spacing, Sequence):
        return list(spacing)
    return [1.0 if spacing is None else spacing] * axes


def scipy_distance(
    labels: Tensor, spacing: float | Sequence[float] | None = None, black_border: bool = False
) -> Tensor:
    """Distance to the nearest pixel of another label, by SciPy, one class at a time.

    SciPy is not asked where an image has a single label: it gives wrong numbers there, and the answer is inf.
    """
    images = []
    for image in labels.cpu().numpy():
        padded = np.unique(image, return_inverse=True)[1].reshape(image.shape)
        if black_border:
            padded = np.pad(padded, 1, constant_values=-1)
        distance = np.full(padded.shape, np.inf)
        present = np.unique(padded)
        for label in present if len(present) > 1 else []:
            here = padded == label
            distance[here] = distance_transform_edt(here, sampling=steps(spacing, image.ndim))[here]
        images.append(distance[(slice(1, -1),) * image.ndim] if black_border else distance)
    return torch.as_tensor(np.stack(images))


def scipy_class_distance(labels: Tensor, num_classes: int, spacing: float | Sequence[float] | None = None) -> Tensor:
    """Distance to the nearest pixel of every class, by SciPy; inf where the class is absent."""
    images = []
    for image in labels.cpu().numpy():
        channels = [
            distance_transform_edt(image != k, sampling=steps(spacing, image.ndim))
            if (image == k).any()
            else np.full(image.shape, np.inf)
            for k in range(num_classes)
        ]
        images.append(np.stack(channels))
    return torch.as_tensor(np.stack(images))


def pairwise_distance(labels: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance to the nearest pixel of another label: the smallest over all pairs of pixels. Small images only."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) * s for n, s in _axes(labels, spacing)))
    away = torch.cdist(places.view(-1, labels.dim() - 1), places.view(-1, labels.dim() - 1), compute_mode=_EXACT)
    flat = labels.flatten(1)
    differ = flat.unsqueeze(1) != flat.unsqueeze(2)
    return torch.where(differ, away, torch.inf).amin(2).view(labels.shape)


_EXACT = "donot_use_mm_for_euclid_dist"


def _axes(labels: Tensor, spacing: Sequence[float]) -> list[tuple[int, float]]:
    return list(zip(labels.shape[1:], spacing, strict=True))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float64 [B, K, *S]."""
    return torch.nn.functional.one_hot(labels.long(), num_classes).movedim(-1, 1).double()


def assert_same(found: Tensor, expected: Tensor, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """float32 results against a float64 truth; inf must match inf."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), expected.cpu().double(), rtol=rtol, atol=atol)
