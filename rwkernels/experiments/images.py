"""Slices for training and validation, and the cases that they come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from rwkernels import checks


@dataclass(frozen=True)
class Part:
    """Slices in order: those of a case follow each other.

    Attributes:
        images: `[N, C, H, W]` float32.
        labels: `[N, H, W]` int64.
        cases: Name of the case of each slice. A case is what is scored: a volume if it has several slices.
        spacing: Of each slice: to the next one, of rows, of columns, in mm.
    """

    images: Tensor
    labels: Tensor
    cases: tuple[str, ...]
    spacing: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.images.dim() != 4 or (count, *self.labels.shape[1:]) != (len(self.images), *self.images.shape[2:]):
            raise ValueError(
                f"labels: expected [N, H, W] of images [N, C, H, W], got {checks.describe(self.labels)} beside "
                f"{checks.describe(self.images)}"
            )
        if not count == len(self.cases) == len(self.spacing):
            raise ValueError(f"cases: expected one for each of {count} slices, got {len(self.cases)}")
        runs = [name for name, _ in groupby(self.cases)]
        if len(runs) != len(set(runs)):
            raise ValueError("cases: expected the slices of a case to follow each other")

    def groups(self) -> list[tuple[str, slice]]:
        """Each case with its slices, in order."""
        found, start = [], 0
        for name, members in groupby(self.cases):
            stop = start + len(list(members))
            found.append((name, slice(start, stop)))
            start = stop
        return found


@dataclass(frozen=True)
class Images:
    """A data set: two parts that share no case, the names of its classes (the background first), and what it is.

    Attributes:
        title: A few words for headings.
        description: Where the images and labels come from and how many subjects they show, for readers of a report.
    """

    train: Part
    validation: Part
    classes: tuple[str, ...]
    title: str
    description: str

    def __post_init__(self) -> None:
        both = sorted(set(self.train.cases) & set(self.validation.cases))
        if both:
            raise ValueError(f"validation: expected other cases than for training, got {both[0]!r} in both")
        for name, part in (("train", self.train), ("validation", self.validation)):
            if len(part.labels) == 0:
                raise ValueError(f"{name}: expected at least one slice, got none")
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"{name}: expected labels in [0, {len(self.classes)}), got {low} to {high}")

    @property
    def num_classes(self) -> int:
        """K, the background included."""
        return len(self.classes)

    def digest(self) -> str:
        """Hash of all pixels and labels: results of different images are not to be mixed."""
        found = hashlib.sha256()
        for part in (self.train, self.validation):
            found.update(part.images.contiguous().numpy().tobytes())
            found.update(part.labels.to(torch.int16).contiguous().numpy().tobytes())
            found.update(repr((part.cases, part.spacing)).encode())
        return found.hexdigest()[:16]
