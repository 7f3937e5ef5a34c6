"""Bytes that forward and backward of the loss move per pixel, as written in PyTorch and as ours: derived by hand too.

Logits have `e` bytes an element, maps 4 (float32), and there are K classes.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from rwkernels.backends import triton
from rwkernels.backends.problem import LossProblem
from rwkernels.ops import loss as loss_ops

traffic = pytest.importorskip("benchmarks.traffic", reason="benchmarks/ is not beside the tests")
inductor = pytest.importorskip("benchmarks.inductor", reason="benchmarks/ is not beside the tests")
kernel_traffic = pytest.importorskip("benchmarks.kernel_traffic", reason="benchmarks/ is not beside the tests")
eager_traffic = pytest.importorskip("benchmarks.eager_traffic", reason="benchmarks/ is not beside the tests")
launch_traffic = pytest.importorskip("benchmarks.launch_traffic", reason="benchmarks/ is not beside the tests")

Moved, Traffic = traffic.Moved, traffic.Traffic
PIXELS = traffic.BATCH * traffic.SIDE**2
DTYPES = pytest.mark.parametrize("dtype", list(traffic.DTYPES.values()), ids=list(traffic.DTYPES))
needs_inductor = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


def _assert_close(counted: Moved, expected: Moved) -> None:
    """Equal up to the partial sums of the mean: a few hundred numbers for half a million pixels."""
    for phase in ("forward", "backward"):
        ours, theirs = getattr(counted, phase), getattr(expected, phase)
        assert ours.read == pytest.approx(theirs.read, abs=0.01)
        assert ours.written == pytest.approx(theirs.written, abs=0.01)


# --- eager PyTorch ---------------------------------------------------------------------------------------------


def _eager_by_hand(k: int, e: int) -> Moved:
    # forward:   softmax  reads logits eK                      writes y eK
    #            mul      reads y eK and maps 4K               writes the product 4K (bf16 times float32 is float32)
    #            mean     reads the product 4K                 writes one number
    # backward:  div      reads one number (expanded)          writes 4K
    #            mul      reads that 4K and maps 4K            writes the gradient of y 4K
    #            cast     reads 4K, only if e is not 4         writes eK
    #            softmax  reads the gradient eK and y eK       writes the gradient of the logits eK
    cast = Traffic(4 * k, e * k) if e != 4 else Traffic()
    forward = Traffic(e * k + (e + 4) * k + 4 * k, e * k + 4 * k)
    backward = Traffic(8 * k + 2 * e * k, 4 * k + 4 * k + e * k) + cast
    return Moved(forward, backward)


@DTYPES
@pytest.mark.parametrize("k", [2, 4, 118])
def test_eager_moves_what_its_kernels_must(k: int, dtype: torch.dtype) -> None:
    counted = traffic.eager(k, dtype, traffic.SIDE) / PIXELS
    _assert_close(counted, _eager_by_hand(k, dtype.itemsize))


def test_eager_totals_for_four_classes() -> None:
    totals = [(traffic.eager(4, dtype, traffic.SIDE) / PIXELS).total for dtype in (torch.float32, torch.bfloat16)]
    assert totals == pytest.approx([208, 184], abs=0.01)


def test_an_expanded_tensor_counts_as_its_storage_and_a_view_as_nothing() -> None:
    x = torch.empty(100, device="meta")
    with eager_traffic.KernelLog() as log:
        (x.view(10, 10) + torch.empty(1, device="meta").expand(10, 10)).t()
    assert log.kernels == [("add", Traffic(400 + 4, 400))]


# --- torch.compile ---------------------------------------------------------------------------------------------


def _compiled_by_hand(k: int, e: int) -> Moved:
    # Four classes are few enough that Inductor unrolls the softmax into its neighbours.
    # forward:   one kernel reads logits eK and maps 4K, and adds up; the backward keeps logits and maps, not y
    # backward:  softmax again: reads logits eK                writes y 4K, float32 whatever the logits are
    #            sum over classes: reads maps 4K and y 4K      writes 4
    #            gradient: reads y 4K, maps 4K and the sum 4   writes eK
    forward = Traffic(e * k + 4 * k, 0)
    backward = Traffic(e * k + 8 * k + 8 * k + 4, 4 * k + 4 + e * k)
    return Moved(forward, backward)


@needs_inductor
@DTYPES
def test_compiled_code_moves_what_its_kernels_must(dtype: torch.dtype) -> None:
    counted = traffic.compiled(4, dtype, traffic.SIDE) / PIXELS
    _assert_close(counted, _compiled_by_hand(4, dtype.itemsize))
    assert counted.total == pytest.approx({4: 152, 2: 128}[dtype.itemsize], abs=0.01)


@needs_inductor
@DTYPES
@pytest.mark.parametrize("k", [2, 4, 16])
def test_counting_addresses_agrees_with_inductors_own_estimate(k: int, dtype: torch.dtype) -> None:
    for graph in inductor.generated(traffic.plain_loss, traffic.dense_inputs(k, dtype, 128)):
        counted = sum((moved for _, moved in kernel_traffic.traffic(graph.code)), Traffic())
        assert counted.total == graph.inductor_bytes


# --- our loss --------------------------------------------------------------------------------------------------

SMALL = 128


def _counted(contender: Any, k: int, dtype: torch.dtype) -> Moved:
    return contender(k, dtype, SMALL) / (traffic.BATCH * SMALL**2)


def _one_pass(kind: str, k: int, e: int) -> float:
    """What one pass reads: logits, and the map or a label (uint8) and one number."""
    return e * k + (4 * k if kind == "dense" else 1 + 4)


@needs_inductor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_our_step_reads_its_inputs_and_writes_its_gradient_once(kind: str, k: int, dtype: torch.dtype) -> None:
    once, written = _one_pass(kind, k, dtype.itemsize), dtype.itemsize * k
    forward, again = Traffic(once, written), Traffic(written, written)
    plain = again if dtype == torch.float16 else Traffic()  # the forward cannot divide a float16 gradient by N * K
    _assert_close(_counted(traffic.ours(kind), k, dtype), Moved(forward, plain))
    _assert_close(_counted(traffic.ours(kind, scaled=True), k, dtype), Moved(forward, again))
    _assert_close(_counted(traffic.ours(kind, recompute=True), k, dtype), Moved(Traffic(once), forward))


@needs_inductor
@DTYPES
@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_under_torch_compile_our_step_reads_its_inputs_twice(kind: str, dtype: torch.dtype) -> None:
    once = _one_pass(kind, 4, dtype.itemsize)
    counted = _counted(traffic.ours_compiled(kind), 4, dtype)
    _assert_close(counted, Moved(Traffic(once), Traffic(once, 4 * dtype.itemsize)))


@needs_inductor
def test_at_four_classes_our_loss_moves_a_third_or_a_quarter_of_the_compiled_expression() -> None:
    four = {row.contender: row.moved.total for row in _rows("fp32")}
    expected = {"dense": 48, "compact": 37, "dense, torch.compile": 80, "compact, torch.compile": 58}
    assert {name: four[f"rwkernels {name}"] for name in expected} == pytest.approx(expected, abs=0.02)
    assert four["rwkernels dense"] <= four["torch.compile"] / 3
    assert four["rwkernels compact"] <= four["torch.compile"] / 4
    half = {row.contender: row.moved.total for row in _rows("bf16")}
    expected = {"dense": 32, "compact": 21, "dense, torch.compile": 56, "compact, torch.compile": 34}
    assert {name: half[f"rwkernels {name}"] for name in expected} == pytest.approx(expected, abs=0.02)


@cache
def _all_rows() -> list[Any]:
    return traffic.rows([4], SMALL)


def _rows(logits: str) -> list[Any]:
    return [row for row in _all_rows() if row.logits == logits]


@needs_inductor
@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_nothing_moves_data_in_our_step_but_the_kernels_that_are_counted(kind: str) -> None:
    logits, maps = traffic.our_inputs(kind, 4, torch.float32, 16)
    given = (maps, None) if kind == "dense" else (maps.foreground, maps.labels)
    problem = LossProblem(logits.detach(), *given, None, None, None, 1.0, None, True, "mean", False, "triton", 0)
    upstream = torch.ones(())
    with launch_traffic.launches() as launches, eager_traffic.KernelLog() as log:
        _, grad = loss_ops._region_wise(*problem, True)
        triton.scale_gradient(problem, grad, upstream, divide=False, in_place=True)
    launched = [call.kernel.fn.__name__ for call in launches]
    assert launched == ["region_wise", "finish_loss", "scale_gradient"]
    assert log.kernels == []


# --- counting a kernel -----------------------------------------------------------------------------------------


KERNEL = """
@triton_heuristics.reduction(triton_meta={{'signature': {{'in_ptr0': '*bf16', 'out_ptr0': '*fp32', 'xnumel': 'i32',
                             'r0_numel': 'i32', 'XBLOCK': 'constexpr', 'R0_BLOCK': 'constexpr'}}, 'constants': {{}}}})
