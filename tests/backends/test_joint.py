"""A weighted sum of losses over one softmax: its formulas against autograd and numbers, every backend against them."""

import math

import pytest
import torch
from choices import pairwise
from loss_cases import LAYOUTS, name, needs_native, on_cpu_backends, random_labels, random_logits

from rwkernels.backends import joint, joint_equations, load
from rwkernels.backends.joint import JointProblem, Overlap
from rwkernels.backends.native import core
from rwkernels.backends.native.loss import described_loss
from rwkernels.backends.problem import BadInputError

DICE = Overlap(2.0, 0.0, 1.0, 1.0, 1e-5, 1e-5, 1.0)
UNLIKE = list(Overlap(2.0, -0.3, 1.2, 0.7, 0.1, 0.2, 1.0))  # every number of its own


def _ramp(classes, dtype=torch.float64):
    return torch.linspace(0.5, 1.5, classes, dtype=dtype)


def problem(shape=(2, 4, 5, 7), dtype=torch.float64, ignore_index=-1, **changes):
    labels = random_labels((shape[0], *shape[2:]), shape[1], ignore_index)
    given = {
        "logits": random_logits(shape, dtype),
        "labels": labels,
        "weights": torch.tensor([0.7, 1.3, 0.9, 2.1], dtype=torch.float64),
        "background_value": 1.0,
        "ignore_index": ignore_index,
        "map_background": True,
        "cross_entropy": False,
        "label_smoothing": 0.0,
        "focal": False,
        "gamma": 2.0,
        "dice": False,
        "dice_background": True,
        "squared": False,
        "whole_batch": False,
        "volumes": "",
        "overlap": UNLIKE,
        "reduction": "mean",
        "validate": False,
        "backend": None,
    }
    return JointProblem(**{**dict.fromkeys(JointProblem._fields), **given, **changes})


def of_terms(terms, classes=4, shape=(2, 4, 5, 7), **changes):
    """A problem of the losses whose initials are in `terms`: Region-wise (compact, or Z: dense), Cross-entropy (S: with
    weights and smoothing), Focal (G: with weights and another gamma), Dice (Q: of squares, weighed).
    """
    pixels = (shape[0], *shape[2:])
    each = {
        "R": {"maps": -torch.rand(pixels, generator=torch.Generator().manual_seed(1))},
        "Z": {"maps": torch.randn(shape, generator=torch.Generator().manual_seed(1))},
        "C": {"cross_entropy": True},
        "S": {"cross_entropy": True, "entropy_weight": _ramp(classes), "label_smoothing": 0.2},
        "F": {"focal": True},
        "G": {"focal": True, "gamma": 1.5, "focal_weight": _ramp(classes).flip(0)},
        "D": {"dice": True},
        "Q": {"dice": True, "squared": True, "dice_weight": _ramp(classes), "dice_background": False},
    }
    for term in terms:
        changes = {**each[term], **changes}
    return problem(shape, **changes)


def by_autograd(given):
    """Loss and gradient of the differentiable form, in float64."""
    logits = given.logits.detach().double().requires_grad_()
    loss = joint_equations.loss(given._replace(logits=logits))
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


# --- the formulas ----------------------------------------------------------------------------------------------


