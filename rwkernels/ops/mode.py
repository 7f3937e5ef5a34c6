"""What PyTorch is doing around an operator: compiling, transforming, or running a plain backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a transform of `torch.func` is running."""
    return bool(torch._C._functorch.peek_interpreter_stack() is not None)


def is_watched() -> bool:
    """Whether somebody looks at, or changes the meaning of, the operators that run."""
    return bool(
        torch.compiler.is_compiling()
        or transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def graph_is_kept() -> bool:
    """Whether the backward that runs may be asked for again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def eager_transforms() -> bool:
    """Whether a transform of `torch.func` is running that the compiler does not trace."""
    return not torch.compiler.is_compiling() and transforms_active()


def nested_forward_mode() -> bool:
    """Whether a `jvp` runs inside another.

    PyTorch takes the `jvp` of an autograd Function for constant in the outer one, whose derivative would silently be
    zero; plain operations have none of that.
    """
    if not eager_transforms():
        return False
    stack = torch._C._functorch.get_interpreter_stack()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


def is_plain(upstream: Tensor) -> bool:
    """Whether a backward is a plain one: eager, no second derivative wanted, no transform."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not transforms_active()
        and type(upstream) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(upstream)
        and not torch._C._functorch.is_legacy_batchedtensor(upstream)
    )
