"""The Hausdorff loss of Karimi & Salcudean, with exact distances of the prediction at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwkernels import checks
from rwkernels.backends.problem import is_label
from rwkernels.maps.families import boundary_map
from rwkernels.ops import labels as ops  # noqa: F401  (ops defines the operators)


def hausdorff_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    threshold: float | None = None,
    spacing: float | Sequence[float] | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Hausdorff loss: the mean of `(p - g)^2 (d_p^alpha + d_g^alpha)`, HD_DT of Karimi & Salcudean.

    `p` is the softmax, `g` the one-hot labels. `d_g` and `d_p` are, per class, every pixel's distance to the nearest
    pixel on the other side of the class's boundary, in the labels and in the thresholded prediction. The distances of
    the prediction are made anew at every call, by this package's transforms and where the logits live; no gradient goes
    through them.

    Of more than two classes, the prediction is by default the class of the largest logit, so that all classes come from
    one partition and one transform. With a `threshold`, class k is where `p_k > threshold`: for two classes and 0.5 the
    same but for ties; for more, a pixel none of whose probabilities exceeds 0.5 belongs to no class, which is most
    pixels of an untrained network.

    Args:
        logits: float32, float64, bfloat16 or float16 `[B, K, *S]`, K >= 2, with one to three spatial axes.
        labels: Integers (or floats that hold whole numbers) `[B, *S]` or `[B, 1, *S]` in `[0, K)`.
        alpha: Exponent of the distances.
        threshold: None for the largest logit; a number in (0, 1) to threshold each probability, at 0.5 as MONAI does.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        include_background: False leaves channel 0 out of the sum and of the divisor.
        ignore_index: Label, possibly negative, of pixels that do not count. They bound regions like any other label.
        reduction: `"mean"` divides by the number of pixels that count times channels; `"sum"`; `"none"` returns the
            sum over channels of every pixel.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend of the distances.

    Returns:
        float32 (float64 for float64 logits): a scalar, or `[B, *S]`. A class without a boundary (absent from an image,
        or filling it) has distance 0: where it lacks one in labels and prediction alike, it costs nothing.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices or values are wrong.

    References:
        Karimi & Salcudean, "Reducing the Hausdorff distance in medical image segmentation with convolutional neural
        networks", IEEE TMI 2020, HD_DT. MONAI's `HausdorffDTLoss(softmax=True)` gives the same with `threshold=0.5`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> logits = torch.tensor([[[[9.0, 9, 9, -9]], [[-9.0, -9, -9, 9]]]])  # the third pixel is wrong
        >>> rw.hausdorff_loss(logits, labels)  # its distance is 1 in both, and all others have no error
        tensor(0.5000)
    """
    logits = checks.logits(logits)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: expected at least two channels, got {checks.describe(logits)}")
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    alpha, threshold = _exponent(alpha), _threshold(threshold)
    steps = checks.spacing(spacing, logits.dim() - 2)
    first = 0 if checks.flag("include_background", include_background) else 1
    ignored = checks.ignore_index(ignore_index)
    checked = checks.validate(validate, logits.device)
    checks.same_device("labels", checks.tensor("labels", labels), "logits", logits)
    labels = checks.labels_like("labels", checks.whole_labels(checks.tensor("labels", labels), checked), logits.shape)

    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    skipped = None if ignored is None else is_label(labels, ignored)
    if skipped is not None:
        wide = wide.masked_fill(skipped.unsqueeze(1), 0.0)
    probabilities = torch.softmax(wide, 1)[:, first:]
    with torch.no_grad():
        measure = _Distances(logits.shape[1], steps, first, alpha, backend)
        weight = measure.of_labels(labels, ignored, checked)
        if threshold is None:
            weight += measure.of_prediction(wide, skipped)
        else:
            weight += measure.of_masks(probabilities > threshold, skipped)
        classes = torch.arange(first, logits.shape[1], device=labels.device)
        truth = labels.unsqueeze(1) == classes.view(1, -1, *[1] * (labels.dim() - 1))
    values = (probabilities - truth.to(wide.dtype)).square() * weight.to(wide.dtype)
    if reduction == "none":
        return values.sum(1)
    total = values.sum()
    if reduction == "sum":
        return total
    pixels = max(labels.numel(), 1) if skipped is None else (~skipped).sum().clamp(min=1)
    return total / (pixels * len(classes))


