"""Wrong arguments of distances and maps: each is refused by a ValueError or TypeError that names it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from samples import scene

import rwkernels as rw

LABELS = scene("blobs", (5, 34))
MAPPED = {
    "class-distance": rw.class_distance_transform,
    "rectified": rw.rectified_map,
    "boundary": rw.boundary_map,
    "active-contour": rw.active_contour_map,
    "constant": rw.constant_map,
}
TRANSFORMS = {"distance": lambda labels, num_classes, **options: rw.distance_transform(labels, **options), **MAPPED}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
mapped = pytest.mark.parametrize("transform", MAPPED.values(), ids=MAPPED)
spaced = pytest.mark.parametrize(
    "transform",
    [TRANSFORMS[name] for name in ("distance", "class-distance", "rectified", "boundary")],
    ids=["distance", "class-distance", "rectified", "boundary"],
)


def _refuses(error, name):
    """The error of this very type whose message begins with the argument's name and tells what was expected."""
    return pytest.raises(error, match=rf"^{name}: expected .*, got ")


# --- labels ----------------------------------------------------------------------------------------------------


@transforms
@pytest.mark.parametrize(
    "labels",
    [
        [[[0, 1]]],
        None,
        3,
        "labels",
        LABELS.float(),
        LABELS.double().numpy(),
        LABELS.to(torch.complex64),
        LABELS.numpy().astype(np.uint64),
        np.array([[["a", "b"]]]),
        np.array([[[None, 1]]]),
    ],
    ids=["list", "none", "int", "str", "float", "numpy-float", "complex", "uint64", "numpy-str", "numpy-object"],
)
def test_labels_that_are_no_integer_tensor_are_refused(transform, labels):
    with _refuses(TypeError, "labels"):
        transform(labels, 3)


@transforms
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5, 6)], ids=["0d", "1d", "5d"])
def test_labels_without_one_to_three_spatial_axes_are_refused(transform, shape):
    with _refuses(ValueError, "labels"):
        transform(torch.zeros(shape, dtype=torch.int64), 3)


@transforms
def test_a_lone_image_is_refused_and_not_read_as_rows(transform):
    with pytest.raises(
        ValueError, match=r"^labels: .*add a batch axis.*spatial_dims=1.*int64 tensor of shape \[5, 34\]"
    ):
        transform(LABELS[0], 3)
    transform(LABELS[0], 3, spatial_dims=1)


@transforms
@pytest.mark.parametrize("spatial_dims", [1, 3])
def test_labels_of_another_rank_than_spatial_dims_says_are_refused(transform, spatial_dims):
    with _refuses(ValueError, "labels"):
        transform(LABELS, 3, spatial_dims=spatial_dims)
    transform(LABELS, 3, spatial_dims=2)


@transforms
@pytest.mark.parametrize("spatial_dims", [0, 4, -1])
def test_a_number_of_spatial_axes_that_is_not_1_2_or_3_is_refused(transform, spatial_dims):
    with _refuses(ValueError, "spatial_dims"):
        transform(LABELS, 3, spatial_dims=spatial_dims)


@transforms
@pytest.mark.parametrize("spatial_dims", [True, 2.0, "2"], ids=repr)
def test_a_number_of_spatial_axes_that_is_no_integer_is_refused(transform, spatial_dims):
    with _refuses(TypeError, "spatial_dims"):
        transform(LABELS, 3, spatial_dims=spatial_dims)


@mapped
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_a_label_out_of_range_is_named_with_its_place(transform, backend, dtype):
    labels = torch.zeros(2, 13, 40, dtype=dtype)
    labels[0, 12, 31] = 7
    labels[1, 0, 0] = 9
    with pytest.raises(ValueError, match=re.escape("labels: expected integers in [0, 4), got 7 at (0, 12, 31)") + "$"):
        transform(labels, 4, backend=backend)


@mapped
@pytest.mark.parametrize("value", [-1, -(2**63), 2**40, 2**32 + 1, 256 + 1, 4], ids=str)
def test_a_negative_or_huge_label_is_out_of_range_and_not_wrapped_into_it(transform, backend, value):
    labels = torch.zeros(2, 3, 4, 40, dtype=torch.int64)
    labels[1, 2, 3, 39] = value
    message = f"labels: expected integers in [0, 4), got {value} at (1, 2, 3, 39)"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        transform(labels, 4, backend=backend)


