"""The compiled kernels of the loss, run instruction by instruction: what the interpreter cannot get wrong, PTX can.

The public function launches on CPU tensors through Triton's own launcher and compiler for a device that is not there;
an emulator runs the PTX and checks every access for bounds and alignment.
"""

import importlib.util
from pathlib import Path

import ptx
import pytest
import torch
from choices import pairwise
from loss_cases import (
    FLOATS,
    KINDS,
    assert_like_eager,
    eager_loss,
    either_kind,
    generator,
    loss_and_gradient,
    make_case,
    name,
)

import rwkernels as rw
from rwkernels.backends import triton
from rwkernels.backends.problem import LossProblem
from rwkernels.backends.triton import losses
from rwkernels.ops import planned

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))


# The arithmetic of sm_80 is another one for 16-bit types alone: all else is the same PTX once more.
@pytest.fixture(params=[90, pytest.param(80, marks=pytest.mark.thorough)], ids=["sm_90", "sm_80"])
def device(request, monkeypatch):
    from ptx.driver import emulated_device

    monkeypatch.setattr(triton, "can_run", lambda device: None)
    with emulated_device("cuda", request.param) as device:
        yield device


def _like_eager(case, **options):
    assert_like_eager(case, backend="triton", **options)


@either_kind
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 8, 11, 15, 16, 17, 32, 118, 256])
@pytest.mark.filterwarnings("ignore:logits. softmax over one channel")
def test_any_number_of_classes_gives_the_loss_of_eager_pytorch(num_classes, kind, device):
    _like_eager(make_case(kind, num_classes=num_classes, shape=(5, 7), ignore_index=-1, background="pixel"))
    assert {launch.name for launch in device.launches} >= {"region_wise", "finish_loss"}


@pairwise(device=[80, 90], kind=KINDS, dtype=FLOATS, num_classes=[3, 20])
def test_every_dtype_and_reduction_gives_the_loss_of_eager_pytorch(num_classes, dtype, kind, device):
    case = make_case(kind, dtype=dtype, num_classes=num_classes, shape=(9, 13), class_scale=True, ignore_index=-1)
    for reduction in ("mean", "sum", "none"):
        _like_eager(case, reduction=reduction)
    _like_eager(case, recompute=True, include_background=False)


@pairwise(kind=KINDS, pixels=[1, 2, 4, 8, 15, 16, 511, 512, 513, 2064], dtype=[torch.float32, torch.bfloat16])
def test_any_number_of_pixels_gives_the_loss_of_eager_pytorch(dtype, pixels, kind, device):
    _like_eager(make_case(kind, num_classes=4, shape=(pixels,), dtype=dtype, label_dtype=torch.uint8))


@pairwise(kind=KINDS, dtype=[torch.float32, torch.bfloat16], num_classes=[2, 3, 4, 16, 17, 40])
def test_channels_last_logits_and_maps_are_read_in_place(num_classes, dtype, kind, device):
    case = make_case(kind, num_classes=num_classes, shape=(6, 35), dtype=dtype)
    contiguous, case.logits = case.logits, case.logits.contiguous(memory_format=torch.channels_last)
    _like_eager(case)
    launch = next(launch for launch in device.launches if launch.name == "region_wise")
    assert launch.arguments["logits"].data_ptr() == case.logits.data_ptr()
    assert launch.arguments["grad"].stride() == case.logits.stride()
    if kind == "dense":
        case.maps = case.maps.contiguous(memory_format=torch.channels_last)
        _like_eager(case)
        case.logits = contiguous
        _like_eager(case)


@either_kind
@pytest.mark.parametrize("layout", ["crop", "transposed", "unaligned", "expanded"])
def test_logits_of_any_layout_give_the_same_loss(layout, kind, device):
    case = make_case(kind, num_classes=5, shape=(6, 35))
    x = case.logits
    case.logits = {
        "crop": lambda: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "unaligned": lambda: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "expanded": lambda: x[:1].expand_as(x),
    }[layout]()
    _like_eager(case)


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=name)
@pytest.mark.parametrize("ignore_index", [None, 2, 100, -1, -(2**40)])
def test_labels_of_every_integer_dtype_and_any_ignore_index_work(ignore_index, label_dtype, device):
    stored = ignore_index is not None and torch.iinfo(label_dtype).min <= ignore_index <= torch.iinfo(label_dtype).max
    case = make_case(num_classes=3, shape=(64,), label_dtype=label_dtype, ignore_index=ignore_index if stored else None)
    maps = rw.RectifiedMap(case.labels, case.maps.foreground, 1.25, 3, None, ignore_index)
    _like_eager(case, maps=maps)


