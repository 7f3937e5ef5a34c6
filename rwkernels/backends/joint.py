"""What a weighted sum of losses over one softmax is computed from, and what follows from its class sums alone.

Region-wise loss, cross-entropy, focal loss and soft Dice are functions of the same probabilities y and labels. All that
they need of the pixels are a few sums over every image (`Sums`): the loss is a function of those (`value`), and its
derivative by them (`factors`) is all that a second look at a pixel needs for the gradient. What is computed here is
shared by fast backends and the reference alike, so tests check it against autograd and against other libraries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkernels.backends.problem import LossProblem, precision_of

SMALLEST = 1e-8  # of a denominator, as nnU-Net has it
REGION_WISE, CROSS_ENTROPY, FOCAL, DICE = range(4)  # places in `JointProblem.weights`
# How classes are weighed by their volumes T: generalised Dice (Sudre et al. 2017) takes 1 / T^2. "": every class on its
# own, without such weights.
VOLUMES = ("", "square", "simple", "uniform")


class Overlap(NamedTuple):
    """Which overlap of prediction and target is measured, per class.

    With intersection I, prediction P and target T of a class the score is
    `(numerator * I + smooth_nr) / (intersection * I + prediction * P + target * T + smooth_dr)` and the loss
    `offset - score`. Dice is `2 I / (P + T)`, Jaccard `2 I / (2 P + 2 T - 2 I)`, Tversky
    `I / ((1 - alpha - beta) I + alpha P + beta T)`.
    """

    numerator: float
    intersection: float
    prediction: float
    target: float
    smooth_nr: float
    smooth_dr: float
    offset: float


class JointProblem(NamedTuple):
    """A weighted sum of losses: the arguments of its operators, in their order. Everything on one device."""

    logits: Tensor  # [B, K, *S], any strides
    labels: Tensor  # [B, *S]
    weights: Tensor  # float64 [4] (float32 where there is none): of region-wise, cross-entropy, focal and Dice loss
    maps: Tensor | None  # as in a `LossProblem`; None: no region-wise loss
    background: Tensor | None
    class_scale: Tensor | None  # [K]
    entropy_weight: Tensor | None  # [K], of cross-entropy
    focal_weight: Tensor | None  # [K]
    dice_weight: Tensor | None  # [K]
    joined: Tensor | None  # [R, 3 K + 3], sums to take instead of the batch's own: those of several processes
    background_value: float
    ignore_index: int | None
    map_background: bool  # False leaves channel 0 out of the region-wise loss
    cross_entropy: bool
    label_smoothing: float
    focal: bool
    gamma: float
    dice: bool
    dice_background: bool  # False leaves class 0 out of Dice
    squared: bool  # P is the sum of y^2
    whole_batch: bool  # sums over the batch before the quotient
    volumes: str
    overlap: list[float]  # the fields of an `Overlap`
    reduction: str  # "mean" or "sum"
    validate: bool
    backend: str | None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits.shape[1]

    @property
    def pixels(self) -> int:
        """How many pixels the batch has, ignored ones too."""
        return self.logits.numel() // self.num_classes

    @property
    def columns(self) -> int:
        """How many sums an image has."""
        return 3 * self.num_classes + 3

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for float64 logits, float32 for all others."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    @property
    def wants_counts(self) -> bool:
        """Whether a divisor depends on the labels, so that they are counted before a single pass can divide."""
        weighed = self.cross_entropy and self.entropy_weight is not None
        return self.reduction == "mean" and (self.ignore_index is not None or weighed)

    def region_wise(self) -> LossProblem:
        """The region-wise part; where there is none, its map stands for nothing."""
        return LossProblem(
            logits=self.logits,
            maps=self.logits if self.maps is None else self.maps,
            labels=self.labels,
            background=self.background,
            class_scale=self.class_scale,
            image_count=None,
            background_value=self.background_value,
            ignore_index=self.ignore_index,
            include_background=self.map_background,
            reduction=self.reduction,
            validate=self.validate,
            backend=self.backend,
            groups=0,
        )


TENSORS = 10  # the first fields of `JointProblem`


class Sums(NamedTuple):
    """What is summed over the pixels of every image that count: the columns of a [B, 3 K + 3] tensor, in this order.

    Without Dice nothing needs intersection and prediction, which may then be 0.
    """

    intersection: Tensor  # [B, K], y of the class at its pixels
    prediction: Tensor  # [B, K], y everywhere; or y^2
    target: Tensor  # [B, K], pixels of the class; 0 if neither Dice nor `wants_counts` asks for them
    region_wise: Tensor  # [B], sum_k y_k z_k
    cross_entropy: Tensor  # [B]
    focal: Tensor  # [B]

    @classmethod
    def of(cls, columns: Tensor) -> Sums:
        """The sums as views of their columns."""
        k = (columns.shape[1] - 3) // 3
        classes = [columns[:, part * k : (part + 1) * k] for part in range(3)]
        return cls(*classes, *columns[:, 3 * k :].unbind(1))


def empty_sums(problem: JointProblem) -> Tensor:
    """Room for the sums of every image, all 0."""
    logits = problem.logits
    return logits.new_zeros((len(logits), problem.columns), dtype=precision_of(logits.device))


def entropy_weights(problem: JointProblem, dtype: torch.dtype) -> Tensor:
    """Cross-entropy's weight of every class, [K]."""
    if problem.entropy_weight is None:
        return torch.ones(problem.num_classes, dtype=dtype, device=problem.logits.device)
    return problem.entropy_weight.to(dtype)


class _Divisors(NamedTuple):
    """What the sums over pixels are divided by; all at least as large that nothing left gives 0 and no NaN."""

    region_wise: Tensor | float
    cross_entropy: Tensor | float
    focal: Tensor | float


