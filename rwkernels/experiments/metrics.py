"""Dice (Eq. 6) and Hausdorff distance (Eq. 7) of every image and class, through MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from rwkernels.extras import needs

with needs("experiments", "monai", "rwkernels.experiments"):
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.networks.utils import one_hot


def dice(prediction: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Dice of every image and class but the background, `2 |A n B| / (|A| + |B|)` (Eq. 6).

    Args:
        prediction: Classes `[N, *S]`.
        labels: Classes `[N, *S]`.
        num_classes: K, the background included.

    Returns:
        `[N, K-1]`; 0 where only one of the two has the class, `nan` where neither has.
    """
    found: Tensor = compute_dice(
        _channels(prediction, num_classes), _channels(labels, num_classes), include_background=False, ignore_empty=False
    )
    absent = ~_present(prediction, num_classes) & ~_present(labels, num_classes)
    return found.cpu().masked_fill(absent, math.nan)


def hausdorff(
    prediction: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: float | Sequence[float] = 1.0,
    percentile: float | None = None,
) -> Tensor:
    """Hausdorff distance of the boundaries of every image and class but the background (Eq. 7).

    Args:
        prediction: Classes `[N, *S]`.
        labels: Classes `[N, *S]`.
        num_classes: K, the background included.
        spacing: Of all axes or of each; the unit of the result.
        percentile: Of the distances in place of the largest, 95 for instance.

    Returns:
        `[N, K-1]`; `inf` where only one of the two has the class, `nan` where neither has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty prediction, which is `inf` here
        found: Tensor = compute_hausdorff_distance(
            _channels(prediction, num_classes),
            _channels(labels, num_classes),
            include_background=False,
            percentile=percentile,
            spacing=spacing if isinstance(spacing, (int, float)) else list(spacing),
        )
    predicted, there = _present(prediction, num_classes), _present(labels, num_classes)
    # MONAI answers inf or nan for an empty prediction, depending on `percentile`.
    found = found.cpu().masked_fill(predicted != there, math.inf)
    return found.masked_fill(~predicted & ~there, math.nan)


def _channels(labels: Tensor, num_classes: int) -> Tensor:
    encoded: Tensor = one_hot(labels[:, None], num_classes=num_classes)
    return encoded


def _present(labels: Tensor, num_classes: int) -> Tensor:
    flat = labels.cpu().flatten(1)
    return torch.stack([(flat == k).any(dim=1) for k in range(1, num_classes)], dim=1)
