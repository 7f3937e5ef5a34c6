"""The slow and obviously right version of a weighted sum of losses over one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkernels.backends.joint import JointProblem, factors, value
from rwkernels.backends.joint_equations import adjoint, image_sums
from rwkernels.backends.problem import refuse_bad_label


def _precision(problem: JointProblem) -> torch.dtype:
    """float64 on the CPU, where this is the truth; elsewhere it is what runs, and memory counts."""
    return torch.float64 if problem.logits.device.type == "cpu" else problem.loss_dtype


def joint(problem: JointProblem, *, with_grad: bool, validate: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `Backend`."""
    if validate:
        refuse_bad_label(problem.labels, problem.num_classes, problem.ignore_index)
    sums = image_sums(problem, _precision(problem))
    if sums.device.type != "mps":
        sums = sums.to(torch.float64)
    grad = None
    if with_grad:
        grad = torch.empty_like(problem.logits)
        joint_gradient(problem, sums, None, grad)
    return value(problem, sums), sums, grad


def joint_gradient(problem: JointProblem, sums: Tensor, upstream: Tensor | None, grad: Tensor) -> None:
    """See `Backend`."""
    grad.copy_(adjoint(problem, factors(problem, sums, upstream), _precision(problem)))
