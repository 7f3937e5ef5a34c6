"""The loss on a GPU: the comparisons of the CPU tests, and what only a device can get wrong. `pytest -m gpu`."""

import math

import pytest
import torch
from loss_cases import (
    FAMILIES,
    FLOATS,
    assert_like_eager,
    eager_loss,
    either_kind,
    every_reduction,
    loss_and_gradient,
    make_case,
    name,
    random_labels,
    random_logits,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, vmap

import rwkernels as rw
from rwkernels.backends import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DEVICE = "cuda"


def _case(kind="compact", **options):
    return make_case(kind, **options).to(DEVICE)


def _backend():
    """The name of the backend that runs here by default."""
    return choose(torch.device(DEVICE), "loss").NAME


@either_kind
@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 8, 9, 16, 17, 32, 118])
def test_any_number_of_classes_gives_the_loss_of_eager_pytorch(num_classes, kind):
    assert_like_eager(_case(kind, num_classes=num_classes, shape=(37, 61), ignore_index=-1, background="pixel"))


@either_kind
@every_reduction
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_every_dtype_and_reduction_gives_the_loss_of_eager_pytorch(dtype, reduction, kind):
    case = _case(kind, dtype=dtype, num_classes=5, shape=(37, 61), class_scale=True, ignore_index=-1)
    assert_like_eager(case, reduction=reduction)
    assert_like_eager(case, reduction=reduction, include_background=False)
    assert_like_eager(case, reduction=reduction, recompute=True)


@either_kind
@pytest.mark.parametrize("shape", [(1,), (1025,), (1, 1), (129, 255), (3, 5, 7), (16, 16, 16)], ids=name)
def test_any_shape_gives_the_loss_of_eager_pytorch(shape, kind):
    assert_like_eager(_case(kind, num_classes=4, shape=shape))


@either_kind
@pytest.mark.parametrize("layout", ["channels-last", "crop", "transposed", "unaligned", "expanded"])
def test_logits_of_any_layout_give_the_same_loss(layout, kind):
    case = _case(kind, num_classes=5, shape=(6, 35))
    x = case.logits
    case.logits = {
        "channels-last": lambda: x.contiguous(memory_format=torch.channels_last),
        "crop": lambda: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
        "transposed": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "unaligned": lambda: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "expanded": lambda: x[:1].expand_as(x),
    }[layout]()
    assert_like_eager(case)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_to_gradient_on_the_gpu_are_those_on_the_cpu(family):
    labels, logits = random_labels((2, 21, 34), 4, ignore_index=255), random_logits((2, 4, 21, 34))
    loss_fn = rw.RegionWiseLoss(family, ignore_index=255, class_weight=[0.5, 1.0, 2.0, 0.0])
    here = loss_and_gradient(lambda x: loss_fn(x, labels), logits)
    loss_fn = loss_fn.to(DEVICE)
    there = loss_and_gradient(lambda x: loss_fn(x, labels.to(DEVICE)), logits.to(DEVICE))
    torch.testing.assert_close([t.cpu() for t in there], list(here), rtol=1e-5, atol=1e-7)


@either_kind
@pytest.mark.parametrize("junk", [math.nan, math.inf], ids=str)
def test_logits_of_ignored_pixels_are_never_read(junk, kind):
    case = _case(kind, ignore_index=-1, shape=(5, 17))
    ignored = (case.labels == -1).unsqueeze(1).expand_as(case.logits)
    case.logits = case.logits.masked_fill(ignored, junk)
    assert_like_eager(case)
    _, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **case.options()), case.logits)
    assert torch.equal(gradient[ignored], torch.zeros_like(gradient[ignored]))


@either_kind
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_a_batch_with_nothing_left_gives_loss_and_gradient_zero(dtype, kind):
    case = _case(kind, ignore_index=-1, dtype=dtype)
    case.labels.fill_(-1)
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **case.options()), case.logits)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("bad", [-1, 3, 2**31, 2**32 + 1, -(2**63)])
@either_kind
def test_a_bad_label_poisons_the_loss_with_nan_by_default_and_raises_on_request(kind, bad):
    case = _case(kind, ignore_index=7)
    case.labels[1, 2, 3] = bad
    assert rw.region_wise_loss(case.logits, case.maps, **case.options()).isnan()
    with pytest.raises(ValueError, match=rf"labels: expected integers in \[0, 3\) or 7 .*, got {bad} at \(1, 2, 3\)"):
        rw.region_wise_loss(case.logits, case.maps, validate=True, **case.options())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bad_label_poisons_the_loss_of_every_family(family):
    labels = random_labels((2, 21, 34), 4).to(DEVICE)
    labels[1, 2, 3] = 4
    assert rw.RegionWiseLoss(family)(random_logits((2, 4, 21, 34)).to(DEVICE), labels).isnan()