@mapped
def test_the_place_of_a_late_bad_label_is_named(transform, backend):
    labels = torch.zeros(2, 50, 90, dtype=torch.int64)  # more pixels than the core takes at once
    labels[0, 49, 49] = 9
    labels[1, 3, 4] = 8
    with pytest.raises(ValueError, match=r"got 9 at \(0, 49, 49\)"):
        transform(labels, 4, backend=backend)


@mapped
def test_the_place_of_a_bad_label_is_that_in_the_labels_given_whatever_their_strides(transform, backend):
    labels = torch.zeros(1, 40, 13, dtype=torch.int64)
    labels[0, 31, 12] = 7
    with pytest.raises(ValueError, match=r"got 7 at \(0, 12, 31\)$"):
        transform(labels.transpose(1, 2), 4, backend=backend)


@mapped
def test_a_bad_label_is_refused_although_other_pixels_are_ignored(transform, backend):
    labels = torch.full((1, 3, 40), -1)
    transform(labels, 4, ignore_index=-1, backend=backend)
    labels[0, 2, 38] = -2
    message = "labels: expected integers in [0, 4) or -1 (ignore_index), got -2 at (0, 2, 38)"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        transform(labels, 4, ignore_index=-1, backend=backend)


@mapped
def test_label_values_are_checked_on_the_cpu_unless_told_not_to(transform, backend):
    labels = torch.full((1, 3, 4), 9)
    for validate in (None, True):
        with _refuses(ValueError, "labels"):
            transform(labels, 4, validate=validate, backend=backend)
    transform(labels, 4, validate=False, backend=backend)


@mapped
@pytest.mark.parametrize("validate", [1, 0, "yes"], ids=repr)
def test_validate_is_true_false_or_none(transform, validate):
    with _refuses(TypeError, "validate"):
        transform(LABELS, 3, validate=validate)


# --- numbers ---------------------------------------------------------------------------------------------------


@mapped
@pytest.mark.parametrize("num_classes", [0, -1, 2**70])
def test_a_number_of_classes_below_one_or_beyond_64_bits_is_refused(transform, num_classes):
    with _refuses(ValueError, "num_classes"):
        transform(LABELS, num_classes)


@mapped
@pytest.mark.parametrize("num_classes", [3.0, True, None, "3", [3]], ids=repr)
def test_a_number_of_classes_that_is_no_integer_is_refused(transform, num_classes):
    with _refuses(TypeError, "num_classes"):
        transform(LABELS, num_classes)


@mapped
@pytest.mark.parametrize("ignore_index", [1.0, True, "1", [1]], ids=repr)
def test_an_ignore_index_that_is_no_integer_is_refused(transform, ignore_index):
    with _refuses(TypeError, "ignore_index"):
        transform(LABELS, 3, ignore_index=ignore_index)


@mapped
def test_an_ignore_index_beyond_64_bits_is_refused(transform):
    with _refuses(ValueError, "ignore_index"):
        transform(LABELS, 3, ignore_index=2**63)


@spaced
@pytest.mark.parametrize(
    "spacing",
    [(), (1.0,), (1.0, 1.0, 1.0), 0, -1.0, (1.0, 0.0), (1.0, -2.0), math.nan, (1.0, math.nan), math.inf, 10**400],
    ids=lambda value: f"{value}"[:20],
)
def test_spacing_is_one_positive_finite_number_or_one_per_axis(transform, spacing):
    with _refuses(ValueError, "spacing"):
        transform(LABELS, 3, spacing=spacing)


@spaced
@pytest.mark.parametrize("spacing", ["1.0", "ab", (1.0, "2"), (1.0, None), True, 1j], ids=repr)
def test_spacing_that_is_no_number_is_refused(transform, spacing):
    with _refuses(TypeError, "spacing"):
        transform(LABELS, 3, spacing=spacing)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (rw.boundary_map, "absent"),
        (rw.boundary_map, "inside_offset"),
        (rw.constant_map, "alpha"),
        (rw.constant_map, "beta"),
    ],
    ids=["absent", "inside_offset", "alpha", "beta"],
)
def test_values_of_a_map_are_finite_numbers(transform, name):
    for value in ("1", None, True, [1.0], 1j):
        with _refuses(TypeError, name):
            transform(LABELS, 3, **{name: value})
    for value in (math.nan, -math.inf, 10**400):
        with _refuses(ValueError, name):
            transform(LABELS, 3, **{name: value})


