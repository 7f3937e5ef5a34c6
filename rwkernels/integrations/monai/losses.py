"""The region-wise loss with the conventions of MONAI's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks, modules
from rwkernels.compact import RectifiedMap
from rwkernels.integrations import arrays
from rwkernels.integrations.extras import needs
from rwkernels.integrations.inputs import AFFINE, GivenSpacing, checked_spacing, from_one_hot
from rwkernels.integrations.monai import spacing as spacings
from rwkernels.maps import labels_like
from rwkernels.scaling import scale_classes

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
        weight: One number per class: every pixel's map is multiplied by the weight of its true class.
        ignore_index: Label of pixels that do not count. In a one-hot target that is the channel of this number, or,
            where there is none, the pixels of no class.
        maps: `"rectified"` (the default), `"boundary"`, `"active_contour"` or `"constant"`.
        spacing: `"affine"` takes the spacing of every image from the affine of a `MetaTensor` target (1 for other
            tensors); or a number, or one per spatial axis.
        **options: `black_border`, `recompute`, `validate` and `backend`, as of `rwkernels.RegionWiseLoss`.

    Shape:
        `forward(input, target, maps=None)` with `input` `[B, K, *S]`. `maps`, where it is given, is what
        `RegionWiseMap` made of the target: `[B, 1, *S]` or `[B, K, *S]`. A `RectifiedMap` may take the place of
        `target`.

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
            class_weight=weight,
            include_background=include_background,
            reduction=self.reduction,
            **options,
        )

    def forward(self, input: Tensor, target: Tensor | RectifiedMap, maps: Tensor | None = None) -> Tensor:
        """The loss; see the class for shapes."""
        values = checks.tensor("input", input)
        if values.dim() < 3:
            raise ValueError(f"input: expected [B, K, *S], got {checks.describe(values)}")
        if isinstance(target, RectifiedMap):
            found: RectifiedMap | Tensor = target
            labels = target.labels
        else:
            labels = self._labels(target, values)
            found = self._map(target, labels, values.shape[1]) if maps is None else self._given(maps, labels, values)
        if not self.softmax:
            loss = self._of_probabilities(values, found, labels)
        elif isinstance(found, RectifiedMap):
            loss = self.of_logits(values, found)
        else:
            loss = self.of_logits(values, found, labels)
        return loss.unsqueeze(1) if self.reduction == LossReduction.NONE.value else loss

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
        whole = modules.whole_labels(found, checks.validate(validate, found.device))
        return labels_like("target", whole, values.shape)

    def _map(self, target: Tensor, labels: Tensor, num_classes: int) -> RectifiedMap | Tensor:
        rule = self.of_logits
        return arrays.build(
            rule.maps,
            labels,
            num_classes,
            spacings.of_images(self.spacing, target, len(labels), labels.dim() - 1),
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
            counts = labels != ignored
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