def test_four_pixels_by_hand():
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1).expand(1, 2, 4)  # y = 3/4, 1/4 everywhere
    labels = torch.tensor([[0, 0, 0, 1]])
    given = problem((1, 2, 4), ignore_index=None, logits=logits.double(), labels=labels, dice=True, cross_entropy=True,
                    focal=True, maps=torch.full((1, 4), -0.5, dtype=torch.float64), overlap=list(DICE),
                    weights=torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64))  # fmt: skip
    sums = joint.Sums.of(joint_equations.image_sums(given, torch.float64))
    for found, expected in zip(
        sums,
        (
            [[9 / 4, 1 / 4]],
            [[3.0, 1.0]],
            [[3.0, 1.0]],
            [4 - 1.5 * (9 / 4 + 1 / 4)],  # a pixel's loss is 1 - 1.5 p
            [-3 * math.log(3 / 4) - math.log(1 / 4)],
            [-3 * math.log(3 / 4) / 16 - math.log(1 / 4) * 9 / 16],
        ),
        strict=True,
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    dice = 1 - (4.5 / 6 + 0.5 / 2) / 2
    loss = 0.25 / 8 + 10 * sums.cross_entropy[0] / 4 + 100 * sums.focal[0] / 8 + 1000 * dice
    torch.testing.assert_close(joint_equations.loss(given), loss, rtol=1e-5, atol=0)


def test_generalised_dice_by_hand():
    # One class fills three quarters, the third is absent: weights 1/9, 1 and the largest of them.
    labels = torch.tensor([[0, 0, 0, 1]])
    given = problem((1, 3, 4), ignore_index=None, logits=torch.zeros(1, 3, 4).double(), labels=labels, dice=True,
                    volumes="square", overlap=list(DICE._replace(smooth_nr=0.0, smooth_dr=0.0)),
                    weights=torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))  # fmt: skip
    third = 4 / 3
    expected = 1 - 2 * (1 / 9 + 1 / 3) / ((third + 3) / 9 + (third + 1) + third)
    assert float(joint_equations.loss(given)) == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "changes",
    [
        *({"dice": True, "whole_batch": batch, "dice_background": background, "volumes": volumes, "squared": batch}
          for batch, background, volumes in
          [(False, True, ""), (True, False, ""), (False, False, "square"), (True, True, "simple"),
           (True, False, "uniform")]),
        {"dice": True, "dice_weight": _ramp(4)},
        {"dice": True, "overlap": [2.0, 0.0, 1.0, 1.0, -1e3, -1e3, 0.0]},  # a denominator at its smallest
        {"cross_entropy": True, "entropy_weight": _ramp(4), "label_smoothing": 0.1},
        {"focal": True, "gamma": 0.5, "focal_weight": _ramp(4)},
        {"maps": -torch.ones(2, 5, 7), "map_background": False, "class_scale": _ramp(4)},
        {"dice": True, "joined": torch.rand(1, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
         "whole_batch": True, "cross_entropy": True},
    ],
)  # fmt: skip
def test_factors_are_the_derivative_of_the_value_and_the_adjoint_that_of_the_sums(changes, reduction):
    given = problem(reduction=reduction, **changes)
    logits = given.logits.requires_grad_()
    sums = joint_equations.image_sums(given, torch.float64)
    k = given.num_classes
    if given.joined is None:
        by_sums = torch.autograd.grad(joint.value(given, sums), sums, retain_graph=True)[0]
    else:
        joined = given.joined.clone().requires_grad_()
        by_sums = torch.autograd.grad(joint.value(given._replace(joined=joined), sums), joined)[0].expand(2, -1)
    factors = joint.factors(given, sums.detach(), None)
    torch.testing.assert_close(factors, torch.cat([by_sums[:, : 2 * k], by_sums[:, 3 * k :]], 1))
    torch.testing.assert_close(joint.factors(given, sums.detach(), torch.tensor(3.0)), 3 * factors)
    (expected,) = torch.autograd.grad(sums, logits, by_sums)
    torch.testing.assert_close(joint_equations.adjoint(given, factors, torch.float64), expected)


def _pass(**changes):
    given = of_terms("CD")
    described, _alive = described_loss(given.region_wise(), False, with_map=False)
    arguments = {"grad": 0, "grad_strides": (), "factors": 0, "sums": 8, "of_classes": True, "squared": False,
                 "entropy": True, "focal": False, "entropy_weight": 0, "focal_weight": 0, "smoothing": 0.0,
                 "gamma": 2.0}  # fmt: skip
    core().joint(described, **{**arguments, **changes})


def _finish(**changes):
    arguments = {"sums": 8, "rows": 2, "images": 2, "classes": 3, "weights": 8, "mean": True, "pixels": -1.0,
                 "map": False, "map_background": True, "entropy": False, "focal": False, "entropy_weight": 0,
                 "dice": True, "dice_background": True, "whole_batch": False, "dice_weight": 0, "volumes": "",
                 "overlap": list(DICE), "upstream": 1.0, "factors": 0}  # fmt: skip
    core().joint_finish(**{**arguments, **changes})


