"""What autograd may ask of the loss: derivatives of every order and mode, and what the one pass must not break."""

from contextlib import nullcontext

import pytest
import torch
from loss_cases import (
    Calls,
    assert_like_eager,
    eager_loss,
    either_kind,
    every_reduction,
    kept_or_recomputed,
    loss_and_gradient,
    make_case,
    name,
    on_cpu_backends,
    operators_alone,
    random_logits,
    tolerances,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import rwkernels as rw
from rwkernels.backends import choose


def _double_case(kind="compact", **options):
    return make_case(kind, shape=(2,), batch=2, dtype=torch.float64, **options)


def _leaf(case):
    return case.logits.clone().requires_grad_()


@pytest.fixture(params=["plans", "operators"])
def calls(request, monkeypatch):
    """The calls of the backend that runs on the CPU by default."""
    with operators_alone() if request.param == "operators" else nullcontext():
        yield Calls(monkeypatch, choose(torch.device("cpu"), "loss"))


# --- derivatives of every order and mode --------------------------------------------------------------------------


@on_cpu_backends
@either_kind
@every_reduction
def test_the_gradient_is_that_of_finite_differences_in_reverse_and_forward_mode(reduction, kind, backend):
    case = _double_case(kind)
    assert gradcheck(
        lambda x: rw.region_wise_loss(x, case.maps, reduction=reduction, backend=backend),
        _leaf(case),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@on_cpu_backends
@either_kind
@every_reduction
def test_the_second_derivative_is_that_of_finite_differences(reduction, kind, backend):
    case = _double_case(kind, class_scale=True)
    assert gradgradcheck(
        lambda x: rw.region_wise_loss(x, case.maps, reduction=reduction, backend=backend),
        _leaf(case),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


OPTIONS = {
    "ignored-pixels": ({"ignore_index": -1}, {}),
    "class-scale": ({"class_scale": True, "background": "pixel"}, {}),
    "without-channel-0": ({}, {"include_background": False}),
    "all-of-them": ({"ignore_index": -1, "class_scale": True, "background": "pixel"}, {"include_background": False}),
}


@either_kind
@kept_or_recomputed
@pytest.mark.parametrize("options", OPTIONS)
def test_first_and_second_derivatives_follow_every_option(options, recompute, kind):
    case_options, call_options = OPTIONS[options]
    case = _double_case(kind, num_classes=4, **case_options)

    def loss(x):
        return rw.region_wise_loss(x, case.maps, recompute=recompute, **case.options(), **call_options)

    assert gradcheck(loss, _leaf(case), check_forward_ad=True)
    assert gradgradcheck(loss, _leaf(case))


@on_cpu_backends
@either_kind
def test_a_gradient_penalty_trains_as_in_eager_pytorch(kind, backend):
    case = _double_case(kind, ignore_index=-1)

    def penalty(loss_of):
        x = _leaf(case)
        (gradient,) = torch.autograd.grad(loss_of(x), x, create_graph=True)
        gradient.square().sum().backward()
        return gradient.detach(), x.grad

    ours = penalty(lambda x: rw.region_wise_loss(x, case.maps, **case.options(), backend=backend))
    eager = penalty(lambda x: eager_loss(x, case.dense, case.labels, -1))
    torch.testing.assert_close(ours, eager)


@on_cpu_backends
def test_the_third_derivative_is_that_of_eager_pytorch(backend):
    case = _double_case()

    def third(loss_of):
        x = _leaf(case)
        found = loss_of(x)
        for _ in range(3):
            (found,) = torch.autograd.grad((found * found).sum(), x, create_graph=True)
        return found.detach()

    torch.testing.assert_close(
        third(lambda x: rw.region_wise_loss(x, case.maps, backend=backend)),
        third(lambda x: eager_loss(x, case.dense)),
    )


@on_cpu_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)
def test_the_second_derivative_exists_in_every_dtype(dtype, backend):
    case = make_case(dtype=dtype)

    def penalty(x, loss):
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(gradient.float().square().sum(), x)[0].double()

    x = _leaf(case)
    ours = penalty(x, rw.region_wise_loss(x, case.maps, reduction="sum", backend=backend))
    y = _leaf(make_case(dtype=dtype)).detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(eager_loss(y, case.dense, reduction="sum"), y, create_graph=True)
    (eager,) = torch.autograd.grad(gradient.square().sum(), y)
    # The gradient, rounded to the dtype, is multiplied by second derivatives of about 1 and rounded again.
    torch.testing.assert_close(ours, eager, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@on_cpu_backends
def test_several_incoming_gradients_at_once_give_several_gradients(backend):
    case = _double_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, backend=backend)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (batched,) = torch.autograd.grad(loss, x, weights, is_grads_batched=True)
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits)
    torch.testing.assert_close(batched, weights.view(3, 1, 1, 1) * single)


# --- one pass, and what may follow --------------------------------------------------------------------------------


@on_cpu_backends
@either_kind
@kept_or_recomputed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_two_backwards_with_the_graph_kept_add_up(dtype, recompute, kind, backend):
    case = make_case(kind, dtype=dtype)
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend)
    two = torch.tensor(2.0)
    loss.backward(two, retain_graph=True)
    first = x.grad.clone()
    loss.backward(two, retain_graph=True)
    loss.backward(two)
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits.double())
    torch.testing.assert_close(first.double(), 2 * single, **tolerances(case, 2)[1])
    torch.testing.assert_close(x.grad.double(), 6 * single, **tolerances(case, 6)[1])


