"""Losses that repeat, in eager PyTorch: what a call needs beside its tensors is worked out once and kept.

An operator on a small image costs more in the dispatcher and in Python than in its kernels. Where nobody looks on (no
compiler, no transform, no dispatch mode), a plan of the backend computes loss and gradient in one call, and one
autograd Function stands around it. Everywhere else the operators in `labels.py` and `loss.py` do the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rwkernels.backends import ENVIRONMENT_VARIABLE, Plan
from rwkernels.backends.problem import BadInputError, LossProblem, StepResult
from rwkernels.ops import mode
from rwkernels.ops.autograd import region_wise_gradient

_KEPT = 256  # plans are small and hold no tensors, but shapes may be different in every call
_PLAIN = (Tensor, nn.Parameter)


class Planned(NamedTuple):
    """A backend's plan, and what its tensors are, for the derivatives that it does not give."""

    plan: Plan
    # From the logits of all levels, the tensors beside them and those that the plan made: a problem a level.
    problems: Callable[[Sequence[Tensor], Sequence[Tensor | None], StepResult], list[LossProblem]]
    weights: Sequence[float]  # of the levels


# By all that a plan was made for. None: there is no plan, and the operators do it.
_plans: dict[Hashable, Planned | None] = {}


def key_of(*tensors: Tensor | None) -> list[Hashable] | None:
    """What a plan for these tensors depends on; None if they, or the mode that PyTorch is in, are not for plans."""
    if mode.is_watched():
        return None
    key: list[Hashable] = [os.environ.get(ENVIRONMENT_VARIABLE)]
    for tensor in tensors:
        if tensor is None:
            key.append(None)
        elif type(tensor) not in _PLAIN or tensor.layout is not torch.strided or tensor.is_neg():
            return None
        else:
            key += tensor.shape, tensor.stride(), tensor.dtype, tensor.device
            if tensor.is_cuda:
                key.append(tensor.data_ptr() % 16)  # what a compiled kernel takes for granted
    return key


def kept(key: Hashable, make: Callable[..., Planned | None], *given: Any) -> Planned | None:
    """The plan of `key`, which is made of what is given if there is none yet; None if it has to go without."""
    try:
        return _plans[key]
    except KeyError:
        found = make(*given)
    except TypeError:  # an option that cannot be hashed: who checks it says what is wrong
        return None
    if len(_plans) >= _KEPT:
        _plans.clear()
    _plans[key] = found
    return found


def run(
    planned: Planned, logits: Sequence[Tensor], others: Sequence[Tensor | None], differentiable: bool
) -> Tensor | None:
    """The loss by a plan; None if it found a bad value, whose place the operators name."""
    try:
        if differentiable:
            loss: Tensor = _function(planned, others, *logits)
            return loss
        return planned.plan(logits, others).loss
    except BadInputError:
        return None


class _Planned(torch.autograd.Function):
    """The loss of a plan, as a function of the logits of all levels."""

    @staticmethod
    def forward(ctx: Any, planned: Planned, others: Sequence[Tensor | None], *logits: Tensor) -> Tensor:
        loss, grads, foregrounds, counts = planned.plan(logits, others)
        ctx.planned = planned
        ctx.places = (len(logits), len(logits) + len(others), len(grads), len(foregrounds))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*logits, *others, *grads, *foregrounds, *counts)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> Any:
        levels, inputs, grads, maps = ctx.places
        if upstream is None:
            return (None,) * (2 + levels)
        plan, problems, weights = ctx.planned
        saved = ctx.saved_tensors
        kept, counts = saved[inputs : inputs + grads], saved[inputs + grads + maps :]
        if grads and mode.is_plain(upstream):
            in_place = not mode.graph_is_kept()
            return None, None, *plan.scale(upstream, kept, counts, in_place=in_place)
        result = StepResult(upstream, kept, saved[inputs + grads : inputs + grads + maps], counts)
        found = []
        each = zip(problems(saved[:levels], saved[levels:inputs], result), weights, strict=True)
        for level, (problem, weight) in enumerate(each):
            own = kept[level] if grads and weight == 1 else None
            found.append(region_wise_gradient(upstream if weight == 1 else upstream * weight, problem, own))
        return None, None, *found


# Not `_Planned.apply`, which looks for transforms first: there are none where plans are.
_function: Any = super(torch.autograd.Function, _Planned).apply
