"""What every backend is handed, and what follows from it alone.

A problem names all that a result depends on; operators, backends and the reference take it as it is, so that a new
option has one place. What is computed here is shared by fast backends and the reference alike: a mistake would stand on
both sides of every comparison, so tests check it against numbers written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class MapProblem(NamedTuple):
    """What distances and maps are made of: the first arguments of their operators, in this order."""

    labels: Tensor  # [B, *S]; contiguous where a backend sees them
    num_classes: int  # 0 for distances to any other label, where only equality counts
    spacing: Sequence[float]  # one per spatial axis
    class_max: Tensor | None  # float [B, K], what a rectified map is divided by instead of the images' own maxima
    black_border: bool  # the outside of an image is another label
    ignore_index: int | None
    validate: bool
    backend: str | None

    @property
    def shape(self) -> list[int]:
        """[B, K, *S]."""
        return [self.labels.shape[0], self.num_classes, *self.labels.shape[1:]]


class CompactProblem(NamedTuple):
    """A compact map that is to be written out: the first arguments of the operator `dense`, in this order."""

    labels: Tensor  # [B, *S]; contiguous where a backend sees them, like the tensors below
    foreground: Tensor  # [B, *S]
    background: Tensor | None  # [B, *S]; None: `background_value` everywhere
    background_value: float
    class_scale: Tensor | None  # [K]
    num_classes: int
    ignore_index: int | None
    backend: str | None

    @property
    def shape(self) -> list[int]:
        """[B, K, *S]."""
        return [self.labels.shape[0], self.num_classes, *self.labels.shape[1:]]


class LossProblem(NamedTuple):
    """What the loss is computed from: the arguments of its operators, in their order. Everything on one device."""

    logits: Tensor  # [B, K, *S], any strides
    maps: Tensor  # dense [B, K, *S], any strides; or the foreground [B, *S] of a compact map
    labels: Tensor | None  # [B, *S]; always there for a compact map
    background: Tensor | None  # [B, *S]; None: `background_value` everywhere
    class_scale: Tensor | None  # [K], or [groups, K]: multiplies the channels of the map
    image_count: Tensor | None  # int64 [B], pixels that count; None: to be counted if `ignore_index` is set
    background_value: float
    ignore_index: int | None
    include_background: bool  # False leaves channel 0 out of the sum
    reduction: str
    validate: bool
    backend: str | None
    # vmap folds its axis into the batch; the images then form so many equal runs, each reduced on its own.
    # 0 means one run and a scalar loss.
    groups: int

    @property
    def runs(self) -> int:
        """How many runs of images are reduced on their own."""
        return max(self.groups, 1)

    @property
    def channels(self) -> int:
        """How many channels the sum is over."""
        return self.logits.shape[1] - (0 if self.include_background else 1)

    @property
    def compact(self) -> bool:
        """Whether `maps` is the foreground of a compact map."""
        return self.maps.dim() == self.logits.dim() - 1

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for float64 logits, float32 for all others."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32


class Level(NamedTuple):
    """One resolution of a `StepProblem`: everything on one device, logits and labels not empty."""

    logits: Tensor  # [B, K, *S], any strides
    labels: Tensor  # [B, *S] or [B, 1, *S], any strides
    spacing: Sequence[float]  # one per spatial axis
    weight: float  # of its loss in the sum of all levels


class StepProblem(NamedTuple):
    """A training step from labels to loss and gradient, by the rectified maps of the labels.

    A plan that is made of it serves all tensors of the same shapes, strides, dtypes, device and alignment.
    """

    levels: tuple[Level, ...]
    black_border: bool
    ignore_index: int | None
    include_background: bool
    reduction: str  # "mean" or "sum", of every level on its own
    validate: bool
    with_grad: bool
    backend: str | None

    def of_map(self, labels: Tensor, num_classes: int, spacing: Sequence[float]) -> MapProblem:
        """The map of a level, of its labels [B, *S]."""
        return MapProblem(
            labels=labels,
            num_classes=num_classes,
            spacing=spacing,
            class_max=None,
            black_border=self.black_border,
            ignore_index=self.ignore_index,
            validate=self.validate,
            backend=self.backend,
        )

    def of_loss(self, logits: Tensor, labels: Tensor, foreground: Tensor, count: Tensor | None) -> LossProblem:
        """The loss of a level, of its labels and foreground [B, *S] and its pixels that count, [B]."""
        return LossProblem(
            logits=logits,
            maps=foreground,
            labels=labels,
            background=None,
            class_scale=None,
            image_count=count,
            background_value=1.0,
            ignore_index=self.ignore_index,
            include_background=self.include_background,
            reduction=self.reduction,
            validate=self.validate,
            backend=self.backend,
            groups=0,
        )

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for float64 logits, float32 for all others."""
        return torch.float64 if self.levels[0].logits.dtype == torch.float64 else torch.float32


class StepResult(NamedTuple):
    """What a plan gives: all of it fresh. The maps are for derivatives of higher order."""

    loss: Tensor  # the weighted sum, 0-dim in the `loss_dtype` of the logits
    # Of the weighted sum, one a level, laid out as `torch.empty_like` of the logits does; empty without `with_grad`.
    # Of float16 they lack 1/(N*K) and the weight (see `scales_gradient_at_once`).
    grads: Sequence[Tensor]
    foregrounds: Sequence[Tensor] = ()  # float32 [B, *S], one a level
    counts: Sequence[Tensor] = ()  # int64 [B], one a level, if there is an `ignore_index`


def scales_gradient_at_once(dtype: torch.dtype) -> bool:
    """Whether 1/(N*K) goes into the gradient in the one pass: float16 would flush half of it to 0."""
    return dtype != torch.float16


