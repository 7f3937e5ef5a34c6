"""The example CT in TotalSegmentator's source distribution, with the organ labels that lie beside it."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkernels.experiments.images import Images, Part

WHENCE = (
    "the file or its unpacked folder that `pip download --no-deps --no-binary :all: totalsegmentator==2.18.0` brings "
    "(38 MB)"
)
_FOLDER = "tests/reference_files"
_IMAGE, _LABELS = "example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"

# TotalSegmentator's numbers (its task "total", version 2), joined where the model tells sides or vertebrae apart.
ORGANS: dict[str, tuple[int, ...]] = {
    "liver": (5,),
    "spleen": (1,),
    "kidneys": (2, 3),
    "spine": tuple(range(25, 51)),  # sacrum and vertebrae
}

# Hounsfield units, the usual window of the abdomen: without it a z-score sees air and little else.
WINDOW = (-160.0, 240.0)


def load(path: Path, *, first: int = 60, block: int = 8, gap: int = 2, step: int = 1, multiple: int = 16) -> Images:
    """Axial slices, in blocks that alternately train and validate.

    Args:
        path: The source distribution (`.tar.gz`) or the folder that it unpacks to.
        first: Slices below are left out; 60 is where the liver, the spleen and the kidneys begin.
        block: Slices of a block, 3 mm each.
        gap: Slices that are left out at both ends of a block that validates.
        step: Take every `step`-th slice of the blocks that train.
        multiple: Rows and columns are padded with the smallest intensity to a multiple of this.
    """
    image, labels, spacing = _volume(path, _IMAGE), _volume(path, _LABELS), _spacing(path)
    if image.shape != labels.shape:
        raise ValueError(f"{path}: expected an image and labels of one shape, got {image.shape} and {labels.shape}")
    classes = np.zeros(labels.shape, np.int64)
    for number, members in enumerate(ORGANS.values(), start=1):
        classes[np.isin(labels, members)] = number
    pixels = np.clip(image.astype(np.float32), *WINDOW)

    train: list[int] = []
    validation: list[int] = []
    for number, start in enumerate(range(first, image.shape[2], block)):
        stop = min(start + block, image.shape[2])
        if number % 2 == 0:
            train += range(start, stop, step)
        else:
            validation += range(start + gap, stop - gap)
    # Slices without any of the organs have no score.
    validation = [z for z in validation if classes[:, :, z].any()]
    mean, deviation = pixels[:, :, train].mean(), pixels[:, :, train].std()
    pixels = (pixels - mean) / deviation

    def part(index: list[int]) -> Part:
        return Part(
            torch.from_numpy(_upright(pixels[:, :, index], multiple, float(pixels.min())))[:, None],
            torch.from_numpy(_upright(classes[:, :, index], multiple, 0)),
            tuple(f"z={z}" for z in index),
            ((spacing[2], spacing[1], spacing[0]),) * len(index),
        )

    return Images(
        part(train),
        part(validation),
        ("background", *ORGANS),
        "one CT (TotalSegmentator)",
        f"One subject: `{_FOLDER}/{_IMAGE}` of the source distribution of TotalSegmentator 2.18.0 (Apache-2.0), "
        f"{image.shape[2]} axial slices of 3 mm with pixels of 3 mm. Labels are those of `{_LABELS}` beside it: a "
        "model made them (TotalSegmentator's own fast one), nobody drew them; sides and vertebrae are joined. Slices "
        f"{first} and up, in blocks of {block} that alternately train ({len(train)} slices) and validate "
        f"({len(validation)}), {gap} slices left out at both ends of each that validates. Intensities are clipped at "
        f"{WINDOW[0]:g} and {WINDOW[1]:g} HU and z-scored with the training slices. Each slice is a case.",
    )


def _bytes(path: Path, name: str) -> bytes:
    if path.is_dir():
        found = [each for each in (path / name, path / _FOLDER / name) if each.is_file()]
        found += sorted(path.glob(f"*/{_FOLDER}/{name}"))
        if not found:
            raise FileNotFoundError(f"{path}: expected {_FOLDER}/{name} in it. Wanted is {WHENCE}")
        return found[0].read_bytes()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder. Wanted is {WHENCE}")
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(f"/{_FOLDER}/{name}"):
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                return file.read()
    raise FileNotFoundError(f"{path}: expected {_FOLDER}/{name} in it. Wanted is {WHENCE}")


def _nifti(path: Path, name: str) -> Any:
    import nibabel

    return nibabel.Nifti1Image.from_bytes(gzip.decompress(_bytes(path, name)))


def _volume(path: Path, name: str) -> npt.NDArray[Any]:
    return np.asanyarray(_nifti(path, name).dataobj)


def _spacing(path: Path) -> tuple[float, ...]:
    return tuple(float(step) for step in _nifti(path, _IMAGE).header.get_zooms())


def _upright(volume: npt.NDArray[Any], multiple: int, fill: float) -> npt.NDArray[Any]:
    """[x, y, z] to [z, row, column], padded at the far ends."""
    turned = volume.transpose(2, 1, 0)[:, ::-1]
    pads = [(0, 0)] + [(0, -size % multiple) for size in turned.shape[1:]]
    return np.ascontiguousarray(np.pad(turned, pads, constant_values=fill))
