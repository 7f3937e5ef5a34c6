"""The losses by plans that are kept: which calls may take one, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends import choose
from rwkernels.backends.problem import Level, LossProblem, StepProblem, StepResult
from rwkernels.losses.problem import loss_problem
from rwkernels.maps.compact import RectifiedMap
from rwkernels.ops import planned
from rwkernels.ops.planned import Planned


class Options(NamedTuple):
    """What a loss is asked for beside its tensors; checked."""

    ignore_index: int | None
    include_background: bool
    reduction: str
    recompute: bool
    validate: bool | None
    backend: str | None


def loss_of_map(logits: Any, maps: Any, labels: Any, options: Options) -> Tensor | None:
    """The loss of logits and a map that was built before; None where there is no plan for it, or a bad argument."""
    tensors: tuple[Tensor | None, ...] = (maps, labels, None, None, None)
    settings: tuple[Any, ...] = ()
    if isinstance(maps, RectifiedMap):
        of_pixels = maps.background if isinstance(maps.background, Tensor) else None
        tensors = (maps.foreground, maps.labels, of_pixels, maps.class_scale, maps.image_count)
        number = maps.background if of_pixels is None else None
        settings = (maps.num_classes, maps.ignore_index, number, labels is None)
    key = planned.key_of(logits, *tensors)
    if key is None or any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return None
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    with_grad = differentiable and not options.recompute
    full_key = (*key, *settings, options, with_grad)
    found = planned.kept(full_key, _plan_of_map, logits, maps, labels, tensors, options, with_grad)
    return None if found is None else planned.run(found, (logits,), tensors, differentiable)


def _plan_of_map(
    logits: Tensor, maps: Any, labels: Any, tensors: Sequence[Tensor | None], options: Options, with_grad: bool
) -> Planned | None:
    try:
        problem = loss_problem(
            logits,
            maps,
            labels=labels,
            ignore_index=options.ignore_index,
            include_background=options.include_background,
            reduction=options.reduction,
            validate=options.validate,
            backend=options.backend,
        )
        backend = choose(logits.device, "loss", options.backend)
    except (TypeError, ValueError):
        return None
    own = problem[1:6]
    # What had to be brought into another form has to be at every call; softmax over one channel earns a warning.
    if any(one is not other for one, other in zip(own, tensors, strict=True)) or logits.shape[1] == 1:
        return None
    if not hasattr(backend, "plan_loss"):
        return None
    plan = backend.plan_loss(problem, with_grad=with_grad)
    settings = problem._replace(validate=False)[6:]
    return None if plan is None else Planned(plan, partial(_problem_of_map, settings), (1.0,))


def _problem_of_map(
    settings: Sequence[Any], logits: Sequence[Tensor], others: Sequence[Tensor | None], kept: StepResult
) -> list[LossProblem]:
    return [LossProblem._make((logits[0], *others, *settings))]


def loss_of_labels(
    logits: Sequence[Any],
    labels: Sequence[Any],
    spacings: Sequence[Any],
    weights: Sequence[float],
    black_border: bool,
    options: Options,
) -> Tensor | None:
    """The weighted sum of the losses of several levels, each of the rectified map of its labels.

    None where there is no plan for it, or a bad argument.
    """
    key = planned.key_of(*logits, *labels)
    if key is None or options.reduction == "none":
        return None
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in logits)
    with_grad = differentiable and not options.recompute
    for spacing in spacings:
        key.append(tuple(spacing) if isinstance(spacing, list) else spacing)
    full_key = (*key, *weights, black_border, options, with_grad)
    found = planned.kept(full_key, _plan_of_labels, logits, labels, spacings, weights, black_border, options, with_grad)
    return None if found is None else planned.run(found, logits, labels, differentiable)


def _plan_of_labels(
    logits: Sequence[Any],
    labels: Sequence[Any],
    spacings: Sequence[Any],
    weights: Sequence[float],
    black_border: bool,
    options: Options,
    with_grad: bool,
) -> Planned | None:
    first = logits[0]
    levels = []
    try:
        for of_level, own, spacing, weight in zip(logits, labels, spacings, weights, strict=True):
            checks.logits(of_level)
            checks.labels_like("labels", own, of_level.shape)
            checks.same_device("labels", own, "logits", first)
            checks.same_device("logits", of_level, "logits", first)
            levels.append(Level(of_level, own, checks.spacing(spacing, of_level.dim() - 2), weight))
        problem = StepProblem(
            levels=tuple(levels),
            black_border=black_border,
            ignore_index=options.ignore_index,
            include_background=options.include_background,
            reduction=options.reduction,
            validate=checks.validate(options.validate, first.device),
            with_grad=with_grad,
            backend=options.backend,
        )
        backend = choose(first.device, "loss", options.backend)
    except (TypeError, ValueError):
        return None
    plain = all(
        level.labels.dtype in checks.LABEL_DTYPES
        and level.logits.dtype == first.dtype
        and level.logits.shape[1] > 1  # softmax over one channel earns a warning
        and level.logits.numel() > 0
        for level in levels
    )
    if not plain or not hasattr(backend, "plan_step"):
        return None
    plan = backend.plan_step(problem)
    without_tensors = problem._replace(levels=(), validate=False)
    return None if plan is None else Planned(plan, partial(_problems_of_labels, without_tensors), tuple(weights))


def _problems_of_labels(
    problem: StepProblem, logits: Sequence[Tensor], labels: Sequence[Tensor | None], kept: StepResult
) -> list[LossProblem]:
    counts = kept.counts or (None,) * len(logits)
    problems = []
    for of_level, own, foreground, count in zip(logits, labels, kept.foregrounds, counts, strict=True):
        assert own is not None
        own = own.view(foreground.shape) if own.dim() != foreground.dim() else own
        problems.append(problem.of_loss(of_level, own, foreground, count))
    return problems
