"""The operators of the loss: schemas, implementations, fakes and vmap rules. Autograd is in `autograd.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from rwkernels import checks
from rwkernels.backends import choose
from rwkernels.backends.problem import BadInputError, LossProblem, scales_gradient_at_once
from rwkernels.ops.labels import can_check, define, fold, unfold

TENSORS = 6  # the first fields of `LossProblem`
_ARGUMENTS = (
    "Tensor logits, Tensor maps, Tensor? labels, Tensor? background, Tensor? class_scale, Tensor? image_count, "
    "float background_value, SymInt? ignore_index, bool include_background, str reduction, bool validate, "
    "str? backend, int groups"
)


def divides_later(problem: LossProblem) -> bool:
    """Whether the gradient that the forward kept has still to be divided by N * K."""
    return problem.reduction == "mean" and not scales_gradient_at_once(problem.logits.dtype)


def _refuse(found: BadInputError, problem: LossProblem) -> NoReturn:
    assert problem.labels is not None
    checks.bad_input(found, problem.labels, problem.logits.shape[1], problem.ignore_index)


def _region_wise(*arguments: Any) -> tuple[Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = LossProblem(*shared)
    logits, labels = problem.logits, problem.labels
    grad = torch.empty_like(logits) if with_grad else None
    try:
        loss = choose(logits.device, "loss", problem.backend).loss(
            problem,
            with_loss=True,
            grad=grad,
            upstream=None,
            divide=scales_gradient_at_once(logits.dtype),
            validate=labels is not None and can_check(labels, problem.validate),
        )
    except BadInputError as found:
        _refuse(found, problem)
    if problem.reduction != "none" and not problem.groups:
        loss = loss.reshape(())
    return loss, logits.new_empty(0) if grad is None else grad


def _region_wise_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *shared, with_grad = arguments
    problem = LossProblem(*shared)
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
    problem = LossProblem(*shared)
    backend = choose(problem.logits.device, "loss", problem.backend)
    if kept is not None:
        return backend.scale_gradient(problem, kept, upstream, divide=divides_later(problem), in_place=False)
    grad = torch.empty_like(problem.logits)
    backend.loss(problem, with_loss=False, grad=grad, upstream=upstream, divide=True, validate=False)
    return grad


# The gradient alone, as a function of the incoming one and of the logits: what a backward needs that kept no gradient
# of the forward, or that has to be differentiable itself. `kept` is the forward's; it is scaled if it is given.
define(
    "region_wise_gradient",
    f"(Tensor upstream, {_ARGUMENTS}, Tensor? kept) -> Tensor",
    _region_wise_gradient,
    lambda upstream, logits, *_: torch.empty_like(logits),
)


def _negatives(*arguments: Any) -> Tensor:
    *shared, probabilities, wrong = arguments
    problem = LossProblem(*shared)
    values, labels = problem.logits, problem.labels
    out = values.new_empty([values.shape[0], *values.shape[2:]], dtype=torch.int32)
    try:
        choose(values.device, "fill_negatives", problem.backend).fill_negatives(
            out,
            problem,
            probabilities=probabilities,
            wrong=wrong,
            validate=labels is not None and can_check(labels, problem.validate),
        )
    except BadInputError as found:
        _refuse(found, problem)
    return out


# How many entries of every pixel's gradient (Eq. 2) are negative; or, with `wrong`, have the other sign than descent
# towards the label needs. The "logits" may be probabilities.
define(
    "negatives",
    f"({_ARGUMENTS}, bool probabilities, bool wrong) -> Tensor",
    _negatives,
    lambda values, *_: values.new_empty([values.shape[0], *values.shape[2:]], dtype=torch.int32),
)


def _show_compiler(name: str, run: Callable[..., Any], first: int) -> None:
    """Lets the compiler see the kernels of operator `name` where the Triton backend runs it.

    `torch.export` keeps the operator whole. This is what `torch.library.triton_op` does, without its import of Triton
    and for one of several backends.
    """

    def rule(mode: Any, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None) -> Any:
        problem = LossProblem._make(arguments[first : first + len(LossProblem._fields)])
        device = problem.logits.device
        # A check of label values reads them, which no graph can.
        if problem.validate or device.type == "cpu" or choose(device, "loss", problem.backend).NAME != "triton":
            return mode.__torch_dispatch__(operator, types, arguments, keywords)
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        if custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(operator, types, arguments, keywords)
        with mode:
            return run(*arguments)

    torch.library.register_torch_dispatch(f"rwkernels::{name}", FunctionalTensorMode, rule)


_show_compiler("region_wise", _region_wise, 0)
_show_compiler("region_wise_gradient", _region_wise_gradient, 1)


def _fold_problem(size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> LossProblem:
    problem = LossProblem(*arguments)
    scale, dim = problem.class_scale, in_dims[4]
    if scale is not None:
        scale = scale if dim is None else scale.movedim(dim, 0)
        if scale.dim() == (1 if dim is None else 2):  # one scale for all runs of a call
            scale = scale.unsqueeze(-2).expand(*scale.shape[:-1], problem.runs, scale.shape[-1])
        scale = fold(scale, None if dim is None else 0, size)
    folded = [fold(t, d, size) for t, d in zip(problem[:4], in_dims[:4], strict=True)]
    count = fold(problem.image_count, in_dims[5], size)
    return LossProblem._make([*folded, scale, count, *problem[TENSORS:-1], problem.runs * size])


def fold_region_wise(call: Callable[..., Any], size: int, in_dims: Sequence[Any], *arguments: Any) -> Any:
    """The vmap rule of `region_wise`: one `call` on a batch of `size` times as many groups."""
    *shared, with_grad = arguments
    loss, grad = call(_fold_problem(size, in_dims[:-1], shared), with_grad)
    problem = LossProblem(*shared)
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
    result = call(fold(upstream, in_dims[0], size), problem, fold(kept, in_dims[-1], size))
    return unfold(result, size), 0


torch.library.register_vmap(
    "rwkernels::region_wise",
    lambda info, in_dims, *arguments: fold_region_wise(
        lambda problem, with_grad: torch.ops.rwkernels.region_wise(*problem, with_grad),
        info.batch_size,
        in_dims,
        *arguments,
    ),
)
torch.library.register_vmap(
    "rwkernels::region_wise_gradient",
    lambda info, in_dims, *arguments: fold_region_wise_gradient(
        lambda upstream, problem, kept: torch.ops.rwkernels.region_wise_gradient(upstream, *problem, kept),
        info.batch_size,
        in_dims,
        *arguments,
    ),
)
torch.library.register_vmap(
    "rwkernels::negatives",
    lambda info, in_dims, *arguments: (
        unfold(
            torch.ops.rwkernels.negatives(
                *_fold_problem(info.batch_size, in_dims[:-2], arguments[:-2]), *arguments[-2:]
            ),
            info.batch_size,
        ),
        0,
    ),
)
