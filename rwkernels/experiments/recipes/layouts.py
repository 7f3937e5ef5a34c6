"""The two layouts that a data set is written in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels.experiments import slices
from rwkernels.experiments.recipes.cases import Case, Recipe, Volume


class Writer:
    """Writes cases into a folder, and what lists them in the end."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.train: list[str] = []
        self.validation: list[str] = []

    def add(self, case: Case, volume: Volume) -> None:
        """Writes a case."""
        self.write(case, volume)
        (self.train if case.part == "train" else self.validation).append(case.name)

    def write(self, case: Case, volume: Volume) -> None:
        """Writes the files of a case."""
        raise NotImplementedError

    def finish(self) -> None:
        """Writes the listing."""
        raise NotImplementedError


def folder(recipe: Recipe, target: Path, layout: str) -> Path:
    """The folder that is made."""
    if layout != "nnunet" or re.fullmatch(r"Dataset\d{3}_\w+", target.name):
        return target
    return target / f"Dataset{recipe.number}_{recipe.title}"


class NnUNet(Writer):
    """nnU-Net v2's raw layout: training cases in `Tr`, validating ones in `Ts`, as the published code has them.

    nnU-Net normalises while it preprocesses. Train with fold `all`, so that it makes no split of its own.
    """

    def write(self, case: Case, volume: Volume) -> None:
        """Writes a case; files that need no change are copied."""
        end = "Tr" if case.part == "train" else "Ts"
        images, labels = self.folder / f"images{end}", self.folder / f"labels{end}"
        images.mkdir(exist_ok=True)
        labels.mkdir(exist_ok=True)
        for channel, (path, image) in enumerate(zip(case.images, volume.images, strict=True)):
            goal = images / f"{case.name}_{channel:04d}.nii.gz"
            if volume.copied:
                shutil.copyfile(path, goal)
            else:
                _save(goal, image.astype(np.float32, copy=False), volume)
        goal = labels / f"{case.name}.nii.gz"
        if volume.label_copied:
            shutil.copyfile(case.label, goal)
        else:
            _save(goal, volume.label, volume)

    def finish(self) -> None:
        """Writes dataset.json."""
        told = {
            "name": self.recipe.title,
            "description": self.recipe.description,
            "channel_names": {str(index): name for index, name in enumerate(self.recipe.channels)},
            "labels": {name: number for number, name in enumerate(self.recipe.classes)},
            "numTraining": len(self.train),
            "file_ending": ".nii.gz",
        }
        _write_json(self.folder / "dataset.json", told)


class Slices(Writer):
    """Plain 2D slices (`rwkernels.experiments.slices`), z-scored by volume and channel."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        super().__init__(recipe, folder)
        self.listed: dict[str, list[dict[str, Any]]] = {part: [] for part in slices.PARTS}

    def write(self, case: Case, volume: Volume) -> None:
        """Writes the slices of a case."""
        images = np.stack([self._scored(image).transpose(self.recipe.axes) for image in volume.images])
        labels = volume.label.transpose(self.recipe.axes)
        steps = [volume.spacing[axis] for axis in self.recipe.axes]
        inside = [np.any([image.take(z, self.recipe.axes[0]) for image in volume.images]) for z in range(len(labels))]
        for z, label in enumerate(labels):
            if self.recipe.brain_only and not inside[z]:
                continue
            name = f"{case.part}/{case.name}_z{z:03d}.npz"
            slices.write_slice(
                self.folder / name, np.ascontiguousarray(images[:, z]), label, (steps[0], steps[1], steps[2])
            )
            self.listed[case.part].append({"case": case.name, "file": name})

    def finish(self) -> None:
        """Writes the listing."""
        told = {
            "format": slices.FORMAT,
            "name": self.recipe.title,
            "description": f"{self.recipe.description} Intensities are z-scored by volume and channel"
            f"{' over voxels that are not 0' if self.recipe.brain_only else ''}.",
            "classes": self.recipe.classes,
            "channels": self.recipe.channels,
            **self.listed,
        }
        _write_json(self.folder / slices.LISTING, told)

    def _scored(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        pixels: npt.NDArray[np.float32] = image.astype(np.float32)
        counted = pixels[pixels != 0] if self.recipe.brain_only else pixels
        if not counted.size:
            return pixels
        deviation = float(counted.std(dtype=np.float64))
        scored: npt.NDArray[np.float32] = pixels - np.float32(counted.mean(dtype=np.float64))
        scored /= np.float32(deviation or 1.0)
        if self.recipe.brain_only:
            scored[pixels == 0] = 0.0
        return scored


LAYOUTS: dict[str, type[Writer]] = {"nnunet": NnUNet, "slices": Slices}


def _save(path: Path, array: npt.NDArray[Any], volume: Volume) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array, volume.affine), path)


def _write_json(path: Path, told: Any) -> None:
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
