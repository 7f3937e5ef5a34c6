"""The active contour loss: the region term is a region-wise loss, the length term is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends.problem import is_label
from rwkernels.losses.modules import RegionWiseLoss
from rwkernels.losses.problem import labels_of
from rwkernels.maps.compact import RectifiedMap


def _steps_along(values: Tensor, axis: int) -> Tensor:
    """Difference to the next pixel along `axis`; 0 at the last one, past which nothing is known."""
    if values.shape[axis] == 0:
        return torch.zeros_like(values)
    size = values.shape[axis]
    step = values.narrow(axis, 1, size - 1) - values.narrow(axis, 0, size - 1)
    return torch.cat([step, torch.zeros_like(values.narrow(axis, 0, 1))], axis)


def _squared_slope(values: Tensor, counts: Tensor | None, spacing: Sequence[float]) -> Tensor:
    """Squared length of the gradient of one class [B, *S], by forward differences."""
    total = torch.zeros_like(values)
    for axis, step in enumerate(spacing, start=1):
        total = total + (_links(_steps_along(values, axis), counts, axis) / step).square()
    return total


def _links(steps: Tensor, counts: Tensor | None, axis: int) -> Tensor:
    """Differences between pixels that both count."""
    if counts is None:
        return steps
    return steps * (counts & counts.roll(-1, axis)).to(steps.dtype)


class _Length(torch.autograd.Function):
    """Half the sum over classes of the length of the gradient of every pixel, [B, *S], from [B, K, *S].

    Only the probabilities are kept; the backward computes the rest again, class by class, and is differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(probabilities: Tensor, counts: Tensor | None, spacing: Sequence[float], epsilon: float) -> Tensor:
        total = torch.zeros_like(probabilities[:, 0])
        for values in probabilities.unbind(1):
            total = total + (_squared_slope(values, counts, spacing) + epsilon).sqrt()
        return 0.5 * total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        probabilities, counts, ctx.spacing, ctx.epsilon = inputs
        ctx.save_for_backward(probabilities, counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, counts = ctx.saved_tensors
        classes = [
            _length_gradient(values, counts, ctx.spacing, ctx.epsilon, upstream) for values in probabilities.unbind(1)
        ]
        return torch.stack(classes, 1), None, None, None


def _length_gradient(
    values: Tensor, counts: Tensor | None, spacing: Sequence[float], epsilon: float, upstream: Tensor
) -> Tensor:
    """Minus the divergence of the unit gradient. Where the gradient is zero its length has a kink: 0 is taken there."""
    squared = _squared_slope(values, counts, spacing) + epsilon
    flat = squared == 0
    pull = 0.5 * upstream * torch.where(flat, 0.0, torch.where(flat, 1.0, squared).rsqrt())
    gradient = torch.zeros_like(values)
    for axis, step in enumerate(spacing, start=1):
        flux = pull * _links(_steps_along(values, axis), counts, axis) / step**2
        # The last one along the axis is 0, so that nothing comes round.
        gradient = gradient - flux + flux.roll(1, axis)
    return gradient


def contour_length(
    logits: Tensor,
    *,
    spacing: float | Sequence[float] | None = None,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    epsilon: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Length of the contours between the classes of a softmax: its total variation, discretised.

    Half the sum over classes and pixels of the length of the gradient of `softmax(logits)`, by forward differences with
    nothing beyond the border. Every contour lies between two classes and is counted once: for two classes this is the
    length term of Chen et al. for the probability of one. Of a certain segmentation whose contours run along an axis it
    is their length in units of `spacing`, in three dimensions their area.

    Args:
        logits: float32, float64, bfloat16 or float16 `[B, K, *S]` with one to three spatial axes.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        labels: Integers `[B, *S]` or `[B, 1, *S]`, only for `ignore_index`.
        ignore_index: Label of pixels that do not count: differences with them are left out, and their logits may hold
            anything.
        epsilon: Added under the root: 0 is the length itself, whose gradient where the probabilities are locally
            constant is taken as 0. Chen et al. add 1e-8.
        reduction: `"sum"`; `"mean"` divides by N*K as `region_wise_loss` does; `"none"` gives every pixel's part.

    Returns:
        float32 (float64 for float64 logits): a scalar, or `[B, *S]` for `"none"`. First and second derivatives are
        exact.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A shape, `spacing` or `epsilon` is wrong, or `ignore_index` comes without `labels`.

    References:
        Chen et al., "Learning active contour models for medical image segmentation", CVPR 2019, length term; Rudin,
        Osher & Fatemi 1992 (total variation).

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1]).expand(1, 4, 6)  # a contour of 4 pixels between two halves
        >>> logits = 100.0 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1)
        >>> rw.contour_length(logits, reduction="sum")
        tensor(4.)
    """
    logits = checks.logits(logits)
    steps = checks.spacing(spacing, logits.dim() - 2)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    epsilon = checks.number("epsilon", epsilon)
    if epsilon < 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon}")
    counts = _counting(logits, labels, checks.ignore_index(ignore_index))
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if counts is not None:
        wide = wide.masked_fill(~counts.unsqueeze(1), 0.0)
    probabilities = torch.softmax(wide, 1)
    apply: Callable[..., Tensor] = _Length.apply  # typed in some releases of torch only
    lengths = apply(probabilities, counts, steps, epsilon)
    for step in steps:
        lengths = lengths * step
    if counts is not None:
        lengths = lengths * counts
    if reduction == "none":
        return lengths
    total = lengths.sum()
    if reduction == "sum":
        return total
    return total / (_pixels(lengths, counts) * logits.shape[1])


def _pixels(like: Tensor, counts: Tensor | None) -> Tensor | int:
    """How many pixels count; at least 1, so that nothing left gives 0."""
    return max(like.numel(), 1) if counts is None else counts.sum().clamp(min=1)


def _counting(logits: Tensor, labels: Any, ignore_index: int | None) -> Tensor | None:
    """Which pixels count [B, *S]; None for all."""
    if labels is None:
        if ignore_index is not None:
            raise ValueError("labels: expected labels, which ignore_index needs, got None")
        return None
    labels = checks.labels_like("labels", labels, logits.shape)
    checks.same_device("labels", labels, "logits", logits)
    if ignore_index is None:
        return None
    return ~is_label(labels, ignore_index)


class ActiveContourLoss(RegionWiseLoss):
    """Active contour loss without edges: the RW-AC region term plus a length term.

    `region_wise_loss(logits, active_contour_map(labels)) + length_weight * contour_length(logits)`. For two classes and
    `reduction="sum"` it is the loss of Chen et al. with `lambda = 1` there, `length_weight = 1` here: their region term
    `sum u (1 - v) + (1 - u) v` is the region-wise loss with the active contour map.

    Args:
        length_weight: Factor of the length term.
        epsilon: Under the root of the length term (see `contour_length`).
        spacing: Size of a pixel, for the length. Default 1.
        ignore_index: Label, possibly negative, of pixels that do not count.
        reduction: `"mean"` (both terms over N*K), `"sum"` or `"none"`.
        recompute: Compute the gradient of the region term in the backward (see `region_wise_loss`).
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend of the region term; the length term is PyTorch on every device.

    Shape:
        `forward(logits, labels_or_maps, labels=None, *, spacing=None)`, as of `RegionWiseLoss`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices, class counts or label values are wrong.

    References:
        Chan & Vese 2001; Chen et al., CVPR 2019; as a region-wise loss in Valverde & Tohka, section 3.1.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.ActiveContourLoss(length_weight=0.5)
        >>> logits = torch.zeros(2, 3, 16, 16, requires_grad=True)
        >>> loss_fn(logits, torch.randint(3, (2, 16, 16))).backward()
    """

    def __init__(
        self,
        *,
        length_weight: float = 1.0,
        epsilon: float = 0.0,
        spacing: float | Sequence[float] | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        recompute: bool = False,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            "active_contour",
            spacing=spacing,
            ignore_index=ignore_index,
            reduction=reduction,
            recompute=recompute,
            validate=validate,
            backend=backend,
        )
        self.length_weight = checks.number("length_weight", length_weight)
        self.epsilon = checks.number("epsilon", epsilon)
        if self.epsilon < 0:
            raise ValueError(f"epsilon: expected a number >= 0, got {self.epsilon}")

    def forward(
        self,
        logits: Tensor,
        labels_or_maps: Tensor | RectifiedMap,
        labels: Tensor | None = None,
        *,
        spacing: float | Sequence[float] | None = None,
    ) -> Tensor:
        """The loss; see the class for shapes."""
        region = super().forward(logits, labels_or_maps, labels, spacing=spacing)
        given: Any = None
        if self.ignore_index is not None:
            if isinstance(labels_or_maps, RectifiedMap):
                given = labels_or_maps.labels
            else:
                given = labels_of(labels_or_maps if labels is None else labels, logits, self.validate)
        length = contour_length(
            logits,
            spacing=self.spacing if spacing is None else spacing,
            labels=given,
            ignore_index=self.ignore_index,
            epsilon=self.epsilon,
            reduction=self.reduction,
        )
        return region + self.length_weight * length

    def extra_repr(self) -> str:
        """The settings."""
        shown = f"length_weight={self.length_weight}" + (f", epsilon={self.epsilon}" if self.epsilon else "")
        return f"{super().extra_repr()}, {shown}"
