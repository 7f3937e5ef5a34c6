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
from rwkernels.backends import Backend, choose
from rwkernels.backends.problem import BadInputError, CompactProblem, MapProblem

# The fields of `MapProblem`, with which every operator on labels begins.
_PROBLEM = (
    "Tensor labels, SymInt num_classes, float[] spacing, Tensor? class_max, bool black_border, SymInt? ignore_index, "
    "bool validate, str? backend"
)


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


def _map_operator(
    name: str, options: str, shape: Callable[[MapProblem], Sequence[int]], fill: Callable[..., None]
) -> None:
    """An operator labels -> float32 map, and the twin `name_out` that writes into a buffer of the caller's.

    Both take a `MapProblem` and then `options`; `fill` gets the buffer, the problem and the options.
    """

    def fake(*arguments: Any) -> Tensor:
        problem, _ = _taken_apart(arguments)
        return problem.labels.new_empty(shape(problem), dtype=torch.float32)

    def run(*arguments: Any) -> Tensor:
        out = fake(*arguments)
        run_out(*arguments, out)
        return out

    def run_out(*arguments: Any) -> None:
        problem, (*rest, out) = _taken_apart(arguments)
        with_refusals(partial(fill, out), problem, *rest)

    define(name, f"({_PROBLEM}{options}) -> Tensor", run, fake)
    define(f"{name}_out", f"({_PROBLEM}{options}, Tensor(a!) out) -> ()", run_out, lambda *_: None)
    torch.library.register_vmap(f"rwkernels::{name}", _fold_labels(name))


def _taken_apart(arguments: Sequence[Any]) -> tuple[MapProblem, Sequence[Any]]:
    fields = len(MapProblem._fields)
    return MapProblem._make(arguments[:fields]), arguments[fields:]


def with_refusals(fill: Callable[..., Any], problem: MapProblem, *options: Any) -> None:
    """Calls `fill` with the problem as a backend expects it, and raises by name for what a backend refuses."""
    labels, class_max = problem.labels.contiguous(), problem.class_max
    if class_max is not None:
        class_max = class_max.to(torch.float32).contiguous()
    problem = problem._replace(labels=labels, class_max=class_max, validate=can_check(labels, problem.validate))
    try:
        fill(problem, *options)
    except BadInputError as found:
        checks.bad_input(found, labels, problem.num_classes, problem.ignore_index, class_max)


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


def can_check(labels: Tensor, validate: bool) -> bool:
    """`validate`, with an error where the check cannot be made."""
    if validate and labels.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "validate: expected False or None during CUDA graph capture, where label values cannot be read, got True"
        )
    return validate


def _same_shape(problem: MapProblem) -> Sequence[int]:
    return problem.labels.shape


def _per_class(problem: MapProblem) -> Sequence[int]:
    return problem.shape


def _backend(operation: str, problem: MapProblem) -> Backend:
    return choose(problem.labels.device, operation, problem.backend)


def _distance(out: Tensor, problem: MapProblem, squared: bool) -> None:
    _backend("fill_distance", problem).fill_distance(out, problem, squared=squared)


_map_operator("distance", ", bool squared", _same_shape, _distance)


def _class_distance(out: Tensor, problem: MapProblem, squared: bool) -> None:
    _backend("fill_class_distance", problem).fill_class_distance(out, problem, squared=squared)


_map_operator("class_distance", ", bool squared", _per_class, _class_distance)


def _boundary(out: Tensor, problem: MapProblem, absent: float, inside_offset: float) -> None:
    backend = _backend("fill_boundary", problem)
    backend.fill_boundary(out, problem, absent=absent, inside_offset=inside_offset)


_map_operator("boundary", ", float absent, float inside_offset", _per_class, _boundary)


def _constant(out: Tensor, problem: MapProblem, value: float) -> None:
    if problem.validate:
        backend = _backend("first_bad_label", problem)
        bad = backend.first_bad_label(problem.labels, problem.num_classes, problem.ignore_index)
        if bad >= 0:
            raise BadInputError("labels", bad)
    out.fill_(value)


# The foreground of a map whose true class holds one number everywhere.
_map_operator("constant", ", float value", _same_shape, _constant)


def _rectified_out(*arguments: Any) -> None:
    problem, (out, count) = _taken_apart(arguments)
    with_refusals(partial(_backend("fill_rectified", problem).fill_rectified, out, count), problem)


def _rectified(*arguments: Any) -> tuple[Tensor, Tensor]:
    out, count = _rectified_fake(*arguments)
    _rectified_out(*arguments, out, count)
    return out, count


def _rectified_fake(labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape, dtype=torch.float32), labels.new_empty(labels.shape[0], dtype=torch.int64)


# Foreground of Eq. 4 [B, *S], and the number of pixels of every image that count, int64 [B].
define("rectified", f"({_PROBLEM}) -> (Tensor, Tensor)", _rectified, _rectified_fake)
define("rectified_out", f"({_PROBLEM}, Tensor(a!) out, Tensor(b!) count) -> ()", _rectified_out, lambda *_: None)
torch.library.register_vmap("rwkernels::rectified", _fold_labels("rectified"))


_DENSE = (
    "Tensor labels, Tensor foreground, Tensor? background, float background_value, Tensor? class_scale, "
    "SymInt num_classes, SymInt? ignore_index, str? backend"
)


def _dense_out(*arguments: Any) -> None:
    *fields, out = arguments
    problem = CompactProblem._make(fields)
    background = problem.background
    contiguous = problem._replace(
        labels=problem.labels.contiguous(),
        foreground=problem.foreground.contiguous(),
        background=None if background is None else background.contiguous(),
    )
    choose(out.device, "fill_dense", problem.backend).fill_dense(out, contiguous)


def _dense_fake(*arguments: Any) -> Tensor:
    *fields, dtype = arguments
    problem = CompactProblem._make(fields)
    return problem.labels.new_empty(problem.shape, dtype=dtype)


def _dense(*arguments: Any) -> Tensor:
    out = _dense_fake(*arguments)
    _dense_out(*arguments[:-1], out)
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
