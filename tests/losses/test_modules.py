"""The losses as modules: what each builds from labels, what it keeps, and how it trains and resumes."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from loss_cases import (
    FAMILIES,
    FLOATS,
    MetaLike,
    eager_loss,
    loss_and_gradient,
    name,
    on_cpu_backends,
    random_labels,
    random_logits,
    written_out,
)
from torch import nn

import rwkernels as rw

CLASSES = 4
SHAPE = (7, 10)


def _labels(shape=SHAPE, ignore_index=None, seed=0, **options):
    return random_labels((2, *shape), CLASSES, ignore_index, seed, **options)


def _logits(shape=SHAPE, dtype=torch.float32):
    return random_logits((2, CLASSES, *shape), dtype)


def _build(family, labels, **options):
    functions = {
        "rectified": rw.rectified_map,
        "boundary": rw.boundary_map,
        "active_contour": rw.active_contour_map,
        "constant": rw.constant_map,
    }
    if family in ("active_contour", "constant"):
        options.pop("spacing", None)
        options.pop("black_border", None)
    return functions[family](labels, CLASSES, **options)


def _dense(maps):
    return written_out(maps) if isinstance(maps, rw.RectifiedMap) else maps.double()


def _assert_same(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


# --- RegionWiseLoss -----------------------------------------------------------------------------------------------


@on_cpu_backends
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ignore_index", [None, -1, 255], ids=["none-ignored", "ignore-1", "ignore255"])
@pytest.mark.parametrize("include_background", [True, False], ids=["all-channels", "without-channel-0"])
def test_every_family_gives_the_eager_loss_of_its_map(include_background, ignore_index, family, backend):
    labels = _labels(ignore_index=ignore_index)
    dense = _dense(_build(family, labels, ignore_index=ignore_index))
    loss_fn = rw.RegionWiseLoss(
        family, ignore_index=ignore_index, include_background=include_background, backend=backend
    )
    loss, gradient = loss_and_gradient(lambda x: loss_fn(x, labels), _logits())
    expected, true_gradient = loss_and_gradient(
        lambda x: eager_loss(x, dense, labels, ignore_index, include_background), _logits(dtype=torch.float64)
    )
    _assert_same(loss, expected)
    _assert_same(gradient, true_gradient)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_every_option_reaches_the_function(recompute, reduction, family):
    labels = _labels()
    options = {"spacing": (0.5, 2.0), "black_border": True}
    loss_fn = rw.RegionWiseLoss(family, reduction=reduction, recompute=recompute, **options)
    maps = _build(family, labels, **options)
    expected = rw.region_wise_loss(_logits(), maps, reduction=reduction)
    torch.testing.assert_close(loss_fn(_logits(), labels), expected)


@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_spacing_changes_the_loss_of_the_families_that_measure_distances(family):
    plain, stretched = rw.RegionWiseLoss(family), rw.RegionWiseLoss(family, spacing=(1.0, 5.0))
    assert plain(_logits(), _labels()) != stretched(_logits(), _labels())


@pytest.mark.parametrize("shape", [(9,), (5, 6), (3, 4, 5)], ids=name)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_with_a_channel_axis_of_one_are_those_without(family, shape):
    labels, logits = _labels(shape), _logits(shape)
    loss_fn = rw.RegionWiseLoss(family)
    torch.testing.assert_close(loss_fn(logits, labels[:, None]), loss_fn(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize("label_dtype", FLOATS, ids=name)
@pytest.mark.parametrize("ignore_index", [None, -1], ids=["none-ignored", "ignore-1"])
def test_floating_labels_that_are_whole_are_those_integers(ignore_index, label_dtype):
    labels = _labels(ignore_index=ignore_index)
    loss_fn = rw.RegionWiseLoss(ignore_index=ignore_index)
    floating = labels[:, None].to(label_dtype)
    torch.testing.assert_close(loss_fn(_logits(), floating), loss_fn(_logits(), labels), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), 2.0**32 + 1], ids=str)
def test_floating_labels_that_are_no_int32_are_refused_with_the_value(value):
    labels = _labels().double()[:, None]
    labels[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=re.escape(f"labels: expected whole numbers, got {value}")):
        rw.RegionWiseLoss()(_logits(), labels)


@pytest.mark.parametrize("value", [1.5, float("nan"), 2.0**32 + 1], ids=str)
def test_floating_labels_that_are_no_int32_poison_the_loss_where_they_are_not_checked(value):
    labels = _labels().double()
    labels[1, 2, 3] = value
    assert rw.RegionWiseLoss("active_contour", validate=False)(_logits(), labels).isnan()


def test_one_floating_channel_is_a_map_for_one_logit_and_labels_for_several():
    one = torch.ones(2, 1, *SHAPE)
    with pytest.warns(UserWarning, match="one channel"):
        assert rw.RegionWiseLoss()(_logits()[:, :1], 3 * one) == 3
    torch.testing.assert_close(rw.RegionWiseLoss()(_logits(), one), rw.RegionWiseLoss()(_logits(), one[:, 0].long()))


@on_cpu_backends
@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_built_before_is_accepted_in_the_place_of_labels(family, backend):
    labels = _labels(ignore_index=-1)
    maps = _build(family, labels, ignore_index=-1)
    loss_fn = rw.RegionWiseLoss(family, ignore_index=-1, backend=backend)
    extra = () if isinstance(maps, rw.RectifiedMap) else (labels,)
    torch.testing.assert_close(loss_fn(_logits(), maps, *extra), loss_fn(_logits(), labels), rtol=0, atol=0)


def test_a_dense_map_needs_its_labels_only_where_something_is_ignored():
    labels = _labels(ignore_index=-1)
    dense = rw.boundary_map(labels, CLASSES, ignore_index=-1)
    with pytest.raises(ValueError, match="labels: expected the labels of the map"):
        rw.RegionWiseLoss(ignore_index=-1)(_logits(), dense)
    expected = eager_loss(_logits(dtype=torch.float64), dense.double(), labels, -1)
    _assert_same(rw.RegionWiseLoss(ignore_index=-1)(_logits(), dense, labels), expected)
    _assert_same(rw.RegionWiseLoss(ignore_index=-1)(_logits(), dense, labels[:, None].float()), expected)
    _assert_same(rw.RegionWiseLoss()(_logits(), dense), eager_loss(_logits(dtype=torch.float64), dense.double()))


def test_tensors_with_metadata_go_through_the_module_as_plain_ones():
    labels, logits = _labels(), _logits()
    loss = rw.RegionWiseLoss()(MetaLike(logits), MetaLike(labels[:, None].float()))
    assert type(loss) is torch.Tensor
    torch.testing.assert_close(loss, rw.RegionWiseLoss()(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_of_a_single_class_and_an_absent_class_give_a_finite_loss(family):
    labels = torch.zeros(2, *SHAPE, dtype=torch.long)
    labels[1, 2:4, 3:5] = 2
    loss, gradient = loss_and_gradient(lambda x: rw.RegionWiseLoss(family)(x, labels), _logits())
    expected = {"rectified": -1.0, "active_contour": 0.0, "constant": -1.0, "boundary": 0.0}[family]
    dense = _dense(_build(family, labels))
    assert torch.equal(dense[0, 0], torch.full(SHAPE, expected, dtype=torch.float64))
    _assert_same(loss, eager_loss(_logits(dtype=torch.float64), dense))
    assert gradient.isfinite().all()


def test_an_empty_batch_gives_loss_zero():
    assert rw.RegionWiseLoss()(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.long)) == 0


# --- class weights ------------------------------------------------------------------------------------------------

WEIGHTS = [0.5, 1.0, 3.0, 0.0]


@on_cpu_backends
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ignore_index", [None, -1], ids=["none-ignored", "ignore-1"])
def test_class_weights_multiply_every_pixel_by_that_of_its_label_as_weighted_cross_entropy_does(
    ignore_index, family, backend
):
    labels = _labels(ignore_index=ignore_index)
    options = {"ignore_index": ignore_index, "reduction": "none", "backend": backend}
    weighted = rw.RegionWiseLoss(family, class_weight=WEIGHTS, **options)(_logits(), labels)
    plain = rw.RegionWiseLoss(family, **options)(_logits(), labels)
    cross_entropy = nn.CrossEntropyLoss(
        weight=torch.tensor(WEIGHTS), reduction="none", ignore_index=-100 if ignore_index is None else ignore_index
    )(torch.zeros(2, CLASSES, *SHAPE), labels)
    factor = cross_entropy / torch.log(torch.tensor(float(CLASSES)))
    torch.testing.assert_close(weighted, plain * factor, rtol=1e-5, atol=1e-6)


def test_class_weights_of_a_given_dense_map_need_its_labels():
    labels = _labels()
    dense = rw.boundary_map(labels, CLASSES)
    loss_fn = rw.RegionWiseLoss("boundary", class_weight=WEIGHTS)
    with pytest.raises(ValueError, match="labels: expected the labels of the map"):
        loss_fn(_logits(), dense)
    torch.testing.assert_close(loss_fn(_logits(), dense, labels), loss_fn(_logits(), labels))


def test_class_weights_are_in_the_state_dict_and_follow_to():
    loss_fn = rw.RegionWiseLoss(class_weight=WEIGHTS)
    assert loss_fn.state_dict()["class_weight"].tolist() == WEIGHTS
    assert not list(loss_fn.parameters())
    other = rw.RegionWiseLoss(class_weight=[1.0] * CLASSES)
    other.load_state_dict(loss_fn.state_dict())
    assert other(_logits(), _labels()) == loss_fn(_logits(), _labels())
    assert loss_fn.to(torch.float64).class_weight.dtype == torch.float64
    assert loss_fn.to("meta").class_weight.device.type == "meta"


def test_class_weights_are_copied_and_not_shared_with_the_caller():
    weights = torch.tensor(WEIGHTS)
    loss_fn = rw.RegionWiseLoss(class_weight=weights)
    weights.zero_()
    assert loss_fn.class_weight.tolist() == WEIGHTS


def test_a_loss_without_class_weights_has_an_empty_state_dict():
    assert not rw.RegionWiseLoss().state_dict()


# --- BoundaryLoss -------------------------------------------------------------------------------------------------


@on_cpu_backends
def test_the_boundary_loss_is_the_region_wise_loss_of_a_boundary_map(backend):
    labels = _labels()
    found = rw.BoundaryLoss(spacing=2.0, backend=backend)(_logits(), labels)
    expected = rw.RegionWiseLoss("boundary", spacing=2.0, backend=backend)(_logits(), labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_options_of_the_boundary_loss_reach_its_map():
    labels = _labels().clamp(max=2)  # class 3 is absent
    options = {"absent": 4.0, "inside_offset": 1.0}
    maps = rw.boundary_map(labels, CLASSES, **options)
    assert (maps[:, 3] == 4).all()
    _assert_same(rw.BoundaryLoss(**options)(_logits(), labels), eager_loss(_logits(dtype=torch.float64), maps.double()))
    assert rw.BoundaryLoss(absent=4.0)(_logits(), labels) != rw.BoundaryLoss()(_logits(), labels)
    assert rw.BoundaryLoss(inside_offset=1.0)(_logits(), labels) != rw.BoundaryLoss()(_logits(), labels)


# --- deep supervision ---------------------------------------------------------------------------------------------


def test_under_deep_supervision_the_map_is_rebuilt_from_the_labels_of_each_level():
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, 3:12, 4:15] = 1
    labels[1, 6:9, 6:11] = 3
    loss_fn = rw.RegionWiseLoss()
    for step in (1, 2, 4):
        at_level = labels[:, ::step, ::step]
        logits = random_logits((2, CLASSES, *at_level.shape[1:]))
        rebuilt = written_out(rw.rectified_map(at_level.contiguous(), CLASSES))
        _assert_same(loss_fn(logits, at_level), eager_loss(logits.double(), rebuilt))
        resampled = written_out(rw.rectified_map(labels, CLASSES))[:, :, ::step, ::step]
        assert torch.equal(rebuilt, resampled) == (step == 1)


# --- as modules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (rw.RegionWiseLoss(), "RegionWiseLoss('rectified')"),
        (
            rw.RegionWiseLoss("constant", ignore_index=-1, reduction="sum", recompute=True),
            "RegionWiseLoss('constant', ignore_index=-1, reduction='sum', recompute=True)",
        ),
        (
            rw.RegionWiseLoss(spacing=(1.0, 2.0), include_background=False, black_border=True),
            "RegionWiseLoss('rectified', spacing=(1.0, 2.0), include_background=False, black_border=True)",
        ),
        (rw.BoundaryLoss(inside_offset=1.0), "BoundaryLoss('boundary', absent=0.0, inside_offset=1.0)"),
    ],
    ids=["default", "constant", "rectified", "boundary"],
)
def test_the_representation_shows_what_was_chosen(module, text):
    assert repr(module) == text


@pytest.mark.parametrize(
    "module",
    [
        rw.RegionWiseLoss(class_weight=WEIGHTS),
        rw.BoundaryLoss(absent=1.0),
        rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(), schedule="gradual"),
    ],
    ids=["region-wise", "boundary", "combined"],
)
def test_a_module_survives_copying_and_pickling(module):
    expected = module(_logits(), _labels())
    assert copy.deepcopy(module)(_logits(), _labels()) == expected
    assert pickle.loads(pickle.dumps(module))(_logits(), _labels()) == expected


def test_a_network_learns_to_segment_by_the_region_wise_loss_alone():
    torch.manual_seed(0)
    image = torch.zeros(2, 1, 12, 14)
    image[:, :, 3:9, 4:11] = 1.0
    labels = image[:, 0].long()
    network = nn.Conv2d(1, 2, 1)
    optimiser = torch.optim.SGD(network.parameters(), lr=20.0)
    loss_fn = rw.RegionWiseLoss()
    with torch.no_grad():  # wrong to begin with, everywhere
        network.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([-0.5, 0.5]))
    assert not (network(image).argmax(1) == labels).any()
    for _ in range(20):
        optimiser.zero_grad()
        loss_fn(network(image), labels).backward()
        optimiser.step()
    assert torch.equal(network(image).argmax(1), labels)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_spacing_may_be_an_array(kind):
    axes = _labels().dim() - 1
    steps = [2.0, 0.5, 1.5][:axes]
    found = rw.RegionWiseLoss(spacing=kind(steps))
    torch.testing.assert_close(found(_logits(), _labels()), rw.RegionWiseLoss(spacing=steps)(_logits(), _labels()))
    assert f"spacing={steps}" in repr(found)
    with pytest.raises(ValueError, match="spacing: expected positive numbers"):
        rw.RegionWiseLoss(spacing=kind([1.0, 0.0]))
    with pytest.raises(TypeError, match="spacing: expected a number, got list"):
        rw.RegionWiseLoss(spacing=kind([[1.0, 2.0]]))
