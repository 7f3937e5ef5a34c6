"""The harness that shows what `torch.compile` generates for a CUDA device: it sees our kernels and leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

inductor = pytest.importorskip("benchmarks.inductor", reason="benchmarks/ is not beside the tests")
kernel_traffic = pytest.importorskip("benchmarks.kernel_traffic", reason="benchmarks/ is not beside the tests")
python_backward = pytest.importorskip("benchmarks.python_backward", reason="benchmarks/ is not beside the tests")

needs_inductor = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return (x.softmax(1) * weight).mean()


def _logits(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)


# --- differentiation in Python ---------------------------------------------------------------------------------


class _TwoOutputs(torch.autograd.Function):
    """Uses one output only where it has a gradient, so that it notices whether missing ones are made zeros."""

    materialize = True

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Any, output: Any) -> None:
        if not cls.materialize:
            ctx.set_materialize_grads(False)

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor:
        assert first is not None
        return first * 2 if second is None else first * 2 + second * 3


class _TwoOutputsLazily(_TwoOutputs):
    materialize = False


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda x: (x.softmax(1) * x.detach()).mean(), id="the plain loss"),
        pytest.param(lambda x: (x.bfloat16().softmax(1) * x.detach()).mean(), id="a cast and a promotion"),
        pytest.param(lambda x: (x[:1] * x * x.exp()).sum(), id="a broadcast value used twice"),
        pytest.param(lambda x: (x.unbind(1)[0] * x.split(1, 1)[2][:, 0]).sum(), id="nodes of several outputs"),
        pytest.param(lambda x: _TwoOutputs.apply(x)[0].sum(), id="an autograd Function"),
        pytest.param(lambda x: _TwoOutputsLazily.apply(x)[0].sum(), id="one that takes None for a missing gradient"),
    ],
)
def test_python_records_the_same_backward_as_the_engine(fn: Any) -> None:
    x = torch.randn(2, 3, 5, requires_grad=True)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(fn(x), x)[0]

    def recorded() -> list[str]:
        traced = make_fx(gradient)(x)
        traced.graph.eliminate_dead_code()
        return sorted(str(node.target) for node in traced.graph.nodes)

    engine, expected = recorded(), gradient(x)
    with python_backward.python_backward():
        assert recorded() == engine
        torch.testing.assert_close(gradient(x), expected)


def test_python_refuses_to_accumulate_into_leaves() -> None:
    x = torch.ones(3, requires_grad=True)
    with python_backward.python_backward(), pytest.raises(NotImplementedError, match=r"torch\.autograd\.grad"):
        x.sum().backward()


# --- generated code --------------------------------------------------------------------------------------------


@needs_inductor
def test_code_for_cuda_comes_with_its_backward() -> None:
    forward, backward = inductor.generated_code(_product, (_logits(2, 3, 8, 8), torch.empty(2, 3, 8, 8)))
    for code in (forward, backward):
        assert "tl.load" in code
        assert "empty_strided_cuda" in code
        assert "cc=90" in code


@needs_inductor
def test_without_gradients_there_is_a_forward_only() -> None:
    (graph,) = inductor.generated(_product, (torch.empty(2, 3, 8), torch.empty(2, 3, 8)))
    assert graph.phase == "forward"


@needs_inductor
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("declared", [False, True], ids=["registered by hand", "by triton_op"])
def test_a_users_kernel_is_seen_and_not_an_opaque_operator(declared: bool, weighted: bool) -> None:
    import toy_triton

    operator = toy_triton.scale_declared if declared else torch.ops.toy.scale
    weight = torch.empty(1000, device="meta") if weighted else None

    def fn(x: Tensor) -> Tensor:
        return operator(x, weight if weight is None else x.detach() + 1, 0.5)[0].sum()

    graphs = inductor.generated(fn, (_logits(1000),))
    assert [graph.phase for graph in graphs] == ["forward", "backward"]
    for graph in graphs:
        assert "def toy_kernel(" in graph.code
        assert "torch.ops.toy" not in graph.code
        (kernel,) = (launch for launch in kernel_traffic.launches(graph.code) if launch.is_users)
        has_weight = weighted or graph.phase == "backward"
        assert kernel_traffic.launch_traffic(kernel) == kernel_traffic.Traffic(4000 + 4000 * has_weight, 8000)


@needs_inductor
def test_a_kernel_counts_the_same_launched_by_itself() -> None:
    import toy_triton

    x, weight = torch.empty(1000, device="meta", dtype=torch.bfloat16), torch.empty(1000, device="meta")
    arguments = {"x_ptr": x, "weight_ptr": weight, "y_ptr": weight, "z_ptr": x, "n": 1000, "factor": 0.5}
    counted = kernel_traffic.jit_traffic(
        toy_triton.toy_kernel, (8, 1, 1), {**arguments, "BLOCK": 128, "WEIGHTED": True}
    )
    assert counted == kernel_traffic.Traffic(2000 + 4000, 4000 + 2000)


# --- no trace --------------------------------------------------------------------------------------------------


def _state() -> dict[str, Any]:
    """Whatever the harness changes, and what is derived from it."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._triton import has_triton

    owners: dict[str, Any] = {
        "cuda": torch.cuda,
        "accelerator": torch.accelerator,
        "autograd": torch.autograd,
        "interface": CudaInterface,
        "worker": CudaInterface.Worker,
        "graph": GraphLowering,
        "folder": UniformValueConstantFolder,
        "mode": FakeTensorMode,
        "context": torch.autograd.function.FunctionCtx,
        "triton": triton.runtime.driver,
    }
    attributes = {(name, key): value for name, owner in owners.items() for key, value in vars(owner).items()}
    return {
        **attributes,
        "inductor config": inductor_config.save_config_portable(),
        "functorch config": functorch_config.save_config_portable(),
        "available": torch.cuda.is_available(),
        "has_triton": has_triton(),
        "modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    }


def _fails(x: Tensor) -> Tensor:
    raise ArithmeticError("while tracing")


@needs_inductor
def test_nothing_stays_patched_even_after_an_error() -> None:
    inductor.generated_code(_product, (_logits(2, 3, 8), torch.empty(2, 3, 8)))  # imports what is imported lazily
    before = _state()
    inductor.generated_code(_product, (_logits(2, 3, 8), torch.empty(2, 3, 8)))
    with pytest.raises(Exception, match="while tracing"):
        inductor.generated_code(_fails, (_logits(2, 3, 8),))
    after = _state()
    assert {key for key in before if before[key] is not after[key] and before[key] != after[key]} == set()
    assert before.keys() == after.keys()


@needs_inductor
def test_functions_compile_for_the_cpu_before_and_after() -> None:
    logits, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8)
    compiled = torch.compile(_product, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert compiled(logits, weight) == _product(logits, weight)
        assert len(inductor.generated_code(_product, (logits, weight))) == 2
    assert compiled(logits, weight) == _product(logits, weight)
