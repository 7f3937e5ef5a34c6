"""The reference backend against SciPy, against sums over all pairs of pixels, and against the paper's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from samples import SCENES, assert_same, one_hot, pairwise_distance, scene, scipy_class_distance, scipy_distance

from rwkernels.backends import reference
from rwkernels.backends.problem import MapProblem, count_valid, first_bad_label, first_bad_maximum

SHAPES = [(11,), (7, 12), (9, 1), (5, 4, 7)]
SPACINGS = {1: [(1.0,), (0.7,)], 2: [(1.0, 1.0), (0.5, 3.0)], 3: [(1.0, 1.0, 1.0), (2.5, 0.4, 1.3)]}
CASES = [
    pytest.param(shape, spacing, id=f"{'x'.join(map(str, shape))}-spacing-{spacing[0]}")
    for shape in SHAPES
    for spacing in SPACINGS[len(shape)]
]
exactly = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_distance_is_what_scipy_gives_class_by_class(name, shape, spacing):
    labels = scene(name, shape)
    torch.testing.assert_close(reference.distance(labels, spacing), scipy_distance(labels, spacing), **exactly)


@pytest.mark.parametrize("name", ["random", "blobs", "sparse", "one-odd-pixel"])
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_distance_is_the_smallest_over_all_pairs_of_pixels(name, shape, spacing):
    labels = scene(name, shape, num_classes=4)
    torch.testing.assert_close(reference.distance(labels, spacing), pairwise_distance(labels, spacing), **exactly)


def test_distance_of_an_image_with_one_label_is_inf_where_scipy_gives_a_number():
    labels = torch.full((1, 4, 6), 3)
    assert torch.isfinite(torch.as_tensor(scipy_distance_without_care(labels))).all()
    assert torch.isinf(reference.distance(labels, (1.0, 1.0))).all()


def scipy_distance_without_care(labels):
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(labels[0].numpy() == 3)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_a_black_border_is_a_ring_of_another_label_around_the_image(name, shape, spacing):
    labels = scene(name, shape)
    found = reference.distance(labels, spacing, black_border=True)
    torch.testing.assert_close(found, scipy_distance(labels, spacing, black_border=True), **exactly)


def test_squared_distance_is_the_square():
    labels = scene("blobs", (6, 9))
    squared = reference.distance(labels, (1.5, 0.5), squared=True)
    torch.testing.assert_close(squared, reference.distance(labels, (1.5, 0.5)).square(), **exactly)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_class_distance_is_what_scipy_gives_and_inf_for_an_absent_class(name, shape, spacing):
    labels = scene(name, shape)
    found = reference.class_distance(labels, 4, spacing)
    torch.testing.assert_close(found, scipy_class_distance(labels, 4, spacing), **exactly)
    assert torch.isinf(found[:, 3]).all()


@pytest.mark.parametrize("name", ["random", "blobs", "without-class-one", "sparse"])
def test_rectified_foreground_is_minus_distance_over_the_largest_of_image_and_class(name):
    labels, spacing = scene(name, (9, 14)), (1.0, 2.5)
    distance = scipy_distance(labels, spacing)
    found = reference.rectified(labels, 3, spacing)
    for image in range(len(labels)):
        for k in labels[image].unique():
            here = labels[image] == k
            expected = -distance[image][here] / distance[image][here].max()
            torch.testing.assert_close(found[image][here], expected, **exactly)


def test_rectified_foreground_of_a_class_that_fills_its_image_is_minus_one():
    assert torch.equal(reference.rectified(torch.full((1, 3, 4), 2), 3, (1, 1)), torch.full((1, 3, 4), -1.0).double())


def test_a_given_class_maximum_divides_and_the_ratio_stops_at_one():
    labels = torch.tensor([[[0, 0, 0, 0, 1, 1]]])  # distances 4 3 2 1 1 2
    found = reference.rectified(labels, 2, (1, 1), torch.tensor([[3.0, 8.0]]))
    assert found.flatten().tolist() == [-1.0, -1.0, -2 / 3, -1 / 3, -1 / 8, -2 / 8]


def test_an_infinite_distance_over_a_given_class_maximum_is_minus_one():
    found = reference.rectified(torch.zeros(1, 2, 2, dtype=torch.int64), 2, (1, 1), torch.tensor([[5.0, 1.0]]))
    assert (found == -1).all()


def test_ignored_pixels_hold_zero_and_bound_regions_like_any_other_label():
    labels = torch.tensor([[[0, 0, 0, -7, 1, 1]]])
    found = reference.rectified(labels, 2, (1, 1), ignore_index=-7)
    assert found.flatten().tolist() == [-1.0, -2 / 3, -1 / 3, 0.0, -0.5, -1.0]


def test_labels_out_of_range_hold_nan():
    labels = torch.tensor([[[0, 5, -2, 1]]])
    assert reference.rectified(labels, 2, (1, 1)).isnan().flatten().tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_boundary_map_is_minus_the_inside_distance_and_plus_the_outside_distance(name, offset):
    labels, spacing = scene(name, (8, 11)), (0.5, 2.0)
    inside, outside = scipy_distance(labels, spacing), scipy_class_distance(labels, 4, spacing)
    found = reference.boundary(labels, 4, spacing, absent=9.0, inside_offset=offset)
    for k in range(4):
        expected = torch.where(labels == k, offset - inside, outside[:, k])
        expected = expected.where(expected != -torch.inf, 0.0).where(expected != torch.inf, 9.0)
        torch.testing.assert_close(found[:, k], expected, **exactly)


def test_dense_map_holds_foreground_at_the_true_class_and_background_elsewhere_times_the_scale():
    labels = torch.tensor([[[0, 2, 1]]])
    foreground, background = torch.tensor([[[-1.0, -2.0, -3.0]]]), torch.tensor([[[4.0, 5.0, 6.0]]])
    found = reference.dense(labels, foreground, background, 3, torch.tensor([1.0, 10.0, 100.0]))
    assert found[0, :, 0].tolist() == [[-1, 5, 6], [40, 50, -30], [400, -200, 600]]


def test_dense_map_is_nan_at_a_bad_label_and_zero_at_an_ignored_one():
    found = reference.dense(torch.tensor([[[0, 7, -1]]]), torch.ones(1, 1, 3), 1.0, 2, None, ignore_index=-1)
    assert found[0, :, 0, 1].isnan().all()
    assert found[0, :, 0, 2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "values", "num_classes"),
    [(torch.uint8, [0, 1, 255], 256), (torch.uint8, [0, 1, 255], 300), (torch.int8, [0, 1, 127], 200)],
    ids=["uint8-256", "uint8-300", "int8-200"],
)
def test_more_classes_than_the_label_dtype_can_hold_give_what_int64_labels_give(dtype, values, num_classes):
    narrow = torch.tensor([[values]], dtype=dtype)
    assert first_bad_label(narrow, num_classes, None) == -1
    for function in (reference.rectified, reference.boundary, reference.class_distance):
        found = function(narrow, num_classes, (1, 1))
        assert torch.equal(found, function(narrow.long(), num_classes, (1, 1)))
    values = torch.ones(1, 1, 3)
    assert torch.equal(
        reference.dense(narrow, values, 2.0, num_classes), reference.dense(narrow.long(), values, 2.0, num_classes)
    )


@pytest.mark.parametrize("ignore_index", [-1, 511, -257])
def test_an_ignore_index_that_the_label_dtype_cannot_hold_ignores_nothing(ignore_index):
    labels = torch.tensor([[[0, 255, 1]]], dtype=torch.uint8)  # 255 is what -1 and 511 wrap to
    assert count_valid(labels, ignore_index).tolist() == [3]
    assert first_bad_label(labels, 2, ignore_index) == 1
    assert reference.rectified(labels, 256, (1, 1), ignore_index=ignore_index).flatten().tolist() == [-1, -1, -1]
    assert (
        reference.boundary(labels, 256, (1, 1), ignore_index=ignore_index)[0, 255, 0] == torch.tensor([1, -1, 1])
    ).all()
    assert (reference.dense(labels, torch.ones(1, 1, 3), 3.0, 256, None, ignore_index)[:, 2] == 3).all()


def test_first_bad_maximum_looks_at_present_classes_only():
    labels = torch.tensor([[[0, 0]], [[0, 2]]])
    good = torch.tensor([[1.0, 0.0, math.nan], [1.0, -1.0, 2.0]])
    assert first_bad_maximum(labels, good) == -1
    for bad in (0.0, -1.0, math.inf, math.nan):
        maxima = good.clone()
        maxima[1, 2] = bad
        assert first_bad_maximum(labels, maxima) == 5


# --- the loss of one pixel: Eq. 1, Eq. 2 and section 3.3 -------------------------------------------------------


def _pixels(values):
    """[N, K] as [N, K, 1]."""
    return torch.as_tensor(values, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize(
    ("z", "gradient", "loss"),
    [
        ([0, 0, 0, -0.6], [0.0375, 0.0375, 0.0375, -0.1125], -0.0375),
        ([1, 1, 1, -0.6], [0.1, 0.1, 0.1, -0.3], 0.15),
    ],
    ids=["zero-background", "rectified"],
)
def test_gradient_and_loss_are_the_numbers_of_section_3_3(z, gradient, loss):
    logits = _pixels([[0.0] * 4])
    maps = _pixels([z])
    torch.testing.assert_close(reference.pixel_gradient(logits, maps), _pixels([gradient]), **exactly)
    assert reference.pixel_loss(logits, maps).item() / 4 == pytest.approx(loss, abs=1e-15)


def test_gradient_is_the_papers_sum_over_pairs_of_classes_and_what_autograd_gives():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    maps = torch.randn(6, 5, 3, dtype=torch.float64, generator=generator)
    found = reference.pixel_gradient(logits, maps)
    y = logits.softmax(1)
    pairs = torch.stack([(y * (maps[:, k : k + 1] - maps)).sum(1) * y[:, k] for k in range(5)], 1)
    (derivative,) = torch.autograd.grad((y * maps).sum(), logits)
    torch.testing.assert_close(found, pairs, **exactly)
    torch.testing.assert_close(found, derivative, **exactly)


def test_second_derivative_is_what_autograd_gives():
    generator = torch.Generator().manual_seed(1)
    logits, maps, vector = (torch.randn(4, 5, 2, dtype=torch.float64, generator=generator) for _ in range(3))
    _, expected = torch.autograd.functional.hvp(lambda x: (x.softmax(1) * maps).sum(), logits, vector)
    torch.testing.assert_close(reference.hessian_product(logits, maps, vector), expected, **exactly)


def _simplex(side):
    """The centres of the side^2 equal triangles that three softmax values form, [side^2, 3]."""
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    upward = torch.stack([i, j], -1)[i + j < side] + 1 / 3
    downward = torch.stack([i, j], -1)[i + j < side - 1] + 2 / 3
    two = torch.cat([upward, downward]).double() / side
    return torch.cat([two, 1 - two.sum(1, keepdim=True)], 1)


@pytest.mark.parametrize(
    ("z", "share"), [([12, 4, -3], 8 / 15), ([10, 10, -3], 0.0)], ids=["unequal-background", "rectified"]
)
def test_share_of_the_simplex_with_two_negative_gradient_entries(z, share):
    y = _simplex(side=240)
    gradient = reference.pixel_gradient(y.log().unsqueeze(-1), _pixels([z]))
    found = (gradient < 0).sum(1).eq(2).double().mean().item()
    assert found == pytest.approx(share, abs=1e-3 if share else 0)


def test_a_compact_map_gives_loss_and_gradient_from_two_values_a_pixel():
    generator = torch.Generator().manual_seed(2)
    labels = scene("random", (3, 5), num_classes=4)
    foreground, background = (torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator)
    weight = torch.rand(4, dtype=torch.float64, generator=generator)
    y, true_class = logits.softmax(1), one_hot(labels, 4)
    y_true, w_true = (y * true_class).sum(1), weight[labels]

    maps = reference.dense(labels, foreground, background, 4)
    loss = background + (foreground - background) * y_true
    torch.testing.assert_close(reference.pixel_loss(logits, maps), loss, **exactly)
    gradient = ((foreground - background) * y_true).unsqueeze(1) * (true_class - y)
    torch.testing.assert_close(reference.pixel_gradient(logits, maps), gradient, **exactly)

    scaled = reference.dense(labels, foreground, background, 4, weight)
    w = weight.view(1, 4, 1, 1)
    loss = background * (y * w).sum(1) + w_true * (foreground - background) * y_true
    torch.testing.assert_close(reference.pixel_loss(logits, scaled), loss, **exactly)
    inside = w * background.unsqueeze(1) + true_class * (w_true * (foreground - background)).unsqueeze(1)
    gradient = y * (inside - loss.unsqueeze(1))
    torch.testing.assert_close(reference.pixel_gradient(logits, scaled), gradient, **exactly)


def test_the_backend_functions_hand_out_the_float64_definitions_rounded_once():
    labels = scene("blobs", (7, 10))
    out = torch.empty(labels.shape)
    reference.fill_distance(out, MapProblem(labels, 0, (0.3, 1.7), None, False, None, False, None), squared=False)
    assert torch.equal(out, reference.distance(labels, (0.3, 1.7)).float())
    assert_same(out, scipy_distance(labels, (0.3, 1.7)))
