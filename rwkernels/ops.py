"""The operators of the package: schemas, implementations, fakes and vmap rules.

One operator per idea; the backend is chosen inside, so a compiled graph sees the same operator wherever it runs.
Checks of label values live in the operator whose result is used: a check of its own would be dead code to the
compiler. Autograd is in `autograd.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends import LossProblem, choose

# Arguments that every operator on labels ends with.
_CHECKED = "SymInt? ignore_index, bool validate, str? backend"


def _operator(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    qualified = f"rwkernels::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "CompositeExplicitAutograd")(run)
    torch.library.register_fake(qualified)(fake)


def _map_operator(name: str, arguments: str, shape: Callable[..., list[int]], fill: Callable[..., None]) -> None:
    """An operator labels -> float32 map, and the twin `name_out` that writes into a buffer of the caller's."""

    def run(labels: Tensor, *rest: Any) -> Tensor:
        out = labels.new_empty(shape(labels, *rest), dtype=torch.float32)
        fill(out, labels, *rest)
        return out

    def fake(labels: Tensor, *rest: Any) -> Tensor:
        return labels.new_empty(shape(labels, *rest), dtype=torch.float32)

    def run_out(labels: Tensor, *rest: Any) -> None:
        *arguments, out = rest
        fill(out, labels, *arguments)

    _operator(name, f"(Tensor labels, {arguments}) -> Tensor", run, fake)
    _operator(f"{name}_out", f"(Tensor labels, {arguments}, Tensor(a!) out) -> ()", run_out, lambda *_: None)
    torch.library.register_vmap(f"rwkernels::{name}", _fold_labels(name))


def _fold_labels(name: str) -> Callable[..., Any]:
    """vmap over labels is a larger batch: every image is transformed on its own anyway."""

    def rule(info: Any, in_dims: tuple[Any, ...], labels: Tensor, *rest: Any) -> Any:
        others = zip(rest, in_dims[1:], strict=True)
        if in_dims[0] is None or any(isinstance(value, Tensor) and dim is not None for value, dim in others):
            raise NotImplementedError(f"vmap of rwkernels::{name} maps labels only, not its other tensors")
        folded = labels.movedim(in_dims[0], 0)
        result = getattr(torch.ops.rwkernels, name)(folded.flatten(0, 1), *rest)
        unfold = lambda t: t.unflatten(0, folded.shape[:2])  # noqa: E731
        if isinstance(result, Tensor):
            return unfold(result), 0
        return tuple(unfold(t) for t in result), (0,) * len(result)

    return rule


def _refuse_bad_label(labels: Tensor, bad: int, num_classes: int, ignore_index: int | None) -> None:
    if bad >= 0:
        checks.bad_label(labels, bad, num_classes, ignore_index)


def _can_check(labels: Tensor, validate: bool) -> bool:
    if validate and labels.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "validate: expected False or None during CUDA graph capture (reading label values stalls the device), got True"
        )
    return validate


def _same_shape(labels: Tensor, *_: Any) -> list[int]:
    return list(labels.shape)


def _per_class(labels: Tensor, num_classes: int, *_: Any) -> list[int]:
    return [labels.shape[0], num_classes, *labels.shape[1:]]


def _distance(
    out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool, backend: str | None
) -> None:
    choose(labels.device, backend).fill_distance(out, labels.contiguous(), spacing, squared, black_border)


_map_operator("distance", "float[] spacing, bool squared, bool black_border, str? backend", _same_shape, _distance)


def _class_distance(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    squared: bool,
    ignore_index: int | None,
    validate: bool,
    backend: str | None,
) -> None:
    labels = labels.contiguous()
    bad = choose(labels.device, backend).fill_class_distance(
        out, labels, num_classes, spacing, squared, ignore_index, _can_check(labels, validate)
    )
    _refuse_bad_label(labels, bad, num_classes, ignore_index)


_map_operator(
    "class_distance",
    f"SymInt num_classes, float[] spacing, bool squared, {_CHECKED}",
    _per_class,
    _class_distance,
)


def _boundary(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    absent: float,
    inside_offset: float,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
    backend: str | None,
) -> None:
    labels = labels.contiguous()
    bad = choose(labels.device, backend).fill_boundary(
        out,
        labels,
        num_classes,
        spacing,
        absent,
        inside_offset,
        black_border,
        ignore_index,
        _can_check(labels, validate),
    )
    _refuse_bad_label(labels, bad, num_classes, ignore_index)


