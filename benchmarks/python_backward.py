"""Reverse-mode differentiation in Python over the graph that PyTorch's autograd records.

PyTorch's own engine asks the CUDA driver for the streams of the caller before it runs the first node of a graph that
holds CUDA tensors, fake ones included, and fails where there is no driver. The nodes themselves need no driver: they
only dispatch operators. So `run_backward` walks the nodes in the order of the engine (latest recorded first) and does
what the engine does between them: it adds up gradients, and reduces and casts each to the shape and type of the value
it belongs to. Hooks are not called.

It is meant for tracing, where what matters is which operators run;
`tests/backends/triton/test_traffic.py` compares it with the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import get_gradient_edge

Node = Any  # torch.autograd.graph.Node; autograd Functions are nodes without being instances of it


@contextmanager
def python_backward() -> Iterator[None]:
    """A context in which `torch.autograd.grad` walks the graph with `run_backward`."""
    with (
        mock.patch("torch.autograd._engine_run_backward", run_backward),
        mock.patch.object(FunctionCtx, "set_materialize_grads", _set_materialize_grads),
    ):
        yield


def _set_materialize_grads(ctx: Any, value: bool) -> None:
    ctx.materialize_grads = value  # what the original does; it cannot be read back
    ctx.materializes_grads = value


def run_backward(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    retain_graph: bool | None,
    create_graph: bool,
    inputs: Sequence[Tensor],
    allow_unused: bool = False,
    accumulate_grad: bool = False,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """Stands in for the engine as `torch.autograd.grad` calls it."""
    if accumulate_grad or not inputs:
        raise NotImplementedError("only torch.autograd.grad is supported here, not .backward()")
    roots = [get_gradient_edge(output) for output in outputs]
    targets = [get_gradient_edge(tensor) for tensor in inputs]
    waiting = _users([root.node for root in roots])
    received = {node: [None] * len(node._input_metadata) for node in waiting}
    found: dict[tuple[Node, int], Tensor | None] = {}
    with torch.set_grad_enabled(create_graph):
        for root, grad in zip(roots, grad_outputs, strict=True):
            _receive(received, root.node, root.output_nr, grad)
        ready = [node for node, users in waiting.items() if not users]
        while ready:
            node = max(ready, key=lambda ready_node: ready_node._sequence_nr())
            ready.remove(node)
            grads = received.pop(node)
            found.update({(node, position): grad for position, grad in enumerate(grads)})
            for (following, position), grad in zip(node.next_functions, _call(node, grads), strict=False):
                if following is None:
                    continue
                _receive(received, following, position, grad)
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)
    return tuple(found.get((target.node, target.output_nr)) for target in targets)


def _users(roots: Sequence[Node]) -> Counter[Node]:
    """All nodes under the roots, each with how many edges lead to it."""
    users: Counter[Node] = Counter()
    pending = list(dict.fromkeys(roots))
    seen = set(pending)
    users.update(dict.fromkeys(pending, 0))
    while pending:
        for following, _ in pending.pop().next_functions:
            if following is None:
                continue
            users[following] += 1
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return users


def _receive(received: dict[Node, list[Any]], node: Node, position: int, grad: Tensor | None) -> None:
    if grad is None:
        return
    meta = node._input_metadata[position]
    if grad.shape != tuple(meta.shape):
        grad = grad.sum_to_size(meta.shape)
    if grad.dtype != meta.dtype:
        grad = grad.to(meta.dtype)
    before = received[node][position]
    received[node][position] = grad if before is None else before + grad


def _call(node: Node, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    if not node.next_functions:  # a leaf: its gradient is the result
        return ()
    if callable(node):
        result = node(*grads)
    else:  # an autograd Function, whose missing gradients the engine replaces by zeros unless told not to
        if getattr(node, "materializes_grads", True):
            described = zip(grads, node._input_metadata, strict=True)
            grads = [_zeros(meta) if grad is None else grad for grad, meta in described]
        result = node.apply(*grads)
    return result if isinstance(result, tuple) else (result,)


def _zeros(meta: Any) -> Tensor:
    return torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device)
