"""`LargeMap`: a rectified map that no memory holds, and how patches of it are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rwkernels import checks
from rwkernels.maps.compact import RectifiedMap
from rwkernels.scale.blocks import as_class_tensor


@dataclass(frozen=True, eq=False)
class LargeMap:
    """A rectified map over arrays that are read in parts: dask or Zarr arrays, all of one shape.

    Attributes:
        labels: True class of every pixel, integers `[*S]`, or `[..., *S]` with axes of images before.
        foreground: Value at the true class, float32 of that shape; every other class holds `background`.
        class_max: Largest distance of every class in units of the spacing, float32 `[K]` or `[..., K]`: 0 for a class
            that is absent, 1 for one that fills its image. None where none is needed (`active_contour_map`,
            `constant_map`).
        num_classes: Number of classes K.
        ignore_index: Label of the pixels that do not count, or None.
        background: Value at every class but the true one.
    """

    labels: Any
    foreground: Any
    class_max: Any
    num_classes: int
    ignore_index: int | None = None
    background: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of labels and foreground."""
        return tuple(self.foreground.shape)

    def patch(self, start: Sequence[int], size: Sequence[int]) -> RectifiedMap:
        """A box of the map, read into memory: what the loss takes, with a batch axis of 1 put first.

        Args:
            start: First row of the box in every axis of the labels.
            size: Rows of the box in every axis; those of image axes have to be 1 and are dropped.

        Returns:
            The map of the box, tensors `[1, *size]`. Distances and divisors are those of the whole volume.

        Raises:
            ValueError: The box is not inside of the volume.
        """
        first = [checks.integer("start", at, lowest=0) for at in start]
        rows = [checks.integer("size", count, lowest=1) for count in size]
        ends = [at + count for at, count in zip(first, rows, strict=False)]
        if len(first) != len(self.shape) or len(rows) != len(first) or any(map(int.__gt__, ends, self.shape)):
            raise ValueError(f"start, size: expected a box within {list(self.shape)}, got {list(start)}, {list(size)}")
        images = len(self.shape) - min(len(self.shape), 3)
        if any(count != 1 for count in rows[:images]):
            raise ValueError(f"size: expected 1 along the first {images} axes, which count images, got {list(size)}")
        box = tuple(slice(at, end) for at, end in zip(first, ends, strict=True))
        labels, foreground = (np.asarray(part[box]).reshape(1, *rows[images:]) for part in self._parts())
        return RectifiedMap(
            as_class_tensor(labels),
            torch.from_numpy(np.require(foreground, np.float32, ("C", "W"))),
            self.background,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
        )

    def _parts(self) -> tuple[Any, Any]:
        return self.labels, self.foreground
