"""Autograd of the loss operators, once for all backends.

The forward computes the gradient in the same pass and keeps it; the backward only scales it, and does nothing at all
where the host knows that the incoming gradient is 1. Whatever else may be asked (a second derivative, a forward-mode
derivative, a transform of `torch.func`) is answered from the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels.backends import LossProblem as Problem
from rwkernels.backends import choose, reference
from rwkernels.backends.reference import mean_divisor, per_image
from rwkernels.ops.loss import TENSORS, divides_later, fold_region_wise, fold_region_wise_gradient


def transforms_active() -> bool:
    """Whether a transform of `torch.func` is running."""
    return bool(torch._C._functorch.peek_interpreter_stack() is not None)


def _graph_is_kept() -> bool:
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *problem, with_grad = inputs
    ctx.settings = problem[TENSORS:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*problem[:TENSORS], output[1] if with_grad else None)
    ctx.save_for_forward(*problem[:TENSORS])


def _backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(Problem._fields) + 1)
    if any(ctx.needs_input_grad[1:TENSORS]):
        raise NotImplementedError(
            "maps: the region-wise loss has no derivative with respect to its map or weights; detach them, or write "
            "(softmax(logits) * maps) where you need it"
        )
    if upstream is None:
        return nothing
    *tensors, grad = ctx.saved_tensors
    problem = Problem(*tensors, *ctx.settings)
    if grad is not None and _is_plain(upstream):
        return _scale_once(upstream, grad, problem), *nothing[1:]
    return region_wise_gradient(upstream, *problem, grad), *nothing[1:]


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    upstream, *problem, _ = inputs
    ctx.settings = problem[TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(upstream, *problem[:TENSORS])
    ctx.save_for_forward(upstream, *problem[:TENSORS])


def _gradient_backward(ctx: Any, vector: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (len(Problem._fields) + 2)
    if vector is None:
        return nothing
    upstream, *tensors = ctx.saved_tensors
    problem = Problem(*tensors, *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    vector = vector.to(logits.dtype)
    weighted = (vector * reference.pixel_gradient(logits, maps)).sum(1) * scale
    to_upstream = _reduced(weighted, problem)
    factor = _per_pixel(upstream, problem) * scale.unsqueeze(1)
    to_logits = reference.hessian_product(logits, maps, vector) * factor
    return to_upstream.to(upstream.dtype), to_logits.to(problem.logits.dtype), *nothing[2:]


def _jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None]:
    if any(isinstance(tangent, Tensor) for tangent in tangents[1:TENSORS]):
        raise NotImplementedError("maps: the region-wise loss has no derivative with respect to its map or weights")
    if tangents[0] is None:
        return None, None
    problem = Problem(*ctx.saved_tensors[:TENSORS], *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    change = (tangents[0].to(logits.dtype) * reference.pixel_gradient(logits, maps)).sum(1) * scale
    return _reduced(change, problem), None


def _gradient_jvp(ctx: Any, *tangents: Any) -> Tensor:
    upstream, *tensors = ctx.saved_tensors[: TENSORS + 1]
    problem = Problem(*tensors, *ctx.settings)
    logits, maps, scale = _dense_problem(problem)
    scale = scale.unsqueeze(1)
    change = torch.zeros_like(logits)
    if tangents[0] is not None:
        change = change + reference.pixel_gradient(logits, maps) * _per_pixel(tangents[0], problem) * scale
    if tangents[1] is not None:
        along = reference.hessian_product(logits, maps, tangents[1].to(logits.dtype))
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


def region_wise(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator `region_wise`, differentiable under the transforms of `torch.func` too.

    They take an autograd Function but not an operator with an autograd kernel; the compiler takes the operator but not
    a Function with a forward-mode derivative.
    """
    call = _region_wise_function if _eager_transforms() else torch.ops.rwkernels.region_wise
    result: tuple[Tensor, Tensor] = call(*arguments)
    if _nested_forward_mode():
        problem = Problem(*arguments[:-1])
        logits, maps, scale = _dense_problem(problem)
        return _reduced(reference.pixel_loss(logits, maps) * scale, problem), result[1]
    return result


def region_wise_gradient(*arguments: Any) -> Tensor:
    """The operator `region_wise_gradient`; see `region_wise`."""
    if _nested_forward_mode():
        upstream, *shared, _ = arguments
        problem = Problem(*shared)
        logits, maps, scale = _dense_problem(problem)
        gradient = reference.pixel_gradient(logits, maps) * _per_pixel(upstream, problem) * scale.unsqueeze(1)
        return gradient.to(problem.logits.dtype)
    call = _gradient_function if _eager_transforms() else torch.ops.rwkernels.region_wise_gradient
    result: Tensor = call(*arguments)
    return result


def _eager_transforms() -> bool:
    return not torch.compiler.is_compiling() and transforms_active()


def _nested_forward_mode() -> bool:
    """Whether a `jvp` runs inside another.

    PyTorch takes the `jvp` of an autograd Function for constant in the outer one, whose derivative would silently be
    zero; plain operations have none of that.
    """
    if not _eager_transforms():
        return False
    stack = torch._C._functorch.get_interpreter_stack()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


def _is_plain(upstream: Tensor) -> bool:
    """Whether a backward is a plain one: eager, no second derivative wanted, no transform."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and type(upstream) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(upstream)
        and not torch._C._functorch.is_legacy_batchedtensor(upstream)
    )


def _scale_once(upstream: Tensor, grad: Tensor, problem: Problem) -> Tensor:
    """The kept gradient times the incoming one, in place where nobody can ask for it again."""
    backend = choose(grad.device, "scale_gradient", problem.backend)
    divide = divides_later(problem)
    return backend.scale_gradient(problem, grad, upstream, divide=divide, in_place=not _graph_is_kept())


def _per_pixel(upstream: Tensor, problem: Problem) -> Tensor:
    """The incoming gradient of the loss, shaped to multiply [B, K, *S]."""
    if problem.reduction == "none":
        return upstream.unsqueeze(1)
    return per_image(upstream.reshape(-1), problem).view(-1, *[1] * (problem.logits.dim() - 1))


def _reduced(values: Tensor, problem: Problem) -> Tensor:
    """Values of every pixel [B, *S], summed as the reduction and the groups say."""
    if problem.reduction == "none":
        return values
    return values.reshape(problem.groups, -1).sum(1) if problem.groups else values.sum()


def _dense_problem(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, dense map and the factor of every pixel's loss, for the derivatives written in plain PyTorch.

    Differentiable with respect to the logits, so that derivatives of any order follow.
    """
    dtype = problem.loss_dtype
    logits, maps = reference.problem_logits_and_maps(problem, dtype)
    scale = torch.ones(1, dtype=dtype, device=logits.device)
    if problem.reduction == "mean":
        scale = per_image(mean_divisor(problem).reciprocal().to(dtype), problem)
    return logits, maps, scale.view(-1, *[1] * (logits.dim() - 2))
