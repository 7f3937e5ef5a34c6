"""Axial slices of the MNI152 template with labels derived from its tissue maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from torch import Tensor

from rwkernels.experiments.images import Images, Part

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


def load(*, step: int = 2) -> Images:
    """Two blocks of axial slices of the template that nilearn ships.

    Args:
        step: Take every `step`-th pixel. Intensities are standardised with all pixels of the training block.
    """
    template = load_mni152_template(resolution=1)
    image = _uint8(template)
    labels = tissue_labels(_uint8(load_mni152_gm_template(resolution=1)), _uint8(load_mni152_wm_template(resolution=1)))
    origin = round(float(template.affine[2, 3]))

    def cut(volume: npt.NDArray[Any], z_mm: tuple[int, ...]) -> npt.NDArray[Any]:
        # [x, y, z] with y growing forwards -> [z, row, column] with the forehead in row 0.
        index = [z - origin for z in z_mm]
        return np.ascontiguousarray(volume[_CROP_X, _CROP_Y][:, ::-1, index].transpose(2, 1, 0))

    def pixels(z_mm: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(cut(image, z_mm).astype(np.float32) / 255.0)[:, None]

    mean, deviation = pixels(TRAIN_Z_MM).mean(), pixels(TRAIN_Z_MM).std()

    def part(z_mm: tuple[int, ...]) -> Part:
        return Part(
            ((pixels(z_mm) - mean) / deviation)[:, :, ::step, ::step].contiguous(),
            torch.from_numpy(cut(labels, z_mm))[:, ::step, ::step].contiguous(),
            tuple(f"z={z:+d}mm" for z in z_mm),
            ((2.0, PIXEL_MM * step, PIXEL_MM * step),) * len(z_mm),
        )

    return Images(
        part(TRAIN_Z_MM),
        part(VALIDATION_Z_MM),
        CLASS_NAMES,
        "MNI152 template",
        "The MNI152 (ICBM 2009a) T1 template at 1 mm that nilearn ships: the average of 152 adults' scans, so one "
        "image and no person's. Labels are derived from its tissue maps (grey or white matter where its map is above "
        f"127 of 255), not drawn. Axial slices with pixels of {PIXEL_MM * step:g} mm; z = {TRAIN_Z_MM[0]:+d} to "
        f"{TRAIN_Z_MM[-1]:+d} mm train, {VALIDATION_Z_MM[0]:+d} to {VALIDATION_Z_MM[-1]:+d} mm validate. Each slice is "
        "a case.",
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
