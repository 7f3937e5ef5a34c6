"""Autograd of the loss operators, once for all backends.

The forward computes the gradient in the same pass and keeps it; the backward only scales it, and does nothing at all
where the host knows that the incoming gradient is 1. Whatever else may be asked (a second derivative, a forward-mode
derivative, a transform of `torch.func`) is answered from the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels.backends import choose, equations
from rwkernels.backends.problem import LossProblem, mean_divisor, per_image
from rwkernels.ops import mode
from rwkernels.ops.loss import TENSORS, divides_later, fold_region_wise, fold_region_wise_gradient


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *problem, with_grad = inputs
    ctx.settings = problem[TENSORS:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*problem[:TENSORS], output[1] if with_grad else None)
    ctx.save_for_forward(*problem[:TENSORS])


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(LossProblem._fields) + 1)
    if any(ctx.needs_input_grad[1:TENSORS]):
        raise NotImplementedError(
            "maps: the region-wise loss has no derivative with respect to its map or weights; detach them, or write "
            "(softmax(logits) * maps) where you need it"
        )
    if upstream is None:
        return nothing
    *tensors, grad = ctx.saved_tensors
    problem = LossProblem(*tensors, *ctx.settings)
    if grad is not None and mode.is_plain(upstream):
        return _scale_once(upstream, grad, problem), *nothing[1:]
    return region_wise_gradient(upstream, problem, grad), *nothing[1:]


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    upstream, *problem, _ = inputs
    ctx.settings = problem[TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(upstream, *problem[:TENSORS])
    ctx.save_for_forward(upstream, *problem[:TENSORS])


def _gradient_backward(ctx: Any, vector: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(LossProblem._fields) + 2)
    if vector is None:
        return nothing
    upstream, *tensors = ctx.saved_tensors
    problem = LossProblem(*tensors, *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    vector = vector.to(logits.dtype)
    weighted = (vector * equations.pixel_gradient(logits, maps)).sum(1) * scale
    to_upstream = _reduced(weighted, problem)
    factor = _per_pixel(upstream, problem) * scale.unsqueeze(1)
    to_logits = equations.hessian_product(logits, maps, vector) * factor
    return to_upstream.to(upstream.dtype), to_logits.to(problem.logits.dtype), *nothing[2:]


def _jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None]:
    if any(isinstance(tangent, Tensor) for tangent in tangents[1:TENSORS]):
        raise NotImplementedError("maps: the region-wise loss has no derivative with respect to its map or weights")
    if tangents[0] is None:
        return None, None
    problem = LossProblem(*ctx.saved_tensors[:TENSORS], *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    change = (tangents[0].to(logits.dtype) * equations.pixel_gradient(logits, maps)).sum(1) * scale
    return _reduced(change, problem), None


def _gradient_jvp(ctx: Any, *tangents: Any) -> Tensor:
    upstream, *tensors = ctx.saved_tensors[: TENSORS + 1]
    problem = LossProblem(*tensors, *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    scale = scale.unsqueeze(1)
    change = torch.zeros_like(logits)
    if tangents[0] is not None:
        change = change + equations.pixel_gradient(logits, maps) * _per_pixel(tangents[0], problem) * scale
    if tangents[1] is not None:
        along = equations.hessian_product(logits, maps, tangents[1].to(logits.dtype))
        change = change + along * _per_pixel(upstream, problem) * scale
    return change.to(problem.logits.dtype)


class RegionWise(torch.autograd.Function):
    """(loss, its gradient or an empty tensor) of Eq. 1 and 2, with the arguments of the operator `region_wise`."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            result: tuple[Tensor, Tensor] = torch.ops.rwkernels.region_wise(*arguments)
        return result

    setup_context = staticmethod(_save_forward)
    backward = staticmethod(_backward)
    jvp = staticmethod(_jvp)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return fold_region_wise(region_wise, info.batch_size, in_dims, *arguments)