def _divisors(problem: JointProblem, target: Tensor) -> _Divisors:
    if problem.reduction == "sum":
        return _Divisors(1.0, 1.0, 1.0)
    pixels: Tensor | float = float(max(problem.pixels, 1))
    if problem.ignore_index is not None or problem.joined is not None:
        pixels = target.sum().clamp(min=1)
    classes = problem.num_classes
    weighed: Tensor | float = pixels
    if problem.cross_entropy and problem.entropy_weight is not None:
        weighed = (target.sum(0) * entropy_weights(problem, target.dtype)).sum()
        weighed = torch.where(weighed > 0, weighed, 1.0)
    return _Divisors(pixels * (classes - (0 if problem.map_background else 1)), weighed, pixels * classes)


def value(problem: JointProblem, columns: Tensor) -> Tensor:
    """The loss from the sums [B, 3 K + 3], which it is differentiable by; a scalar in the `loss_dtype`."""
    sums, weights = Sums.of(columns if problem.joined is None else problem.joined), problem.weights
    divisors = _divisors(problem, sums.target)
    total = columns.new_zeros(())
    if problem.maps is not None:
        total = total + weights[REGION_WISE] * (sums.region_wise.sum() / divisors.region_wise)
    if problem.cross_entropy:
        total = total + weights[CROSS_ENTROPY] * (sums.cross_entropy.sum() / divisors.cross_entropy)
    if problem.focal:
        total = total + weights[FOCAL] * (sums.focal.sum() / divisors.focal)
    if problem.dice:
        quotient = _quotient(problem, sums)
        losses = (quotient.offset - quotient.numerator / quotient.denominator) * quotient.weight
        total = total + weights[DICE] * (losses.sum() / quotient.divisor)
    return total.to(problem.loss_dtype)


class _Quotient(NamedTuple):
    """The scores of Dice and its kin: `numerator / denominator`, [G, C] for G images (or 1) and C classes (or 1)."""

    numerator: Tensor
    denominator: Tensor
    live: Tensor  # where the denominator is not at its smallest
    share: Tensor  # [G, C] or [1], what a class's sums count for in its quotient
    weight: Tensor  # [1, C], of the losses
    offset: float
    divisor: int


def _quotient(problem: JointProblem, sums: Sums) -> _Quotient:
    first, overlap = 0 if problem.dice_background else 1, Overlap(*problem.overlap)
    intersection, prediction, target = (part[:, first:] for part in sums[:3])
    if problem.whole_batch:
        intersection, prediction, target = (part.sum(0, keepdim=True) for part in (intersection, prediction, target))
    share = _shares(problem, target)
    numerator = overlap.numerator * intersection * share
    union = overlap.intersection * intersection + overlap.prediction * prediction + overlap.target * target
    denominator = union * share
    if problem.volumes:
        numerator, denominator = numerator.sum(1, keepdim=True), denominator.sum(1, keepdim=True)
    denominator = denominator + overlap.smooth_dr
    weight = target.new_ones((1, 1))
    if problem.dice_weight is not None:
        weight = problem.dice_weight.to(target.dtype)[first:].unsqueeze(0)
    return _Quotient(
        numerator=numerator + overlap.smooth_nr,
        denominator=denominator.clamp(min=SMALLEST),
        live=~(denominator < SMALLEST),
        share=share,
        weight=weight,
        offset=overlap.offset,
        divisor=max(numerator.numel(), 1) if problem.reduction == "mean" else 1,
    )


def _shares(problem: JointProblem, target: Tensor) -> Tensor:
    """Generalised Dice: the weights of the classes by their volumes; a class that is absent has the largest of all."""
    if problem.volumes in ("", "uniform"):
        return target.new_ones(1)
    share = (target * target if problem.volumes == "square" else target).reciprocal()
    absent = torch.isinf(share)
    share = share.masked_fill(absent, 0.0)
    largest = share.amax(1, keepdim=True) if share.shape[1] else share
    return torch.where(absent, largest, share)


def factors(problem: JointProblem, columns: Tensor, upstream: Tensor | None) -> Tensor:
    """The derivative of the loss by its sums, times the incoming gradient: [B, 2 K + 3].

    In the order of `Sums`, without the target, which no logit changes.
    """
    sums, weights = Sums.of(columns if problem.joined is None else problem.joined), problem.weights
    k, precision = problem.num_classes, columns.dtype
    found = columns.new_zeros((len(problem.logits), 2 * k + 3))
    divisors = _divisors(problem, sums.target)
    if problem.dice:
        quotient = _quotient(problem, sums)
        overlap, first = Overlap(*problem.overlap), 0 if problem.dice_background else 1
        score = quotient.numerator / quotient.denominator
        outer = quotient.weight * (weights[DICE] / quotient.divisor) / quotient.denominator
        inner = torch.where(quotient.live, outer * score, 0.0)
        by_intersection = quotient.share * (overlap.intersection * inner - overlap.numerator * outer)
        found[:, first:k] = by_intersection
        found[:, k + first : 2 * k] = quotient.share * overlap.prediction * inner
    if problem.maps is not None:
        found[:, 2 * k] = weights[REGION_WISE] / divisors.region_wise
    if problem.cross_entropy:
        found[:, 2 * k + 1] = weights[CROSS_ENTROPY] / divisors.cross_entropy
    if problem.focal:
        found[:, 2 * k + 2] = weights[FOCAL] / divisors.focal
    return found if upstream is None else found * upstream.to(precision)


def scaled(grad: Tensor, upstream: Tensor, *, in_place: bool) -> Tensor:
    """A gradient that was kept times the incoming one, a scalar."""
    factor = upstream.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    return grad.mul_(factor) if in_place else (grad * factor).to(grad.dtype)
