"""The operators of the loss: schemas, implementations, fakes and vmap rules. Autograd is in `autograd.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels.backends import LossProblem, choose, reference
from rwkernels.ops import can_check, define, fold, refuse_bad_label, unfold


class Problem(NamedTuple):
    """The arguments that both operators share, in their order."""

    logits: Tensor  # [B, K, *S]
    maps: Tensor  # dense [B, K, *S], or the foreground [B, *S] of a compact map
    labels: Tensor | None  # [B, *S]; always there for a compact map
    background: Tensor | None  # [B, *S]; None: `background_value` everywhere
    class_scale: Tensor | None  # [K], or [groups, K]
    image_count: Tensor | None  # int64 [B], pixels that count; None: counted here if `ignore_index` is set
    background_value: float
    ignore_index: int | None
    include_background: bool
    reduction: str
    validate: bool
    backend: str | None
    # vmap folds its axis into the batch; the images then form so many equal runs, each reduced on its own.
    # 0 means one run and a scalar loss.
    groups: int

    @property
    def runs(self) -> int:
        """How many runs of images are reduced on their own."""
        return max(self.groups, 1)

    @property
    def compact(self) -> bool:
        """Whether `maps` is the foreground of a compact map."""
        return self.maps.dim() == self.logits.dim() - 1

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for float64 logits, float32 for all others."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32


TENSORS = 6  # the first fields of `Problem`
_ARGUMENTS = (
    "Tensor logits, Tensor maps, Tensor? labels, Tensor? background, Tensor? class_scale, Tensor? image_count, "
    "float background_value, SymInt? ignore_index, bool include_background, str reduction, bool validate, "
    "str? backend, int groups"
)


def mean_divisor(problem: Problem) -> Tensor:
    """N * K of every run, float64 [runs]; at least 1, so that nothing left gives 0 and no NaN."""
    logits, count = problem.logits, problem.image_count
    channels = logits.shape[1] - (0 if problem.include_background else 1)
    if problem.ignore_index is None:
        pixels = logits[:, 0].numel() // problem.runs
        return torch.full((problem.runs,), max(pixels * channels, 1), dtype=torch.float64, device=logits.device)
    if count is None:
        assert problem.labels is not None
        count = reference.count_valid(problem.labels, problem.ignore_index)
    return (count.reshape(problem.runs, -1).sum(1) * channels).clamp(min=1).to(torch.float64)


def per_image(values: Tensor, problem: Problem) -> Tensor:
    """One value for every image from one for every run."""
    images = len(problem.logits) // problem.runs
    return values.unsqueeze(1).expand(problem.runs, images).reshape(-1).contiguous()


def scales_gradient_at_once(dtype: torch.dtype) -> bool:
    """Whether 1/(N*K) goes into the gradient in the one pass: float16 would flush half of it to 0."""
    return dtype != torch.float16


def remaining_factor(upstream: Tensor, problem: Problem) -> Tensor:
    """What the gradient that the forward kept has still to be multiplied by, in the shape of `upstream`."""
    if problem.reduction == "mean" and not scales_gradient_at_once(problem.logits.dtype):
        return upstream / mean_divisor(problem).reshape(upstream.shape)
    return upstream


def _for_backend(problem: Problem) -> LossProblem:
    maps, scale = problem.maps, problem.class_scale
    if not problem.include_background:  # channel 0 leaves the sum: its factor is 0
        shape = (problem.runs, problem.logits.shape[1])
        ones = torch.ones(shape, device=maps.device)
        scale = ones if scale is None else scale.expand(shape).clone()
        scale[:, 0] = 0
    background = problem.background
    return LossProblem(
        logits=problem.logits,
        maps=maps.contiguous() if problem.compact else maps,
        labels=None if problem.labels is None else problem.labels.contiguous(),
        background=problem.background_value if background is None else background.to(maps.dtype).contiguous(),
        class_scale=scale,
        ignore_index=problem.ignore_index,
        compact=problem.compact,
    )


def _region_wise(*arguments: Any) -> tuple[Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = Problem(*shared)
    logits = problem.logits
    divisor = mean_divisor(problem) if problem.reduction == "mean" else None
    image_scale = None
    if divisor is not None and with_grad and scales_gradient_at_once(logits.dtype):
        image_scale = per_image(divisor.reciprocal(), problem)
    grad = torch.empty_like(logits) if with_grad else None
    inputs = _for_backend(problem)
    loss, bad = choose(logits.device, problem.backend).loss(
        inputs,
        per_pixel=problem.reduction == "none",
        grad=grad,
        image_scale=image_scale,
        validate=inputs.labels is not None and can_check(inputs.labels, problem.validate),
    )
    if inputs.labels is not None:
        refuse_bad_label(inputs.labels, bad, logits.shape[1], problem.ignore_index)
    if problem.reduction != "none":
        loss = loss.reshape(problem.runs, -1).sum(1)
        loss = (loss if divisor is None else loss / divisor).to(problem.loss_dtype)
        loss = loss if problem.groups else loss.reshape(())
    return loss, logits.new_empty(0) if grad is None else grad


def _region_wise_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = Problem(*shared)
    logits = problem.logits
    shape = [logits.shape[0], *logits.shape[2:]]
    if problem.reduction != "none":
        shape = [problem.groups] if problem.groups else []
    grad = torch.empty_like(logits) if with_grad else logits.new_empty(0)
    return logits.new_empty(shape, dtype=problem.loss_dtype), grad


# The loss (Eq. 1) and, on request, its gradient (Eq. 2) in the same pass. The gradient is that of the reduced loss,
# but for float16 and "mean", where 1/(N*K) is still missing.
define("region_wise", f"({_ARGUMENTS}, bool with_grad) -> (Tensor, Tensor)", _region_wise, _region_wise_fake)


def _region_wise_gradient(upstream: Tensor, *arguments: Any) -> Tensor:
    *shared, kept = arguments
    problem = Problem(*shared)
    logits = problem.logits
    if kept is not None:
        factor = per_image(remaining_factor(upstream, problem).reshape(-1), problem)
        scaled: Tensor = (kept * factor.view(-1, *[1] * (kept.dim() - 1))).to(kept.dtype)
        return scaled
    image_scale = pixel_scale = None
    if problem.reduction == "none":
        pixel_scale = upstream.to(problem.loss_dtype).contiguous()
    else:
        image_scale = upstream.to(torch.float64).reshape(-1)
        if problem.reduction == "mean":
            image_scale = image_scale / mean_divisor(problem)
        image_scale = per_image(image_scale, problem)
    grad = torch.empty_like(logits)
    choose(logits.device, problem.backend).loss(
        _for_backend(problem), per_pixel=None, grad=grad, image_scale=image_scale, pixel_scale=pixel_scale
    )
    return grad


# The gradient alone, as a function of the incoming one and of the logits: what a backward needs that kept no gradient
# of the forward, or that has to be differentiable itself. `kept` is the forward's; it is scaled if it is given.
define(
    "region_wise_gradient",
    f"(Tensor upstream, {_ARGUMENTS}, Tensor? kept) -> Tensor",
    _region_wise_gradient,
    lambda upstream, logits, *_: torch.empty_like(logits),
)


def _fold_problem(size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> Problem:
    problem = Problem(*arguments)
    scale, dim = problem.class_scale, in_dims[4]
    if scale is not None:
        scale = scale if dim is None else scale.movedim(dim, 0)
        if scale.dim() == (1 if dim is None else 2):  # one scale for all runs of a call
            scale = scale.unsqueeze(-2).expand(*scale.shape[:-1], problem.runs, scale.shape[-1])
        scale = fold(scale, None if dim is None else 0, size)
    folded = [fold(t, d, size) for t, d in zip(problem[:4], in_dims[:4], strict=True)]
    count = fold(problem.image_count, in_dims[5], size)
    return Problem._make([*folded, scale, count, *problem[TENSORS:-1], problem.runs * size])


def fold_region_wise(call: Callable[..., Any], size: int, in_dims: Sequence[Any], *arguments: Any) -> Any:
    """The vmap rule of `region_wise`: one `call` on a batch of `size` times as many groups."""
    *shared, with_grad = arguments
    loss, grad = call(*_fold_problem(size, in_dims[:-1], shared), with_grad)
    problem = Problem(*shared)
    if problem.reduction == "none" or problem.groups:
        loss = unfold(loss, size)
    if with_grad:
        return (loss, unfold(grad, size)), (0, 0)
    return (loss, grad), (0, None)


def fold_region_wise_gradient(
    call: Callable[..., Any], size: int, in_dims: Sequence[Any], upstream: Tensor, *arguments: Any
) -> Any:
    """The vmap rule of `region_wise_gradient`: one `call` on a batch of `size` times as many groups."""
    *shared, kept = arguments
    if upstream.dim() == (0 if in_dims[0] is None else 1):  # a scalar loss
        upstream = upstream.unsqueeze(-1)
    problem = _fold_problem(size, in_dims[1:-1], shared)
    result = call(fold(upstream, in_dims[0], size), *problem, fold(kept, in_dims[-1], size))
    return unfold(result, size), 0


torch.library.register_vmap(
    "rwkernels::region_wise",
    lambda info, in_dims, *arguments: fold_region_wise(
        torch.ops.rwkernels.region_wise, info.batch_size, in_dims, *arguments
    ),
)
torch.library.register_vmap(
    "rwkernels::region_wise_gradient",
    lambda info, in_dims, *arguments: fold_region_wise_gradient(
        torch.ops.rwkernels.region_wise_gradient, info.batch_size, in_dims, *arguments
    ),
)