class RegionWiseGradient(torch.autograd.Function):
    """The gradient as a differentiable function, with the arguments of the operator `region_wise_gradient`."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.rwkernels.region_wise_gradient(*arguments)
        return result

    setup_context = staticmethod(_save_gradient)
    backward = staticmethod(_gradient_backward)
    jvp = staticmethod(_gradient_jvp)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return fold_region_wise_gradient(region_wise_gradient, info.batch_size, in_dims, *arguments)


_region_wise_function: Any = RegionWise.apply
_gradient_function: Any = RegionWiseGradient.apply
# Without a transform, what `Function.apply` does first (it looks up the signature of `forward`, at every call) is for
# nothing and takes longer than the loss of a small image.
_plain_region_wise: Any = super(torch.autograd.Function, RegionWise).apply
_plain_gradient: Any = super(torch.autograd.Function, RegionWiseGradient).apply
torch.library.impl("rwkernels::region_wise", "Autograd")(lambda *arguments: _plain_region_wise(*arguments))
torch.library.impl("rwkernels::region_wise_gradient", "Autograd")(lambda *arguments: _plain_gradient(*arguments))


def region_wise(problem: LossProblem, with_grad: bool) -> tuple[Tensor, Tensor]:
    """The operator `region_wise`, differentiable under the transforms of `torch.func` too.

    They take an autograd Function but not an operator with an autograd kernel; the compiler takes the operator but not
    a Function with a forward-mode derivative.
    """
    call = _region_wise_function if mode.eager_transforms() else torch.ops.rwkernels.region_wise
    result: tuple[Tensor, Tensor] = call(*problem, with_grad)
    if mode.nested_forward_mode():
        logits, maps, scale = _dense_problem(problem)
        return _reduced(equations.pixel_loss(logits, maps) * scale, problem), result[1]
    return result


def region_wise_gradient(upstream: Tensor, problem: LossProblem, kept: Tensor | None) -> Tensor:
    """The operator `region_wise_gradient`; see `region_wise`."""
    if mode.nested_forward_mode():
        logits, maps, scale = _dense_problem(problem)
        gradient = equations.pixel_gradient(logits, maps) * _per_pixel(upstream, problem) * scale.unsqueeze(1)
        return gradient.to(problem.logits.dtype)
    call = _gradient_function if mode.eager_transforms() else torch.ops.rwkernels.region_wise_gradient
    result: Tensor = call(upstream, *problem, kept)
    return result


def _scale_once(upstream: Tensor, grad: Tensor, problem: LossProblem) -> Tensor:
    """The kept gradient times the incoming one, in place where nobody can ask for it again."""
    backend = choose(grad.device, "scale_gradient", problem.backend)
    divide = divides_later(problem)
    return backend.scale_gradient(problem, grad, upstream, divide=divide, in_place=not mode.graph_is_kept())


def _per_pixel(upstream: Tensor, problem: LossProblem) -> Tensor:
    """The incoming gradient of the loss, shaped to multiply [B, K, *S]."""
    if problem.reduction == "none":
        return upstream.unsqueeze(1)
    return per_image(upstream.reshape(-1), problem).view(-1, *[1] * (problem.logits.dim() - 1))


def _reduced(values: Tensor, problem: LossProblem) -> Tensor:
    """Values of every pixel [B, *S], summed as the reduction and the groups say."""
    if problem.reduction == "none":
        return values
    return values.reshape(problem.groups, -1).sum(1) if problem.groups else values.sum()


def _dense_problem(problem: LossProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, dense map and the factor of every pixel's loss, for the derivatives written in plain PyTorch.

    Differentiable with respect to the logits, so that derivatives of any order follow.
    """
    dtype = problem.loss_dtype
    logits, maps = equations.problem_logits_and_maps(problem, dtype)
    scale = torch.ones(1, dtype=dtype, device=logits.device)
    if problem.reduction == "mean":
        scale = per_image(mean_divisor(problem).reciprocal().to(dtype), problem)
    return logits, maps, scale.view(-1, *[1] * (logits.dim() - 2))