@pytest.mark.parametrize("name", ["squared", "black_border"])
def test_switches_of_the_distance_are_true_or_false(name):
    for value in (1, None, "yes"):
        with _refuses(TypeError, name):
            rw.distance_transform(LABELS, **{name: value})


# --- buffers, devices, backends --------------------------------------------------------------------------------


def _result_shape(transform):
    return (2, 3, 5, 34) if transform in (rw.boundary_map, rw.class_distance_transform) else (2, 5, 34)


@transforms
@pytest.mark.parametrize("problem", ["shape", "dtype", "strides", "device"])
def test_a_buffer_that_does_not_fit_is_refused(transform, problem):
    shape = _result_shape(transform)
    out = {
        "shape": torch.empty(*shape[:-1], 35),
        "dtype": torch.empty(shape, dtype=torch.float64),
        "strides": torch.empty(*shape[:-2], 34, 5).transpose(-1, -2),
        "device": torch.empty(shape, device="meta"),
    }[problem]
    with _refuses(ValueError, "out"):
        transform(LABELS, 3, out=out)


@transforms
@pytest.mark.parametrize("problem", ["flipped", "read-only", "fortran"])
def test_an_array_that_could_only_be_written_through_a_copy_is_refused_as_a_buffer(transform, problem):
    out = np.zeros(_result_shape(transform), np.float32)
    if problem == "flipped":
        out = out[..., ::-1]
    elif problem == "fortran":
        out = np.asfortranarray(out)
    out.flags.writeable = problem != "read-only"
    with _refuses(ValueError, "out"):
        transform(LABELS.numpy(), 3, out=out)


@transforms
@pytest.mark.parametrize("out", [[0.0], 1.0, "out"], ids=repr)
def test_a_buffer_that_is_no_tensor_is_refused(transform, out):
    with _refuses(TypeError, "out"):
        transform(LABELS, 3, out=out)


@transforms
def test_an_unknown_backend_is_refused_with_the_known_ones(transform):
    with pytest.raises(ValueError, match=r"^backend: expected one of .*'native'.*'reference'.*, got 'fastest'$"):
        transform(LABELS, 3, backend="fastest")


@transforms
@pytest.mark.parametrize("backend", [5, True, ["native"]], ids=repr)
def test_a_backend_that_is_no_name_is_refused(transform, backend):
    with _refuses(TypeError, "backend"):
        transform(LABELS, 3, backend=backend)