class _Distances:
    """Distances to the boundary of every class [B, K, *S], to the power of `alpha`; 0 where there is no boundary."""

    def __init__(
        self, num_classes: int, spacing: Sequence[float], first: int, alpha: float, backend: str | None
    ) -> None:
        self.num_classes, self.spacing, self.first, self.alpha, self.backend = (
            num_classes,
            spacing,
            first,
            alpha,
            backend,
        )

    def of_labels(self, labels: Tensor, ignore_index: int | None, validate: bool) -> Tensor:
        """Of labels [B, *S]: the size of the boundary map is just this distance, on both sides of a boundary."""
        return self._power(self._signed(labels, self.num_classes, ignore_index, validate)[:, self.first :])

    def of_prediction(self, logits: Tensor, skipped: Tensor | None) -> Tensor:
        """Of the class of the largest logit."""
        predicted = logits.argmax(1)
        if skipped is None:
            return self.of_labels(predicted, None, False)
        # Not the caller's `ignore_index`: that may be a class, which can be predicted where labels have another.
        return self.of_labels(predicted.masked_fill(skipped, -1), -1, False)

    def of_masks(self, masks: Tensor, skipped: Tensor | None) -> Tensor:
        """Of every class against the rest, from masks [B, K, *S]."""
        found = torch.empty(masks.shape, dtype=torch.float32, device=masks.device)
        ignored = None if skipped is None else 2
        for k in range(masks.shape[1]):
            sides = masks[:, k].to(torch.uint8)
            if skipped is not None:
                sides = sides.masked_fill(skipped, 2)
            found[:, k] = self._signed(sides, 2, ignored, False)[:, 1]
        return self._power(found)

    def _signed(self, labels: Tensor, num_classes: int, ignore_index: int | None, validate: bool) -> Tensor:
        signed: Tensor = boundary_map(
            labels,
            num_classes,
            spacing=self.spacing,
            ignore_index=ignore_index,
            spatial_dims=labels.dim() - 1,
            validate=validate,
            backend=self.backend,
        )
        return signed

    def _power(self, signed: Tensor) -> Tensor:
        return signed.square_() if self.alpha == 2 else signed.abs_().pow_(self.alpha)


def _exponent(alpha: float) -> float:
    if not checks.number("alpha", alpha) > 0:
        raise ValueError(f"alpha: expected a number > 0, got {alpha}")
    return float(alpha)


def _threshold(threshold: float | None) -> float | None:
    if threshold is not None and not 0 < checks.number("threshold", threshold) < 1:
        raise ValueError(f"threshold: expected None or a number in (0, 1), got {threshold}")
    return threshold


class HausdorffLoss(nn.Module):
    """`hausdorff_loss` as a module; `forward(logits, labels, *, spacing=None)`.

    Args:
        alpha: Exponent of the distances.
        threshold: None for the largest logit; a number in (0, 1) to threshold each probability.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        include_background: False leaves channel 0 out.
        ignore_index: Label, possibly negative, of pixels that do not count.
        reduction: `"mean"`, `"sum"` or `"none"`.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend of the distances.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is not one of those expected.

    References:
        Karimi & Salcudean, IEEE TMI 2020. They weigh it, at every epoch, so that it and the Dice loss are equally
        large: `CombinedLoss` adds or fades the two.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.HausdorffLoss()
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> loss_fn(logits, torch.randint(3, (2, 16, 16))).backward()
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        threshold: float | None = None,
        spacing: float | Sequence[float] | None = None,
        include_background: bool = True,
        ignore_index: int | None = None,
        reduction: str = "mean",
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.alpha = _exponent(alpha)
        self.threshold = _threshold(threshold)
        self.spacing = checks.spacing_of_any_axes(spacing)
        self.include_background = checks.flag("include_background", include_background)
        self.ignore_index = checks.ignore_index(ignore_index)
        self.reduction = checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.validate = validate if validate is None else checks.flag("validate", validate)
        self.backend = checks.backend(backend)

    def forward(self, logits: Tensor, labels: Tensor, *, spacing: float | Sequence[float] | None = None) -> Tensor:
        """The loss of logits `[B, K, *S]`; `spacing` takes the place of the module's."""
        return hausdorff_loss(
            logits,
            labels,
            alpha=self.alpha,
            threshold=self.threshold,
            spacing=self.spacing if spacing is None else spacing,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            validate=self.validate,
            backend=self.backend,
        )

    def level_spacing(self, labels: Tensor, ratios: Sequence[float]) -> list[float]:
        """The spacing of a grid that is coarser than that of `labels` by one ratio per axis."""
        steps = checks.spacing(self.spacing, len(ratios))
        return [step * ratio for step, ratio in zip(steps, ratios, strict=True)]

    def extra_repr(self) -> str:
        """The settings that differ from the defaults."""
        defaults = {"threshold": None, "spacing": None, "include_background": True, "ignore_index": None}
        changed = [
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        ]
        return ", ".join([f"alpha={self.alpha:g}", *changed])