_map_operator(
    "boundary",
    f"SymInt num_classes, float[] spacing, float absent, float inside_offset, bool black_border, {_CHECKED}",
    _per_class,
    _boundary,
)


def _constant(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    value: float,
    ignore_index: int | None,
    validate: bool,
    backend: str | None,
) -> None:
    if _can_check(labels, validate):
        labels = labels.contiguous()
        bad = choose(labels.device, backend).first_bad_label(labels, num_classes, ignore_index)
        _refuse_bad_label(labels, bad, num_classes, ignore_index)
    out.fill_(value)


# The foreground of a map whose true class holds one number everywhere.
_map_operator("constant", f"SymInt num_classes, float value, {_CHECKED}", _same_shape, _constant)


_RECTIFIED = f"SymInt num_classes, float[] spacing, Tensor? class_max, bool black_border, {_CHECKED}"


def _rectified_out(
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_max: Tensor | None,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
    backend: str | None,
    out: Tensor,
    count: Tensor,
) -> None:
    labels = labels.contiguous()
    if class_max is not None:
        class_max = class_max.to(torch.float32).contiguous()
    bad_label, bad_maximum = choose(labels.device, backend).fill_rectified(
        out,
        count,
        labels,
        num_classes,
        spacing,
        class_max,
        black_border,
        ignore_index,
        _can_check(labels, validate),
    )
    _refuse_bad_label(labels, bad_label, num_classes, ignore_index)
    if bad_maximum >= 0 and class_max is not None:
        checks.bad_maximum(class_max, bad_maximum)