class BadInputError(ValueError):
    """A value that a backend refuses, found where it was read anyway.

    Attributes:
        argument: `"labels"`, or `"class_max"` for a maximum of a present class that no distance can be divided by.
        index: Flat index of the first one.
    """

    def __init__(self, argument: str, index: int) -> None:
        super().__init__(argument, index)
        self.argument, self.index = argument, index

    def __str__(self) -> str:
        return f"{self.argument}: bad value at flat index {self.index}"


# --- labels ---------------------------------------------------------------------------------------------------


def is_label(labels: Tensor, value: int) -> Tensor:
    """Where `labels == value`, also for a value that their dtype cannot hold: PyTorch would wrap it (-1 to 255)."""
    limits = torch.iinfo(labels.dtype)
    if limits.min <= value <= limits.max:
        return labels == value
    return torch.zeros_like(labels, dtype=torch.bool)


def is_no_class(labels: Tensor, num_classes: int) -> Tensor:
    """Where a label is outside [0, num_classes)."""
    return (labels < 0) | (labels.long() >= num_classes)


def count_valid(labels: Tensor, ignore_index: int | None) -> Tensor:
    """How many pixels of every image count, int64 [B]."""
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else ~is_label(labels, ignore_index)
    return valid.flatten(1).sum(1)


def first_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
    """Flat index of the first label outside [0, num_classes) that is not ignored; -1 if there is none."""
    bad = is_no_class(labels, num_classes)
    if ignore_index is not None:
        bad &= ~is_label(labels, ignore_index)
    found = bad.flatten().nonzero()
    return int(found[0]) if len(found) else -1


def first_bad_maximum(labels: Tensor, class_max: Tensor) -> int:
    """Flat index of the first [B, K] maximum of a present class that is not positive and finite, or -1."""
    present = torch.stack([is_label(labels, k).flatten(1).any(1) for k in range(class_max.shape[1])], 1)
    good = (class_max > 0) & torch.isfinite(class_max)
    found = (present & ~good).flatten().nonzero()
    return int(found[0]) if len(found) else -1


def refuse_bad_values(problem: MapProblem) -> None:
    """Raises `BadInputError` for the first bad label, else for the first bad maximum. A GPU is waited for."""
    refuse_bad_label(problem.labels, problem.num_classes, problem.ignore_index)
    bad = -1 if problem.class_max is None else first_bad_maximum(problem.labels, problem.class_max)
    if bad >= 0:
        raise BadInputError("class_max", bad)


def refuse_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raises `BadInputError` for the first bad label, if there is one."""
    bad = first_bad_label(labels, num_classes, ignore_index)
    if bad >= 0:
        raise BadInputError("labels", bad)


# --- the loss -------------------------------------------------------------------------------------------------


def precision_of(device: torch.device) -> torch.dtype:
    """The most precise type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def mean_divisor(problem: LossProblem) -> Tensor:
    """N * K of every run, float64 [runs]; at least 1, so that nothing left gives 0 and no NaN."""
    logits, count = problem.logits, problem.image_count
    precision = precision_of(logits.device)
    if problem.ignore_index is None:
        elements = logits[:, 0].numel() // problem.runs * problem.channels
        return torch.full((problem.runs,), max(elements, 1), dtype=precision, device=logits.device)
    if count is None:
        assert problem.labels is not None
        count = count_valid(problem.labels, problem.ignore_index)
    return (count.reshape(problem.runs, -1).sum(1) * problem.channels).clamp(min=1).to(precision)


def per_image(values: Tensor, problem: LossProblem) -> Tensor:
    """One value for every image from one for every run."""
    images = len(problem.logits) // problem.runs
    return values.unsqueeze(1).expand(problem.runs, images).reshape(-1).contiguous()


def gradient_scale(problem: LossProblem, upstream: Tensor | None, divide: bool) -> tuple[Tensor | None, Tensor | None]:
    """What multiplies a gradient: a factor for every image, float64 [B], and one for every pixel, [B, *S]."""
    if problem.reduction == "none":
        return None, None if upstream is None else upstream.to(problem.loss_dtype).contiguous()
    scale = None if upstream is None else upstream.to(precision_of(upstream.device)).reshape(-1)
    if problem.reduction == "mean" and divide:
        divisor = mean_divisor(problem)
        scale = divisor.reciprocal() if scale is None else scale / divisor
    return None if scale is None else per_image(scale, problem), None


def scaled_gradient(problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool) -> Tensor:
    """A gradient that was kept times the incoming one, [runs], and over N * K if `divide`: see `Backend`."""
    factor, _ = gradient_scale(problem, upstream, divide)
    assert factor is not None
    factor = factor.to(grad.dtype if grad.dtype == torch.float64 else torch.float32)
    factor = factor.view(-1, *[1] * (grad.dim() - 1))
    return grad.mul_(factor) if in_place else (grad * factor).to(grad.dtype)


def reduced(image_sums: Tensor, problem: LossProblem) -> Tensor:
    """The loss of every run from the sums of its images, float64 [B]."""
    sums = image_sums.reshape(problem.runs, -1).sum(1)
    return (sums / mean_divisor(problem) if problem.reduction == "mean" else sums).to(problem.loss_dtype)


def all_class_scales(problem: LossProblem) -> Tensor | None:
    """`class_scale`, with 0 for a channel that is left out of the sum."""
    scale = problem.class_scale
    if problem.include_background:
        return scale
    included = torch.arange(problem.logits.shape[1], device=problem.logits.device) > 0
    return included.to(torch.float32) if scale is None else torch.where(included, scale, 0.0)
