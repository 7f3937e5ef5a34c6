"""Region-wise loss, cross-entropy, focal loss and Dice of one softmax, in plain PyTorch.

`image_sums` is differentiable as often as one likes; derivatives that no kernel gives are taken of it. `adjoint` is the
gradient as kernels compute it. With y = softmax, true class m and p = y_m every term is of one form:
`y_k (b_k - sum_l y_l b_l) + c ([k = m] - y_k)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkernels.backends import joint
from rwkernels.backends.equations import problem_logits_and_maps
from rwkernels.backends.joint import JointProblem
from rwkernels.backends.problem import is_label, is_no_class


def _masked(problem: JointProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, K, *S], 0 where ignored; one-hot labels; and, [B, 1, *S], what counts: 1, 0, or NaN of a bad label."""
    logits, labels = problem.logits.to(dtype), problem.labels
    counted = torch.ones_like(labels, dtype=dtype).masked_fill(is_no_class(labels, problem.num_classes), torch.nan)
    if problem.ignore_index is not None:
        ignored = is_label(labels, problem.ignore_index)
        counted = counted.masked_fill(ignored, 0.0)
        logits = logits.masked_fill(ignored.unsqueeze(1), 0.0)
    true = torch.stack([is_label(labels, k) for k in range(problem.num_classes)], 1).to(dtype)
    return logits, true, counted.unsqueeze(1)


def _maps(problem: JointProblem, dtype: torch.dtype) -> Tensor:
    assert problem.maps is not None
    return problem_logits_and_maps(problem.region_wise(), dtype)[1]


def _at_true_class(values: Tensor, true: Tensor) -> Tensor:
    """The entry [B, 1, *S] of the true class, whatever the others hold."""
    return torch.where(true > 0, values, 0.0).sum(1, keepdim=True)


def _of_classes(weight: Tensor | None, like: Tensor) -> Tensor:
    """A weight of every class, shaped to multiply [B, K, *S]."""
    found = like.new_ones(like.shape[1]) if weight is None else weight.to(like.dtype)
    return found.view(-1, *[1] * (like.dim() - 2))


def _other_probability(log_p: Tensor) -> Tensor:
    """1 - p, above 0: a power below 1 has no derivative there."""
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)


def image_sums(problem: JointProblem, dtype: torch.dtype) -> Tensor:
    """The sums of every image, [B, 3 K + 3] (see `Sums`), differentiable with respect to the logits."""
    logits, true, counted = _masked(problem, dtype)
    y, log_y = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
    log_p = _at_true_class(log_y, true)

    def summed(values: Tensor) -> Tensor:
        return (values * counted).flatten(2).sum(2)

    nothing = summed(torch.zeros_like(counted))
    classes = [nothing.expand(-1, problem.num_classes)] * 2
    if problem.dice:
        classes = [summed(y * true), summed(y * y if problem.squared else y)]
    found = [*classes, summed(true)]
    found.append(nothing if problem.maps is None else summed((y * _maps(problem, dtype)).sum(1, keepdim=True)))
    entropy = focal = nothing
    if problem.cross_entropy:
        weight = _of_classes(problem.entropy_weight, logits)
        pixel = -(1 - problem.label_smoothing) * _at_true_class(weight * true, true) * log_p
        if problem.label_smoothing:
            pixel = pixel - problem.label_smoothing / problem.num_classes * (weight * log_y).sum(1, keepdim=True)
        entropy = summed(pixel)
    if problem.focal:
        weight = _at_true_class(_of_classes(problem.focal_weight, logits) * true, true)
        focal = summed(-weight * _other_probability(log_p).pow(problem.gamma) * log_p)
    return torch.cat([*found, entropy, focal], 1)


def loss(problem: JointProblem) -> Tensor:
    """The loss in plain PyTorch, in its own dtype: for derivatives and transforms that no kernel knows."""
    return joint.value(problem, image_sums(problem, problem.loss_dtype))


def adjoint(problem: JointProblem, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient [B, K, *S] from the derivative by the sums, `joint.factors`."""
    logits, true, counted = _masked(problem, dtype)
    k, ones = problem.num_classes, [1] * (logits.dim() - 2)
    factors = factors.to(dtype)
    by_intersection, by_prediction = factors[:, :k].view(-1, k, *ones), factors[:, k : 2 * k].view(-1, k, *ones)
    of_map, of_entropy, of_focal = (factors[:, 2 * k + i].view(-1, 1, *ones) for i in range(3))

    y, log_y = torch.softmax(logits, 1), torch.log_softmax(logits, 1)
    p, log_p = _at_true_class(y, true), _at_true_class(log_y, true)
    b = (2 * y if problem.squared else 1) * by_prediction.expand_as(y)
    if problem.maps is not None:
        b = b + of_map * _maps(problem, dtype)
    c = p * _at_true_class(by_intersection * true, true)
    gradient = torch.zeros_like(y)
    if problem.cross_entropy:
        weight = _of_classes(problem.entropy_weight, logits)
        c = c - of_entropy * (1 - problem.label_smoothing) * _at_true_class(weight * true, true)
        if problem.label_smoothing:
            pull = of_entropy * (problem.label_smoothing / k) * weight
            gradient = y * pull.sum(1, keepdim=True) - pull
    if problem.focal:
        weight, q = _at_true_class(_of_classes(problem.focal_weight, logits) * true, true), _other_probability(log_p)
        p_log_p = torch.where(p > 0, p * log_p, 0.0)
        c = c + of_focal * weight * (problem.gamma * q.pow(problem.gamma - 1) * p_log_p - q.pow(problem.gamma))
    gradient = gradient + y * (b - (y * b).sum(1, keepdim=True)) + c * (true - y)
    return torch.where(counted == 0, 0.0, gradient * counted)