@on_cpu_backends
@kept_or_recomputed
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (-2.0, 0.5)], ids=str)
def test_gradients_with_different_weights_come_from_one_graph(weights, recompute, backend):
    case = _double_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend)
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits)
    for weight, keep in zip((*weights, weights[0]), (True, True, False), strict=True):
        upstream = torch.tensor(weight, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(loss, x, upstream, retain_graph=keep)
        torch.testing.assert_close(gradient, weight * single)


@on_cpu_backends
@kept_or_recomputed
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_caller_who_overwrites_the_first_gradient_gets_a_right_second_one(weight, recompute, backend):
    case = _double_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend)
    upstream = torch.tensor(weight, dtype=torch.float64)
    (first,) = torch.autograd.grad(loss, x, upstream, retain_graph=True)
    first.fill_(777.0)
    (second,) = torch.autograd.grad(loss, x, upstream)
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits)
    torch.testing.assert_close(second, weight * single)


def test_an_optimiser_that_scales_the_gradient_in_place_does_not_reach_the_kept_one():
    case = _double_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps)
    loss.backward(retain_graph=True)
    single = x.grad.clone()
    torch.nn.utils.clip_grad_norm_([x], 1e-6)
    assert not torch.allclose(x.grad, single)
    x.grad = None
    loss.backward()
    torch.testing.assert_close(x.grad, single)


@on_cpu_backends
def test_a_second_backward_after_the_graph_was_freed_is_refused(backend):
    case = _double_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, backend=backend)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@on_cpu_backends
@kept_or_recomputed
def test_two_losses_of_the_same_logits_add_up(recompute, backend):
    case, other = _double_case(), _double_case("dense")
    x = _leaf(case)
    ours = 0.25 * rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend)
    ours = ours + 3 * rw.region_wise_loss(x, other.maps, recompute=recompute, backend=backend)
    ours.backward()
    _, expected = loss_and_gradient(
        lambda x: 0.25 * eager_loss(x, case.dense) + 3 * eager_loss(x, other.dense), case.logits
    )
    torch.testing.assert_close(x.grad, expected)


@on_cpu_backends
@either_kind
@every_reduction
def test_a_recomputed_gradient_equals_the_kept_one(reduction, kind, backend):
    case = make_case(kind, num_classes=5, ignore_index=-1, class_scale=True, shape=(9, 17))
    upstream = random_logits((2, 9, 17)) if reduction == "none" else torch.tensor(3.0)
    options = {**case.options(), "reduction": reduction, "backend": backend}
    kept, recomputed = (
        loss_and_gradient(
            lambda x, again=again: rw.region_wise_loss(x, case.maps, recompute=again, **options), case.logits, upstream
        )
        for again in (False, True)
    )
    torch.testing.assert_close(kept, recomputed)


@either_kind
def test_an_incoming_gradient_of_one_hands_the_kept_gradient_over_without_a_copy(kind, calls):
    case = make_case(kind)
    _, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps), case.logits)
    assert calls.gradients == [gradient.data_ptr()]


def test_any_other_incoming_gradient_scales_the_kept_one_in_place(calls):
    case = make_case()
    _, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps), case.logits, torch.tensor(2.0))
    assert calls.gradients == [gradient.data_ptr()]


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_graph_that_is_kept_keeps_its_gradient_to_itself(weight, calls):
    case = make_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps)
    (gradient,) = torch.autograd.grad(loss, x, torch.tensor(weight), retain_graph=True)
    assert len(calls.gradients) == 1
    assert gradient.data_ptr() != calls.gradients[0]


