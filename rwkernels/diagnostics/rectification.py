"""Whether a map satisfies the principle of rectified maps (section 3.3), and where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends.problem import first_bad_label, is_label, is_no_class
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import dense_map


@dataclass(frozen=True)
class Rectification:
    """Where a map breaks the principle, as masks `[B, *S]`.

    Attributes:
        unequal: The wrong classes have different values.
        not_lowest: The true class's value is not below all of the wrong classes'.
        counted: Number of pixels that were looked at: all that are not ignored.
    """

    unequal: Tensor
    not_lowest: Tensor
    counted: int

    @property
    def violations(self) -> Tensor:
        """Where either is so, bool `[B, *S]`."""
        return self.unequal | self.not_lowest

    @property
    def holds(self) -> bool:
        """Whether the map satisfies the principle at every pixel."""
        return not bool(self.violations.any())

    @property
    def fraction(self) -> float:
        """Part of the pixels at which it does not; 0 where there are none."""
        return int(self.violations.sum()) / max(self.counted, 1)

    def where(self) -> Tensor:
        """Places (image, then spatial axes) at which it does not, int64 `[n, 1 + axes]`."""
        return self.violations.nonzero()

    def __str__(self) -> str:
        if self.holds:
            return f"rectified at all {self.counted} pixels"
        first = tuple(self.where()[0].tolist())
        return (
            f"not rectified at {int(self.violations.sum())} of {self.counted} pixels, the first at {first}: "
            f"wrong classes differ at {int(self.unequal.sum())}, "
            f"the true class is not lowest at {int(self.not_lowest.sum())}"
        )


def rectification(
    maps: Any,
    labels: Any = None,
    *,
    ignore_index: int | None = None,
    tolerance: float = 0.0,
    validate: bool | None = None,
) -> Rectification:
    """Checks the principle of rectified maps at every pixel: the wrong classes share one value, the true one is below.

    That is just what makes the signs of the gradient right for every softmax. Entry k is negative where
    `z_k < sum_l y_l z_l`, a mean that can come as close to the largest `z` as it likes: so no wrong class is ever
    negative only if they all have the largest value; and then the true class always is, if its value is smaller.

    Args:
        maps: A `RectifiedMap`, or a dense floating map `[B, K, *S]`; tensors or arrays.
        labels: Integers `[B, *S]` or `[B, 1, *S]`, needed for a dense map.
        ignore_index: Label of pixels that do not count.
        tolerance: How far two values may lie apart and count as equal, and how far below the true class's has to be.
        validate: Check label values: by default on the CPU only. Bad labels that are not checked are violations.

    Returns:
        Masks of the violations, on the device of the map.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `labels` are missing, a label is out of range, or a shape is wrong.

    References:
        Valverde & Tohka, section 3.3.

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.diagnostics import rectification
        >>> labels = torch.tensor([[[0, 1, 2]]])
        >>> print(rectification(rw.rectified_map(labels, 3)))
        rectified at all 3 pixels
        >>> rectification(rw.boundary_map(labels, 3), labels).where()
        tensor([[0, 0, 0],
                [0, 0, 2]])
    """
    if checks.number("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance: expected a number >= 0, got {tolerance}")
    if isinstance(maps, RectifiedMap):
        if labels is not None:
            raise ValueError("labels: expected None (a RectifiedMap carries its own), got " + checks.describe(labels))
        if ignore_index is not None and maps.ignore_index not in (None, ignore_index):
            raise ValueError(f"ignore_index: expected that of the map ({maps.ignore_index}), got {ignore_index}")
        compact = maps._tensors()[0]
        known = checks.label_dtype("maps.labels", compact.labels)
        ignored = maps.ignore_index if ignore_index is None else checks.ignore_index(ignore_index)
        num_classes, lowest, highest, own = _of_compact(compact)
    else:
        dense = dense_map(maps)[0].detach()
        if labels is None:
            raise ValueError("labels: expected the labels of the map, which a dense map does not carry, got None")
        known = checks.labels_like("labels", arrays.to_tensor(labels)[0], dense.shape)
        checks.same_device("labels", known, "maps", dense)
        ignored = checks.ignore_index(ignore_index)
        num_classes = dense.shape[1]
        lowest, highest, own = _of_dense(dense, known)
    if checks.validate(validate, known.device):
        bad = first_bad_label(known, num_classes, ignored)
        if bad >= 0:
            checks.bad_label(known, bad, num_classes, ignored)
    counts = torch.ones_like(known, dtype=torch.bool)
    if ignored is not None:
        counts = ~is_label(known, ignored)
    # Written so that NaN is a violation.
    unequal = counts & ~(highest - lowest <= tolerance)
    not_lowest = counts & ~(own + tolerance < lowest)
    if num_classes == 1:
        unequal, not_lowest = torch.zeros_like(counts), torch.zeros_like(counts)
    return Rectification(unequal, not_lowest, int(counts.sum()))


def _of_dense(maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least and largest value of the wrong classes and the value of the true one, [B, *S]; NaN for no class."""
    lowest = torch.full(labels.shape, torch.inf, dtype=maps.dtype, device=maps.device)
    highest, own = -lowest, torch.full_like(lowest, torch.nan)
    broken = torch.zeros_like(labels, dtype=torch.bool)
    for k, values in enumerate(maps.unbind(1)):
        here = is_label(labels, k)
        own = torch.where(here, values, own)
        lowest = torch.where(here, lowest, torch.minimum(lowest, values))
        highest = torch.where(here, highest, torch.maximum(highest, values))
        broken |= values.isnan() & ~here
    return lowest.masked_fill(broken, torch.nan), highest.masked_fill(broken, torch.nan), own


def _of_compact(maps: RectifiedMap) -> tuple[int, Tensor, Tensor, Tensor]:
    labels, background = maps._checked_parts()
    own = maps.foreground.detach()
    others = background.detach() if isinstance(background, Tensor) else torch.full_like(own, background)
    if maps.class_scale is None:
        own = own.masked_fill(is_no_class(labels, maps.num_classes), torch.nan)
        return maps.num_classes, others, others, own
    dense: Tensor = maps._with(ignore_index=None, class_scale=maps.class_scale.detach()).dense(dtype=own.dtype)
    return maps.num_classes, *_of_dense(dense, labels)
