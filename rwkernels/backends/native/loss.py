"""The loss, its gradient and the signs of that by the C++ core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels.backends.native.compiled import FLOAT_CODES, LABEL_CODES, address, checked, core, written
from rwkernels.backends.problem import (
    LossProblem,
    all_class_scales,
    gradient_scale,
    mean_divisor,
    reduced,
    scaled_gradient,
)
from rwkernels.backends.threads import threads


def described_loss(problem: LossProblem, validate: bool, with_map: bool = True) -> tuple[Any, list[Tensor | None]]:
    """The core's `LossProblem`, which holds addresses alone, and the tensors that have to live as long: labels, map,
    background and class scale. `with_map=False` leaves the map out, for losses that need none.
    """
    logits = problem.logits
    maps: Tensor | None = problem.maps if with_map else None
    labels = None if problem.labels is None else problem.labels.contiguous()
    compact = maps is None or problem.compact
    if maps is not None and compact:
        maps = (maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)).contiguous()
    background = None
    if maps is not None and problem.background is not None:
        background = problem.background.to(maps.dtype).contiguous()
    scale = all_class_scales(problem)
    if scale is not None:
        scale = scale.to(torch.float64).reshape(-1, logits.shape[1]).contiguous()
    found = core().LossProblem(
        logits=logits.data_ptr(),
        dtype=FLOAT_CODES[logits.dtype],
        shape=tuple(logits.shape),
        strides=logits.stride(),
        map=address(maps),
        map_dtype=None if maps is None else FLOAT_CODES[maps.dtype],
        map_strides=None if maps is None or compact else maps.stride(),
        labels=address(labels),
        label_dtype="u1" if labels is None else LABEL_CODES[labels.dtype],
        ignore=problem.ignore_index if labels is not None else None,
        background=address(background),
        background_value=problem.background_value,
        class_scale=address(scale),
        scale_groups=1 if scale is None else len(scale),
        validate=validate,
        threads=threads(),
    )
    return found, [labels, maps, background, scale]


def loss(
    problem: LossProblem,
    *,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
    validate: bool,
) -> Tensor:
    """See `Backend`."""
    logits = problem.logits
    image_scale = pixel_scale = None
    if grad is not None:
        image_scale, pixel_scale = gradient_scale(problem, upstream, divide)
    image_sums = pixel_loss = None
    if with_loss and problem.reduction == "none":
        pixel_loss = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=problem.loss_dtype)
    elif with_loss:
        image_sums = logits.new_empty(len(logits), dtype=torch.float64)
    described, _alive = described_loss(problem, validate)
    checked(
        core().region_wise,
        described,
        grad=written(grad),
        grad_strides=() if grad is None else grad.stride(),
        image_scale=address(image_scale),
        pixel_scale=address(pixel_scale),
        image_sums=address(image_sums),
        pixel_loss=address(pixel_loss),
    )
    if image_sums is not None:
        return reduced(image_sums, problem)
    return logits.new_empty(0) if pixel_loss is None else pixel_loss


def scale_gradient(problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool) -> Tensor:
    """See `Backend`."""
    if problem.runs > 1:
        return scaled_gradient(problem, grad, upstream, divide=divide, in_place=in_place)
    factor = float(upstream)
    if divide:
        factor /= float(mean_divisor(problem))
    return times(grad, factor, in_place=in_place)


def times(grad: Tensor, factor: float, *, in_place: bool) -> Tensor:
    """A gradient times a factor that is on the host, a new tensor unless `in_place`: one of 1 costs nothing."""
    if factor == 1.0:
        return grad if in_place else grad.clone()
    return grad.mul_(factor) if in_place else grad * factor


def fill_negatives(out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool) -> None:
    """See `Backend`."""
    described, _alive = described_loss(problem, validate)
    checked(core().negatives, described, probabilities=probabilities, wrong=wrong, out=written(out))
