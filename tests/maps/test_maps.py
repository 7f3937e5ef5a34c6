"""The map families against the reference, SciPy and numbers made by hand, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from choices import CPU_BACKENDS, pairwise
from samples import ROW, SCENES, SHAPES, SPACING, assert_same, one_hot, scene, scipy_distance, shapes

import rwkernels as rw
from rwkernels.backends import reference

# --- rectified map, Eq. 4 --------------------------------------------------------------------------------------


@pairwise(backend=CPU_BACKENDS, name=list(SCENES), shape=SHAPES)
def test_rectified_map_is_the_reference_rounded(backend, name, shape):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    maps = rw.rectified_map(labels, 4, spacing=spacing, spatial_dims=len(shape), backend=backend)
    assert_same(maps.foreground, reference.rectified(labels, 4, spacing))
    assert maps.background == 1
    assert maps.num_classes == 4
    assert torch.equal(maps.labels, labels)


def test_rectified_map_of_a_row_is_what_a_hand_computes(backend):
    maps = rw.rectified_map(ROW, 4, backend=backend)
    expected = torch.tensor(
        [[-1, -2 / 3, -1 / 3, 1, 1, 1], [1, 1, 1, -1, -1, 1], [1, 1, 1, 1, 1, -1], [1, 1, 1, 1, 1, 1]]
    )
    torch.testing.assert_close(maps.dense(backend=backend)[0, :, 0], expected)


def test_rectified_map_reaches_minus_one_in_every_class_of_every_image(backend):
    labels = scene("blobs", (13, 37), num_classes=5, batch=3)
    maps = rw.rectified_map(labels, 5, backend=backend)
    for image in range(3):
        for k in labels[image].unique():
            values = maps.foreground[image][labels[image] == k]
            assert values.min() == -1
            assert values.max() < 0


def test_rectified_map_of_an_absent_class_is_one_everywhere_in_its_channel(backend):
    labels = scene("without-class-one", (13, 37))
    dense = rw.rectified_map(labels, 3, backend=backend).dense(backend=backend)
    assert (dense[:, 1] == 1).all()
    assert (dense[:, 0] < 0).any()


def test_rectified_map_of_one_class_that_fills_the_image_is_minus_one_there_and_one_elsewhere(backend):
    dense = rw.rectified_map(torch.full((1, 5, 34), 2), 3, backend=backend).dense(backend=backend)
    assert (dense[:, 2] == -1).all()
    assert (dense[:, :2] == 1).all()


def test_a_black_border_bounds_the_rectified_map_of_a_class_that_fills_the_image(backend):
    labels = torch.ones(1, 3, 7, dtype=torch.int64)
    maps = rw.rectified_map(labels, 2, black_border=True, backend=backend)
    assert maps.foreground[0, 1].tolist() == [-0.5, -1, -1, -1, -1, -1, -0.5]
    labels, spacing = scene("blobs", (13, 37)), (0.4, 1.3)
    maps = rw.rectified_map(labels, 3, black_border=True, spacing=spacing, backend=backend)
    assert_same(maps.foreground, reference.rectified(labels, 3, spacing, black_border=True))


def test_spacing_is_applied_before_normalising(backend):
    """Along the first axis a step is long: the row next to the boundary is no longer at a fraction of the maximum."""
    labels = torch.zeros(1, 3, 4, dtype=torch.int64)
    labels[0, 0] = 1
    labels[0, :, 0] = 1
    maps = rw.rectified_map(labels, 2, spacing=(10.0, 1.0), backend=backend)
    torch.testing.assert_close(maps.foreground[0, 1, 1:], -torch.tensor([1, 2, 3]) / 3)
    torch.testing.assert_close(maps.foreground[0, 2, 1:], -torch.tensor([1, 2, 3]) / 3)


def test_a_common_factor_of_the_spacing_changes_no_rectified_map(backend):
    labels = scene("blobs", (13, 37))
    one = rw.rectified_map(labels, 3, spacing=(1.0, 2.0), backend=backend)
    other = rw.rectified_map(labels, 3, spacing=(4.0, 8.0), backend=backend)
    assert torch.equal(one.foreground, other.foreground)


def test_a_given_class_maximum_divides_and_the_ratio_stops_at_one(backend):
    maxima = torch.tensor([[2.0, 4.0, 8.0]])
    maps = rw.rectified_map(ROW, 3, class_max=maxima, backend=backend)
    assert maps.foreground.flatten().tolist() == [-1, -1, -0.5, -0.25, -0.25, -0.125]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_class_maximum_of_any_floating_dtype_is_taken(backend, dtype):
    maxima = torch.tensor([[2.0, 4.0, 8.0]], dtype=dtype)
    maps = rw.rectified_map(ROW, 3, class_max=maxima, backend=backend)
    assert maps.foreground.flatten().tolist() == [-1, -1, -0.5, -0.25, -0.25, -0.125]


def test_a_patch_with_the_maxima_of_the_whole_volume_is_a_crop_where_its_distances_are(backend):
    labels = scene("blobs", (41, 53), batch=2)
    distance = rw.distance_transform(labels, backend=backend)
    maxima = reference.class_max(labels, distance, 3)
    patch = (slice(None), slice(9, 33), slice(14, 47))
    whole = rw.rectified_map(labels, 3, backend=backend).foreground[patch]
    found = rw.rectified_map(labels[patch], 3, class_max=maxima, backend=backend).foreground
    agree = distance[patch] == rw.distance_transform(labels[patch], backend=backend)
    assert 0.5 < agree.double().mean() < 1
    torch.testing.assert_close(found[agree], whole[agree], rtol=1e-6, atol=0)
    assert (found[~agree] <= whole[~agree]).all()
    own = rw.rectified_map(labels[patch], 3, backend=backend).foreground
    assert (own[agree] - whole[agree]).abs().max() > 0.01


def test_a_patch_of_one_class_is_minus_one_whatever_the_maximum_of_the_volume(backend):
    patch = torch.ones(1, 5, 34, dtype=torch.int64)
    maps = rw.rectified_map(patch, 2, class_max=torch.tensor([[0.0, 9.0]]), backend=backend)
    assert (maps.foreground == -1).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_class_maximum_of_a_present_class_has_to_be_positive_and_finite(backend, bad):
    labels = torch.stack([torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 0, 2], [0, 0, 2]])])
    maxima = torch.tensor([[5.0, 5.0, bad], [5.0, bad, 5.0]])
    rw.rectified_map(labels, 3, class_max=maxima, backend=backend)  # both bad ones are of absent classes
    maxima[1, 2] = bad
    message = rf"^class_max: expected a positive, finite .*, got {bad} for class 2 of image 1$"
    with pytest.raises(ValueError, match=message):
        rw.rectified_map(labels, 3, class_max=maxima, backend=backend)
    maxima[0, 0] = bad
    with pytest.raises(ValueError, match=f"got {bad} for class 0 of image 0$"):
        rw.rectified_map(labels, 3, class_max=maxima, backend=backend)


@pytest.mark.parametrize("ignore_index", [-1, -100, 255, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_ignored_pixels_hold_zero_bound_regions_and_do_not_count(backend, dtype, ignore_index):
    if dtype == torch.uint8 and ignore_index < 0:
        pytest.skip("uint8 holds no negative label")
    labels = scene("blobs", (13, 37), dtype=dtype)
    labels[0, 4:7, 5:30] = ignore_index
    maps = rw.rectified_map(labels, 3, ignore_index=ignore_index, backend=backend)
    ignored = labels == ignore_index
    assert maps.count.item() == (~ignored).sum().item()
    assert maps.count.dtype == torch.int64
    assert (maps.foreground[ignored] == 0).all()
    assert (maps.dense(backend=backend).movedim(1, -1)[ignored] == 0).all()
    distance = scipy_distance(labels)
    maxima = reference.class_max(labels.long(), distance, 3)
    expected = -distance / maxima.gather(1, labels.long().clamp(0, 2).flatten(1)).view_as(distance)
    torch.testing.assert_close(maps.foreground[~ignored].double(), expected[~ignored], rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", ["rectified", "active-contour", "constant", "boundary"])
def test_an_ignore_index_that_the_label_dtype_cannot_hold_ignores_nothing(backend, make):
    labels = torch.tensor([[[0, 0, 255, 1]]], dtype=torch.uint8)  # 255 is what -1 wraps to
    maps = _make(make, labels, 256, ignore_index=-1, backend=backend)
    expected = _make(make, labels.long(), 256, ignore_index=-1, backend=backend)
    if make == "boundary":
        assert torch.equal(maps, expected)
        assert maps[0, 255, 0, 2] == -1
    else:
        assert maps.count == 4
        assert torch.equal(maps.dense(backend=backend), expected.dense(backend=backend))
        assert maps.dense(backend=backend)[0, 0, 0, 2] == 1


def _make(name, labels, num_classes, **options):
    return {
        "rectified": rw.rectified_map,
        "active-contour": rw.active_contour_map,
        "constant": rw.constant_map,
        "boundary": rw.boundary_map,
    }[name](labels, num_classes, **options)


@pytest.mark.parametrize("make", ["rectified", "boundary", "active-contour"])
@pytest.mark.parametrize(("dtype", "num_classes"), [(torch.uint8, 256), (torch.uint8, 300), (torch.int8, 200)], ids=str)
def test_more_classes_than_the_label_dtype_can_hold_are_no_error(backend, make, dtype, num_classes):
    labels = scene("random", (3, 7), num_classes=128, batch=1).to(dtype)
    found = _make(make, labels, num_classes, backend=backend)
    expected = _make(make, labels.long(), num_classes, backend=backend)
    if make != "boundary":
        found, expected = found.dense(backend=backend), expected.dense(backend=backend)
    assert torch.equal(found, expected)
    assert found.isfinite().all()


def test_a_batch_in_which_everything_is_ignored_counts_nothing(backend):
    labels = torch.full((2, 5, 7), -1)
    maps = rw.rectified_map(labels, 3, ignore_index=-1, backend=backend)
    assert maps.count.item() == 0
    assert (maps.dense(backend=backend) == 0).all()
    assert (rw.boundary_map(labels, 3, ignore_index=-1, backend=backend) == 0).all()


def test_every_pixel_counts_without_an_ignore_index(backend):
    assert rw.rectified_map(scene("random", (5, 7)), 3, backend=backend).count.item() == 70


@pytest.mark.parametrize("name", ["blobs", "sparse"])
def test_any_number_of_threads_gives_the_same_maps(backend, name, restore_threads):
    labels = scene(name, (130, 170), batch=6)  # enough pixels for threads to be worth their while
    labels[1, 60:90, 20:70] = -1
    if backend == "reference":
        labels = labels[:, 50:90, 10:40]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        maps = rw.rectified_map(labels, 3, spacing=(0.7, 1.3), ignore_index=-1, backend=backend)
        boundary = rw.boundary_map(labels, 3, spacing=(0.7, 1.3), ignore_index=-1, backend=backend)
        results.append((maps.foreground, maps.image_count, maps.dense(backend=backend), boundary))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    assert results[0][1].tolist() == (labels != -1).flatten(1).sum(1).tolist()


# --- active contour and constant maps --------------------------------------------------------------------------


@shapes
def test_active_contour_map_is_one_minus_one_hot(backend, shape):
    labels = scene("blobs", shape)
    maps = rw.active_contour_map(labels, 4, spatial_dims=len(shape), backend=backend)
    assert_same(maps.dense(backend=backend), 1 - one_hot(labels, 4))


@shapes
def test_constant_map_is_minus_beta_at_the_true_class_and_alpha_elsewhere(backend, shape):
    labels = scene("blobs", shape)
    maps = rw.constant_map(labels, 4, alpha=0.25, beta=3.0, spatial_dims=len(shape), backend=backend)
    true_class = one_hot(labels, 4)
    assert_same(maps.dense(backend=backend), 0.25 * (1 - true_class) - 3 * true_class)


@pytest.mark.parametrize("make", ["active-contour", "constant"])
def test_flat_maps_ignore_and_count(backend, make):
    labels = scene("blobs", (5, 34))
    labels[1, 2, 3:20] = -1
    maps = _make(make, labels, 3, ignore_index=-1, backend=backend)
    assert maps.count.item() == 2 * 5 * 34 - 17
    assert (maps.dense(backend=backend).movedim(1, -1)[labels == -1] == 0).all()
    assert (maps.dense(backend=backend).movedim(1, -1)[labels != -1] == 1).any()


# --- rectify, section 3.3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["max", "mean", "min", -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rectify_keeps_the_true_class_and_makes_the_others_equal(backend, background, dtype):
    labels = scene("blobs", (5, 34), num_classes=4)
    dense = torch.randn(2, 4, 5, 34, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps = rw.rectify(dense, labels, background=background, backend=backend)
    assert maps.foreground.dtype == dtype
    found = maps.dense(torch.float64, backend=backend)
    for image, y, x in [(0, 0, 0), (1, 4, 33), (0, 3, 17), (1, 2, 30)]:
        true_class = int(labels[image, y, x])
        values = dense[image, :, y, x].double().tolist()
        expected = list(values)
        del values[true_class]
        other = {"max": max(values), "min": min(values), "mean": sum(values) / 3}.get(background, background)
        expected = [value if k == true_class else other for k, value in enumerate(expected)]
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(found[image, :, y, x].tolist(), expected, **tolerance)


def test_rectify_leaves_one_negative_gradient_entry_where_the_map_had_two():
    labels = torch.tensor([[[2]]])
    dense = torch.tensor([12.0, 4.0, -3.0]).view(1, 3, 1, 1)
    logits = torch.tensor([0.8, 0.1, 0.1]).log().double().view(1, 3, 1, 1)
    assert (reference.pixel_gradient(logits, dense.double()) < 0).sum() == 2
    rectified = rw.rectify(dense, labels, background="mean").dense(torch.float64)
    assert (reference.pixel_gradient(logits, rectified) < 0).sum() == 1


def test_rectify_takes_labels_with_a_channel_axis_of_one():
    labels = scene("blobs", (5, 34))
    dense = rw.boundary_map(labels, 3)
    assert torch.equal(rw.rectify(dense, labels.unsqueeze(1)).dense(), rw.rectify(dense, labels).dense())


def test_rectify_of_one_channel_has_no_background_to_choose():
    maps = rw.rectify(torch.full((1, 1, 2, 3), -4.0), torch.zeros(1, 2, 3, dtype=torch.int64))
    assert (maps.dense() == -4).all()


def test_rectify_ignores_pixels_by_their_label_even_where_the_map_is_nan():
    labels = torch.tensor([[[0, -1, 1]]])
    dense = torch.tensor([[[[-1.0, math.nan, 2.0]], [[3.0, math.nan, -4.0]]]])
    maps = rw.rectify(dense, labels, ignore_index=-1)
    assert maps.count.item() == 2
    assert maps.dense()[0, :, 0].tolist() == [[-1, 0, 2], [3, 0, -4]]


# --- arguments that every map function takes -------------------------------------------------------------------

MAKERS = ["rectified", "active-contour", "constant"]


@pytest.mark.parametrize("make", MAKERS)
def test_out_takes_a_buffer_for_the_foreground_or_a_map_to_write_over(backend, make):
    labels = scene("blobs", (5, 34))
    expected = _make(make, labels, 3, backend=backend).foreground
    buffer = torch.full(labels.shape, math.nan)
    found = _make(make, labels, 3, out=buffer, backend=backend)
    assert found.foreground.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, expected)
    used = rw.constant_map(scene("random", (5, 34)), 3, beta=99.0)
    found = _make(make, labels, 3, out=used, backend=backend)
    assert found.foreground.data_ptr() == used.foreground.data_ptr()
    assert torch.equal(found.foreground, expected)
    assert torch.equal(found.labels, labels)


def test_a_map_written_over_another_counts_anew(backend):
    labels = scene("blobs", (5, 34))
    used = rw.rectified_map(labels, 3, ignore_index=-1, backend=backend)
    labels = labels.clone()
    labels[0, 0] = -1
    found = rw.rectified_map(labels, 3, ignore_index=-1, out=used, backend=backend)
    assert found.count.item() == 2 * 5 * 34 - 34
    assert torch.equal(found.foreground, rw.rectified_map(labels, 3, ignore_index=-1, backend=backend).foreground)


def test_boundary_map_writes_into_out(backend):
    labels = scene("blobs", (5, 34))
    out = torch.full((2, 3, 5, 34), math.nan)
    found = rw.boundary_map(labels, 3, out=out, backend=backend)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(out, rw.boundary_map(labels, 3, backend=backend))


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
def test_labels_of_any_strides_give_the_same_map_as_their_contiguous_copy(backend, make):
    labels = scene("blobs", (37, 26), batch=4)[::2, ::2].transpose(1, 2)
    assert not labels.is_contiguous()
    found = _make(make, labels, 3, backend=backend)
    expected = _make(make, labels.contiguous(), 3, backend=backend)
    if make != "boundary":
        found, expected = found.dense(backend=backend), expected.dense(backend=backend)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool, torch.uint16], ids=str
)
def test_every_label_dtype_gives_the_same_map(backend, make, dtype):
    labels = scene("blobs", (13, 37), num_classes=2)
    found = _make(make, labels.to(dtype), 3, backend=backend)
    expected = _make(make, labels, 3, backend=backend)
    if make != "boundary":
        found, expected = found.dense(backend=backend), expected.dense(backend=backend)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
def test_numpy_labels_give_a_map_of_numpy_arrays(backend, make):
    labels = scene("blobs", (5, 34))
    found = _make(make, labels.numpy(), 3, backend=backend)
    expected = _make(make, labels, 3, backend=backend)
    if make != "boundary":
        assert isinstance(found.labels, np.ndarray)
        assert isinstance(found.foreground, np.ndarray)
        found, expected = found.dense(backend=backend), expected.dense(backend=backend)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


def test_numpy_maps_are_rectified_and_scaled_to_numpy_maps():
    labels = scene("blobs", (5, 34))
    dense = rw.boundary_map(labels, 3)
    maps = rw.rectify(dense.numpy(), labels.numpy())
    weight = np.full(labels.shape, 0.5, np.float32)
    for found, expected in [
        (maps, rw.rectify(dense, labels)),
        (rw.scale_classes(maps, np.array([1.0, 2.0, 3.0])), rw.scale_classes(rw.rectify(dense, labels), [1.0, 2, 3])),
        (rw.scale_pixels(maps, weight), rw.scale_pixels(rw.rectify(dense, labels), 0.5)),
    ]:
        assert isinstance(found.foreground, np.ndarray)
        np.testing.assert_allclose(found.dense(), expected.dense().numpy())
    assert isinstance(rw.scale_pixels(dense.numpy(), weight), np.ndarray)
    np.testing.assert_allclose(
        rw.scale_classes(dense.numpy(), np.array([1.0, 2, 3])), rw.scale_classes(dense, [1, 2, 3])
    )


def test_a_numpy_class_maximum_is_taken(backend):
    maps = rw.rectified_map(ROW.numpy(), 3, class_max=np.array([[2.0, 4.0, 8.0]]), backend=backend)
    assert maps.foreground.flatten().tolist() == [-1, -1, -0.5, -0.25, -0.25, -0.125]


class TensorWithMetadata(torch.Tensor):
    """What matters of MONAI's MetaTensor: a subclass that can give its plain tensor."""

    def as_tensor(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
def test_labels_with_metadata_give_a_map_of_plain_tensors(backend, make):
    labels = scene("blobs", (5, 34))
    found = _make(make, labels.as_subclass(TensorWithMetadata), 3, backend=backend)
    expected = _make(make, labels, 3, backend=backend)
    if make != "boundary":
        assert type(found.labels) is torch.Tensor
        assert type(found.foreground) is torch.Tensor
        found, expected = found.dense(backend=backend), expected.dense(backend=backend)
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (0, 3, 4, 5)], ids=lambda s: "x".join(map(str, s)))
def test_an_empty_batch_or_image_gives_an_empty_map(backend, make, shape):
    maps = _make(make, torch.zeros(shape, dtype=torch.int64), 3, ignore_index=-1, backend=backend)
    if make != "boundary":
        assert maps.count.item() == 0
        maps = maps.dense(backend=backend)
    assert maps.shape == (shape[0], 3, *shape[1:])


@pytest.mark.parametrize("make", [*MAKERS, "boundary"])
def test_labels_out_of_range_that_are_not_checked_give_nan_and_no_error(backend, make):
    labels = torch.tensor([[[0, 9, -5, 1, 2**40, 7]]])
    maps = _make(make, labels, 2, validate=False, ignore_index=7, backend=backend)
    dense = (maps if make == "boundary" else maps.dense(backend=backend))[0, :, 0]
    assert dense[:, [1, 2, 4]].isnan().all()
    assert not dense[:, [0, 3, 5]].isnan().any()