def test_a_backend_of_the_environment_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("RWKERNELS_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"^backend: expected one of .*, got 'fastest'$"):
        rw.distance_transform(LABELS)


# --- class_max -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 3), (2, 3, 1), ()], ids=str)
def test_a_class_maximum_of_another_shape_than_images_by_classes_is_refused(shape):
    with _refuses(ValueError, "class_max"):
        rw.rectified_map(LABELS, 3, class_max=torch.ones(shape))


@pytest.mark.parametrize(
    "class_max", [[[1.0] * 3] * 2, 5.0, torch.ones(2, 3, dtype=torch.int64), "max"], ids=["list", "float", "int", "str"]
)
def test_a_class_maximum_that_is_no_floating_tensor_is_refused(class_max):
    with _refuses(TypeError, "class_max"):
        rw.rectified_map(LABELS, 3, class_max=class_max)


def test_a_class_maximum_on_another_device_is_refused_and_not_copied():
    with _refuses(ValueError, "class_max"):
        rw.rectified_map(LABELS, 3, class_max=torch.ones(2, 3, device="meta"))


# --- rectify and scaling ---------------------------------------------------------------------------------------

DENSE = torch.zeros(2, 3, 5, 34)
COMPACT = rw.active_contour_map(LABELS, 3)
PIXELS = torch.ones(2, 5, 34)
both = pytest.mark.parametrize("maps", [DENSE, COMPACT], ids=["dense", "compact"])


@pytest.mark.parametrize(
    "call",
    [
        lambda maps: rw.rectify(maps, LABELS),
        lambda maps: rw.scale_classes(maps, [1.0] * 3),
        lambda maps: rw.scale_pixels(maps, 1.0),
    ],
    ids=["rectify", "scale-classes", "scale-pixels"],
)
def test_a_map_that_is_no_floating_tensor_of_one_to_three_spatial_axes_is_refused(call):
    for maps in ([1.0], None, DENSE.long(), DENSE.numpy().astype(int)):
        with _refuses(TypeError, "maps"):
            call(maps)
    for maps in (DENSE[0, 0], torch.zeros(2, 3, 1, 1, 1, 1)):
        with _refuses(ValueError, "maps"):
            call(maps)


def test_rectify_refuses_labels_that_do_not_fit_the_map():
    for labels in (LABELS.float(), LABELS.tolist(), None):
        with _refuses(TypeError, "labels"):
            rw.rectify(DENSE, labels)
    for labels in (
        LABELS[:1],
        LABELS[:, :4],
        LABELS[0],
        LABELS.to("meta"),
        torch.zeros(2, 2, 5, 34, dtype=torch.int64),
    ):
        with _refuses(ValueError, "labels"):
            rw.rectify(DENSE, labels)


def test_rectify_names_a_label_out_of_range():
    labels = LABELS.clone()
    labels[1, 4, 33] = 3
    with pytest.raises(ValueError, match=re.escape("labels: expected integers in [0, 3), got 3 at (1, 4, 33)") + "$"):
        rw.rectify(DENSE, labels)


def test_rectify_refuses_an_unknown_background():
    for background in ("median", math.nan, math.inf):
        with _refuses(ValueError, "background"):
            rw.rectify(DENSE, LABELS, background=background)
    for background in (None, [1.0], True):
        with _refuses(TypeError, "background"):
            rw.rectify(DENSE, LABELS, background=background)


@both
@pytest.mark.parametrize("weight", ["abc", None, 2.0, [1.0, "2", 3.0], torch.ones(3, dtype=torch.int64)], ids=str)
def test_class_weights_that_are_no_floating_numbers_are_refused(maps, weight):
    with _refuses(TypeError, "weight"):
        rw.scale_classes(maps, weight)


@both
@pytest.mark.parametrize(
    "weight",
    [[1.0, 2.0], torch.ones(4), torch.ones(3, 1), [1.0, math.nan, 1.0], torch.ones(3, device="meta")],
    ids=["too-few", "too-many", "two-axes", "nan", "device"],
)
def test_class_weights_are_one_finite_number_per_class_on_the_device_of_the_map(maps, weight):
    with _refuses(ValueError, "weight"):
        rw.scale_classes(maps, weight)


@both
def test_classes_are_scaled_by_channel_or_by_label(maps):
    for by in ("pixel", None, 1):
        with _refuses(ValueError, "by"):
            rw.scale_classes(maps, [1.0] * 3, by=by)


def test_scaling_a_dense_map_by_label_needs_labels_that_fit():
    with _refuses(ValueError, "labels"):
        rw.scale_classes(DENSE, [1.0] * 3, by="label")
    with _refuses(ValueError, "labels"):
        rw.scale_classes(DENSE, [1.0] * 3, by="label", labels=LABELS[:, :4])
    with _refuses(TypeError, "labels"):
        rw.scale_classes(DENSE, [1.0] * 3, by="label", labels=LABELS.float())


@both
@pytest.mark.parametrize(
    "weight",
    [
        -1.0,
        math.nan,
        torch.full((2, 5, 34), -1.0),
        torch.full((2, 5, 34), math.nan),
        torch.ones(2, 5, 35),
        torch.ones(3),
    ],
    ids=["negative", "nan", "negative-pixels", "nan-pixels", "shape", "rank"],
)
def test_pixel_weights_are_not_negative_and_fit_the_map(maps, weight):
    with _refuses(ValueError, "weight"):
        rw.scale_pixels(maps, weight)


@both
@pytest.mark.parametrize("weight", ["1", None, [1.0], True, torch.ones(2, 5, 34, dtype=torch.int64)], ids=str)
def test_pixel_weights_that_are_no_floating_numbers_are_refused(maps, weight):
    with _refuses(TypeError, "weight"):
        rw.scale_pixels(maps, weight)
