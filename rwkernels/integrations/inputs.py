"""Labels as other libraries hold them, and where a spacing comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks

AFFINE = "affine"
GivenSpacing = str | float | Sequence[float] | None


def checked_spacing(spacing: GivenSpacing) -> GivenSpacing:
    """Refuses what is neither `"affine"`, a spacing, nor None."""
    if isinstance(spacing, str):
        return checks.choice("spacing", spacing, (AFFINE,))
    found: GivenSpacing = checks.spacing_of_any_axes(spacing)
    return found


def labels_of(target: Tensor, num_classes: int, options: Mapping[str, Any]) -> Tensor:
    """Labels `[B, *S]` of labels `[B, 1, *S]` or one-hot `[B, K, *S]`."""
    channels = target.shape[1] if target.dim() > 2 else 0
    if channels == 1:
        return target.squeeze(1)
    if channels != num_classes:
        raise ValueError(
            f"label: expected one channel of labels or {num_classes} of one-hot, got {checks.describe(target)}"
        )
    return from_one_hot(target, options.get("ignore_index"), options.get("validate"))


def from_one_hot(target: Tensor, ignore_index: int | None, validate: bool | None) -> Tensor:
    """Labels of one-hot `[B, K, *S]`; a pixel of no class is one to ignore, if there is an `ignore_index`."""
    marked = target > 0.5
    none = ~marked.any(1)
    if checks.validate(validate, target.device):
        wrong = (marked.sum(1) > 1) | (target != marked).any(1)
        if ignore_index is None:
            wrong = wrong | none
        if bool(wrong.any()):
            at = tuple(wrong.nonzero()[0].tolist())
            found = target.movedim(1, -1)[at].tolist()
            raise ValueError(f"label: expected one-hot, one 1 among 0s for every pixel, got {found} at {at}")
    labels = marked.to(torch.uint8).argmax(1)
    return labels if ignore_index is None else torch.where(none, ignore_index, labels)
