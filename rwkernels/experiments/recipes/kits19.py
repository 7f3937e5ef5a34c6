"""KiTS19: CT of kidney tumours, cases 0 to 209 (those with labels).

    SRC[/data]/case_00000/imaging.nii.gz       slices are the first axis
    SRC[/data]/case_00000/segmentation.nii.gz  0, 1 kidney, 2 tumour

Even cases train and odd ones validate. As in the code published with the paper, only slices with a label are kept (also
of the cases that validate, which no prediction could do), each resized to 256 x 256, and slices become the last axis.

What differs from that code, with the reason:

* Labels are resized by the nearest neighbour. That code resizes them bicubically like images, which makes labels that
  nobody drew, such as a rim of kidney between tumour and background.
* The affine follows the resizing and the first kept slice; there, it stays that of the whole image of 512 x 512, so
  that distances in mm are half of what they are.
* In nnU-Net's layout the channel is called `zscore`, which asks for the z-score of the paper's text; the modality `CT`
  of that code asks for nnU-Net's normalisation of CT.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from rwkernels.experiments.recipes.cases import Array, Case, CaseError, Recipe, Volume, changed, first_folder, part_of

CASES = range(210)
SIZE = 256


def find(source: Path) -> Iterator[Case | str]:
    """The cases by number."""
    root = first_folder(source, ("data",), "case_[0-9]*")
    for number in CASES:
        folder = root / f"case_{number:05d}"
        if folder.is_dir():
            yield Case(folder.name, part_of(number), (folder / "imaging.nii.gz",), folder / "segmentation.nii.gz")
        else:
            yield f"{folder.name}: no such folder in {root}"


def resized(volume: Volume) -> Volume:
    """Slices with a label, 256 x 256, the slices last."""
    kept = np.flatnonzero(volume.label.any(axis=(1, 2)))
    if not len(kept):
        raise CaseError("segmentation.nii.gz: expected at least one labelled voxel, got none")
    (image,) = volume.images
    images = _interpolated(image[kept].astype(np.float32), "bicubic")
    labels = _interpolated(volume.label[kept].astype(np.float32), "nearest-exact").astype(np.uint8)
    # A new voxel (row, column, slice) in the old ones: centres of voxels are at whole numbers.
    ratios = [size / SIZE for size in volume.label.shape[1:]]
    place = np.zeros((4, 4))
    place[0, 2], place[0, 3] = 1, kept[0]
    place[1, 0], place[1, 3] = ratios[0], (ratios[0] - 1) / 2
    place[2, 1], place[2, 3] = ratios[1], (ratios[1] - 1) / 2
    place[3, 3] = 1
    return changed(volume, (np.moveaxis(images, 0, -1),), np.moveaxis(labels, 0, -1), volume.affine @ place)


def _interpolated(slices: Array, mode: str) -> Array:
    # With antialias, PyTorch's bicubic is Pillow's, which the published code resizes with.
    smooth = {"antialias": True, "align_corners": False} if mode == "bicubic" else {}
    found: Array = interpolate(torch.from_numpy(slices)[:, None], (SIZE, SIZE), mode=mode, **smooth)[:, 0].numpy()
    return found


RECIPE = Recipe(
    name="kits19",
    title="KiTS19",
    number=103,
    channels=("zscore",),
    classes=("background", "kidney", "tumour"),
    description=(
        "KiTS19, cases 0 to 209: even ones train, odd ones validate; slices with a label, resized to 256 x 256, labels "
        "by the nearest neighbour."
    ),
    find=find,
    axes=(2, 0, 1),
    change=resized,
)