@needs_native
@pytest.mark.parametrize(
    ("call", "changed", "message"),
    [
        (_pass, {"sums": 0}, "sums: missing"),
        (_pass, {"factors": 8}, "factors: expected with a gradient, and only then"),
        (_pass, {"grad": 8, "factors": 8}, "of_classes: a gradient needs the sums of the classes before"),
        (_finish, {"classes": 0}, "classes, rows, images: expected at least 1"),
        (_finish, {"weights": 0}, "sums, weights: missing"),
        (_finish, {"overlap": [1.0]}, "overlap: expected 7 numbers"),
        (_finish, {"rows": 1}, "rows: expected one for every image"),
        (_finish, {"volumes": "cubic"}, "volumes: expected '', 'square', 'simple' or 'uniform', got 'cubic'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_core(call, changed, message):
    with pytest.raises(ValueError, match=message):
        call(**changed)


@needs_native
def test_a_region_wise_loss_without_a_map_is_refused_by_the_core():
    given = of_terms("C")
    described, _alive = described_loss(given.region_wise(), False, with_map=False)
    with pytest.raises(ValueError, match="map: missing"):
        core().region_wise(described, grad=0, grad_strides=(), image_scale=0, pixel_scale=0, image_sums=8, pixel_loss=0)


# --- every backend ---------------------------------------------------------------------------------------------


def compare(given, backend, *, rtol=1e-5):
    """Loss, gradient by both ways (float16 keeps none) and sums of a backend against autograd in float64."""
    loss, expected = by_autograd(given)
    run = load(backend)
    largest = float(expected.abs().max())
    one_pass = not given.dice and given.logits.dtype != torch.float16
    found, sums, kept = run.joint(given, with_grad=one_pass, validate=False)
    assert found.dtype == given.loss_dtype
    torch.testing.assert_close(found.double(), loss, rtol=rtol, atol=1e-6)
    if not given.dice:
        _, sums, _ = run.joint(given, with_grad=False, validate=False)
    torch.testing.assert_close(
        joint.Sums.of(sums).target, joint.Sums.of(joint_equations.image_sums(given, torch.float64)).target
    )
    grad = torch.full_like(given.logits, torch.nan)
    run.joint_gradient(given, sums, torch.tensor(3.0), grad)
    width = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(given.logits.dtype, rtol)
    torch.testing.assert_close(grad.double(), 3 * expected, rtol=width, atol=3 * rtol * largest)
    if kept is not None:
        assert kept.stride() == torch.empty_like(given.logits).stride()
        torch.testing.assert_close(kept.double(), expected, rtol=width, atol=rtol * largest)


@on_cpu_backends
@pytest.mark.parametrize("terms", ["R", "Z", "C", "S", "F", "G", "D", "Q", "RCFD", "ZSGQ", "RS", "ZG"])
@pytest.mark.parametrize("classes", [1, 4, 11])
def test_loss_and_gradient_are_those_of_autograd(terms, classes, backend):
    shape = (2, classes, 23, 37)
    if classes == 1 and set(terms) & set("Q"):
        pytest.skip("nothing but background")
    compare(of_terms(terms, classes, shape, dtype=torch.float32, ignore_index=-1), backend)


@needs_native
@pytest.mark.parametrize("terms", ["RCFD", "ZSGQ", "RS"])
@pairwise(dtype=[torch.float64, torch.bfloat16, torch.float16], classes=[3, 9], ignore_index=[None, 1, 255])
def test_other_dtypes(terms, dtype, classes, ignore_index):
    given = of_terms(terms, classes, (2, classes, 13, 29), dtype=dtype, ignore_index=ignore_index)
    compare(given, "native", rtol=1e-11 if dtype == torch.float64 else 1e-5)


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [3, 10])
def test_any_layout(layout, classes):
    for terms in ("RCFD", "ZS"):
        given = of_terms(terms, classes, (2, classes, 9, 32), dtype=torch.float32)
        compare(given._replace(logits=LAYOUTS[layout](given.logits)), "native")


def test_every_instruction_set_and_a_scaled_map(isa):
    for changes in ({"class_scale": _ramp(4)}, {"map_background": False}, {"background": torch.rand(2, 40, 50)}):
        compare(of_terms("RCGQ", shape=(2, 4, 40, 50), dtype=torch.float32, **changes), "native")
    for classes in (3, 12):
        compare(of_terms("ZSGD", classes, (1, classes, 40, 50), dtype=torch.float32), "native")
        compare(of_terms("S", classes, (1, classes, 40, 50)), "native", rtol=1e-11)


@on_cpu_backends
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
def test_focal_loss_of_pixels_that_are_right_and_wrong_for_certain(gamma, backend):
    logits = torch.tensor([0.0, 1.0, 5.0, 12.0, 30.0, 80.0, 200.0]).view(1, 1, -1)
    logits = torch.cat([torch.cat([logits, -logits], 2), torch.zeros(1, 1, 14)], 1)
    given = problem((1, 2, 14), ignore_index=None, logits=logits, labels=torch.zeros(1, 14, dtype=torch.long),
                    focal=True, gamma=gamma)  # fmt: skip
    compare(given, backend)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_any_number_of_threads_gives_the_same_bits(dtype, restore_threads):
    given = of_terms("RCGD", 4, (3, 4, 301, 257), dtype=dtype)
    run, upstream = load("native"), torch.tensor(1.0)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        loss, sums, _ = run.joint(given, with_grad=False, validate=False)
        grad = torch.empty_like(given.logits)
        run.joint_gradient(given, sums, upstream, grad)
        counts = run.joint(given._replace(dice=False), with_grad=False, validate=False)[1]
        found.append((loss, sums, grad, counts))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    compare(given, "native", rtol=1e-10 if dtype == torch.float64 else 1e-5)


@on_cpu_backends
def test_ignored_pixels_are_never_read_and_bad_labels_poison(backend):
    given = of_terms("RSGD", dtype=torch.float32)
    ignored = given.labels == -1
    spoiled = given.logits.masked_fill(ignored.unsqueeze(1), torch.nan)
    compare(given._replace(logits=spoiled), backend)
    run = load(backend)
    given.labels[0, 2, 3] = 4
    with pytest.raises(BadInputError, match="labels: bad value at flat index 17"):
        run.joint(given, with_grad=False, validate=True)
    for terms in ("R", "C", "F", "D"):
        given = of_terms(terms, dtype=torch.float32)
        given.labels[0, 2, 3] = 4
        loss, sums, _ = run.joint(given, with_grad=False, validate=False)
        grad = torch.empty_like(given.logits)
        run.joint_gradient(given, sums, torch.tensor(1.0), grad)
        assert loss.isnan()
        assert grad[0, :, 2, 3].isnan().all()


@on_cpu_backends
def test_logits_that_are_no_numbers_spoil_their_pixel(backend):
    for value in (torch.nan, torch.inf):
        for terms in ("R", "C", "F", "D"):
            given = of_terms(terms, dtype=torch.float32, ignore_index=None)
            given.logits[1, 2, 3, 4] = value
            loss, sums, _ = load(backend).joint(given, with_grad=False, validate=False)
            grad = torch.empty_like(given.logits)
            load(backend).joint_gradient(given, sums, torch.tensor(1.0), grad)
            assert loss.isnan()
            assert grad[1, :, 3, 4].isnan().all()
            if terms != "D":
                assert not grad[0].isnan().any()


@on_cpu_backends
@pytest.mark.parametrize("terms", ["R", "S", "F", "D"])
def test_nothing_to_count_gives_nothing(terms, backend):
    run = load(backend)
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 5)):
        given = of_terms(terms, 3, shape, dtype=torch.float32, overlap=list(DICE))
        given = given._replace(labels=torch.full_like(given.labels, -1))
        loss, sums, _ = run.joint(given, with_grad=False, validate=True)
        grad = torch.full_like(given.logits, torch.nan)
        run.joint_gradient(given, sums, torch.tensor(1.0), grad)
        assert float(loss) == 0
        assert (grad == 0).all()
