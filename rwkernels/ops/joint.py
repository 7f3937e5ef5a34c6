"""The operators of a weighted sum of losses over one softmax, and their autograd.

Without Dice the forward computes the gradient in the same pass and keeps it. Dice needs the sums over all pixels before
the gradient of any: there the forward reads the logits for the sums, and the backward, which knows the incoming
gradient too, reads them again and writes the gradient. float16 logits always take that second way: their loss is scaled
in training, and a gradient without the scale would be flushed to 0. So does compiled code, which cannot change a kept
gradient in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rwkernels import checks
from rwkernels.backends import choose, joint_equations
from rwkernels.backends.joint import TENSORS, JointProblem
from rwkernels.backends.problem import BadInputError, precision_of
from rwkernels.ops import mode
from rwkernels.ops.labels import can_check, define

_ARGUMENTS = (
    "Tensor logits, Tensor labels, Tensor weights, Tensor? maps, Tensor? background, Tensor? class_scale, "
    "Tensor? entropy_weight, Tensor? focal_weight, Tensor? dice_weight, Tensor? joined, float background_value, "
    "SymInt? ignore_index, bool map_background, bool cross_entropy, float label_smoothing, bool focal, float gamma, "
    "bool dice, bool dice_background, bool squared, bool whole_batch, str volumes, float[] overlap, str reduction, "
    "bool validate, str? backend"
)


def _joint(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = JointProblem._make(shared)
    logits, labels = problem.logits, problem.labels
    backend = choose(logits.device, "joint", problem.backend)
    try:
        loss, sums, grad = backend.joint(problem, with_grad=with_grad, validate=can_check(labels, problem.validate))
    except BadInputError as found:
        checks.bad_input(found, labels.contiguous(), problem.num_classes, problem.ignore_index)
    return loss, sums, logits.new_empty(0) if grad is None else grad


def _joint_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = JointProblem._make(shared)
    logits = problem.logits
    sums = logits.new_empty((logits.shape[0], problem.columns), dtype=precision_of(logits.device))
    grad = torch.empty_like(logits) if with_grad else logits.new_empty(0)
    return logits.new_empty((), dtype=problem.loss_dtype), sums, grad


# The loss, the sums that it is a function of (see `joint.Sums`) and, on request, its gradient.
define("joint", f"({_ARGUMENTS}, bool with_grad) -> (Tensor, Tensor, Tensor)", _joint, _joint_fake)


def _joint_gradient(upstream: Tensor, sums: Tensor, *arguments: Any) -> Tensor:
    problem = JointProblem._make(arguments)
    grad = torch.empty_like(problem.logits)
    choose(problem.logits.device, "joint", problem.backend).joint_gradient(problem, sums, upstream, grad)
    return grad


# The gradient alone, from the logits and the sums of the forward.
define(
    "joint_gradient",
    f"(Tensor upstream, Tensor sums, {_ARGUMENTS}) -> Tensor",
    _joint_gradient,
    lambda upstream, sums, logits, *_: torch.empty_like(logits),
)


class Joint(torch.autograd.Function):
    """(loss, sums, gradient or an empty tensor), with the arguments of the operator `joint`."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            result: tuple[Tensor, Tensor, Tensor] = torch.ops.rwkernels.joint(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *problem, with_grad = inputs
        ctx.settings = problem[TENSORS:]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*problem[:TENSORS], output[1], output[2] if with_grad else None)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (len(JointProblem._fields) + 1)
        if any(ctx.needs_input_grad[1:TENSORS]):
            raise NotImplementedError(
                "weights: a joint loss has no derivative with respect to its weights or map; detach them, or add the "
                "losses one by one"
            )
        if upstream is None:
            return nothing
        *tensors, sums, kept = ctx.saved_tensors
        problem = JointProblem(*tensors, *ctx.settings)
        if torch.compiler.is_compiling() or mode.is_plain(upstream):
            if kept is None:
                return torch.ops.rwkernels.joint_gradient(upstream, sums, *problem), *nothing[1:]
            backend = choose(kept.device, "scale_joint", problem.backend)
            return backend.scale_joint(kept, upstream, in_place=not mode.graph_is_kept()), *nothing[1:]
        return _differentiable_gradient(problem, upstream), *nothing[1:]


def _differentiable_gradient(problem: JointProblem, upstream: Tensor) -> Tensor:
    """The gradient as a function of the logits and of the incoming one, which derivatives can be taken of."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        logits = problem.logits.to(problem.loss_dtype)
        if not logits.requires_grad:
            logits = logits.detach().requires_grad_()
        loss = joint_equations.loss(problem._replace(logits=logits))
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=again)
    return (gradient * upstream).to(problem.logits.dtype)


# What `Function.apply` does first is for transforms of `torch.func`, which never come here (see `joint_loss`).
_function: Any = super(torch.autograd.Function, Joint).apply
torch.library.impl("rwkernels::joint", "Autograd")(lambda *arguments: _function(*arguments))


def joint_loss(problem: JointProblem, *, recompute: bool = False) -> Tensor:
    """The loss of a problem, a differentiable scalar. With `recompute` the forward keeps no gradient.

    Under a transform of `torch.func`, or in forward mode, it is plain PyTorch, which computes in the dtype of the loss
    and checks no labels: a bad one gives NaN.
    """
    if not torch.compiler.is_compiling() and (mode.transforms_active() or forward_ad._current_level >= 0):
        return joint_equations.loss(problem)
    with_grad = (
        not recompute
        and not problem.dice
        and problem.joined is None
        and problem.logits.dtype != torch.float16
        and torch.is_grad_enabled()
        and problem.logits.requires_grad
        and not torch.compiler.is_compiling()
    )
    loss: Tensor = torch.ops.rwkernels.joint(*problem, with_grad)[0]
    return loss


def joint_sums(problem: JointProblem) -> Tensor:
    """The sums of every image, [B, 3 K + 3]: what several processes add up."""
    with torch.no_grad():
        sums: Tensor = torch.ops.rwkernels.joint(*problem, False)[1]
    return sums
