"""The slow and obviously right version of distances and maps.

Equation numbers are those of Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation" (Pattern
Recognition 2022, doi 10.1016/j.patcog.2022.109208).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkernels.backends.equations import dense
from rwkernels.backends.problem import (
    CompactProblem,
    MapProblem,
    count_valid,
    is_label,
    is_no_class,
    precision_of,
    refuse_bad_values,
)


def _shifted(values: Tensor, axis: int, offset: int, fill: float) -> Tensor:
    """`values` moved by `offset` pixels along `axis`; what comes from outside is `fill`."""
    moved = torch.full_like(values, fill)
    length = values.shape[axis] - abs(offset)
    if length > 0:
        source, target = (abs(offset), 0) if offset < 0 else (0, offset)
        moved.narrow(axis, target, length).copy_(values.narrow(axis, source, length))
    return moved


def _min_plus(labels: Tensor, squared: Tensor, axis: int, step: float, black_border: bool) -> Tensor:
    """One axis of the separable transform: min over y' of (y-y')^2 + (same label ? squared(y') : 0)."""
    best = squared
    for offset in range(1, labels.shape[axis]):
        cost = (offset * step) ** 2
        for signed in (offset, -offset):
            same = _shifted(labels, axis, signed, 0) == labels
            there = torch.where(same, _shifted(squared, axis, signed, torch.inf), 0.0)
            outside = torch.isinf(_shifted(torch.zeros_like(squared), axis, signed, torch.inf))
            best = torch.minimum(best, torch.where(outside, torch.inf, there + cost))
    if black_border:
        index = torch.arange(labels.shape[axis], dtype=squared.dtype, device=squared.device)
        to_border = torch.minimum(index + 1, labels.shape[axis] - index) * step
        shape = [1] * labels.dim()
        shape[axis] = -1
        best = torch.minimum(best, to_border.square().view(shape))
    return best


def distance(
    labels: Tensor,
    spacing: Sequence[float],
    squared: bool = False,
    black_border: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Distance to the nearest pixel of another label, [B, *S]; inf where the image has one label only."""
    result = torch.full(labels.shape, torch.inf, dtype=dtype, device=labels.device)
    for axis, step in zip(range(1, labels.dim()), spacing, strict=True):
        result = _min_plus(labels, result, axis, step, black_border)
    return result if squared else result.sqrt()


def class_distance(
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    squared: bool = False,
    ignore_index: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Distance to the nearest pixel of every class, [B, K, *S]; inf where the image lacks the class.

    Pixels that are ignored belong to no class, not even where `ignore_index` is one of them.
    """
    channels = []
    for k in range(num_classes):
        is_class = is_label(labels, k) if k != ignore_index else torch.zeros_like(labels, dtype=torch.bool)
        to_other = distance(is_class, spacing, squared, dtype=dtype)
        channels.append(torch.where(is_class, 0.0, to_other))
    return torch.stack(channels, 1)


def class_max(labels: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """Largest of `values` over the pixels of every class of every image, [B, K]; 0 for an absent class."""
    channels = [
        torch.where(is_label(labels, k), values, 0.0).flatten(1).amax(1)
        if labels[0:1].numel()
        else values.new_zeros(len(labels))
        for k in range(num_classes)
    ]
    return torch.stack(channels, 1)


def rectified(
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_maximum: Tensor | None = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Foreground of the rectified map (Eq. 4), [B, *S]: -d over the class's largest d, or over the given one.

    Pixels that are ignored hold 0, labels outside [0, num_classes) NaN.
    """
    d = distance(labels, spacing, black_border=black_border, dtype=dtype)
    return rectified_distance(labels, d, num_classes, class_maximum, ignore_index)


def rectified_distance(
    labels: Tensor, d: Tensor, num_classes: int, class_maximum: Tensor | None, ignore_index: int | None
) -> Tensor:
    """Foreground of the rectified map (Eq. 4) from distances [B, *S] to another label."""
    largest = class_max(labels, d, num_classes) if class_maximum is None else class_maximum.to(d)
    foreground = torch.full_like(d, torch.nan)
    for k in range(num_classes):
        divisor = largest[:, k].view(-1, *[1] * (labels.dim() - 1))
        ratio = torch.where(torch.isinf(d), 1.0, (d / divisor).clamp(max=1.0))
        foreground = torch.where(is_label(labels, k), -ratio, foreground)
    if ignore_index is not None:
        foreground = torch.where(is_label(labels, ignore_index), 0.0, foreground)
    return foreground


def boundary(
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    absent: float = 0.0,
    inside_offset: float = 0.0,
    ignore_index: int | None = None,
    black_border: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Boundary map (Eq. 3), [B, K, *S]: minus the distance inside a class, plus the distance outside.

    Pixels that are ignored hold 0, labels outside [0, num_classes) NaN.
    """
    inside = distance(labels, spacing, black_border=black_border, dtype=dtype)
    inside = torch.where(torch.isinf(inside), 0.0, inside_offset - inside)
    outside = class_distance(labels, num_classes, spacing, ignore_index=ignore_index, dtype=dtype)
    channels = []
    for k in range(num_classes):
        channel = torch.where(is_label(labels, k), inside, outside[:, k])
        channels.append(torch.where(torch.isinf(channel), absent, channel))
    maps = torch.stack(channels, 1)
    maps = torch.where(is_no_class(labels, num_classes).unsqueeze(1), torch.nan, maps)
    if ignore_index is not None:
        maps = torch.where(is_label(labels, ignore_index).unsqueeze(1), 0.0, maps)
    return maps


# --- the functions of `Backend`, over the definitions above ---------------------------------------------------


def _finished(problem: MapProblem) -> None:
    if problem.validate:
        refuse_bad_values(problem)


def fill_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    labels = problem.labels
    out.copy_(distance(labels, problem.spacing, squared, problem.black_border, precision_of(labels.device)))


def pass_axis(field: Tensor, labels: Tensor, axis: int, unit: float, first: bool, black_border: bool) -> None:
    """See `Backend`. In float32, as every backend rounds: pixels are the unit, so that squares are whole numbers."""
    start = torch.full_like(field, torch.inf) if first else field * unit
    field.copy_(_min_plus(labels, start, axis, 1.0, black_border))


def largest_of_classes(field: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See `Backend`."""
    return class_max(labels.unsqueeze(0), field.unsqueeze(0), num_classes)[0]


def rectify(
    field: Tensor,
    labels: Tensor,
    num_classes: int,
    squared_max: Tensor,
    class_max: Tensor | None,
    spacing: float,
    ignore_index: int | None,
) -> None:
    """See `Backend`."""
    d = field.double().sqrt() * spacing
    largest = squared_max.double().sqrt() * spacing if class_max is None else class_max.double()
    foreground = rectified_distance(labels[None], d[None], num_classes, largest[None], ignore_index)
    field.copy_(foreground[0])


def fill_class_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
    precision = precision_of(labels.device)
    out.copy_(class_distance(labels, num_classes, problem.spacing, squared, ignore_index, precision))
    _finished(problem)


def fill_rectified(out: Tensor, count: Tensor, problem: MapProblem) -> None:
    """See `Backend`."""
    out.copy_(
        rectified(
            problem.labels,
            problem.num_classes,
            problem.spacing,
            problem.class_max,
            problem.ignore_index,
            problem.black_border,
            precision_of(problem.labels.device),
        )
    )
    count.copy_(count_valid(problem.labels, problem.ignore_index))
    _finished(problem)


def fill_boundary(out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
    """See `Backend`."""
    out.copy_(
        boundary(
            problem.labels,
            problem.num_classes,
            problem.spacing,
            absent,
            inside_offset,
            problem.ignore_index,
            problem.black_border,
            precision_of(problem.labels.device),
        )
    )
    _finished(problem)


def fill_dense(out: Tensor, problem: CompactProblem) -> None:
    """See `Backend`."""
    background = problem.background_value if problem.background is None else problem.background
    out.copy_(
        dense(
            problem.labels,
            problem.foreground,
            background,
            problem.num_classes,
            problem.class_scale,
            problem.ignore_index,
        )
    )
