"""A weighted sum of losses over one softmax by the C++ core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels.backends.joint import JointProblem, Sums, empty_sums
from rwkernels.backends.native.compiled import address, checked, core, written
from rwkernels.backends.native.loss import described_loss, times


def _numbers(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.to(torch.float64).contiguous()


def _pass(
    problem: JointProblem,
    described: Any,
    *,
    grad: Tensor | None = None,
    by_sums: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    weights = _numbers(problem.entropy_weight), _numbers(problem.focal_weight)
    checked(
        core().joint,
        described,
        grad=written(grad),
        grad_strides=() if grad is None else grad.stride(),
        factors=address(by_sums),
        sums=written(sums),
        of_classes=problem.dice and grad is None,
        squared=problem.squared,
        entropy=problem.cross_entropy,
        focal=problem.focal,
        entropy_weight=address(weights[0]),
        focal_weight=address(weights[1]),
        smoothing=problem.label_smoothing,
        gamma=problem.gamma,
    )


def _finished(
    problem: JointProblem, sums: Tensor, *, upstream: float = 1.0, with_factors: bool
) -> tuple[float, Tensor | None]:
    """What `joint.value` and `joint.factors` compute: some hundred operations on a few numbers."""
    images, classes = problem.logits.shape[:2]
    found = sums.new_empty((images, 2 * classes + 3)) if with_factors else None
    own = sums if problem.joined is None else problem.joined.contiguous()
    weights = _numbers(problem.weights), _numbers(problem.entropy_weight), _numbers(problem.dice_weight)
    value = core().joint_finish(
        sums=own.data_ptr(),
        rows=len(own),
        images=images,
        classes=classes,
        weights=address(weights[0]),
        mean=problem.reduction == "mean",
        pixels=-1.0 if problem.ignore_index is not None or problem.joined is not None else float(problem.pixels),
        map=problem.maps is not None,
        map_background=problem.map_background,
        entropy=problem.cross_entropy,
        focal=problem.focal,
        entropy_weight=address(weights[1]),
        dice=problem.dice,
        dice_background=problem.dice_background,
        whole_batch=problem.whole_batch,
        dice_weight=address(weights[2]),
        volumes=problem.volumes,
        overlap=problem.overlap,
        upstream=upstream,
        factors=address(found),
    )
    return value, found


def joint(problem: JointProblem, *, with_grad: bool, validate: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `Backend`."""
    described, _alive = described_loss(problem.region_wise(), validate, problem.maps is not None)
    sums = empty_sums(problem)
    if not problem.dice and (problem.wants_counts or not with_grad):
        core().count_classes(described, counts=Sums.of(sums).target.data_ptr(), row=problem.columns)
    grad = torch.empty_like(problem.logits) if with_grad else None
    by_sums = _finished(problem, sums, with_factors=True)[1] if with_grad else None
    _pass(problem, described, grad=grad, by_sums=by_sums, sums=sums)
    value, _ = _finished(problem, sums, with_factors=False)
    return torch.tensor(value, dtype=problem.loss_dtype, device=sums.device), sums, grad


def joint_gradient(problem: JointProblem, sums: Tensor, upstream: Tensor | None, grad: Tensor) -> None:
    """See `Backend`."""
    described, _alive = described_loss(problem.region_wise(), False, problem.maps is not None)
    factor = 1.0 if upstream is None else float(upstream)
    _pass(problem, described, grad=grad, by_sums=_finished(problem, sums, upstream=factor, with_factors=True)[1])


def scale_joint(grad: Tensor, upstream: Tensor, *, in_place: bool) -> Tensor:
    """See `Backend`."""
    return times(grad, float(upstream), in_place=in_place)
