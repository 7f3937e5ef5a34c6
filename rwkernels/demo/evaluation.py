"""How good a segmentation is (through MONAI) and what a loss's gradient looks like."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rwkernels.experiments import metrics
from rwkernels.experiments.mni152 import CLASS_NAMES, PIXEL_MM

SCORED_CLASSES = CLASS_NAMES[1:]
UNLEARNED_DICE = 0.1
"""A class under this Dice counts as not learned and is flagged."""


@dataclass(frozen=True)
class Scores:
    """Scores on the validation block, each the mean over its slices, one entry per class but the rest."""

    dice: tuple[float, ...]
    hausdorff_mm: tuple[float, ...]
    """`inf` when the class was predicted nowhere in at least one slice that has it."""
    hausdorff95_mm: tuple[float, ...]
    empty_slices: tuple[int, ...]
    """Number of slices in which the class was predicted nowhere."""
    prediction: Tensor
    """[N, H, W] on the CPU."""

    @property
    def unlearned(self) -> tuple[str, ...]:
        """Names of the classes under Dice 0.1."""
        # Written so that a Dice that is not a number is flagged too.
        return tuple(name for name, dice in zip(SCORED_CLASSES, self.dice, strict=True) if not dice >= UNLEARNED_DICE)


def dice_per_class(prediction: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return the mean Dice over slices for grey and white; both arguments [N, H, W]."""
    return _mean_over_slices(metrics.dice(prediction, labels, len(CLASS_NAMES)))


def score(prediction: Tensor, labels: Tensor) -> Scores:
    """Return Dice and Hausdorff distances of `prediction` against `labels`, both [N, H, W]."""
    prediction, labels = prediction.cpu(), labels.cpu()
    classes = range(1, len(CLASS_NAMES))
    return Scores(
        dice=dice_per_class(prediction, labels),
        hausdorff_mm=_hausdorff(prediction, labels, percentile=None),
        hausdorff95_mm=_hausdorff(prediction, labels, percentile=95.0),
        empty_slices=tuple(int((prediction != k).flatten(1).all(dim=1).sum()) for k in classes),
        prediction=prediction,
    )


def share_with_several_negatives(gradient: Tensor) -> float:
    """Return the share of pixels with more than one negative entry along the class axis.

    `gradient` is `[B, K, *S]`. A gradient step raises the probability of every class whose entry is negative:
    more than one means that a wrong class is pushed up as well (section 3.3 of the paper).
    """
    return float(((gradient < 0).sum(dim=1) > 1).double().mean())


def _hausdorff(prediction: Tensor, labels: Tensor, percentile: float | None) -> tuple[float, ...]:
    return _mean_over_slices(metrics.hausdorff(prediction, labels, len(CLASS_NAMES), PIXEL_MM, percentile))


def _mean_over_slices(values: Tensor) -> tuple[float, ...]:
    # `nan` marks a slice in which neither has the class, which has no score.
    return tuple(float(mean) for mean in values.nanmean(dim=0))
