"""The spacing of an image in MONAI, which is what its affine says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.integrations.arrays import Spacing
from rwkernels.integrations.inputs import GivenSpacing


def of_images(spacing: GivenSpacing, labels: Any, images: int, axes: int) -> list[Spacing]:
    """One spacing for every image of `labels`, a batch if its `is_batch` says so; None where there is no affine."""
    if not isinstance(spacing, str):
        return [None if spacing is None else tuple(checks.spacing(spacing, axes))] * images
    affine = getattr(labels, "affine", None)
    if not isinstance(affine, Tensor):
        return [None] * images
    if affine.dim() == 2:
        return [_of_affine(affine, axes)] * images
    if len(affine) != images:
        raise ValueError(f"labels: expected an affine for each of {images} images, got {len(affine)}")
    return [_of_affine(one, axes) for one in affine]


def _of_affine(affine: Tensor, axes: int) -> tuple[float, ...]:
    """Length of a step along every axis of the array: the norm of its column.

    The rows are not cut to the number of axes: a slice in 2D may lie anywhere in space. A column of zeros, which some
    readers write for an axis that is not there, counts as 1, as in MONAI.
    """
    columns = torch.linalg.vector_norm(affine.detach().cpu().double()[:-1, :-1], dim=0)[:axes].tolist()
    return tuple(round(size, 9) or 1.0 for size in [*columns, *[1.0] * (axes - len(columns))])
