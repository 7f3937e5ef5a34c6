"""The slow and obviously right version of distances and maps; the loss over them is in `reference.py`.

Equation numbers are those of Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation" (Pattern
Recognition 2022, doi 10.1016/j.patcog.2022.109208).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_label(labels: Tensor, value: int) -> Tensor:
    """Where `labels == value`, also for a value that their dtype cannot hold: PyTorch would wrap it (-1 to 255)."""
    limits = torch.iinfo(labels.dtype)
    if limits.min <= value <= limits.max:
        return labels == value
    return torch.zeros_like(labels, dtype=torch.bool)


def is_no_class(labels: Tensor, num_classes: int) -> Tensor:
    """Where a label is outside [0, num_classes)."""
    return (labels < 0) | (labels.long() >= num_classes)


def first_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
    """Flat index of the first label outside [0, num_classes) that is not ignored; -1 if there is none."""
    bad = is_no_class(labels, num_classes)
    if ignore_index is not None:
        bad &= ~is_label(labels, ignore_index)
    found = bad.flatten().nonzero()
    return int(found[0]) if len(found) else -1


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


def count_valid(labels: Tensor, ignore_index: int | None) -> Tensor:
    """How many pixels of every image count, int64 [B]."""
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else ~is_label(labels, ignore_index)
    return valid.flatten(1).sum(1)


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


def first_bad_maximum(labels: Tensor, class_maximum: Tensor) -> int:
    """Flat index of the first [B, K] maximum of a present class that is not positive and finite, or -1."""
    present = torch.stack([is_label(labels, k).flatten(1).any(1) for k in range(class_maximum.shape[1])], 1)
    good = (class_maximum > 0) & torch.isfinite(class_maximum)
    found = (present & ~good).flatten().nonzero()
    return int(found[0]) if len(found) else -1


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


def dense(
    labels: Tensor,
    foreground: Tensor,
    background: Tensor | float,
    num_classes: int,
    class_scale: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """The map [B, K, *S] that a compact one stands for: foreground at the true class, background elsewhere."""
    if not isinstance(background, Tensor):
        background = torch.full_like(foreground, background)
    channels = [torch.where(is_label(labels, k), foreground, background) for k in range(num_classes)]
    maps = torch.stack(channels, 1)
    maps = torch.where(is_no_class(labels, num_classes).unsqueeze(1), torch.nan, maps)
    if class_scale is not None:
        maps = maps * scale_view(class_scale, maps)
    if ignore_index is not None:
        maps = torch.where(is_label(labels, ignore_index).unsqueeze(1), 0.0, maps)
    return maps


def scale_view(class_scale: Tensor, maps: Tensor) -> Tensor:
    """`class_scale` [K] or [groups, K], shaped to multiply maps [B, K, *S]."""
    if class_scale.dim() == 2:
        class_scale = class_scale.repeat_interleave(len(maps) // max(len(class_scale), 1), 0)
    else:
        class_scale = class_scale.unsqueeze(0)
    return class_scale.to(maps).view(*class_scale.shape, *[1] * (maps.dim() - 2))


# --- the functions of `Backend`, over the definitions above ---------------------------------------------------


def precision_of(device: torch.device) -> torch.dtype:
    """The most precise type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def fill_distance(out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool) -> None:
    """See `Backend`."""
    out.copy_(distance(labels, spacing, squared, black_border, precision_of(labels.device)))


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


def fill_class_distance(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    squared: bool,
    ignore_index: int | None,
    validate: bool,
) -> int:
    """See `Backend`."""
    out.copy_(class_distance(labels, num_classes, spacing, squared, ignore_index, precision_of(labels.device)))
    return first_bad_label(labels, num_classes, ignore_index) if validate else -1


def fill_rectified(
    out: Tensor,
    count: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_max: Tensor | None,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> tuple[int, int]:
    """See `Backend`."""
    precision = precision_of(labels.device)
    out.copy_(rectified(labels, num_classes, spacing, class_max, ignore_index, black_border, precision))
    count.copy_(count_valid(labels, ignore_index))
    if not validate:
        return -1, -1
    bad_maximum = -1 if class_max is None else first_bad_maximum(labels, class_max)
    return first_bad_label(labels, num_classes, ignore_index), bad_maximum


def fill_boundary(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    absent: float,
    inside_offset: float,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> int:
    """See `Backend`."""
    precision = precision_of(labels.device)
    out.copy_(boundary(labels, num_classes, spacing, absent, inside_offset, ignore_index, black_border, precision))
    return first_bad_label(labels, num_classes, ignore_index) if validate else -1


def fill_dense(
    out: Tensor,
    labels: Tensor,
    foreground: Tensor,
    background: Tensor | float,
    num_classes: int,
    class_scale: Tensor | None,
    ignore_index: int | None,
) -> None:
    """See `Backend`."""
    out.copy_(dense(labels, foreground, background, num_classes, class_scale, ignore_index))