def test_a_recomputed_gradient_is_computed_in_the_backward_alone(calls):
    case = make_case()
    x = _leaf(case)
    loss = rw.region_wise_loss(x, case.maps, recompute=True)
    assert calls.gradients == [None]
    loss.backward()
    assert len(calls.gradients) == 2
    assert calls.gradients[1] is not None


def _frozen_logits(x, maps):
    return rw.region_wise_loss(x.detach(), maps)


def _in_mode(mode):
    def call(x, maps):
        with mode():
            return rw.region_wise_loss(x, maps)

    return call


@either_kind
@pytest.mark.parametrize(
    "call",
    [_in_mode(torch.no_grad), _in_mode(torch.inference_mode), _frozen_logits],
    ids=["no_grad", "inference_mode", "frozen-logits"],
)
def test_no_gradient_is_computed_where_none_can_be_asked_for(call, kind, calls):
    case = make_case(kind)
    loss = call(_leaf(case), case.maps)
    assert calls.gradients == [None]
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), eager_loss(case.logits.double(), case.dense), rtol=1e-5, atol=1e-6)


@either_kind
def test_tensors_made_in_inference_mode_are_taken(kind):
    case = make_case(kind)
    with torch.inference_mode():
        inside = make_case(kind)
        loss = rw.region_wise_loss(inside.logits, inside.maps, **inside.options())
    torch.testing.assert_close(loss.clone(), rw.region_wise_loss(case.logits, case.maps, **case.options()))


# --- in company ---------------------------------------------------------------------------------------------------


def _network(x, weight):
    return torch.nn.functional.conv2d(x, weight, padding=1)


@on_cpu_backends
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["hooks", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradient(use_reentrant, backend):
    case = make_case(dtype=torch.float64)

    def gradient(through):
        weight = random_logits((3, 3, 3, 3), torch.float64, seed=3).requires_grad_()
        through(lambda w: rw.region_wise_loss(_network(case.logits, w), case.maps, backend=backend), weight).backward()
        return weight.grad

    plain = gradient(lambda function, weight: function(weight))
    torch.testing.assert_close(
        gradient(lambda function, weight: checkpoint(function, weight, use_reentrant=use_reentrant)), plain
    )


@on_cpu_backends
def test_saved_tensors_may_be_packed_away_until_the_backward(backend):
    case = make_case(dtype=torch.float64)
    x = _leaf(case)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
        loss = rw.region_wise_loss(x, case.maps, backend=backend)
    loss.backward(torch.tensor(2.0, dtype=torch.float64))
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits)
    torch.testing.assert_close(x.grad, 2 * single)


@on_cpu_backends
def test_under_autocast_the_loss_is_float32_and_the_gradient_bfloat16(backend):
    case = make_case()
    weight = random_logits((3, 3, 3, 3), seed=3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = _network(case.logits, weight)
        logits.retain_grad()
        loss = rw.region_wise_loss(logits, case.maps, backend=backend)
    loss.backward()
    assert (logits.dtype, logits.grad.dtype, loss.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    case.logits = logits.detach()
    assert_like_eager(case, backend=backend)
    assert weight.grad.abs().sum() > 0


@on_cpu_backends
@kept_or_recomputed
def test_half_precision_gradients_of_a_scaled_loss_do_not_flush_to_zero(recompute, backend):
    shape = (512, 512)
    case = make_case(num_classes=4, shape=shape, dtype=torch.float16)
    case.logits /= 3  # of standard deviation 1, so that no class vanishes by itself
    scale = torch.tensor(65536.0)  # where torch.amp.GradScaler starts
    _, half = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend), case.logits, scale
    )
    _, single = loss_and_gradient(lambda x: eager_loss(x, case.dense), case.logits.float(), scale)
    assert (half == 0).double().mean() <= (single == 0).double().mean() + 1e-4
    # The mean over two million entries is about 3e-2 after scaling; one subnormal step is 6e-8.
    torch.testing.assert_close(half.float(), single, rtol=2**-9, atol=2**-23)


def test_a_map_that_requires_a_gradient_is_refused_by_name():
    case = make_case("dense")
    with pytest.raises(ValueError, match="maps: expected a map that requires no gradient"):
        rw.region_wise_loss(_leaf(case), case.maps.requires_grad_())


@pytest.mark.parametrize("field", ["foreground", "background", "class_scale"])
def test_a_compact_map_that_requires_a_gradient_is_refused_by_name(field):
    case = make_case(background="pixel", class_scale=True)
    getattr(case.maps, field).requires_grad_()
    with pytest.raises(ValueError, match=r"maps.*: expected .* no gradient"):
        rw.region_wise_loss(_leaf(case), case.maps)
