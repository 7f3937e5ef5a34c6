"""What a reader is asked for and what it gives, and the limit that it holds a header against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = list[list[float]]


@dataclass(frozen=True)
class ReadOptions:
    """How files are read: `axes` is the order for scans, `key` the array of files that hold several."""

    axes: str = "xyz"
    key: str | None = None
    spacing: tuple[float, ...] | None = None
    max_bytes: int = 1 << 62


@dataclass(frozen=True)
class Opened:
    """What the header of a file says; `load` reads the values. `affine` leads from array indices to world mm (RAS+).

    `unit` is that of `spacing` as far as it is known, "pixels" where the file has no spacing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spacing: tuple[float, ...] | None
    load: Callable[[], npt.NDArray[Any]]
    affine: Affine | None = None
    axes: str | None = None
    unit: str | None = None


def admit(shape: tuple[int, ...], dtype: np.dtype[Any], options: ReadOptions) -> None:
    """Refuses what would take more bytes than the limit, or is no number at all."""
    if dtype.kind not in "biuf":
        raise ValueError(f"labels: expected integers, got {dtype}")
    size = math.prod(int(side) for side in shape) * dtype.itemsize
    if size > options.max_bytes or any(side < 0 for side in shape):
        raise ValueError(
            f"labels: expected at most {options.max_bytes} bytes (--max-bytes), got {size}: {dtype} {list(shape)}"
        )


def read_bounded(path: Path, options: ReadOptions) -> bytes:
    """The bytes of a file that is no larger than the limit."""
    size = path.stat().st_size
    if size > options.max_bytes:
        raise ValueError(f"file: expected at most {options.max_bytes} bytes (--max-bytes), got {size}")
    with path.open("rb") as file:
        return file.read(size)