@either_kind
@pytest.mark.parametrize("bad", [-1, 3, 2**31, 2**32 + 1, -(2**63)])
def test_a_bad_label_poisons_loss_and_gradient_with_nan(bad, kind, device):
    case = make_case(kind)
    case.labels[1, 2, 3] = bad
    options = {"labels": case.labels, "ignore_index": 255} if kind == "dense" else {}
    loss, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, validate=False, backend="triton", **options), case.logits
    )
    assert loss.isnan()
    assert gradient.isnan().sum() == 3
    assert gradient[1, :, 2, 3].isnan().all()


@either_kind
@pytest.mark.parametrize("num_classes", [4, 20])
def test_inf_and_nan_logits_give_the_non_finite_pattern_of_eager_pytorch(num_classes, kind, device):
    case = make_case(kind, num_classes=num_classes, shape=(4, 8))
    inf = torch.inf
    case.logits[0, 0, 0, :4] = torch.tensor([torch.nan, inf, -inf, 1e30])
    case.logits[1, :, 1, 1] = -inf
    _, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, reduction="sum", backend="triton"), case.logits
    )
    loss = rw.region_wise_loss(case.logits, case.maps, reduction="none", backend="triton")
    expected = eager_loss(case.logits, case.dense.float(), reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True)
    _, expected = loss_and_gradient(lambda x: eager_loss(x, case.dense.float(), reduction="sum"), case.logits)
    torch.testing.assert_close(gradient, expected, equal_nan=True)