@either_kind
def test_repeated_runs_give_the_same_bits(kind):
    case = _case(kind, num_classes=5, shape=(129, 255), ignore_index=-1)
    results = [
        loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **case.options()), case.logits) for _ in range(5)
    ]
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@either_kind
@every_reduction
def test_first_and_second_derivatives_are_those_of_finite_differences(reduction, kind):
    case = _case(kind, shape=(3,), dtype=torch.float64)

    def loss(x):
        return rw.region_wise_loss(x, case.maps, reduction=reduction)

    assert gradcheck(loss, case.logits.requires_grad_(), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, case.logits, check_fwd_over_rev=True)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)], ids=str)
def test_a_graph_that_is_kept_gives_right_gradients_again_whatever_became_of_the_first(weights, recompute):
    case = _case(dtype=torch.float64)
    x = case.logits.clone().requires_grad_()
    loss = rw.region_wise_loss(x, case.maps, recompute=recompute)
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits)
    for weight, keep in zip(weights, (True, False), strict=True):
        upstream = torch.tensor(weight, dtype=torch.float64, device=DEVICE)
        (gradient,) = torch.autograd.grad(loss, x, upstream, retain_graph=keep)
        torch.testing.assert_close(gradient, weight * single)
        gradient.fill_(777.0)


def test_transforms_are_those_of_eager_pytorch():
    case = _case(shape=(2, 3), dtype=torch.float64)

    def ours(x):
        return rw.region_wise_loss(x, case.maps)

    def eager(x):
        return eager_loss(x, case.dense)

    stack = torch.stack([case.logits, case.logits.flip(1)])
    torch.testing.assert_close(grad(ours)(case.logits), grad(eager)(case.logits))
    torch.testing.assert_close(hessian(ours)(case.logits), hessian(eager)(case.logits))
    torch.testing.assert_close(vmap(grad(ours))(stack), torch.stack([grad(eager)(x) for x in stack]))


def test_labels_to_gradient_compile_into_one_graph():
    labels = random_labels((2, 15, 16), 3).to(DEVICE)
    logits = random_logits((2, 3, 15, 16)).to(DEVICE)
    loss_fn = rw.RegionWiseLoss()
    step = torch.compile(loss_fn, fullgraph=True)
    torch.testing.assert_close(
        loss_and_gradient(lambda x: step(x, labels), logits), loss_and_gradient(lambda x: loss_fn(x, labels), logits)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_under_autocast_the_loss_is_float32_and_the_gradient_narrow(dtype):
    case = _case()
    weight = random_logits((3, 3, 3, 3), seed=3).to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE, dtype):
        logits = torch.nn.functional.conv2d(case.logits, weight, padding=1)
        logits.retain_grad()
        loss = rw.region_wise_loss(logits, case.maps)
    loss.backward()
    assert (logits.dtype, logits.grad.dtype, loss.dtype) == (dtype, dtype, torch.float32)
    case.logits = logits.detach()
    assert_like_eager(case)


def test_a_gradient_scaler_keeps_half_precision_gradients_from_flushing_to_zero():
    case = _case(num_classes=4, shape=(512, 512), dtype=torch.float16)
    case.logits /= 3
    scaler = torch.amp.GradScaler(DEVICE)
    x = case.logits.clone().requires_grad_()
    scaler.scale(rw.region_wise_loss(x, case.maps)).backward()
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits.float())
    assert (x.grad == 0).double().mean() <= (single == 0).double().mean() + 1e-4
    torch.testing.assert_close(x.grad.float() / scaler.get_scale(), single, rtol=2**-9, atol=2**-23 / 65536)


@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_a_training_step_does_not_wait_for_the_device(dtype, kind):
    if _backend() == "reference":
        pytest.skip("the reference backend promises no such thing; only GPU kernels do")
    case = _case(kind, dtype=dtype)
    x = case.logits.clone().requires_grad_()
    rw.region_wise_loss(x, case.maps).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (2 * rw.region_wise_loss(x, case.maps)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@either_kind
def test_forward_and_backward_allocate_one_gradient_and_less_than_a_twentieth_more(kind):
    if _backend() == "reference":
        pytest.skip("the reference backend computes in float64 and promises no such thing; only GPU kernels do")
    case = _case(kind, num_classes=4, shape=(512, 512))
    x = case.logits.clone().requires_grad_()
    rw.region_wise_loss(x, case.maps).backward()
    x.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rw.region_wise_loss(x, case.maps).backward()
    assert torch.cuda.max_memory_allocated() - before < 1.05 * x.numel() * x.element_size()


def test_tensors_on_two_devices_are_refused_by_name():
    case = make_case()
    with pytest.raises(ValueError, match=r"maps\.labels: expected a tensor on cuda:\d+ like logits, got .* on cpu"):
        rw.region_wise_loss(case.logits.to(DEVICE), case.maps)
    with pytest.raises(ValueError, match=r"labels: expected a tensor on cuda:\d+ like logits, got .* on cpu"):
        rw.RegionWiseLoss()(case.logits.to(DEVICE), case.labels)
    with pytest.raises(ValueError, match=r"backend: 'native' cannot run on cuda:\d+: it computes on the CPU only"):
        rw.region_wise_loss(case.logits.to(DEVICE), case.maps.to(DEVICE), backend="native")
