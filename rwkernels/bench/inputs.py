"""The inputs: label images and logits from fixed seeds, generated once per process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = ("full", "quick", "tiny")
CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
# Patterns that a transform with shortcuts is slow on or wrong at.
PUNISHING = ("single", "checkerboard", "centre", "corner", "random", "sparse")


@dataclass(frozen=True)
class Task:
    """One label batch: what `labels` generates it from, and how large its pixels are."""

    name: str
    pattern: str
    shape: tuple[int, ...]  # [B, *S]
    num_classes: int
    spacing: tuple[float, ...] | None = None

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def title(self) -> str:
        sides = self.image_shape
        same = len(set(sides)) == 1
        size = f"{sides[0]}^{len(sides)}" if same else "x".join(map(str, sides))
        spacing = "" if self.spacing is None else f" spacing {','.join(f'{s:g}' for s in self.spacing)}"
        batch = f"{self.shape[0]}x" if self.shape[0] > 1 else ""
        return f"{self.name} {batch}{size} K={self.num_classes}{spacing}".strip()


def _smooth(shape: tuple[int, ...], cell: int, generator: torch.Generator) -> Tensor:
    """Smooth noise over an image: random values on a coarse grid, interpolated."""
    coarse = [max(2, side // cell) for side in shape]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    noise = torch.randn(1, 1, *coarse, generator=generator)
    return F.interpolate(noise, size=shape, mode=mode, align_corners=True)[0, 0]


def positions(shape: tuple[int, ...]) -> list[Tensor]:
    """The place of a pixel along every axis, each of a shape that broadcasts over an image."""
    return [torch.from_numpy(axis) for axis in np.ogrid[tuple(map(slice, shape))]]


def _ellipsoid(shape: tuple[int, ...], centre: list[float], radii: list[float]) -> Tensor:
    """Distance from the centre, 1 on the ellipsoid; all numbers are fractions of the sides."""
    total = torch.zeros(shape)
    for axis, at in enumerate(positions(shape)):
        total += (((at.float() + 0.5) / shape[axis] - centre[axis]) / radii[axis]).square()
    return total.sqrt_()


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _hearts(task: Task, g: torch.Generator) -> Tensor:
    """A cavity inside a muscle and a second cavity beside it, about 4 % of the image in all."""
    images = []
    for _ in range(task.shape[0]):
        y, x = _uniform(0.4, 0.6, g), _uniform(0.4, 0.6, g)
        radius = _uniform(0.075, 0.095, g)
        wobble = 0.08 * _smooth(task.image_shape, 24, g)
        muscle = _ellipsoid(task.image_shape, [y, x], [radius, radius]) + wobble
        second = _ellipsoid(task.image_shape, [y, x - 1.3 * radius], [1.1 * radius, 0.8 * radius]) + wobble
        image = torch.zeros(task.image_shape, dtype=torch.uint8)
        image[second < 1] = 1
        image[muscle < 1] = 2
        image[muscle < 0.65] = 3
        images.append(image)
    return torch.stack(images)


def _blobs(task: Task, g: torch.Generator) -> Tensor:
    """Smooth regions of every class; the background takes the larger half."""
    images = []
    for _ in range(task.shape[0]):
        best = _smooth(task.image_shape, 16, g) + 0.7
        image = torch.zeros(task.image_shape, dtype=torch.uint8)
        for k in range(1, task.num_classes):
            field = _smooth(task.image_shape, 16, g)
            image[field > best] = k
            best = torch.maximum(best, field)
        images.append(image)
    return torch.stack(images)


def _organs(task: Task, g: torch.Generator) -> Tensor:
    """One large organ and a small one."""
    wobble = 0.15 * _smooth(task.image_shape, 32, g)
    large = _ellipsoid(task.image_shape, [0.5, 0.5, 0.42], [0.36, 0.28, 0.24]) + wobble
    small = _ellipsoid(task.image_shape, [0.55, 0.45, 0.8], [0.1, 0.05, 0.05]) + wobble
    image = torch.zeros(task.image_shape, dtype=torch.uint8)
    image[large < 1] = 1
    image[small < 1] = 2
    return image[None]


def _parcels(task: Task, g: torch.Generator) -> Tensor:
    """A head cut into K-1 parcels: the cells of random seeds, with wavy walls."""
    shape = task.image_shape
    head = _ellipsoid(shape, [0.5] * 3, [0.42] * 3)
    count = task.num_classes - 1
    inside = (head < 0.9).nonzero()
    seeds = inside[torch.randperm(len(inside), generator=g)[:count]].float()
    grid = torch.stack(torch.meshgrid(*[torch.arange(side, dtype=torch.float32) for side in shape], indexing="ij"), -1)
    grid += 0.02 * shape[0] * torch.stack([_smooth(shape, 16, g) for _ in shape], -1)
    # The nearest seed s of a point p has the largest p.s - |s|^2 / 2.
    offset = seeds.square().sum(1) / 2
    nearest = [(part @ seeds.T - offset).argmax(1) for part in grid.view(-1, 3).split(1 << 16)]
    image = (torch.cat(nearest) + 1).to(torch.uint8).view(shape)
    image[head >= 1] = 0
    return image[None]


def _single(task: Task, _: torch.Generator) -> Tensor:
    return torch.ones(task.shape, dtype=torch.uint8)


def _checkerboard(task: Task, _: torch.Generator) -> Tensor:
    total = torch.zeros(task.image_shape, dtype=torch.long)
    for at in positions(task.image_shape):
        total += at
    return (total % 2).to(torch.uint8).expand(task.shape).contiguous()


def odd_pixel(task: Task) -> tuple[int, ...]:
    """Where the one pixel of another label is."""
    return tuple(side // 2 for side in task.image_shape) if task.pattern == "centre" else (0,) * len(task.image_shape)


def _odd_one(task: Task, _: torch.Generator) -> Tensor:
    images = torch.zeros(task.shape, dtype=torch.uint8)
    for image in images:
        image[odd_pixel(task)] = 1
    return images


def _circle(task: Task, _: torch.Generator) -> Tensor:
    return (_ellipsoid(task.image_shape, [0.5, 0.5], [0.4, 0.4]) < 1).to(torch.uint8).expand(task.shape).contiguous()


def _random(task: Task, g: torch.Generator) -> Tensor:
    return torch.randint(task.num_classes, task.shape, generator=g, dtype=torch.uint8)


def _sparse(task: Task, g: torch.Generator) -> Tensor:
    return (torch.rand(task.shape, generator=g) < 1e-4).to(torch.uint8)


_PATTERNS: dict[str, Callable[[Task, torch.Generator], Tensor]] = {
    "hearts": _hearts,
    "blobs": _blobs,
    "organs": _organs,
    "parcels": _parcels,
    "single": _single,
    "checkerboard": _checkerboard,
    "centre": _odd_one,
    "corner": _odd_one,
    "circle": _circle,
    "random": _random,
    "sparse": _sparse,
}


@lru_cache(maxsize=16)
def labels(task: Task) -> Tensor:
    """The labels of a task, uint8 [B, *S]."""
    return _PATTERNS[task.pattern](task, torch.Generator().manual_seed(2022))


def labels_plus_one(task: Task) -> npt.NDArray[Any]:
    """The labels for the `edt` package, which takes 0 for background; in a type that holds 256 where that is needed."""
    found = labels(task).numpy()
    wide = found.astype(np.uint16) if task.num_classes > 255 else found
    plus_one: npt.NDArray[Any] = wide + 1
    return plus_one


@lru_cache(maxsize=1)
def logits(task: Task, dtype: torch.dtype = torch.float32, layout: str = CONTIGUOUS, device: str = "cpu") -> Tensor:
    """[B, K, *S], with a gradient wanted."""
    shape = (task.shape[0], task.num_classes, *task.image_shape)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(7)).mul_(2)
    return laid_out(values.to(device=device, dtype=dtype), layout).requires_grad_()


def laid_out(values: Tensor, layout: str) -> Tensor:
    """[B, K, *S] contiguous, or with the classes last in memory."""
    if layout == CONTIGUOUS:
        return values.contiguous()
    last = torch.channels_last if values.dim() == 4 else torch.channels_last_3d
    return values.contiguous(memory_format=last)


def _sized(scale: str, full: tuple[int, ...], quick: tuple[int, ...], tiny: tuple[int, ...]) -> tuple[int, ...]:
    return {"full": full, "quick": quick, "tiny": tiny}[scale]


@cache
def map_tasks(scale: str) -> tuple[Task, ...]:
    """T1 to T5."""
    volume = _sized(scale, (2, 128, 128, 128), (2, 48, 48, 48), (2, 16, 16, 16))
    return (
        Task("T1", "hearts", _sized(scale, (16, 256, 256), (2, 256, 256), (2, 64, 64)), 4),
        Task("T2", "blobs", volume, 4),
        Task("T3", "organs", _sized(scale, (1, 128, 512, 512), (1, 48, 128, 128), (1, 16, 24, 24)), 3),
        Task("T4", "parcels", _sized(scale, (1, 128, 128, 128), (1, 40, 40, 40), (1, 24, 24, 24)), 118),
        Task("T5", "blobs", volume, 4, (3.0, 1.0, 1.0)),
    )


@cache
def small_tasks() -> tuple[Task, ...]:
    """Batches whose time is that of the call, at every scale: of a test, and of the demo."""
    return (Task("", "blobs", (1, 32, 32), 3), Task("", "hearts", (2, 192, 144), 4))


@cache
def loop_tasks(scale: str) -> tuple[Task, ...]:
    """What stands in the middle of a training loop."""
    volume = _sized(scale, (2, 128, 128, 128), (1, 64, 64, 64), (2, 12, 12, 12))
    batch = _sized(scale, (16, 256, 256), (4, 256, 256), (2, 48, 48))
    return (Task("", "hearts", batch, 4), Task("", "hearts", (2, 192, 144), 4), Task("", "blobs", volume, 4))


@cache
def adversarial_tasks(scale: str) -> tuple[Task, ...]:
    """Label images that punish a shortcut, and large flat ones."""
    cube = _sized(scale, (1, 256, 256, 256), (), ())
    flat = _sized(scale, (1, 2048, 2048), (1, 1024, 1024), (1, 32, 32))
    disc = _sized(scale, (1, 1024, 1024), (1, 1024, 1024), (1, 32, 32))
    found = []
    for shape in (flat, cube) if cube else (flat,):
        for pattern in PUNISHING if scale != "quick" else ("single", "centre", "random"):
            found.append(Task(pattern, pattern, shape, 4 if pattern == "random" else 2))
    found.append(Task("circle", "circle", disc, 2))
    found.append(Task("blobs", "blobs", flat, 4))
    return tuple(found)


@cache
def loss_tasks(scale: str) -> tuple[Task, ...]:
    """The large float32 inputs of the loss."""
    volume = _sized(scale, (2, 128, 128, 128), (1, 64, 64, 64), (2, 12, 12, 12))
    many = Task("", "parcels", _sized(scale, (1, 96, 96, 96), (1, 32, 32, 32), (1, 16, 16, 16)), 118)
    return (
        Task("", "hearts", _sized(scale, (16, 256, 256), (4, 256, 256), (2, 48, 48)), 4),
        Task("", "blobs", volume, 4),
        *(() if scale == "tiny" else (many,)),
    )


@cache
def loss_grid(scale: str) -> tuple[Task, ...]:
    """2D and 3D, few classes and many: the inputs of the grid over types and layouts."""
    flat = {2: (4, 256, 256), 4: (4, 256, 256), 19: (2, 192, 192), 118: (1, 128, 128)}
    deep = {2: (1, 96, 96, 96), 4: (1, 64, 64, 64), 19: (1, 48, 48, 48), 118: (1, 24, 24, 24)}
    if scale == "tiny":
        return (Task("", "random", (2, 12, 12), 2), Task("", "random", (1, 8, 8, 8), 19))
    if scale == "quick":
        return (Task("", "random", (2, 192, 192), 4), Task("", "random", (1, 48, 48, 48), 19))
    return tuple(Task("", "random", shape, k) for shapes in (flat, deep) for k, shape in shapes.items())


@cache
def size_tasks(scale: str, axes: int, pattern: str = "blobs") -> tuple[Task, ...]:
    """One image, side doubled again and again."""
    few = {2: (256, 512, 1024), 3: (40, 64)}
    sizes: dict[str, dict[int, tuple[int, ...]]] = {
        "full": {2: (64, 128, 256, 512, 1024, 2048, 4096), 3: (32, 64, 128, 256)},
        "quick": few,
        "tiny": {2: (16, 32), 3: (8, 16)},
    }
    sides = sizes[scale][axes]
    k = 4 if pattern in ("blobs", "random") else 2
    return tuple(Task("", pattern, (1, *[side] * axes), k) for side in sides)


@cache
def class_tasks(scale: str) -> tuple[Task, ...]:
    """One volume cut into more and more classes."""
    choices: dict[str, tuple[int, tuple[int, ...]]] = {
        "full": (64, (2, 4, 8, 16, 32, 64, 128, 256)),
        "quick": (32, (2, 16, 128)),
        "tiny": (12, (2, 4)),
    }
    side, counts = choices[scale]
    return tuple(Task("", "parcels", (1, side, side, side), k) for k in counts)


@cache
def batch_tasks(scale: str) -> tuple[Task, ...]:
    """More and more slices of 256^2."""
    choices: dict[str, tuple[int, tuple[int, ...]]] = {
        "full": (256, (1, 2, 4, 8, 16, 32)),
        "quick": (256, (1, 8)),
        "tiny": (16, (1, 2)),
    }
    side, counts = choices[scale]
    return tuple(Task("", "hearts", (count, side, side), 4) for count in counts)
