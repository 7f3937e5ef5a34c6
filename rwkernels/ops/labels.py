"""The operators on labels (distances and maps): schemas, implementations, fakes and vmap rules.

One operator per idea; the backend is chosen inside, so a compiled graph sees the same operator wherever it runs.
Checks of label values live in the operator whose result is used: a check of its own would be dead code to the
compiler. The operators of the loss are in `loss.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends import choose

# Arguments that every operator on labels ends with.
_CHECKED = "SymInt? ignore_index, bool validate, str? backend"


def define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    qualified = f"rwkernels::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "CompositeExplicitAutograd")(run)
    torch.library.register_fake(qualified)(fake)


def fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """The vmapped axis of `tensor` folded into its first one, whose runs stay whole."""
    if tensor is None:
        return None
    whole = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return whole.flatten(0, 1)


def unfold(tensor: Tensor, size: int) -> Tensor:
    """What `fold` did, undone: the vmapped axis comes first."""
    return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])


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

    define(name, f"(Tensor labels, {arguments}) -> Tensor", run, fake)
    define(f"{name}_out", f"(Tensor labels, {arguments}, Tensor(a!) out) -> ()", run_out, lambda *_: None)
    torch.library.register_vmap(f"rwkernels::{name}", _fold_labels(name))


def _fold_labels(name: str) -> Callable[..., Any]:
    """The vmap rule: more labels are a larger batch, in which every image is transformed on its own anyway."""

    def rule(info: Any, in_dims: tuple[Any, ...], labels: Tensor, *rest: Any) -> Any:
        others = zip(rest, in_dims[1:], strict=True)
        if in_dims[0] is None or any(isinstance(value, Tensor) and dim is not None for value, dim in others):
            raise NotImplementedError(f"vmap of rwkernels::{name} maps labels only, not its other tensors")
        result = getattr(torch.ops.rwkernels, name)(fold(labels, in_dims[0], info.batch_size), *rest)
        if isinstance(result, Tensor):
            return unfold(result, info.batch_size), 0
        return tuple(unfold(t, info.batch_size) for t in result), (0,) * len(result)

    return rule


def refuse_bad_label(labels: Tensor, bad: int, num_classes: int, ignore_index: int | None) -> None:
    """Raises if a backend found a bad label, at the flat index `bad`."""
    if bad >= 0:
        checks.bad_label(labels, bad, num_classes, ignore_index)


def can_check(labels: Tensor, validate: bool) -> bool:
    """`validate`, with an error where the check cannot be made."""
    if validate and labels.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "validate: expected False or None during CUDA graph capture, where label values cannot be read, got True"
        )
    return validate


def _same_shape(labels: Tensor, *_: Any) -> list[int]:
    return list(labels.shape)


def _per_class(labels: Tensor, num_classes: int, *_: Any) -> list[int]:
    return [labels.shape[0], num_classes, *labels.shape[1:]]


def _distance(
    out: Tensor,
    labels: Tensor,
    spacing: Sequence[float],
    squared: bool,
    black_border: bool,
    backend: str | None,
) -> None:
    choose(labels.device, "fill_distance", backend).fill_distance(
        out, labels.contiguous(), spacing, squared, black_border
    )


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
    bad = choose(labels.device, "fill_class_distance", backend).fill_class_distance(
        out, labels, num_classes, spacing, squared, ignore_index, can_check(labels, validate)
    )
    refuse_bad_label(labels, bad, num_classes, ignore_index)


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
    bad = choose(labels.device, "fill_boundary", backend).fill_boundary(
        out,
        labels,
        num_classes,
        spacing,
        absent,
        inside_offset,
        black_border,
        ignore_index,
        can_check(labels, validate),
    )
    refuse_bad_label(labels, bad, num_classes, ignore_index)


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
    if can_check(labels, validate):
        labels = labels.contiguous()
        bad = choose(labels.device, "first_bad_label", backend).first_bad_label(labels, num_classes, ignore_index)
        refuse_bad_label(labels, bad, num_classes, ignore_index)
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
    fill = choose(labels.device, "fill_rectified", backend).fill_rectified
    fill_checked(
        partial(fill, out, count), labels, num_classes, spacing, class_max, black_border, ignore_index, validate
    )


def fill_checked(
    fill: Callable[..., tuple[int, int]],
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_max: Tensor | None,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> None:
    """Calls `fill` with what a backend expects for a rectified map; raises for what it refuses."""
    labels = labels.contiguous()
    if class_max is not None:
        class_max = class_max.to(torch.float32).contiguous()
    bad_label, bad_maximum = fill(
        labels, num_classes, spacing, class_max, black_border, ignore_index, can_check(labels, validate)
    )
    refuse_bad_label(labels, bad_label, num_classes, ignore_index)
    if bad_maximum >= 0 and class_max is not None:
        checks.bad_maximum(class_max, bad_maximum)


def _rectified(*arguments: Any) -> tuple[Tensor, Tensor]:
    out, count = _rectified_fake(*arguments)
    fill: Callable[..., None] = _rectified_out
    fill(*arguments, out, count)
    return out, count


def _rectified_fake(labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape, dtype=torch.float32), labels.new_empty(labels.shape[0], dtype=torch.int64)


# Foreground of Eq. 4 [B, *S], and the number of pixels of every image that count, int64 [B].
define("rectified", f"(Tensor labels, {_RECTIFIED}) -> (Tensor, Tensor)", _rectified, _rectified_fake)
define(
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
    choose(labels.device, "fill_dense", backend).fill_dense(
        out,
        labels.contiguous(),
        foreground.contiguous(),
        background_value if background is None else background.contiguous(),
        num_classes,
        class_scale,
        ignore_index,
    )


def _dense_fake(*arguments: Any) -> Tensor:
    labels, num_classes, dtype = arguments[0], arguments[5], arguments[-1]
    result: Tensor = labels.new_empty(_per_class(labels, num_classes), dtype=dtype)
    return result


def _dense(*arguments: Any) -> Tensor:
    *shared, _ = arguments
    out = _dense_fake(*arguments)
    fill: Callable[..., None] = _dense_out
    fill(*shared, out)
    return out


def _dense_vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Tensor, int]:
    if in_dims[4] is not None:
        raise NotImplementedError("vmap of rwkernels::dense maps labels and values, not class_scale")
    size = info.batch_size
    folded = [fold(tensor, dim, size) for tensor, dim in zip(arguments[:3], in_dims, strict=False)]
    return unfold(torch.ops.rwkernels.dense(*folded, *arguments[3:]), size), 0


define("dense", f"({_DENSE}, ScalarType dtype) -> Tensor", _dense, _dense_fake)
define("dense_out", f"({_DENSE}, Tensor(a!) out) -> ()", _dense_out, lambda *_: None)
torch.library.register_vmap("rwkernels::dense", _dense_vmap)
