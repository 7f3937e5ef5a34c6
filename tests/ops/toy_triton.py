"""A Triton kernel in an operator that `torch.compile` looks into, as `torch.library.triton_op` declares one.

The kernel has what makes such kernels awkward to trace: two outputs, a constexpr, a pointer that may be None, a Python
float, and a function it calls. Import it only where Triton is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.library import wrap_triton

LIBRARY = torch.library.Library("toy", "FRAGMENT")
LIBRARY.define("scale(Tensor x, Tensor? weight, float factor) -> (Tensor, Tensor)")


@triton.jit
def _read(pointer, i, n):
    value = tl.load(pointer + i, mask=i < n)
    return value if pointer.dtype.element_ty == tl.float32 else value.to(tl.float32)


@triton.jit
def toy_kernel(x_ptr, weight_ptr, y_ptr, z_ptr, n, factor, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = _read(x_ptr, i, n)
    if WEIGHTED:
        x = x * _read(weight_ptr, i, n)
    tl.store(y_ptr + i, x * factor, mask=i < n)
    tl.store(z_ptr + i, x + factor, mask=i < n)


def _launch(x: Tensor, weight: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    y, z = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), 128),)
    wrap_triton(toy_kernel)[grid](x, weight, y, z, x.numel(), factor, BLOCK=128, WEIGHTED=weight is not None)
    return y, z


@torch.library.register_fake("toy::scale", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)


@torch.library.register_torch_dispatch("toy::scale", FunctionalTensorMode, lib=LIBRARY)
def _decompose(mode: Any, func: Any, types: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    with mode:
        return _launch(*args, **kwargs)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, factor: float) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.toy.scale(x, weight, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.factor = inputs[2]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> Any:
        assert _ is None
        return torch.ops.toy.scale(grad * 2, ctx.saved_tensors[0], ctx.factor)[0], None, None


torch.library.impl("toy::scale", "Autograd", lib=LIBRARY)(
    lambda *arguments: super(torch.autograd.Function, _Scale).apply(*arguments)
)


@torch.library.triton_op("toy::scale_declared", mutates_args=())
def scale_declared(x: Tensor, weight: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    return _launch(x, weight, factor)


def _save_factor(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.factor = inputs[2]


def _backward(ctx: Any, grad_y: Tensor, grad_z: Tensor) -> tuple[Tensor, None, None]:
    return scale_declared(grad_y, grad_z, ctx.factor)[0], None, None


scale_declared.register_autograd(_backward, setup_context=_save_factor)
