"""Axial slices of the MNI152 template with labels derived from its tissue maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from torch import Tensor

DESCRIPTION = (
    "MNI152 (ICBM 2009a) T1 at 1 mm, shipped with nilearn: a population template, the average of 152\n"
    "adults' scans. Labels are derived from its tissue maps (grey > 127, white > 127 of 255, rest),\n"
    "not drawn by hand."
)

CLASS_NAMES = ("rest", "grey", "white")
PIXEL_MM = 1.0

# Neighbouring slices are nearly the same picture: slices drawn at random would put a near-copy of every
# validation slice into training. So each part is one block of the brain, 12 mm apart.
TRAIN_Z_MM = tuple(range(-10, 30, 2))
VALIDATION_Z_MM = tuple(range(40, 58, 2))

# Holds every labelled voxel of these slices; both sides divide by 16, as four poolings want.
_CROP_X = slice(26, 170)
_CROP_Y = slice(22, 214)


@dataclass(frozen=True)
class Block:
    """A stack of slices: `images` [N, 1, H, W] float32, `labels` [N, H, W] int64, height `z_mm` of each."""

    images: Tensor
    labels: Tensor
    z_mm: tuple[int, ...]

    def to(self, device: torch.device) -> Block:
        """Return the block on `device`."""
        return Block(self.images.to(device), self.labels.to(device), self.z_mm)


@dataclass(frozen=True)
class Slices:
    """Training and validation block."""

    train: Block
    validation: Block

    def to(self, device: torch.device) -> Slices:
        """Return both blocks on `device`."""
        return Slices(self.train.to(device), self.validation.to(device))


def load_slices() -> Slices:
    """Read the template that nilearn ships and cut the two blocks out of it.

    Intensities are standardised with mean and deviation of the training block.
    """
    template = load_mni152_template(resolution=1)
    image = _uint8(template)
    labels = tissue_labels(_uint8(load_mni152_gm_template(resolution=1)), _uint8(load_mni152_wm_template(resolution=1)))
    origin = round(float(template.affine[2, 3]))
    train = _cut(image, labels, TRAIN_Z_MM, origin)
    validation = _cut(image, labels, VALIDATION_Z_MM, origin)
    mean, deviation = train.images.mean(), train.images.std()
    return Slices(
        Block((train.images - mean) / deviation, train.labels, train.z_mm),
        Block((validation.images - mean) / deviation, validation.labels, validation.z_mm),
    )


def tissue_labels(grey: npt.NDArray[np.uint8], white: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return 1 where `grey` > 127, 2 where `white` > 127, 0 elsewhere.

    The two maps of one voxel add up to at most 255, so no voxel is both.
    """
    labels = np.zeros(grey.shape, np.int64)
    labels[grey > 127] = 1
    labels[white > 127] = 2
    return labels


def _uint8(nifti: Any) -> npt.NDArray[np.uint8]:
    # The files hold 0..255; nilearn's loaders divide by the maximum. Undone here, so that "> 127" is exact.
    scaled: npt.NDArray[np.uint8] = np.rint(np.asarray(nifti.dataobj) * 255.0).astype(np.uint8)
    return scaled


def _cut(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], z_mm: tuple[int, ...], origin: int) -> Block:
    index = [z - origin for z in z_mm]

    def upright(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # [x, y, z] with y growing forwards -> [z, row, column] with the forehead in row 0.
        return np.ascontiguousarray(volume[_CROP_X, _CROP_Y][:, ::-1, index].transpose(2, 1, 0))

    pixels = torch.from_numpy(upright(image).astype(np.float32) / 255.0)
    return Block(pixels[:, None], torch.from_numpy(upright(labels)), z_mm)