@triton.jit
def kernel(in_ptr0, out_ptr0, xnumel, r0_numel, XBLOCK: tl.constexpr, R0_BLOCK: tl.constexpr):
    x = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    r0_base = tl.arange(0, R0_BLOCK)[None, :]
{body}
"""
PASS = """
    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):
        total = tl.load(in_ptr0 + (x * 8 + r0_base), {mask}, other=0.0).to(tl.float32)
"""
STORE = "    tl.store(out_ptr0 + x, tl.sum(total, 1), x < xnumel)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(PASS.format(mask="None") + STORE, Traffic(3 * 8 * 2, 3 * 4), id="one pass"),
        pytest.param(PASS.format(mask="None") * 2 + STORE, Traffic(2 * 3 * 8 * 2, 3 * 4), id="two passes read twice"),
        pytest.param(PASS.format(mask="r0_base < 5") + STORE, Traffic(3 * 5 * 2, 3 * 4), id="a mask leaves some out"),
        pytest.param("    a = tl.load(in_ptr0 + 0)\n    b = tl.load(in_ptr0 + x * 0)", Traffic(2, 0), id="one element"),
    ],
)
def test_a_kernel_moves_the_elements_it_addresses(body: str, expected: Traffic) -> None:
    launch = kernel_traffic.Launch("kernel", KERNEL.format(body=body), (None, None, 3, 8))
    assert kernel_traffic.launch_traffic(launch) == expected


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param("    tl.load(in_ptr0 + tl.load(in_ptr0 + x))", ValueError, id="an address from memory"),
        pytest.param("    tl.atomic_add(out_ptr0 + x, 1.0)", NotImplementedError, id="an atomic"),
        pytest.param("    if tl.load(in_ptr0 + x) > 0: pass", ValueError, id="a branch on data"),
        pytest.param("    tl.load(in_ptr0 + (x - 1))", ValueError, id="an address before the tensor"),
    ],
)
def test_what_cannot_be_counted_is_refused(body: str, error: type[Exception]) -> None:
    launch = kernel_traffic.Launch("kernel", KERNEL.format(body=body), (None, None, 3, 8))
    with pytest.raises(error):
        kernel_traffic.launch_traffic(launch)


def test_a_call_that_is_no_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"extern_kernels\.mm"):
        kernel_traffic.launches("def call(args):\n    extern_kernels.mm(a, b, out=c)\n")


# --- the table -------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_contender_that_can_be_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["traffic", "--classes", "4", "--side", "64"])
    assert traffic.main() == 0
    printed = capsys.readouterr().out
    assert "| eager | fp32 | 4 | 64.0 | 32.0 | 64.0 | 48.0 | 208.0 | 1.00 |" in printed
    for contender in ("torch.compile", "rwkernels dense", "rwkernels compact, torch.compile"):
        assert (f"| {contender} | bf16 | 4 |" in printed) == (inductor.why_not() is None)
    assert ("read and\nwritten once more" in printed) == (inductor.why_not() is None)


def test_without_a_compiler_the_table_has_one_contender_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inductor, "why_not", lambda: "triton is not installed")
    monkeypatch.setattr("sys.argv", ["traffic", "--classes", "4", "--side", "64"])
    assert traffic.main() == 0
    printed = capsys.readouterr().out
    assert "no rows but eager: triton is not installed" in printed
    assert printed.count("| 4 |") == len(traffic.DTYPES)


def test_json_keeps_every_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["traffic", "--classes", "2", "--side", "64", "--json"])
    assert traffic.main() == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["contender"], row["logits"], row["num_classes"]) == ("eager", "fp32", 2)
    assert row["total"] == pytest.approx(104, abs=0.01)
