"""The loss under `torch.compile` for a CUDA device, on a machine that has none.

The compiler is to see our kernels, and the binaries that it makes of them are to be right: Inductor chooses their
signature, constants and alignment itself. So its code is generated, executed as it stands, and compared with eager
PyTorch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import ptx
import pytest
import torch
from loss_cases import assert_results_of_eager, either_kind, generator, make_case, random_logits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rwkernels as rw

inductor = pytest.importorskip("benchmarks.inductor", reason="benchmarks/ is not beside the tests")
kernel_traffic = pytest.importorskip("benchmarks.kernel_traffic", reason="benchmarks/ is not beside the tests")

_WHY_NOT = inductor.why_not() or ptx.missing()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


def _wanted(logits: Tensor) -> Tensor:
    return logits.detach().requires_grad_()


def _labels_shape(case: Any) -> tuple[int, ...]:
    return (case.logits.shape[0], *case.logits.shape[2:])


def _users_kernels(graph: Any) -> list[str]:
    """The kernels of ours that a graph launches; fails on anything but kernels and allocations."""
    return [launch.name.rpartition("_")[0] for launch in kernel_traffic.launches(graph.code) if launch.is_users]


def _signature(graph: Any, kernel: str = "region_wise") -> dict[str, str]:
    (found,) = re.findall(rf"async_compile\.triton\('{kernel}'.*?'signature': (\{{.*?\}})", graph.code, re.DOTALL)
    return dict(re.findall(r"'(\w+)': '(\S+?)'", found))


# --- what the compiler sees, and what its binaries compute -------------------------------------------------------


@dataclass
class Variant:
    """One way to call the loss, under the id of its test."""

    id: str
    case: dict[str, Any] = field(default_factory=dict)  # of `make_case`
    options: dict[str, Any] = field(default_factory=dict)  # of the loss
    layout: str = "contiguous"
    dynamic: bool = False
    counted: bool = False  # the map knows how many pixels of each image count
    kinds: tuple[str, ...] = ("compact", "dense")  # of map; one where the other makes no difference

    def cases(self) -> list[Any]:
        """One kind after the other: an option means the same in both, and each kind shows what the compiler needs."""
        every = self.id in ("mean", "ignore_index", "dynamic sizes")
        first = VARIANTS.index(self) % len(self.kinds)
        return [
            pytest.param(kind, self, id=f"{self.id}, {kind}", marks=[] if every or place == first else MORE)
            for place, kind in enumerate(self.kinds)
        ]


MORE = [pytest.mark.thorough]
VARIANTS = [
    Variant("mean"),
    Variant("sum", options={"reduction": "sum"}),
    Variant("none", options={"reduction": "none"}),
    Variant("recompute", options={"recompute": True}, kinds=("compact",)),
    Variant("bf16", {"dtype": torch.bfloat16, "label_dtype": torch.uint8}),
    Variant("fp16", {"dtype": torch.float16}),
    Variant("fp64", {"dtype": torch.float64}),
    Variant("ignore_index", {"ignore_index": -1}),
    Variant("ignore_index and fp16", {"ignore_index": 1, "dtype": torch.float16}),
    Variant("counted", {"ignore_index": 255}, counted=True, kinds=("compact",)),
    Variant("class_scale", {"class_scale": True}, kinds=("compact",)),
    Variant("background of every pixel", {"background": "pixel"}, kinds=("compact",)),
    Variant("include_background=False", options={"include_background": False}),
    Variant("many classes", {"num_classes": 20}),
    Variant("odd sizes", {"shape": (5, 7), "batch": 3}),
    Variant("every size is 1", {"shape": (16,), "batch": 1, "num_classes": 1}),
    Variant("channels_last", {"dtype": torch.bfloat16}, layout="channels_last"),
    Variant("transposed", layout="transposed", kinds=("compact",)),
    Variant("unaligned", layout="unaligned"),
    Variant("dynamic sizes", {"ignore_index": -1}, dynamic=True),
    Variant("dynamic odd sizes", {"shape": (5, 7), "batch": 3, "class_scale": True}, dynamic=True),
]


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "unaligned":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


@pytest.mark.parametrize(("kind", "variant"), [case for variant in VARIANTS for case in variant.cases()])
@pytest.mark.filterwarnings("ignore:logits. softmax over one channel")
def test_the_compiler_sees_our_kernels_alone_and_its_binaries_give_the_loss_of_eager_pytorch(kind, variant):
    from ptx.generated import run_generated

    case = make_case(kind, **{"num_classes": 3, "shape": (8, 12), **variant.case})
    case.logits = _laid_out(case.logits, variant.layout)
    maps = case.maps
    if variant.counted:
        maps = maps._with(image_count=case.labels.ne(case.ignore_index).sum((1, 2)))

    def loss(x: Tensor, maps: Any, labels: Tensor | None) -> Tensor:
        settings = {} if kind == "compact" else {"labels": labels, "ignore_index": case.ignore_index}
        return rw.region_wise_loss(x, maps, **settings, **variant.options)

    labels = case.labels if kind == "dense" and case.ignore_index is not None else None
    (call,) = inductor.calls(loss, [(_wanted(case.logits), maps, labels)], variant.dynamic)
    forward, backward = call.graphs
    for graph in call.graphs:
        assert "torch.ops.rwkernels" not in graph.code
        assert graph.no_cuda_graph_because is None
    per_pixel = variant.options.get("reduction") == "none"
    counts = case.ignore_index is not None and maps is case.maps
    assert _users_kernels(forward) == ["count_pixels"] * counts + ["region_wise"] + ["finish_loss"] * (not per_pixel)
    assert _users_kernels(backward) == ["count_pixels"] * counts + ["region_wise"]

    upstream = torch.randn(_labels_shape(case), generator=generator(99)) if per_pixel else torch.tensor(3.0)
    upstream = upstream.to(torch.float64 if case.logits.dtype == torch.float64 else torch.float32)
    run = run_generated([graph.code for graph in call.graphs], call.arguments, upstream)
    (gradient,) = run.gradients
    assert [launch.name for launch in run.launches if launch.name == "region_wise"] == ["region_wise"] * 2
    assert gradient.stride() == case.logits.stride() or variant.layout == "unaligned"
    shared = {key: value for key, value in variant.options.items() if key != "recompute"}
    assert_results_of_eager(case, run.loss, gradient, upstream=upstream, **shared)


def labels_shape(case: Any) -> tuple[int, ...]:
    return (case.logits.shape[0], *case.logits.shape[2:])


# --- around the loss ---------------------------------------------------------------------------------------------


def _mean_loss(x: Tensor, maps: Any) -> Tensor:
    return rw.region_wise_loss(x, maps)


def test_from_labels_on_only_the_map_stays_an_operator():
    from ptx.generated import run_generated

    case = make_case("compact", num_classes=4, shape=(12, 8), ignore_index=-1)
    loss = rw.RegionWiseLoss("rectified", ignore_index=-1)
    (call,) = inductor.calls(loss, [(_wanted(case.logits), case.labels)])
    forward, backward = call.graphs
    assert set(re.findall(r"torch\.ops\.rwkernels\.\w+", forward.code)) == {"torch.ops.rwkernels.rectified"}
    assert "def region_wise(" in forward.code
    assert _users_kernels(backward) == ["region_wise"]
    assert "count_pixels" not in forward.code + backward.code  # the map has counted them
    run = run_generated([graph.code for graph in call.graphs], call.arguments)
    case.dense = rw.rectified_map(case.labels, 4, ignore_index=-1).dense().double()
    assert_results_of_eager(case, run.loss, run.gradients[0])


def test_under_autocast_the_kernel_reads_the_half_precision_logits_themselves():
    def step(x: Tensor, weight: Tensor, maps: Any) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return rw.region_wise_loss(nn.functional.conv2d(x, weight), maps)

    x, weight, case = random_logits((2, 5, 8, 8)), random_logits((3, 5, 1, 1)), make_case(shape=(8, 8))
    forward, backward = inductor.generated(step, (x, _wanted(weight), case.maps))
    assert _signature(forward)["logits"] == _signature(backward)["grad"] == "*bf16"
    assert _signature(forward)["loss"] == "*fp32"
    assert "torch.ops.rwkernels" not in forward.code + backward.code


def test_inside_a_checkpoint_the_backward_launches_the_kernel_once():
    from ptx.generated import run_generated

    case = make_case("compact", num_classes=4, shape=(8, 8))

    def step(x: Tensor, maps: Any) -> Tensor:
        return checkpoint(lambda x: rw.region_wise_loss(x * 2, maps), x, use_reentrant=False)

    (call,) = inductor.calls(step, [(_wanted(case.logits), case.maps)])
    forward, backward = call.graphs
    assert _users_kernels(forward) == ["region_wise", "finish_loss"]
    assert _users_kernels(backward) == ["region_wise"]
    run = run_generated([graph.code for graph in call.graphs], call.arguments)
    case.logits = case.logits * 2
    assert_results_of_eager(case, run.loss, run.gradients[0] / 2)


def test_a_check_of_label_values_keeps_the_operator_whole():
    case = make_case("compact", shape=(8, 8))
    graphs = inductor.generated(lambda x, maps: rw.region_wise_loss(x, maps, validate=True), (case.logits, case.maps))
    (forward,) = graphs
    assert "torch.ops.rwkernels.region_wise.default" in forward.code


@either_kind
def test_export_keeps_the_operator_whole(kind):
    case = make_case(kind, shape=(8, 8))

    class Step(nn.Module):
        def forward(self, x: Tensor, maps: Any) -> Tensor:
            return rw.region_wise_loss(x, maps)

    with inductor.cuda_pretended([]):
        fakes = torch.utils._pytree.tree_map_only(Tensor, inductor.on_cuda, (case.logits, case.maps))
        exported = torch.export.export(Step(), fakes)
        for program in (exported, exported.run_decompositions()):
            called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
            assert called[0] == "rwkernels.region_wise.default"
            assert all("getitem" in name for name in called[1:])


def test_with_dynamic_sizes_only_another_alignment_or_a_batch_of_one_is_compiled_again():
    def sized(batch: int, *shape: int) -> tuple[Any, ...]:
        labels, foreground = torch.empty(batch, *shape, dtype=torch.uint8), torch.empty(batch, *shape)
        return torch.empty(batch, 3, *shape, requires_grad=True), rw.RectifiedMap(labels, foreground, 1.0, 3)

    divisible_by_16 = [(2, 24, 32), (3, 24, 32), (3, 48, 20), (5, 40, 96), (4, 32, 32), (6, 25, 32)]
    odd = [(3, 25, 31), (2, 27, 33), (7, 7, 13)]
    even = [(2, 26, 33), (3, 13, 26)]
    alone = [(1, 24, 32), (1, 48, 20)]
    groups = [divisible_by_16, odd, even, alone]
    found = inductor.calls(_mean_loss, [sized(*sizes) for group in groups for sizes in group], dynamic=True)
    first = [sizes is group[0] for group in groups for sizes in group]
    assert [bool(call.graphs) for call in found] == first
    units = [re.search(r"'UNIT': (\d+)", call.graphs[0].code)[1] for call in found if call.graphs]
    assert units == ["16", "1", "2", "16"]


@pytest.mark.parametrize(("reduction", "from_labels"), [("mean", True), ("mean", False), ("none", False)])
def test_with_dynamic_sizes_a_last_batch_that_is_smaller_is_not_compiled_again(reduction, from_labels):
    def sized(batch: int) -> tuple[Any, ...]:
        labels = torch.empty(batch, 8, 8, dtype=torch.uint8)
        maps = rw.RectifiedMap(labels, torch.empty(batch, 8, 8), 1.0, 3, None, -1)
        return torch.empty(batch, 3, 8, 8, requires_grad=True), labels if from_labels else maps

    loss = rw.RegionWiseLoss("rectified", ignore_index=-1, reduction=reduction)
    found = inductor.calls(loss, [sized(batch) for batch in (4, 3, 5)], dynamic=True)
    assert [bool(call.graphs) for call in found] == [True, False, False]


def test_a_map_of_another_ignore_index_is_compiled_once_more_at_most():
    def ignoring(index: int) -> tuple[Any, ...]:
        labels, foreground = torch.empty(2, 8, 8, dtype=torch.uint8), torch.empty(2, 8, 8)
        return torch.empty(2, 3, 8, 8, requires_grad=True), rw.RectifiedMap(labels, foreground, 1.0, 3, None, index)

    found = inductor.calls(_mean_loss, [ignoring(index) for index in (255, -1, 254, -100)])
    assert [bool(call.graphs) for call in found] == [True, True, False, False]


# --- what Inductor makes of the arguments ------------------------------------------------------------------------


def test_what_is_absent_or_one_becomes_a_constant_of_the_binary():
    case = make_case("compact", batch=1, num_classes=2, shape=(16,))
    forward, _ = inductor.generated(_mean_loss, (_wanted(case.logits), case.maps))
    absent = {"background", "class_scale", "pixel_scale", "upstream", "count", "grad", "weight", "program"}
    ones = {"blocks", "images", "pixels", "logits_class", "grad_class"}
    constant = {name for name, kind in _signature(forward).items() if kind == "constexpr" and name.islower()}
    assert constant == absent | ones


def test_numbers_past_2_31_take_64_bits_in_a_graph_that_began_with_smaller_ones():
    def sized(batch: int, side: int) -> tuple[Tensor, Tensor]:
        shape = (batch, 4, side, side, side)
        return torch.empty(shape, device="meta", requires_grad=True), torch.empty(shape, device="meta")

    small, large, wide = inductor.calls(_mean_loss, [sized(2, 32), sized(8, 512), sized(2, 1024)], dynamic=True)
    kinds = [[_signature(graph)["divisor"] for graph in call.graphs] for call in (small, large, wide)]
    assert kinds == [["i32"] * 2, ["i64"] * 2, ["i64"] * 2]
    flags = [[re.findall(r"'WIDE': (\w+)", graph.code) for graph in call.graphs] for call in (small, large, wide)]
    assert flags == [[["False"]] * 2, [["False"]] * 2, [["True"]] * 2]


# --- the tests can fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        pytest.param("'MEAN': True", "'MEAN': False", "AssertionError", id="a constant"),
        pytest.param("= copy_if_misaligned(primals_1)", "= primals_1", "Misaligned", id="an alignment"),
        pytest.param(", 2, 1, 1, stream=", ", 1, 1, 1, stream=", "AssertionError", id="a grid"),
        pytest.param(", 0, 1.25, ", ", 0, 1.26, ", "AssertionError", id="a number"),
    ],
)
def test_a_mistake_in_the_generated_code_is_caught(right, wrong, error):
    from ptx.faults import Misaligned
    from ptx.generated import run_generated

    case = make_case("compact", num_classes=3, shape=(8, 16))
    case.logits = _laid_out(case.logits, "unaligned")
    (call,) = inductor.calls(_mean_loss, [(_wanted(case.logits), case.maps)])
    codes = [graph.code for graph in call.graphs]
    assert right in codes[0]

    def compare() -> None:
        run = run_generated([code.replace(right, wrong) for code in codes], call.arguments)
        assert_results_of_eager(case, run.loss, run.gradients[0])

    with pytest.raises((AssertionError, Misaligned)) as caught:
        compare()
    assert type(caught.value).__name__ == error


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_what_keeps_a_graph_from_being_captured_is_noticed():
    def with_a_tensor_of_the_cpu(x: Tensor) -> Tensor:
        return x.sum().cpu()

    def that_changes_its_input(x: Tensor) -> Tensor:
        return x.add_(1).sum()

    for fn, words in ((with_a_tensor_of_the_cpu, "cpu"), (that_changes_its_input, "changes its inputs")):
        (graph,) = inductor.generated(fn, (torch.empty(8),))
        assert words in str(graph.no_cuda_graph_because)
