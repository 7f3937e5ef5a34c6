"""Autograd of the loss, once for all backends.

The forward computes the gradient in the same pass and keeps it; the backward only scales it, and does nothing at all
where the host knows that the incoming gradient is 1. Whatever else may be asked (a second derivative, forward mode, a
transform of `torch.func`) is answered from the logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels import ops
from rwkernels.backends import reference


class Settings(NamedTuple):
    """The arguments of the loss operators that are not tensors, in their order."""

    background_value: float
    ignore_index: int | None
    include_background: bool
    reduction: str
    validate: bool
    backend: str | None


def transforms_active() -> bool:
    """Whether a transform of `torch.func` (or a vmapped backward) is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]


def _graph_is_kept() -> bool:
    return torch._C._autograd._get_current_graph_task_keep_graph()  # type: ignore[attr-defined,no-any-return]


class RegionWise(torch.autograd.Function):
    """(loss, its gradient or an empty tensor) of Eq. 1 and 2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        maps: Tensor,
        labels: Tensor | None,
        background: Tensor | None,
        class_scale: Tensor | None,
        count: Tensor | None,
        with_grad: bool,
        *settings: Any,
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = torch.ops.rwkernels.region_wise(
            logits, maps, labels, background, class_scale, count, *settings, 0, with_grad
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, with_grad = inputs[:7]
        ctx.settings = Settings(*inputs[7:])
        ctx.with_grad = with_grad
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1] if with_grad else None)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (len(Settings._fields) + 7)
        if any(ctx.needs_input_grad[1:6]):
            raise NotImplementedError(
                "maps: the region-wise loss has no derivative with respect to its map, labels or weights; "
                "detach them, or write (softmax(logits) * maps) for this"
            )
        if upstream is None:
            return nothing
        *tensors, grad = ctx.saved_tensors
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transforms_active()
        if grad is not None and plain:
            return _scale_once(upstream, grad, tensors, ctx.settings), *nothing[1:]
        return RegionWiseGradient.apply(upstream, *tensors, grad, *ctx.settings), *nothing[1:]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None]:
        if any(isinstance(tangent, Tensor) for tangent in tangents[1:6]):
            raise NotImplementedError("maps: the region-wise loss has no derivative with respect to its map")
        if tangents[0] is None:
            return None, None
        logits, maps, scale = _dense_problem(*ctx.saved_tensors[:6], ctx.settings)
        change = (tangents[0].to(logits.dtype) * reference.pixel_gradient(logits, maps)).sum(1) * scale
        return (change if ctx.settings.reduction == "none" else change.sum()), None


class RegionWiseGradient(torch.autograd.Function):
    """The gradient of the loss as a differentiable function of the incoming gradient and the logits.

    `grad`, if given, is the gradient that the forward kept: it is scaled instead of computed again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        upstream: Tensor,
        logits: Tensor,
        maps: Tensor,
        labels: Tensor | None,
        background: Tensor | None,
        class_scale: Tensor | None,
        count: Tensor | None,
        grad: Tensor | None,
        *settings: Any,
    ) -> Tensor:
        tensors = (logits, maps, labels, background, class_scale, count)
        if grad is None:
            result: Tensor = torch.ops.rwkernels.region_wise_gradient(upstream, *tensors, *settings, 0)
            return result
        return _scaled(grad, _factor(upstream, tensors, Settings(*settings)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.settings = Settings(*inputs[8:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])

    @staticmethod
    def backward(ctx: Any, vector: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (len(Settings._fields) + 8)
        if vector is None:
            return nothing
        upstream, original, *rest = ctx.saved_tensors
        logits, maps, scale = _dense_problem(original, *rest, ctx.settings)
        vector = vector.to(logits.dtype)
        per_pixel = (vector * reference.pixel_gradient(logits, maps)).sum(1) * scale
        to_upstream = per_pixel if ctx.settings.reduction == "none" else per_pixel.sum()
        factor = (upstream * scale).unsqueeze(1)
        to_logits = reference.hessian_product(logits, maps, vector) * factor
        return to_upstream.to(upstream.dtype), to_logits.to(original.dtype), *nothing[2:]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        upstream, original, *rest = ctx.saved_tensors[:7]
        logits, maps, scale = _dense_problem(original, *rest, ctx.settings)
        change = torch.zeros_like(logits)
        if tangents[1] is not None:
            along = reference.hessian_product(logits, maps, tangents[1].to(logits.dtype))
            change = change + along * (upstream * scale).unsqueeze(1)
        if tangents[0] is not None:
            change = change + reference.pixel_gradient(logits, maps) * (tangents[0] * scale).unsqueeze(1)
        return change.to(original.dtype)


def _factor(upstream: Tensor, tensors: Any, settings: Settings) -> Tensor:
    """What the kept gradient has still to be multiplied by."""
    logits, _, labels, _, _, count = tensors
    if settings.reduction == "mean" and not ops.scales_gradient_at_once(logits.dtype):
        divisor = ops.mean_divisor(
            logits, labels, count, settings.ignore_index, settings.include_background, groups=0
        )
        return upstream / divisor.reshape(())
    return upstream


def _scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """`grad * factor` in the dtype of `grad`; a float16 factor would flush 1/(N*K) to 0, so it stays wider."""
    if grad.dtype in (torch.float16, torch.bfloat16):
        return (grad.to(torch.float32) * factor).to(grad.dtype)
    return grad * factor.to(grad.dtype)


def _scale_once(upstream: Tensor, grad: Tensor, tensors: Any, settings: Settings) -> Tensor:
    """The kept gradient times the incoming one, in place where nobody can ask for it again."""
    factor = _factor(upstream, tensors, settings)
    kept = _graph_is_kept()
    if grad.device.type == "cpu":
        value = float(factor)  # on the host already: nothing waits
        if value == 1.0:
            return grad.clone() if kept else grad
        return grad * value if kept else grad.mul_(value)
    return _scaled(grad, factor) if kept else grad.mul_(factor)


def _dense_problem(
    logits: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    background: Tensor | None,
    class_scale: Tensor | None,
    count: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, dense map and the factor of every pixel's loss, for the derivatives written in plain PyTorch.

    Differentiable with respect to the logits, so that derivatives of any order follow.
    """
    dtype = ops.loss_dtype(logits)
    wide = logits.to(dtype)
    num_classes = logits.shape[1]
    if maps.dim() == logits.dim() - 1:
        assert labels is not None
        other = settings.background_value if background is None else background.to(dtype)
        z = reference.dense(labels, maps.to(dtype), other, num_classes, class_scale, settings.ignore_index)
    else:
        z = maps.to(dtype)
        if class_scale is not None:
            z = z * reference.scale_view(class_scale, z)
    if not settings.include_background:
        z = torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:]], 1)
    if settings.ignore_index is not None and labels is not None:
        ignored = (labels == settings.ignore_index).unsqueeze(1)
        wide, z = torch.where(ignored, 0.0, wide), torch.where(ignored, 0.0, z)
    scale = torch.ones((), dtype=dtype, device=logits.device)
    if settings.reduction == "mean":
        divisor = ops.mean_divisor(
            logits, labels, count, settings.ignore_index, settings.include_background, groups=0
        )
        scale = divisor.reshape(()).reciprocal().to(dtype)
    return wide, z, scale
