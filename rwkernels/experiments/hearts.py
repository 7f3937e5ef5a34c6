"""Generated short-axis stacks of hearts: no patient, but a problem of the kind of ACDC17 that anybody can rebuild.

Each subject has an anatomy of its own (sizes, wall thickness, shapes of low order, position), an anisotropic grid of
its own, and slices that are shifted against each other as by breathing. What makes it hard is generated as well: blood
and fat share intensities, so do myocardium, liver and muscle; papillary muscles are dark inside the bright cavity that
they are labelled as (as in ACDC); the coil's bias field, blur and Rician noise come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rwkernels.extras import needs

with needs("experiments", "scipy", "rwkernels.experiments"):
    from scipy.ndimage import gaussian_filter

CLASSES = ("background", "RV", "MYO", "LV")
RV, MYO, LV = 1, 2, 3

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heart:
    """A subject: `image` [D, H, W] float32, `labels` [D, H, W] uint8, `spacing` of slices, rows and columns in mm."""

    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]


def heart(seed: int, index: int, *, slices: int = 6, size: int = 64) -> Heart:
    """The subject number `index` of the set `seed`; the same numbers give the same subject.

    Examples:
        >>> subject = heart(seed=0, index=3, slices=4, size=48)
        >>> subject.image.shape, sorted(set(subject.labels.flatten().tolist()))
        ((4, 48, 48), [0, 1, 2, 3])
    """
    random = np.random.default_rng([seed, index])
    pixel = random.uniform(1.9, 2.5) * 64 / size
    spacing = (float(random.uniform(8.0, 11.0)), float(pixel), float(pixel))
    labels = np.zeros((slices, size, size), np.uint8)
    signal = np.zeros((slices, size, size))
    anatomy = _Anatomy(random)
    tissue = _tissue(random, slices, size, spacing)
    for z in range(slices):
        depth = (z + random.uniform(0.2, 0.6)) / slices  # 0 at the base, 1 at the apex
        labels[z], papillary = anatomy.cut(random, depth, size, pixel)
        signal[z] = np.where(labels[z] == 0, tissue[z], anatomy.intensities[labels[z]])
        signal[z][papillary] = anatomy.intensities[MYO]
    signal = gaussian_filter(signal, (0.0, 0.7, 0.7))
    signal *= np.exp(random.uniform(0.15, 0.35) * _smooth(random, (slices, size, size), (2.0, size / 3, size / 3)))
    sigma = random.uniform(0.06, 0.11)
    noise = random.normal(0.0, sigma, (2, slices, size, size))
    image = np.hypot(signal + noise[0], noise[1])  # Rician, as the magnitude of a complex signal
    image = (image - image.mean()) / image.std()
    return Heart(image.astype(np.float32), labels, spacing)


class _Anatomy:
    """Sizes in mm and shapes of one heart."""

    def __init__(self, random: np.random.Generator) -> None:
        self.cavity = random.uniform(15.0, 25.0)
        self.wall = random.uniform(6.5, 12.0)
        self.squeeze = random.uniform(0.88, 1.12)
        self.reach = random.uniform(0.75, 1.15)  # how far the right ventricle goes, in radii of the left
        self.rv_angle = np.pi + random.uniform(-0.5, 0.5)
        self.centre = random.uniform(-9.0, 9.0, 2)
        self.ripple = random.normal(0.0, [0.05, 0.035, 0.02], (3, 3)), random.uniform(0, 2 * np.pi, (3, 3))
        blood = random.uniform(0.85, 1.05)
        self.intensities = np.array([0.0, blood * random.uniform(0.85, 1.0), random.uniform(0.38, 0.55), blood])
        self.papillary = random.uniform(0, 2 * np.pi, 2)

    def cut(
        self, random: np.random.Generator, depth: float, size: int, pixel: float
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Labels of the slice at `depth`, and where its papillary muscles are."""
        shift = self.centre + random.normal(0.0, 1.5, 2)  # slices were taken in different breath holds
        grid = (np.arange(size) - (size - 1) / 2) * pixel
        y, x = np.meshgrid(grid - shift[0], grid - shift[1], indexing="ij")
        radius, angle = np.hypot(y * self.squeeze, x / self.squeeze), np.arctan2(y, x)
        taper = np.sqrt(max(1.0 - depth**2 * 0.9, 0.05))
        inner = self.cavity * taper * self._wave(angle, 0)
        outer = inner + self.wall * (0.75 + 0.25 * taper) * self._wave(angle, 1)
        lv, epicardium = radius < inner, radius < outer

        # The right ventricle is what a second ellipse, shifted to its side, has outside the left one's wall.
        away = self.cavity * (0.9 + 0.25 * taper)
        side_y, side_x = y - away * np.sin(self.rv_angle), x - away * np.cos(self.rv_angle)
        side = np.hypot(side_y * 0.85, side_x * 1.1)
        extent = self.cavity * self.reach * max(1.15 - 0.75 * depth, 0.0) * self._wave(np.arctan2(side_y, side_x), 2)
        labels = np.zeros((size, size), np.uint8)
        labels[(side < extent) & ~epicardium] = RV
        labels[epicardium] = MYO
        labels[lv] = LV

        papillary = np.zeros((size, size), bool)
        if 0.25 < depth < 0.75:
            for place in self.papillary:
                spot = 0.62 * self.cavity * taper
                papillary |= np.hypot(y - spot * np.sin(place), x - spot * np.cos(place)) < 2.6
        return labels, papillary & lv

    def _wave(self, angle: Floats, which: int) -> Floats:
        heights, phases = self.ripple[0][which], self.ripple[1][which]
        wave = np.ones_like(angle)
        for order, (height, phase) in enumerate(zip(heights, phases, strict=True), start=2):
            wave += height * np.cos(order * angle + phase)
        return wave


def _tissue(random: np.random.Generator, slices: int, size: int, spacing: tuple[float, float, float]) -> Floats:
    """What lies around the heart: lung, tissue as bright as myocardium, fat and vessels as bright as blood."""
    shape = (slices, size, size)
    grain = (8.0 / spacing[0], 9.0 / spacing[1], 9.0 / spacing[2])
    field = _smooth(random, shape, grain)
    tissue = np.full(shape, 0.12)
    tissue[field > 0.1] = random.uniform(0.4, 0.6)
    tissue[field > 1.1] = random.uniform(0.8, 1.05)
    fine = _smooth(random, shape, (0.5, 1.2, 1.2))
    return tissue + 0.05 * fine


def _smooth(random: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, float, float]) -> Floats:
    """Smooth noise of mean 0 and deviation 1."""
    field: Floats = gaussian_filter(random.normal(size=shape), sigma, mode="reflect")
    field -= field.mean()
    field /= max(float(field.std()), 1e-12)
    return field