def _rectified(labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out, count = _rectified_fake(labels)
    _rectified_out(labels, *rest, out, count)
    return out, count


def _rectified_fake(labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape, dtype=torch.float32), labels.new_empty(len(labels), dtype=torch.int64)


# Foreground of Eq. 4 [B, *S], and the number of pixels of every image that count, int64 [B].
_operator("rectified", f"(Tensor labels, {_RECTIFIED}) -> (Tensor, Tensor)", _rectified, _rectified_fake)
_operator(
    "rectified_out",
    f"(Tensor labels, {_RECTIFIED}, Tensor(a!) out, Tensor(b!) count) -> ()",
    _rectified_out,
    lambda *_: None,
)
torch.library.register_vmap("rwkernels::rectified", _fold_labels("rectified"))


_DENSE = (
    "Tensor labels, Tensor foreground, Tensor? background, float background_value, Tensor? class_scale, "
    "SymInt num_classes, SymInt? ignore_index, str? backend"
)


def _dense_out(
    labels: Tensor,
    foreground: Tensor,
    background: Tensor | None,
    background_value: float,
    class_scale: Tensor | None,
    num_classes: int,
    ignore_index: int | None,
    backend: str | None,
    out: Tensor,
) -> None:
    choose(labels.device, backend).fill_dense(
        out,
        labels.contiguous(),
        foreground.contiguous(),
        background_value if background is None else background.contiguous(),
        num_classes,
        class_scale,
        ignore_index,
    )


def _dense_empty(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return labels.new_empty(_per_class(labels, num_classes), dtype=dtype)


def _dense(*arguments: Any) -> Tensor:
    *arguments, dtype = arguments  # type: ignore[assignment]
    out = _dense_empty(arguments[0], arguments[5], dtype)
    _dense_out(*arguments, out)
    return out


_operator(
    "dense",
    f"({_DENSE}, ScalarType dtype) -> Tensor",
    _dense,
    lambda *arguments: _dense_empty(arguments[0], arguments[5], arguments[-1]),
)
_operator("dense_out", f"({_DENSE}, Tensor(a!) out) -> ()", _dense_out, lambda *_: None)


# --- the loss -------------------------------------------------------------------------------------------------
#
# `maps` is dense [B, K, *S], or the foreground [B, *S] of a compact map, whose labels come beside it.
# `groups`: vmap folds its axis into the batch; the images then form so many equal runs, each reduced on its own.
# 0 means one run and a scalar loss.

_PROBLEM = (
    "Tensor logits, Tensor maps, Tensor? labels, Tensor? background, Tensor? class_scale, Tensor? count, "
    "float background_value, SymInt? ignore_index, bool include_background, str reduction, bool validate, "
    "str? backend, int groups"
)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for all others."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def scales_gradient_at_once(dtype: torch.dtype) -> bool:
    """Whether 1/(N*K) goes into the gradient in the one pass: float16 would flush half of it to 0."""
    return dtype != torch.float16


def _problem(
    logits: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    background: Tensor | None,
    class_scale: Tensor | None,
    background_value: float,
    ignore_index: int | None,
    include_background: bool,
    groups: int,
) -> LossProblem:
    if not include_background:
        shape = (max(groups, 1), logits.shape[1])
        class_scale = torch.ones(shape, device=logits.device) if class_scale is None else class_scale.expand(shape)
        class_scale = class_scale.index_fill(1, torch.zeros(1, dtype=torch.int64, device=logits.device), 0.0)
    compact = maps.dim() == logits.dim() - 1
    return LossProblem(
        logits=logits,
        maps=maps.contiguous() if compact else maps,
        labels=None if labels is None else labels.contiguous(),
        background=background_value if background is None else background.to(maps.dtype).contiguous(),
        class_scale=class_scale,
        ignore_index=ignore_index,
        compact=compact,
    )


def mean_divisor(
    logits: Tensor,
    labels: Tensor | None,
    count: Tensor | None,
    ignore_index: int | None,
    include_background: bool,
    groups: int,
) -> Tensor:
    """N * K of every group, float64 [max(groups, 1)]; at least 1, so that nothing left gives 0 and no NaN."""
    runs = max(groups, 1)
    channels = logits.shape[1] - (0 if include_background else 1)
    if ignore_index is None:
        pixels = logits[:, 0].numel() // runs
        return torch.full((runs,), max(pixels * channels, 1), dtype=torch.float64, device=logits.device)
    if count is None:
        assert labels is not None
        count = (labels != ignore_index).flatten(1).sum(1)
    return (count.reshape(runs, -1).sum(1) * channels).clamp(min=1).to(torch.float64)


def per_image(values: Tensor, logits: Tensor) -> Tensor:
    """One value for every image from one for every group."""
    return values.repeat_interleave(len(logits) // max(len(values), 1))


def _region_wise(
    logits: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    background: Tensor | None,
    class_scale: Tensor | None,
    count: Tensor | None,
    background_value: float,
    ignore_index: int | None,
    include_background: bool,
    reduction: str,
    validate: bool,
    backend: str | None,
    groups: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    problem = _problem(
        logits, maps, labels, background, class_scale, background_value, ignore_index, include_background, groups
    )
    divisor = None
    if reduction == "mean":
        divisor = mean_divisor(logits, labels, count, ignore_index, include_background, groups)
    grad = torch.empty_like(logits) if with_grad else None
    image_scale = None
    if divisor is not None and scales_gradient_at_once(logits.dtype):
        image_scale = per_image(divisor.reciprocal(), logits)
    validate = validate and labels is not None and _can_check(labels, validate)
    loss, bad = choose(logits.device, backend).loss(
        problem, per_pixel=reduction == "none", grad=grad, image_scale=image_scale, validate=validate
    )
    if problem.labels is not None:
        _refuse_bad_label(problem.labels, bad, logits.shape[1], ignore_index)
    if reduction != "none":
        loss = loss.reshape(max(groups, 1), -1).sum(1)
        if divisor is not None:
            loss = loss / divisor
        loss = loss.to(loss_dtype(logits))
        if groups == 0:
            loss = loss.reshape(())
    return loss, logits.new_empty(0) if grad is None else grad


def _region_wise_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    reduction, groups, with_grad = rest[8], rest[11], rest[12]
    spatial = [logits.shape[0], *logits.shape[2:]]
    shape = spatial if reduction == "none" else ([groups] if groups else [])
    grad = torch.empty_like(logits) if with_grad else logits.new_empty(0)
    return logits.new_empty(shape, dtype=loss_dtype(logits)), grad


# The loss (Eq. 1) and, on request, its gradient (Eq. 2) in the same pass. The gradient is that of the reduced
# loss, but for float16 and "mean", where the caller divides by N*K.
_operator("region_wise", f"({_PROBLEM}, bool with_grad) -> (Tensor, Tensor)", _region_wise, _region_wise_fake)


def remaining_factor(
    upstream: Tensor,
    logits: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    background: Tensor | None,
    class_scale: Tensor | None,
    count: Tensor | None,
    background_value: float,
    ignore_index: int | None,
    include_background: bool,
    reduction: str,
    validate: bool,
    backend: str | None,
    groups: int,
) -> Tensor:
    """What the gradient that the forward kept has still to be multiplied by, in the shape of `upstream`."""
    if reduction == "mean" and not scales_gradient_at_once(logits.dtype):
        divisor = mean_divisor(logits, labels, count, ignore_index, include_background, groups)
        return upstream / divisor.reshape(upstream.shape)
    return upstream


def _region_wise_gradient(
    upstream: Tensor,
    logits: Tensor,
    maps: Tensor,
    labels: Tensor | None,
    background: Tensor | None,
    class_scale: Tensor | None,
    count: Tensor | None,
    background_value: float,
    ignore_index: int | None,
    include_background: bool,
    reduction: str,
    validate: bool,
    backend: str | None,
    groups: int,
    grad: Tensor | None,
) -> Tensor:
    if grad is not None:
        factor = remaining_factor(
            upstream,
            logits,
            maps,
            labels,
            background,
            class_scale,
            count,
            background_value,
            ignore_index,
            include_background,
            reduction,
            validate,
            backend,
            groups,
        )
        return (grad * per_image(factor.reshape(-1), logits).view(-1, *[1] * (grad.dim() - 1))).to(grad.dtype)
    problem = _problem(
        logits, maps, labels, background, class_scale, background_value, ignore_index, include_background, groups
    )
    image_scale = pixel_scale = None
    if reduction == "none":
        pixel_scale = upstream.to(loss_dtype(logits)).contiguous()
    else:
        image_scale = upstream.to(torch.float64).reshape(-1)
        if reduction == "mean":
            image_scale = image_scale / mean_divisor(
                logits, labels, count, ignore_index, include_background, groups
            )
        image_scale = per_image(image_scale, logits)
    grad = torch.empty_like(logits)
    choose(logits.device, backend).loss(
        problem, per_pixel=None, grad=grad, image_scale=image_scale, pixel_scale=pixel_scale, validate=False
    )
    return grad


# The gradient alone, as a function of the incoming one and of the logits: what a backward needs that kept no gradient
# of the forward, or that has to be differentiable itself. `grad` is the kept one; it is scaled if it is given.
_operator(
    "region_wise_gradient",
    f"(Tensor upstream, {_PROBLEM}, Tensor? grad) -> Tensor",
    _region_wise_gradient,
    lambda upstream, logits, *_: torch.empty_like(logits),
)


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """The vmapped axis of `tensor` folded into its first one, which every group keeps whole."""
    if tensor is None:
        return None
    whole = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return whole.flatten(0, 1)


def _fold_problem(size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    *tensors, class_scale, count = arguments[:6]
    runs = max(arguments[12], 1)
    folded = [_fold(t, dim, size) for t, dim in zip(tensors, in_dims, strict=False)]
    if class_scale is not None:
        dim = in_dims[4]
        scale = class_scale if dim is None else class_scale.movedim(dim, 0)
        if scale.dim() == (1 if dim is None else 2):  # one scale for all groups of a call
            scale = scale.unsqueeze(-2).expand(*scale.shape[:-1], runs, scale.shape[-1])
        class_scale = _fold(scale, None if dim is None else 0, size)
    return [*folded, class_scale, _fold(count, in_dims[5], size), *arguments[6:12], runs * size]


def fold_region_wise(call: Callable[..., Any], size: int, in_dims: Sequence[Any], *arguments: Any) -> Any:
    """The vmap rule of `region_wise`: one `call` on a batch of `size` groups."""
    reduction, groups, with_grad = arguments[9], arguments[12], arguments[13]
    loss, grad = call(*_fold_problem(size, in_dims, arguments), with_grad)
    if reduction == "none" or groups:
        loss = loss.unflatten(0, (size, -1))
    if with_grad:
        return (loss, grad.unflatten(0, (size, -1))), (0, 0)
    return (loss, grad), (0, None)


def fold_region_wise_gradient(
    call: Callable[..., Any], size: int, in_dims: Sequence[Any], upstream: Tensor, *arguments: Any
) -> Any:
    """The vmap rule of `region_wise_gradient`: one `call` on a batch of `size` groups."""
    *problem, grad = arguments
    if upstream.dim() == (0 if in_dims[0] is None else 1):  # a scalar loss
        upstream = upstream.unsqueeze(-1)
    result = call(
        _fold(upstream, in_dims[0], size),
        *_fold_problem(size, in_dims[1:-1], problem),
        _fold(grad, in_dims[-1], size),
    )
    return result.unflatten(0, (size, -1)), 0


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
