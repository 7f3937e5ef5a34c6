"""How many bytes of global memory eager PyTorch reads and writes, kernel by kernel.

`moved` runs a function and its backward on tensors of the "meta" device, which have shapes and types but no data, and
looks at every ATen operator that reaches the device. What counts for each:

* its tensor arguments are read once and its results written once, in full;
* a dimension of stride 0 (an expanded scalar, say the gradient that `mean` hands back) is there once;
* views, `detach` and `empty` move nothing; a fill (`ones_like`, `zeros`) writes only.

So every kernel is taken to read each byte once, which is the best it can do: the softmax over channels asks for each
logit more than once, and at best finds it in the cache. The partial sums of a reduction are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.moved import Moved, Traffic

_aten = torch.ops.aten
_ALLOCATE = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)
_FILL = (_aten.ones_like, _aten.zeros_like, _aten.full_like, _aten.ones, _aten.zeros, _aten.full, _aten.new_zeros)


class KernelLog(TorchDispatchMode):
    """Notes what every operator that runs inside moves."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[str, Traffic]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if not func.is_view and packet not in _ALLOCATE:
            read = 0 if packet in _FILL else _bytes([args, kwargs])
            self.kernels.append((packet.__name__, Traffic(read, _bytes(result))))
        return result

    @property
    def traffic(self) -> Traffic:
        return sum((traffic for _, traffic in self.kernels), Traffic())


def _bytes(values: Any) -> int:
    tensors: Iterable[Tensor] = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return sum(_elements(tensor) * tensor.element_size() for tensor in tensors)


def _elements(tensor: Tensor) -> int:
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)


def moved(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Moved:
    """What `fn(*inputs)` and the backward of its scalar result move. The inputs lie on the meta device."""
    forward, backward = logs(fn, inputs)
    return Moved(forward.traffic, backward.traffic)


def logs(fn: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[KernelLog, KernelLog]:
    """The kernels of forward and backward."""
    inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with KernelLog() as forward:
        result = fn(*inputs)
    with KernelLog() as backward:
        result.backward()
    return forward, backward
