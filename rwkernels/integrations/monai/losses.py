"""The region-wise loss with the conventions of MONAI's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends.problem import first_bad_label, is_label
from rwkernels.data.building import rows_of_spacing
from rwkernels.extras import needs
from rwkernels.integrations import arrays
from rwkernels.integrations.inputs import AFFINE, GivenSpacing, checked_spacing, from_one_hot
from rwkernels.integrations.monai import spacing as spacings
from rwkernels.losses import modules
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.scaling import scale_classes, weights_of_any_classes

with needs("monai"):
    from monai.utils.enums import LossReduction
    from torch.nn.modules.loss import _Loss


class RegionWiseLoss(_Loss):
    """Region-wise loss that can stand where `monai.losses.DiceLoss` stands.

    Args:
        include_background: False leaves channel 0 out of the sum (see `rwkernels.region_wise_loss`).
        to_onehot_y: True for targets of labels `[B, 1, *S]`, False for one-hot targets `[B, K, *S]`. Classes exclude
            each other.
        softmax: True if `input` are logits: loss and gradient then come in one pass. False if they are probabilities.
        reduction: `"mean"` divides by `N*K`, N being the pixels that count; `"sum"`; `"none"` gives `[B, 1, *S]`.
        weight: One number per class, the background included: every pixel's map is multiplied by the weight of its
            true class, in all channels. (MONAI's Dice weighs channels, and also takes one number for all of them, or
            none for a background that is left out.)
        ignore_index: Label of pixels that do not count. In a one-hot target that is the channel of this number, or,
            where there is none, the pixels of no class.
        maps: `"rectified"` (the default), `"boundary"`, `"active_contour"` or `"constant"`.
        spacing: `"affine"` takes the spacing of every image from the affine of a `MetaTensor` target (1 for other
            tensors); or a number, or one per spatial axis.
        **options: `black_border`, `recompute`, `validate` and `backend`, as of `rwkernels.RegionWiseLoss`.

    Shape:
        `forward(input, target, maps=None, *, spacing=None)` with `input` `[B, K, *S]`. `maps`, where it is given, is
        what `RegionWiseMap` made of the target: `[B, 1, *S]` or `[B, K, *S]`. A `RectifiedMap` may take the place of
        `target`. `spacing`, for the map that this call builds, takes the place of the loss's: a number, one per axis,
        or a tensor `[B, axes]`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes disagree with the settings, or a value is out of range: of a label, or of an `input` that
            should be a probability.

    Examples:
        >>> import torch
        >>> loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=True)
        >>> logits = torch.zeros(2, 3, 16, 16, requires_grad=True)
        >>> loss_fn(logits, torch.randint(3, (2, 1, 16, 16))).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        softmax: bool = False,
        reduction: LossReduction | str = LossReduction.MEAN,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | None = None,
        maps: str = "rectified",
        spacing: GivenSpacing = AFFINE,
        **options: Any,
    ) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        self.to_onehot_y = checks.flag("to_onehot_y", to_onehot_y)
        self.softmax = checks.flag("softmax", softmax)
        self.spacing = checked_spacing(spacing)
        self.of_logits = modules.RegionWiseLoss(
            maps,
            ignore_index=ignore_index,
            class_weight=None if weight is None else weights_of_any_classes("weight", weight),
            include_background=include_background,
            reduction=self.reduction,
            **options,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor | RectifiedMap,
        maps: Tensor | None = None,
        *,
        spacing: float | Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """The loss; see the class for shapes."""
        values = checks.tensor("input", input)
        if values.dim() < 3:
            raise ValueError(f"input: expected [B, K, *S], got {checks.describe(values)}")
        if self.of_logits.class_weight is not None:
            checks.shape("weight", self.of_logits.class_weight, (values.shape[1],), "[K] of the input")
        if isinstance(target, RectifiedMap):
            found: RectifiedMap | Tensor = target
            labels = target.labels
        else:
            labels = self._labels(target, values)
            if maps is not None:
                found = self._given(maps, labels, values)
            else:
                found = self._map(target, labels, values.shape[1], spacing)
        if not self.softmax:
            loss = self._of_probabilities(values, found, labels)
        elif isinstance(found, RectifiedMap):
            loss = self.of_logits(values, found)
        else:
            loss = self.of_logits(values, found, labels)
        return loss.unsqueeze(1) if self.reduction == LossReduction.NONE.value else loss

    def with_maps(self, logits: Tensor, labels: Tensor, maps: Tensor | RectifiedMap) -> Tensor:
        """The loss with a map built before; how `rwkernels.CombinedLoss` and `DeepSupervisionLoss` call it."""
        return self(logits, maps) if isinstance(maps, RectifiedMap) else self(logits, labels, maps)  # type: ignore[no-any-return]

    def level_spacing(self, labels: Tensor, ratios: Sequence[float]) -> Tensor:
        """The spacing `[B, axes]` of every image on a grid coarser than that of `labels` by one ratio per axis."""
        rows = spacings.of_images(self.spacing, labels, len(labels), len(ratios))
        steps = torch.tensor([checks.spacing(row, len(ratios)) for row in rows], dtype=torch.float64, device="cpu")
        return steps.reshape(len(rows), len(ratios)) * torch.tensor(ratios, dtype=torch.float64, device="cpu")

    def _labels(self, target: Any, values: Tensor) -> Tensor:
        """Labels [B, *S] of a target that follows `to_onehot_y`."""
        found = checks.tensor("target", target)
        checks.same_device("target", found, "input", values)
        channels = 1 if self.to_onehot_y else values.shape[1]
        if found.shape != (values.shape[0], channels, *values.shape[2:]):
            kind = "labels [B, 1, *S]" if self.to_onehot_y else "one-hot [B, K, *S] (to_onehot_y=True takes labels)"
            raise ValueError(
                f"target: expected {kind} for an input of shape {list(values.shape)}, got {checks.describe(found)}"
            )
        validate, ignore_index = self.of_logits.validate, self.of_logits.ignore_index
        if not self.to_onehot_y:
            return from_one_hot(found, ignore_index, validate)
        whole = checks.whole_labels(found, checks.validate(validate, found.device))
        return checks.labels_like("target", whole, values.shape)

    def _map(self, target: Tensor, labels: Tensor, num_classes: int, spacing: Any) -> RectifiedMap | Tensor:
        rule, axes = self.of_logits, labels.dim() - 1
        if spacing is None:
            rows = spacings.of_images(self.spacing, target, len(labels), axes)
        else:
            rows = [tuple(checks.spacing(row, axes)) for row in rows_of_spacing(spacing, len(labels))]
        return arrays.build(
            rule.maps,
            labels,
            num_classes,
            rows,
            ignore_index=rule.ignore_index,
            black_border=rule.black_border,
            validate=rule.validate,
            backend=rule.backend,
        )

    def _given(self, maps: Any, labels: Tensor, values: Tensor) -> RectifiedMap | Tensor:
        return arrays.read_map(maps, labels, values.shape[1], self.of_logits.ignore_index)

    def _of_probabilities(self, values: Tensor, maps: RectifiedMap | Tensor, labels: Tensor) -> Tensor:
        """Eq. 1 without its softmax, in eager PyTorch."""
        rule = self.of_logits
        ignored = rule.ignore_index
        if isinstance(maps, RectifiedMap) and maps.ignore_index is not None:
            ignored = maps.ignore_index
        self._refuse_logits(values)
        if checks.validate(rule.validate, labels.device):
            bad = first_bad_label(labels, values.shape[1], ignored)
            if bad >= 0:
                checks.bad_label(labels, bad, values.shape[1], ignored)
        if rule.class_weight is not None:
            dense_labels = None if isinstance(maps, RectifiedMap) else labels
            maps = scale_classes(maps, rule.class_weight, by="label", labels=dense_labels)
        dense = maps.dense() if isinstance(maps, RectifiedMap) else checks.tensor("maps", maps)
        checks.shape("maps", dense, values.shape, "that of the input")
        first = 0 if rule.include_background else 1
        wide = values if values.dtype == torch.float64 else values.float()
        pixels = (wide * dense)[:, first:].sum(1)
        count: Tensor | int = pixels.numel()
        if ignored is not None:
            counts = ~is_label(labels, ignored)
            pixels = torch.where(counts, pixels, 0.0)
            count = counts.sum()
        if self.reduction == LossReduction.NONE.value:
            return pixels
        total = pixels.sum()
        if self.reduction == LossReduction.SUM.value:
            return total
        divisor = torch.as_tensor(count * (values.shape[1] - first), device=total.device).clamp(min=1)
        return total / divisor.to(total.dtype)

    def _refuse_logits(self, values: Tensor) -> None:
        if not checks.validate(self.of_logits.validate, values.device):
            return
        slack = torch.finfo(values.dtype).eps
        wrong = (values < -slack) | (values > 1 + slack)
        if bool(wrong.any()):
            raise ValueError(
                f"input: expected probabilities in [0, 1], got {float(values[wrong][0])}; softmax=True takes logits"
            )

    def extra_repr(self) -> str:
        """The settings of MONAI."""
        return f"to_onehot_y={self.to_onehot_y}, softmax={self.softmax}, spacing={self.spacing!r}"
