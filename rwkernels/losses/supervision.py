"""Deep supervision: one loss over the logits of several resolutions, with the map of every level's own labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkernels import checks
from rwkernels.losses.combined import CombinedLoss, is_hooked, with_maps
from rwkernels.losses.modules import RegionWiseLoss
from rwkernels.maps.compact import RectifiedMap


def default_weights(levels: int) -> list[float]:
    """nnU-Net's: halved from level to level, 0 for the last of several, 1 in all."""
    weights = [0.5**level for level in range(levels)]
    if levels > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def resample_labels(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels `[..., *S]` on a grid of `shape` over the same field of view: at every centre, the pixel that holds it.

    This is `torch.nn.functional.interpolate(mode="nearest-exact")`, which nnU-Net makes its labels for deep
    supervision with. That takes floats, which do not hold every integer, and computes places in float32.
    """
    first = labels.dim() - len(shape)
    for axis, size in enumerate(shape, start=first):
        length = labels.shape[axis]
        if length == size:
            continue
        if size > 0 and length % size == 0:  # every n-th pixel: a view, and one copy for all such axes
            step = length // size
            labels = labels[(slice(None),) * axis + (slice(step // 2, None, step),)]
        else:
            twice_centre = 2 * torch.arange(size, device=labels.device) + 1
            labels = labels.index_select(axis, (twice_centre * length).div(2 * size, rounding_mode="floor"))
    return labels.contiguous()


class DeepSupervisionLoss(nn.Module):
    """A loss over the logits of several resolutions: the weighted sum of the losses of the levels.

    Labels are resampled to every level and its map is built from them, with a spacing as much larger as the grid is
    coarser; a resampled map is not the map of the resampled labels. Levels of weight 0 cost nothing.

    Args:
        loss: A `RegionWiseLoss`, this package's or that of `integrations.monai`, a `CombinedLoss`, or any function of
            logits and labels.
        weights: One number >= 0 per level, used as they are. Default: nnU-Net's, halved from level to level, 0 for
            the last of several, and 1 in all. DistributedDataParallel wants every output used: there give the last
            level a small weight instead (nnU-Net takes 1e-6), or set `find_unused_parameters`.

    Shape:
        `forward(logits, labels, maps=None)`. Logits: a list of `[B, K, *S_l]`, the finest first; a lone tensor, which
        networks give when they are evaluated, is a single level of weight 1. Labels: `[B, *S]` or `[B, 1, *S]`,
        resampled as nnU-Net does (nearest-exact); or a list with the labels of every level. Maps: a list with the map
        of every level, built before. Without a region loss, a list of `RectifiedMap`s may also stand in the place of
        labels.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Numbers of levels or shapes disagree, a weight is negative or all are 0, or the loss is not reduced.

    References:
        Isensee et al., "nnU-Net", Nature Methods 2021 (weights and labels of the levels).

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(spacing=(3.0, 1.0, 1.0)))
        >>> labels = torch.randint(2, (1, 16, 32, 32))
        >>> logits = [torch.zeros(1, 2, 16, 32 >> level, 32 >> level, requires_grad=True) for level in range(3)]
        >>> loss_fn(logits, labels).backward()
        >>> [level.grad is not None for level in logits]
        [True, True, False]
    """

    def __init__(self, loss: Callable[..., Tensor], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss: expected a loss called with logits and labels, got {checks.describe(loss)}")
        if getattr(loss, "reduction", None) == "none":
            raise ValueError('loss: expected a loss that is one number, got one with reduction="none"')
        self.loss = loss
        self.weights = None if weights is None else [checks.number("weights", weight) for weight in weights]
        if self.weights is not None and (not self.weights or min(self.weights) < 0 or max(self.weights) == 0):
            raise ValueError(f"weights: expected numbers >= 0, at least one above 0, got {self.weights}")

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Any, maps: Sequence[Any] | None = None) -> Tensor:
        """The loss of all levels; see the class for shapes."""
        several = isinstance(labels, (list, tuple))
        if maps is not None and not isinstance(maps, (list, tuple)):
            raise TypeError(f"maps: expected a list with the map of every level, got {checks.describe(maps)}")
        if isinstance(logits, Tensor):
            own = labels[0] if several else labels
            return self.loss(logits, own) if maps is None else self._with_maps(logits, own, maps[0])
        weights = self._weights(len(logits))
        if several and len(labels) != len(logits):
            raise ValueError(f"labels: expected one entry for each of {len(logits)} levels, got {len(labels)}")
        if maps is not None and len(maps) != len(logits):
            raise ValueError(f"maps: expected one entry for each of {len(logits)} levels, got {len(maps)}")
        used = [level for level, weight in enumerate(weights) if weight != 0]
        weights, logits = [weights[level] for level in used], [logits[level] for level in used]
        finest = labels[0] if several else labels
        labels = [
            labels[level] if several else self._resampled(labels, found)
            for level, found in zip(used, logits, strict=True)
        ]
        if maps is None:
            terms = self._of_labels(logits, labels, finest, weights)
            if isinstance(terms, Tensor):
                return terms
        else:
            given = zip(logits, labels, (maps[level] for level in used), strict=True)
            terms = [self._with_maps(*each) for each in given]
        total = weights[0] * terms[0]
        for weight, term in zip(weights[1:], terms[1:], strict=True):
            total = total + weight * term
        return total

    def _of_labels(
        self, logits: Sequence[Tensor], labels: Sequence[Any], finest: Any, weights: Sequence[float]
    ) -> Tensor | list[Tensor]:
        """The weighted sum of the levels' losses where one plan gives it, or the losses."""
        spacings = [self._spacing(found, own, finest) for found, own in zip(logits, labels, strict=True)]
        if type(self.loss) is RegionWiseLoss and not is_hooked(self.loss):
            joined = self.loss.loss_of_levels(logits, labels, spacings, weights)
            if joined is not None:
                return joined
        return [
            self.loss(found, own, **({} if spacing is None else {"spacing": spacing}))
            for found, own, spacing in zip(logits, labels, spacings, strict=True)
        ]

    def _weights(self, levels: int) -> list[float]:
        if self.weights is None and levels > 0:
            return default_weights(levels)
        if self.weights is None or len(self.weights) != levels:
            wanted = "at least one level" if self.weights is None else f"as many levels as weights, {len(self.weights)}"
            raise ValueError(f"logits: expected {wanted}, got {levels}")
        return self.weights

    def _resampled(self, labels: Any, logits: Any) -> Tensor:
        given, labels, shape = labels, checks.tensor("labels", labels), checks.tensor("logits", logits).shape[2:]
        if labels.dim() != len(shape) + 1 and (labels.dim() != len(shape) + 2 or labels.shape[1] != 1):
            raise ValueError(
                f"labels: expected [B, *S] or [B, 1, *S] with {len(shape)} spatial axes, got {checks.describe(labels)}"
            )
        # What a MetaTensor knows of its grid holds on that grid only.
        same: bool = labels.shape[labels.dim() - len(shape) :] == shape
        return given if same else resample_labels(labels, shape)

    def _spacing(self, logits: Tensor, labels: Any, finest: Any) -> list[float] | None:
        """That of a level which is coarser than the finest one; None if it is not, or if the loss has no use for it."""
        region_wise = self.loss.rw_loss if isinstance(self.loss, CombinedLoss) else self.loss
        shape = logits.shape[2:]
        fine_shape = finest.shape[len(finest.shape) - len(shape) :]
        if isinstance(labels, RectifiedMap) or not hasattr(region_wise, "level_spacing") or fine_shape == shape:
            return None
        ratios = [fine / own for fine, own in zip(fine_shape, shape, strict=True)]
        spacing: list[float] = region_wise.level_spacing(finest, ratios)
        return spacing

    def _with_maps(self, logits: Tensor, labels: Tensor, maps: Any) -> Tensor:
        if isinstance(self.loss, CombinedLoss):
            return self.loss(logits, labels, maps)  # type: ignore[no-any-return]
        return with_maps(self.loss, logits, labels, maps)

    def extra_repr(self) -> str:
        """The weights, where they are given."""
        return "" if self.weights is None else f"weights={self.weights}"
