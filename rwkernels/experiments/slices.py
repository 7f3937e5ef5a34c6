"""Plain 2D slices on disk: one `.npz` without pickles each, and a `dataset.json` that lists them.

| file | what |
|---|---|
| `dataset.json` | name, description, classes, channels, the files of both parts in order |
| `train/CASE_z012.npz` | image `[C, H, W]` float32, label `[H, W]` uint8, spacing `[3]` (slices, rows, columns) |
| `validation/...` | the same |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkernels.experiments.images import Images, Part

LISTING = "dataset.json"
FORMAT = "rwkernels slices 1"
PARTS = ("train", "validation")


def write_slice(
    path: Path, image: npt.NDArray[np.float32], label: npt.NDArray[np.uint8], spacing: tuple[float, float, float]
) -> None:
    """Writes one slice: image `[C, H, W]`, label `[H, W]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, image=image, label=label, spacing=np.array(spacing, np.float64))


def load(folder: Path, *, size: list[int] | None = None) -> Images:
    """Reads a folder of slices.

    Args:
        folder: What `rwkernels experiment prepare ... --format slices` wrote.
        size: Rows and columns; slices are cropped or padded around their centre. Needed where they differ in size.

    Raises:
        ValueError: The folder, its listing or a slice is not what it should be; the message names the file.
    """
    listing = folder / LISTING
    try:
        told: dict[str, Any] = json.loads(listing.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{listing}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{listing}: expected JSON, got something else in line {error.lineno}") from None
    if told.get("format") != FORMAT:
        raise ValueError(f"{listing}: expected the format {FORMAT!r}, got {told.get('format')!r}")
    train, validation = (_part(folder, told[name], size) for name in PARTS)
    return Images(train, validation, tuple(told["classes"]), told["name"], told["description"])


def _part(folder: Path, entries: list[dict[str, Any]], size: list[int] | None) -> Part:
    images: list[npt.NDArray[Any]] = []
    labels: list[npt.NDArray[Any]] = []
    spacing: list[tuple[float, float, float]] = []
    for entry in entries:
        path = folder / entry["file"]
        try:
            with np.load(path, allow_pickle=False) as file:
                image, label, steps = file["image"], file["label"], file["spacing"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: expected a slice with image, label and spacing, got {error}") from None
        if size is not None:
            image, label = _fitted(image, size, float(image.min())), _fitted(label, size, 0)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{path}: expected {images[0].shape} as in {entries[0]['file']}, got {image.shape}; the option "
                '"size": [rows, columns] crops and pads'
            )
        images.append(image)
        labels.append(label)
        spacing.append((float(steps[0]), float(steps[1]), float(steps[2])))
    return Part(
        torch.from_numpy(np.stack(images).astype(np.float32, copy=False)),
        torch.from_numpy(np.stack(labels)).long(),
        tuple(entry["case"] for entry in entries),
        tuple(spacing),
    )


def _fitted(array: npt.NDArray[Any], size: list[int], fill: float) -> npt.NDArray[Any]:
    """Cropped or padded around its centre, along the last two axes."""
    for axis, wanted in zip((array.ndim - 2, array.ndim - 1), size, strict=True):
        extra = wanted - array.shape[axis]
        if extra < 0:
            start = -extra // 2
            array = np.take(array, range(start, start + wanted), axis)
        elif extra > 0:
            pads = [(0, 0)] * array.ndim
            pads[axis] = (extra // 2, extra - extra // 2)
            array = np.pad(array, pads, constant_values=fill)
    return array