@either_kind
def test_logits_of_ignored_pixels_are_never_used(kind, device):
    case = make_case(kind, ignore_index=-1, shape=(5, 16))
    ignored = (case.labels == -1).unsqueeze(1).expand_as(case.logits)
    case.logits = case.logits.masked_fill(ignored, torch.nan)
    _like_eager(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
@pytest.mark.parametrize("batch", [3, 33, 70])
def test_the_pixels_that_count_are_summed_over_any_number_of_images(batch, dtype, device):
    case = make_case(batch=batch, num_classes=2, shape=(16,), ignore_index=-1, dtype=dtype)
    counted = case.labels.ne(-1).sum(1)
    maps = rw.RectifiedMap(case.labels, case.maps.foreground, 1.25, 2, None, -1, counted)
    _like_eager(case, maps=maps)
    assert "count_pixels" not in {launch.name for launch in device.launches}
    _like_eager(case)
    assert "count_pixels" in {launch.name for launch in device.launches}


def test_nothing_left_to_count_gives_loss_and_gradient_zero(device):
    case = make_case(ignore_index=-1)
    case.labels.fill_(-1)
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, backend="triton"), case.logits)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pairwise(kind=KINDS, reduction=["mean", "sum"], dtype=[torch.float32, torch.float16])
def test_an_incoming_gradient_scales_and_a_kept_graph_can_be_used_again(dtype, reduction, kind, device):
    case = make_case(kind, num_classes=3, shape=(37,), dtype=dtype)
    _like_eager(case, reduction=reduction, upstream=torch.tensor(3.0))
    x = case.logits.requires_grad_()
    loss = rw.region_wise_loss(x, case.maps, reduction=reduction, backend="triton")
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.fill_(7)
    (second,) = torch.autograd.grad(loss, x, 4 * torch.ones_like(loss), retain_graph=True)
    torch.testing.assert_close(second, 4 * kept)
    (third,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(third, kept, rtol=0, atol=0)


@either_kind
def test_runs_of_images_are_reduced_on_their_own_under_vmap(kind, device):
    cases = [make_case(kind, seed=seed, ignore_index=-1, shape=(7, 9)) for seed in (0, 5, 9)]
    x = torch.stack([case.logits for case in cases])
    labels = torch.stack([case.labels for case in cases])
    values = torch.stack([case.maps if kind == "dense" else case.maps.foreground for case in cases])

    def loss(x, values, labels):
        if kind == "dense":
            return rw.region_wise_loss(x, values, labels=labels, ignore_index=-1, backend="triton")
        return rw.region_wise_loss(x, rw.RectifiedMap(labels, values, 1.25, 3, None, -1), backend="triton")

    found = torch.func.vmap(torch.func.grad_and_value(loss))(x, values, labels)
    for index, case in enumerate(cases):
        expected = loss_and_gradient(
            lambda x, case=case: eager_loss(x, case.dense.float(), case.labels, -1), case.logits
        )
        torch.testing.assert_close(found[1][index], expected[0])
        torch.testing.assert_close(found[0][index], expected[1])


def test_the_sums_of_a_thousand_million_pixels_add_up_to_seven_digits(device):
    programs = 10**9 // 512
    sums = torch.rand(2, programs, generator=generator(3)) * 512
    sums[1] -= 255  # of either sign: what is lost shows
    result = torch.empty(2)
    losses._launch("finish_loss", 2, 256, sums, result, None, 7, programs, 1, MEAN=True, BLOCK=losses._FINISH)
    torch.testing.assert_close(result.double(), sums.double().sum(1) / 7, rtol=1e-7, atol=0)


@either_kind
@pytest.mark.parametrize(
    ("batch", "classes", "pixels", "last"),
    [(3, 1030, 2**20 + 24, False), (2, 2, 2**30 + 24, False), (1, 2, 2**30 + 24, True)],
    ids=["many-classes", "many-pixels", "channels-last"],
)
def test_offsets_past_2_31_elements_reach_the_right_ones(batch, classes, pixels, last, kind, device):
    """The last program of a batch whose memory is never touched but there."""
    from ptx.driver import emulate

    x = torch.empty((batch, classes, pixels), dtype=torch.bfloat16)
    if last:
        x = x.view(batch, pixels, classes).transpose(1, 2)
    grad, labels = torch.empty_like(x), torch.empty((batch, pixels), dtype=torch.uint8)
    maps = torch.empty_like(x) if kind == "dense" else torch.empty((batch, pixels))
    case = make_case(kind, batch=1, num_classes=classes, shape=(24,), dtype=torch.bfloat16, label_dtype=torch.uint8)
    if kind == "dense":
        case.maps = case.maps.bfloat16()
    device.runs = False
    small = case.maps if kind == "dense" else case.maps.foreground
    x[-1, :, -24:], maps[-1, ..., -24:], labels[-1, -24:] = case.logits[0], small[0], case.labels[0]
    problem = LossProblem(
        x, maps, labels if kind == "compact" else None, None, None, None, 1.25, None, True, "sum", False, None, 0
    )
    triton.loss(problem, with_loss=True, grad=grad, upstream=None, divide=True, validate=False)
    launch = device.launches[0]
    each = launch.arguments["BLOCK"]
    emulate(launch, start=launch.grid[0] - -(-24 // each))
    _, expected = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, reduction="sum", backend="reference"), case.logits
    )
    assert launch.arguments["WIDE"] is (pixels > 2**30)
    assert launch.arguments["LOGITS_LAST"] is last
    torch.testing.assert_close(grad[-1:, :, -24:], expected, rtol=2**-7, atol=1e-6)


def _plant(monkeypatch, tmp_path, mistakes):
    """Takes the kernels from a copy of their source with mistakes in it."""
    source = Path(losses._kernels().__file__).read_text()
    for right, wrong in mistakes.items():
        assert right in source
        source = source.replace(right, wrong)
    (tmp_path / "planted.py").write_text(source)
    spec = importlib.util.spec_from_file_location("planted", tmp_path / "planted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(losses, "_kernels", lambda: module)
    monkeypatch.setattr(planned, "_plans", {})  # those have binaries of the right ones


@either_kind
def test_a_mask_that_is_off_by_one_is_caught(kind, device, monkeypatch, tmp_path):
    from ptx.faults import OutOfBounds

    _plant(monkeypatch, tmp_path, {"inside = pixel < size": "inside = pixel <= size"})
    with pytest.raises(OutOfBounds, match="logits"):
        _like_eager(make_case(kind, shape=(5, 7)))


@either_kind
def test_a_wrong_hint_of_alignment_is_caught(kind, device, monkeypatch, tmp_path):
    from ptx.faults import Misaligned

    case = make_case(kind, shape=(67,))
    case.logits, case.maps, case.dense = case.logits[..., :64], case.maps[..., :64], case.dense[..., :64]
    case.labels = case.labels[..., :64]
    _like_eager(case)  # classes lie 67 numbers apart: right without the hint
    hints = {
        "size = tl.cast(pixels, P) * UNIT": "size = tl.cast(pixels, P) // 16 * 16",
        "tl.load(logits + at,": "tl.load(tl.multiple_of(logits + at, [16, 16]),",
    }
    _plant(monkeypatch, tmp_path, hints)
    with pytest.raises(Misaligned, match="logits"):
        _like_eager(case)
