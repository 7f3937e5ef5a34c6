"""Label maps of every kind of file, opened in one way: the header first, the labels when they are asked for.

`scans` reads NIfTI, NRRD, MetaImage and what else SimpleITK reads, which know where in the world they lie; `plain`
reads NPY, NPZ, TIFF, PNG and Zarr; both give what `opened` says. `files` knows the names of such files and tells
whether one changed. Nothing is unpickled, and nothing is allocated before a header was held against the limit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkernels import checks
from rwkernels.backends import default
from rwkernels.formats import plain, scans
from rwkernels.formats.files import NIFTI, PLAIN, SIMPLE_ITK, SUFFIXES, suffix_of
from rwkernels.formats.opened import Opened, ReadOptions
from rwkernels.formats.scans import write_nifti

__all__ = ["SUFFIXES", "Opened", "ReadOptions", "open_labels", "whole_labels", "write_nifti"]


def open_labels(path: Path, options: ReadOptions) -> Opened:
    """Reads the header of the label map at `path`, and holds it against the limit.

    Raises:
        ValueError: It is no label map: not a file of its kind, several channels, no integers, too large.
        OSError: It cannot be read.
    """
    suffix = ".zarr" if path.is_dir() else suffix_of(path)
    if suffix in NIFTI:
        opened = scans.nifti(path, options)
    elif suffix in SIMPLE_ITK:
        opened = scans.simple_itk(path, options)
    elif suffix in PLAIN:
        opened = plain.READERS[PLAIN[suffix]](path, options)
    else:
        raise ValueError(f"no label map: expected a name that ends in {', '.join(SUFFIXES)}")
    opened = opened if opened.axes else _without_leading(opened)
    if not 1 <= len(opened.shape) <= 3 or 0 in opened.shape:
        raise ValueError(f"labels: expected one channel and 1 to 3 axes of pixels, got shape {list(opened.shape)}")
    spacing = options.spacing or opened.spacing or (1.0,)
    steps = checks.spacing(spacing if len(spacing) > 1 else spacing[0], len(opened.shape))
    unit = None if options.spacing else opened.unit if opened.spacing else "pixels"
    return replace(opened, spacing=tuple(steps), unit=unit)


def _without_leading(opened: Opened) -> Opened:
    """An array without the axes of 1, a batch and a channel, that come before the last three."""
    shape = opened.shape[-3:]
    if math.prod(opened.shape[:-3]) != 1:
        return opened
    return replace(
        opened, shape=shape, spacing=opened.spacing and opened.spacing[-3:], load=lambda: opened.load().reshape(shape)
    )


def whole_labels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels in the smallest integer type that holds them and that the kernels take, contiguous.

    Raises:
        ValueError: Floating labels are not whole numbers.
    """
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        wrong = (whole != values) | ~(np.abs(values) < 2.0**53)
        if wrong.any():
            place = tuple(int(at) for at in np.argwhere(wrong)[0])
            raise ValueError(f"labels: expected whole numbers, got {values[place]} at {place}")
        values = whole
    if values.dtype == np.bool_:
        values = np.logical_or(values, False).view(np.uint8)  # bytes of files may hold other truths than 1
    if values.dtype not in (np.uint8, np.int8):
        low, high = int(values.min()), int(values.max())
        for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
            limits = np.iinfo(dtype)
            if limits.min <= low and high <= limits.max:
                return in_order(values.astype(dtype, order="K", copy=False))
        raise ValueError(f"labels: expected integers of 64 bits, got {high}")
    return in_order(values)


def in_order(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values with the last axis fastest in memory, in memory that may be written to."""
    reversed_bytes = values.itemsize == 1 and values.ndim == 3 and values.flags.f_contiguous
    if not reversed_bytes:
        return np.require(values, requirements=("C", "W"))
    found = np.empty(values.shape, values.dtype)
    default(torch.device("cpu"), "reverse_axes").reverse_axes(values, found)
    return found
