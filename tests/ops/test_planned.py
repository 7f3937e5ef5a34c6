"""Plans: the same numbers as the operators give, and none that outlives what it was made for."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from loss_cases import (
    FLOATS,
    LAYOUTS,
    MetaLike,
    loss_and_gradient,
    make_case,
    name,
    needs_native,
    operators_alone,
    random_labels,
    random_logits,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rwkernels as rw
from rwkernels.backends import ENVIRONMENT_VARIABLE, native
from rwkernels.ops import planned

pytestmark = needs_native


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """The plans that a test makes; None stands for a call that has to go without."""
    monkeypatch.setattr(planned, "_plans", {})
    return planned._plans


def made(plans):
    return [plan for plan in plans.values() if plan is not None]


def assert_the_same_by_operators(call, logits, upstream=None):
    """Plans and operators give the same bits, and a plan was taken."""
    loss, gradient = loss_and_gradient(call, logits, upstream)
    assert made(planned._plans)
    with operators_alone():
        expected, of_operators = loss_and_gradient(call, logits, upstream)
    assert loss.dtype == expected.dtype
    assert loss.shape == expected.shape
    torch.testing.assert_close(loss, expected, rtol=1e-7 if loss.dtype == torch.float32 else 1e-15, atol=0)
    assert torch.equal(gradient, of_operators)
    assert gradient.stride() == of_operators.stride()


OPTIONS = {
    "defaults": {},
    "sum": {"reduction": "sum"},
    "ignore": {"ignore_index": 255},
    "ignore-negative": {"ignore_index": -1, "label_dtype": torch.int16},
    "no-background": {"include_background": False},
    "spacing": {"spacing": (2.0, 0.5)},
    "border": {"black_border": True},
    "recompute": {"recompute": True, "ignore_index": 255, "include_background": False},
    "everything": {"ignore_index": 3, "include_background": False, "spacing": [1.5, 1.0], "black_border": True},
}


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_step_from_labels_is_that_of_map_and_loss(option, dtype):
    options = {**OPTIONS[option]}
    label_dtype = options.pop("label_dtype", torch.uint8)
    labels = random_labels((2, 9, 11), 3, options.get("ignore_index"), dtype=label_dtype)
    loss_fn = rw.RegionWiseLoss(**options)
    logits = random_logits((2, 3, 9, 11), dtype)
    for upstream in (None, torch.tensor(0.375)):
        assert_the_same_by_operators(lambda x: loss_fn(x, labels), logits, upstream)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channel", [False, True], ids=["labels", "labels-with-a-channel"])
def test_logits_and_labels_may_lie_anyhow(layout, channel):
    logits = LAYOUTS[layout](random_logits((2, 3, 6, 8)))
    labels = random_labels((2, 8, 6), 3).transpose(1, 2)
    labels = labels.unsqueeze(1) if channel else labels
    loss_fn = rw.RegionWiseLoss()
    x = logits.detach().requires_grad_()
    loss = loss_fn(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert made(planned._plans)
    with operators_alone():
        expected, of_operators = loss_and_gradient(lambda x: loss_fn(x, labels), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    assert torch.equal(gradient, of_operators)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("kind", ["compact", "dense", "pixel"])
def test_the_loss_of_a_map_that_was_built_before(kind, dtype):
    case = make_case("compact", dtype=dtype, background="pixel") if kind == "pixel" else make_case(kind, dtype=dtype)
    for reduction in ("mean", "sum"):
        call = lambda x: rw.region_wise_loss(x, case.maps, reduction=reduction, **case.options())  # noqa: B023, E731
        assert_the_same_by_operators(call, case.logits)


def test_a_map_with_pixels_that_do_not_count_brings_their_number():
    labels = random_labels((3, 7, 9), 4, 255)
    maps = rw.rectified_map(labels, 4, ignore_index=255)
    for dtype in (torch.float32, torch.float16):
        assert_the_same_by_operators(lambda x: rw.region_wise_loss(x, maps), random_logits((3, 4, 7, 9), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_the_levels_of_deep_supervision_are_one_plan(plans, dtype):
    labels = random_labels((2, 16, 24), 3, 255)
    logits = [random_logits((2, 3, 16 >> n, 24 >> n), dtype, seed=n).requires_grad_() for n in range(3)]
    loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(ignore_index=255, spacing=(2.0, 1.0)), [0.5, 0.25, 0.125])
    upstream = torch.tensor(3.0)
    loss = loss_fn(logits, labels)
    gradients = torch.autograd.grad(loss, logits, upstream)
    assert len(made(plans)) == 1
    with operators_alone():
        expected = loss_fn(logits, labels)
        of_operators = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(loss, expected, rtol=3e-7, atol=0)
    for ours, theirs in zip(gradients, of_operators, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_other_weights_of_the_levels_make_another_plan(plans):
    labels = random_labels((1, 8, 8), 3)
    logits = [random_logits((1, 3, 8 >> n, 8 >> n), seed=n) for n in range(2)]
    fine, coarse, both = (
        rw.DeepSupervisionLoss(rw.RegionWiseLoss(), weights)(logits, labels) for weights in ((1, 1), (1, 2), (2, 3))
    )
    torch.testing.assert_close(both, fine + coarse)
    assert len(made(plans)) == 3


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_of_several_levels(recompute):
    labels = random_labels((1, 4, 6), 3, 255)
    logits = [random_logits((1, 3, 4 >> n, 6 >> n), torch.float64, seed=n).requires_grad_() for n in range(2)]
    inner = rw.RegionWiseLoss(ignore_index=255, recompute=recompute)
    loss_fn = rw.DeepSupervisionLoss(inner, [0.75, 0.25])
    assert torch.autograd.gradcheck(lambda *x: loss_fn(list(x), labels), logits, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda *x: loss_fn(list(x), labels), logits)
    assert made(planned._plans)


def test_a_level_whose_logits_need_no_gradient_gets_none():
    labels = random_labels((1, 8, 8), 3)
    fine = random_logits((1, 3, 8, 8)).requires_grad_()
    coarse = random_logits((1, 3, 4, 4))
    rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [0.5, 0.5])([fine, coarse], labels).backward()
    assert fine.grad is not None
    assert coarse.grad is None


# --- what a plan is made for ------------------------------------------------------------------------------------


CHANGES = {
    "shape": lambda x, y, o: (random_logits((2, 3, 7, 4)), random_labels((2, 7, 4), 3), o),
    "stride": lambda x, y, o: (x.contiguous(memory_format=torch.channels_last), y, o),
    "labels-stride": lambda x, y, o: (x, y.transpose(1, 2).contiguous().transpose(1, 2), o),
    "dtype": lambda x, y, o: (x.double(), y, o),
    "labels-dtype": lambda x, y, o: (x, y.int(), o),
    "classes": lambda x, y, o: (torch.cat([x, x[:, :1] - 1], 1), y, o),
    "ignore_index": lambda x, y, o: (x, y, {**o, "ignore_index": 1}),
    "reduction": lambda x, y, o: (x, y, {**o, "reduction": "sum"}),
    "include_background": lambda x, y, o: (x, y, {**o, "include_background": False}),
    "spacing": lambda x, y, o: (x, y, {**o, "spacing": (1.0, 3.0)}),
    "black_border": lambda x, y, o: (x, y, {**o, "black_border": True}),
    "recompute": lambda x, y, o: (x, y, {**o, "recompute": True}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_makes_a_plan_of_its_own(change, plans):
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    rw.RegionWiseLoss()(logits.detach().requires_grad_(), labels)
    logits, labels, options = CHANGES[change](logits, labels, {})
    loss_fn = rw.RegionWiseLoss(**options)
    assert_the_same_by_operators(lambda x: loss_fn(x, labels), logits)
    assert len(made(plans)) == 2


def test_the_same_call_takes_the_same_plan_whatever_its_values(plans):
    loss_fn = rw.RegionWiseLoss()
    for seed in range(3):
        labels = random_labels((2, 7, 5), 3, seed=seed)
        assert_the_same_by_operators(lambda x: loss_fn(x, labels), random_logits((2, 3, 7, 5), seed=seed))  # noqa: B023
    assert len(made(plans)) == 1


def test_an_option_that_is_changed_on_the_module_counts_at_once():
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    loss_fn = rw.RegionWiseLoss()
    before = loss_fn(logits, labels)
    loss_fn.spacing = [1.0, 4.0]
    after = loss_fn(logits, labels)
    assert after != before
    assert after == rw.RegionWiseLoss(spacing=[1.0, 4.0])(logits, labels)
    loss_fn.spacing[1] = 1.0
    assert loss_fn(logits, labels) == before


def test_the_environment_and_a_forced_backend_count_at_once(monkeypatch, plans):
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    ran = []
    real = native.loss
    rw.RegionWiseLoss()(logits, labels)
    assert len(made(plans)) == 1
    from rwkernels.backends import reference

    monkeypatch.setattr(
        reference, "loss", lambda *a, _real=reference.loss, **k: ran.append("reference") or _real(*a, **k)
    )
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    rw.RegionWiseLoss()(logits, labels)
    assert ran == ["reference"]
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    rw.RegionWiseLoss(backend="reference")(logits, labels)
    assert ran == ["reference"] * 2
    rw.RegionWiseLoss()(logits, labels)
    assert ran == ["reference"] * 2
    assert native.loss is real
    assert len(made(plans)) == 1


# --- who looks on -----------------------------------------------------------------------------------------------


def test_a_dispatch_mode_sees_the_operators(plans):
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    rw.RegionWiseLoss()(logits, labels)
    with Spy():
        rw.RegionWiseLoss()(logits, labels)
    assert "rwkernels.rectified.default" in seen
    assert "rwkernels.region_wise.default" in seen


def test_a_forward_mode_derivative_is_that_of_the_operators(plans):
    logits, labels = random_logits((2, 3, 7, 5), torch.float64), random_labels((2, 7, 5), 3)
    loss_fn = rw.RegionWiseLoss()
    direction = random_logits((2, 3, 7, 5), torch.float64, seed=5)
    _, gradient = loss_and_gradient(lambda x: loss_fn(x, labels), logits)
    with torch.autograd.forward_ad.dual_level():
        dual = loss_fn(torch.autograd.forward_ad.make_dual(logits, direction), labels)
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, (gradient * direction).sum())


def test_subclasses_and_negated_views_go_by_the_operators(plans):
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    loss_fn = rw.RegionWiseLoss()
    expected = loss_fn(logits, labels)
    assert torch.equal(loss_fn(MetaLike(logits), MetaLike(labels)), expected)
    negated = torch.complex(torch.zeros_like(logits), -logits).conj().imag  # a view whose memory holds -logits
    assert negated.is_neg()
    assert torch.equal(negated, logits)
    assert torch.equal(loss_fn(negated, labels), expected)


def test_a_function_mode_such_as_a_default_device_changes_nothing():
    class Other(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    expected = rw.RegionWiseLoss()(logits, labels)
    with Other(), torch.device("meta"):
        found = rw.RegionWiseLoss()(logits, labels)
    assert torch.equal(found, expected)


def test_a_subclass_that_builds_its_own_map_is_asked(plans):
    class Flat(rw.RegionWiseLoss):
        def build_map(self, labels, num_classes, spacing=None):
            return rw.constant_map(labels, num_classes)

    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    assert torch.equal(Flat()(logits, labels), rw.region_wise_loss(logits, rw.constant_map(labels, 3)))


def test_hooks_on_the_loss_of_a_level_are_called_for_every_level():
    inner, seen = rw.RegionWiseLoss(), []
    inner.register_forward_hook(lambda *_: seen.append(1))
    levels = [random_logits((1, 3, 8 >> n, 8 >> n)) for n in range(2)]
    rw.DeepSupervisionLoss(inner, [1.0, 1.0])(levels, random_labels((1, 8, 8), 3))
    assert len(seen) == 2


# --- what is refused, and what is kept --------------------------------------------------------------------------


def test_bad_input_is_refused_by_name_also_where_there_is_a_plan():
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    maps = rw.rectified_map(labels, 3)
    rw.RegionWiseLoss()(logits, labels)
    rw.region_wise_loss(logits, maps)
    bad = labels.clone()
    bad[1, 2, 3] = 3
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 3 at \(1, 2, 3\)"):
        rw.RegionWiseLoss()(logits.requires_grad_(), bad)
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 3 at \(1, 2, 3\)"):
        rw.region_wise_loss(logits, rw.RectifiedMap(bad, maps.foreground, 1.0, 3))
    with pytest.raises(ValueError, match="maps: expected a map that requires no gradient"):
        rw.region_wise_loss(logits, rw.RectifiedMap(labels, maps.foreground.clone().requires_grad_(), 1.0, 3))
    with pytest.raises(TypeError, match="include_background: expected True or False"):
        rw.region_wise_loss(logits, maps, include_background=1)
    with pytest.raises(ValueError, match="labels: expected None"):
        rw.region_wise_loss(logits, maps, labels=labels)
    with pytest.raises(TypeError, match="backend: expected the name"):
        rw.region_wise_loss(logits, maps, backend=["native"])


def test_bad_labels_that_are_not_checked_are_nan_and_their_gradient_too():
    labels = torch.full((1, 3, 4), 5, dtype=torch.uint8)
    logits = random_logits((1, 3, 3, 4)).requires_grad_()
    loss = rw.RegionWiseLoss(validate=False)(logits, labels)
    loss.backward()
    assert loss.isnan()
    assert logits.grad.isnan().all()


def test_a_plan_holds_no_tensor_and_the_graph_frees_its_own():
    import gc
    import weakref

    logits, labels = random_logits((2, 3, 7, 5)).requires_grad_(), random_labels((2, 7, 5), 3)
    loss = rw.RegionWiseLoss()(logits, labels)
    watched = [weakref.ref(logits), weakref.ref(labels)]
    del loss, logits, labels
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_results_are_fresh_at_every_call():
    logits, labels = random_logits((2, 3, 7, 5)), random_labels((2, 7, 5), 3)
    loss_fn = rw.RegionWiseLoss()
    first = loss_and_gradient(lambda x: loss_fn(x, labels), logits)
    kept = copy.deepcopy(first)
    loss_and_gradient(lambda x: loss_fn(x, labels), logits + 1)
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


def test_logits_that_change_between_forward_and_backward_are_noticed():
    logits, labels = random_logits((2, 3, 7, 5)).requires_grad_(), random_labels((2, 7, 5), 3)
    x = logits * 1
    loss = rw.RegionWiseLoss()(x, labels)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_number_of_plans_is_bounded(plans, monkeypatch):
    monkeypatch.setattr(planned, "_KEPT", 4)
    for size in range(2, 12):
        rw.RegionWiseLoss()(random_logits((1, 3, size, 4)), random_labels((1, size, 4), 3))
        assert 1 <= len(plans) <= 4


def test_several_threads_share_a_plan(plans):
    loss_fn, failed = rw.RegionWiseLoss(ignore_index=255), []
    cases = [(random_logits((2, 3, 31, 17), seed=n), random_labels((2, 31, 17), 3, 255, seed=n)) for n in range(4)]
    expected = [loss_and_gradient(lambda x, y=y: loss_fn(x, y), x) for x, y in cases]

    def work(n):
        for _ in range(50):
            found = loss_and_gradient(lambda x: loss_fn(x, cases[n][1]), cases[n][0])
            if not all(torch.equal(one, other) for one, other in zip(found, expected[n], strict=True)):
                failed.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(made(plans)) == 1
