"""Distance transforms: every backend and instruction set against SciPy and the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from choices import CPU_BACKENDS, pairwise, readable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import SCENES, assert_same, scene, scipy_class_distance, scipy_distance

import rwkernels as rw
from rwkernels.backends import reference

# Odd, not square, on both sides of the vector widths and tile sizes of the kernels, and with axes of length 1.
SHAPES = [(1,), (131,), (13, 37), (5, 70), (67, 5), (33, 1), (3, 19, 35), (1, 9, 17), (9, 17, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
scenes = pytest.mark.parametrize("name", SCENES)
every_pair = pairwise(backend=CPU_BACKENDS, name=list(SCENES), shape=SHAPES)
LABEL_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


@every_pair
def test_distance_is_what_scipy_gives_class_by_class(backend, name, shape):
    labels = scene(name, shape)
    found = rw.distance_transform(labels, spatial_dims=len(shape), backend=backend)
    assert found.shape == labels.shape
    assert_same(found, scipy_distance(labels))


@pairwise(backend=CPU_BACKENDS, name=["random", "blobs", "one-odd-pixel", "uniform"], shape=SHAPES)
def test_spacing_is_one_number_per_axis_in_the_order_of_the_labels_axes(backend, name, shape):
    labels, spacing = scene(name, shape), [2.5, 0.4, 1.3][: len(shape)]
    found = rw.distance_transform(labels, spacing=spacing, spatial_dims=len(shape), backend=backend)
    assert_same(found, scipy_distance(labels, spacing))


@pairwise(
    backend=[case for case in CPU_BACKENDS if case.values[0][0] == "native"],
    shape=[(1, 280, 70), (1, 70, 280), (3, 200, 190), (280, 2, 40)],
    spacing=[(1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (3.0, 1.0, 1.0)],
)
def test_distances_too_long_for_16_bits_are_exact_beside_shorter_ones(backend, shape, spacing):
    labels = torch.zeros(1, *shape, dtype=torch.uint8)
    labels[0, 0, 0, 0] = 1
    labels[0, -1, 1, 2:9] = 2
    found = rw.distance_transform(labels, spacing=spacing, backend=backend)
    assert_same(found, scipy_distance(labels, spacing))


def test_a_step_along_each_axis_costs_the_spacing_of_that_axis(backend):
    for axis in range(3):
        labels = torch.zeros(1, 5, 6, 7, dtype=torch.int64)
        labels.select(axis + 1, 0).fill_(1)
        found = rw.distance_transform(labels, spacing=(2.0, 3.0, 5.0), backend=backend)
        assert found[0, 3, 3, 3].item() == 3 * (2.0, 3.0, 5.0)[axis]


@pytest.mark.parametrize("shape", [(29,), (13, 37), (5, 6, 7)], ids=["1d", "2d", "3d"])
def test_one_number_is_the_spacing_of_every_axis(backend, shape):
    labels = scene("blobs", shape)
    found = rw.distance_transform(labels, spacing=0.37, spatial_dims=len(shape), backend=backend)
    assert_same(found, scipy_distance(labels, 0.37))


def test_spacing_is_accepted_as_a_tensor_or_an_array_and_as_their_scalars(backend):
    labels = scene("blobs", (9, 14))
    expected = rw.distance_transform(labels, spacing=(0.5, 2.0), backend=backend)
    for spacing in (torch.tensor([0.5, 2.0]), np.array([0.5, 2.0]), [0.5, np.float32(2.0)]):
        assert torch.equal(rw.distance_transform(labels, spacing=spacing, backend=backend), expected)
    expected = rw.distance_transform(labels, spacing=2, backend=backend)
    for spacing in (torch.tensor(2.0), np.array(2.0), np.float32(2.0)):
        assert torch.equal(rw.distance_transform(labels, spacing=spacing, backend=backend), expected)


@every_pair
def test_a_black_border_is_a_ring_of_another_label_around_the_image(backend, name, shape):
    labels = scene(name, shape)
    found = rw.distance_transform(labels, black_border=True, spatial_dims=len(shape), backend=backend)
    assert_same(found, scipy_distance(labels, black_border=True))


@pytest.mark.parametrize("name", ["blobs", "uniform", "sparse"])
def test_a_black_border_lies_one_step_outside_along_every_axis(backend, name):
    labels, spacing = scene(name, (5, 9, 34)), (3.0, 0.5, 1.25)
    found = rw.distance_transform(labels, black_border=True, spacing=spacing, backend=backend)
    assert_same(found, scipy_distance(labels, spacing, black_border=True))


def test_the_image_border_is_no_boundary_by_default(backend):
    labels = torch.zeros(1, 3, 9, dtype=torch.int64)
    labels[0, :, 8] = 1
    assert rw.distance_transform(labels, backend=backend)[0, 1].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 1]


@scenes
def test_squared_distances_are_exact_integers(backend, name):
    labels = scene(name, (37, 45))
    found = rw.distance_transform(labels, squared=True, backend=backend)
    expected = scipy_distance(labels).square().round().float()
    assert torch.equal(found, expected)
    assert torch.equal(rw.distance_transform(labels, backend=backend), expected.double().sqrt().float())


def test_squared_distances_are_in_squared_units_of_spacing(backend):
    labels = scene("blobs", (12, 19))
    found = rw.distance_transform(labels, squared=True, spacing=(0.3, 1.7), backend=backend)
    assert_same(found, scipy_distance(labels, (0.3, 1.7)).square())


@pairwise(backend=CPU_BACKENDS, dtype=LABEL_DTYPES, shape=[(131,), (13, 37), (5, 6, 33)])
def test_every_label_dtype_gives_the_same_distances(backend, dtype, shape):
    labels = scene("random", shape, num_classes=2, dtype=dtype)
    found = rw.distance_transform(labels, spatial_dims=len(shape), backend=backend)
    assert_same(found, scipy_distance(labels))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32], ids=readable)
def test_wide_unsigned_labels_are_accepted(backend, dtype):
    labels = scene("blobs", (9, 14)).numpy() * 30_000
    found = rw.distance_transform(torch.from_numpy(labels).to(dtype), backend=backend)
    assert_same(found, scipy_distance(torch.from_numpy(labels)))


@pytest.mark.parametrize(
    "values",
    [(-128, 0, 127), (-5, -4, -3), (2**62, -(2**62), -(2**63)), (2**40, 2**40 + 2**32, 0), (1, 257, 65537)],
    ids=["int8-range", "negative", "huge", "equal-low-words", "equal-low-bytes"],
)
def test_any_label_value_is_a_label_of_its_own(backend, values):
    """A kernel that narrows labels must not make two of them equal."""
    index = scene("blobs", (17, 41))
    labels = torch.tensor(values, dtype=torch.int64)[index]
    assert_same(rw.distance_transform(labels, backend=backend), scipy_distance(index))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=readable)
def test_the_lowest_and_highest_label_of_a_dtype_differ(backend, dtype):
    limits = torch.iinfo(dtype)
    index = scene("random", (11, 35), num_classes=3)
    labels = torch.tensor([limits.min, limits.max, -1], dtype=dtype)[index]
    assert_same(rw.distance_transform(labels, backend=backend), scipy_distance(index))


@pytest.mark.parametrize("count", [254, 255, 256, 257, 65535, 65536, 70_000])
def test_as_many_labels_as_pixels_are_one_step_apart(backend, count):
    if backend in ("reference", "cucim") and count > 1000:
        pytest.skip("quadratic: in the length of an axis, or one transform for every label; smaller images cover it")
    labels = torch.arange(count).view(1, 1, -1)
    assert (rw.distance_transform(labels, backend=backend) == 1).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "flipped-batch", "expanded"])
def test_labels_of_any_strides_give_the_same_as_their_contiguous_copy(backend, layout):
    whole = scene("blobs", (26, 37), batch=4)
    labels = {
        "transposed": whole.transpose(1, 2),
        "sliced": whole[:, ::2, 3:],
        "flipped-batch": whole[::2],
        "expanded": whole[:1].expand(3, -1, -1),
    }[layout]
    found = rw.distance_transform(labels, backend=backend)
    assert torch.equal(found, rw.distance_transform(labels.clone(), backend=backend))
    assert_same(found, scipy_distance(labels))
    if layout != "flipped-batch":
        assert not labels.is_contiguous()


def test_out_is_written_and_returned(backend):
    labels = scene("blobs", (9, 14))
    out = torch.full(labels.shape, math.nan)
    found = rw.distance_transform(labels, out=out, backend=backend)
    assert found.data_ptr() == out.data_ptr()
    assert_same(out, scipy_distance(labels))


def test_out_that_was_used_before_holds_nothing_of_its_past(backend):
    out = torch.empty(2, 5, 34)
    rw.distance_transform(scene("uniform", (5, 34)), out=out, backend=backend)
    rw.distance_transform(scene("random", (5, 34)), out=out, backend=backend)
    assert_same(out, scipy_distance(scene("random", (5, 34))))


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (0, 3, 4, 5)], ids=lambda s: "x".join(map(str, s)))
def test_an_empty_batch_or_image_gives_an_empty_result(backend, shape):
    labels = torch.zeros(shape, dtype=torch.int64)
    assert rw.distance_transform(labels, backend=backend).shape == shape
    found = rw.class_distance_transform(labels, 3, backend=backend)
    assert found.shape == (shape[0], 3, *shape[1:])


@shapes
def test_distance_is_inf_where_an_image_has_one_label_and_only_there(backend, shape):
    labels = scene("random", shape, batch=3)
    labels[1] = 2
    found = rw.distance_transform(labels, spatial_dims=len(shape), backend=backend)
    assert torch.isinf(found[1]).all()
    assert_same(found, scipy_distance(labels))


def test_images_of_a_batch_do_not_see_each_other(backend):
    labels = torch.stack([torch.full((6, 35), k) for k in range(4)])
    assert torch.isinf(rw.distance_transform(labels, backend=backend)).all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("checkerboard", (129, 140)),
        ("one-odd-pixel", (257, 70)),
        ("one-odd-pixel", (40, 300)),
        ("circle", (211, 203)),
        ("sparse", (160, 150)),
        ("one-odd-pixel", (33, 40, 47)),
        ("circle", (40, 33, 47)),
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
@pytest.mark.parametrize("spacing", [None, 0.6, "anisotropic"], ids=["unit", "isotropic", "anisotropic"])
def test_images_that_are_hard_for_a_windowed_search_are_exact(backend, name, shape, spacing):
    if backend == "reference":
        pytest.skip("the reference is quadratic in the length of an axis; smaller images cover it")
    spacing = [0.5, 3.0, 1.0][: len(shape)] if spacing == "anisotropic" else spacing
    labels = scene(name, shape, batch=1)
    assert_same(rw.distance_transform(labels, spacing=spacing, backend=backend), scipy_distance(labels, spacing))


def test_distances_beyond_sixteen_bits_of_their_square_are_exact(backend):
    labels = torch.zeros(1, 3, 700, dtype=torch.uint8)
    labels[0, 0, 0] = 1
    found = rw.distance_transform(labels, squared=True, backend=backend)
    column, row = torch.arange(700.0), torch.arange(3.0)
    expected = row[:, None].square() + column.square()
    expected[0, 0] = 1
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("name", ["blobs", "sparse", "checkerboard", "circle"])
def test_any_number_of_threads_gives_the_same_bits(backend, name, restore_threads):
    labels = scene(name, (130, 170), batch=6)  # enough pixels for threads to be worth their while
    if backend == "reference":
        labels = labels[:, :40, :40]
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(
            (
                rw.distance_transform(labels, spacing=(0.7, 1.3), backend=backend),
                rw.class_distance_transform(labels, 3, spacing=(0.7, 1.3), backend=backend),
            )
        )
    for distance, class_distance in results[1:]:
        assert torch.equal(distance, results[0][0])
        assert torch.equal(class_distance, results[0][1])
    assert_same(results[0][0], scipy_distance(labels, (0.7, 1.3)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.3)], ids=["isotropic", "anisotropic"])
def test_instruction_sets_agree_with_the_reference_to_the_last_bit_but_one(isa, spacing):
    labels = scene("blobs", (61, 83), num_classes=5)
    found = rw.distance_transform(labels, spacing=spacing, squared=True, backend="native")
    expected = reference.distance(labels, spacing, squared=True)
    assert_same(found, expected, rtol=0 if spacing == (1.0, 1.0) else 3e-7)


def test_repeated_runs_give_the_same_bits(backend):
    labels = scene("blobs", (19, 41))
    first = rw.distance_transform(labels, spacing=(0.7, 1.3), backend=backend)
    assert torch.equal(first, rw.distance_transform(labels, spacing=(0.7, 1.3), backend=backend))


# --- distance to every class -----------------------------------------------------------------------------------


@every_pair
def test_class_distance_is_what_scipy_gives_and_inf_for_an_absent_class(backend, name, shape):
    labels = scene(name, shape)
    found = rw.class_distance_transform(labels, 4, spatial_dims=len(shape), backend=backend)
    assert found.shape == (2, 4, *shape)
    assert torch.isinf(found[:, 3]).all()
    assert_same(found, scipy_class_distance(labels, 4))


@pytest.mark.parametrize("shape", [(29,), (13, 37), (5, 6, 33)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("squared", [False, True], ids=["plain", "squared"])
def test_class_distance_takes_spacing_in_the_order_of_the_axes(backend, shape, squared):
    labels, spacing = scene("blobs", shape), [2.5, 0.4, 1.3][: len(shape)]
    found = rw.class_distance_transform(
        labels, 3, spacing=spacing, squared=squared, spatial_dims=len(shape), backend=backend
    )
    expected = scipy_class_distance(labels, 3, spacing)
    assert_same(found, expected.square() if squared else expected)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=readable)
def test_class_distance_takes_every_label_dtype(backend, dtype):
    labels = scene("blobs", (13, 37), num_classes=2, dtype=dtype)
    found = rw.class_distance_transform(labels, 3, backend=backend)
    assert_same(found, scipy_class_distance(labels.long(), 3))


@pytest.mark.parametrize("ignore_index", [-1, -100, 255, 1])
def test_ignored_pixels_belong_to_no_class(backend, ignore_index):
    labels = scene("blobs", (13, 37))
    labels[:, 4:7, 5:30] = ignore_index
    found = rw.class_distance_transform(labels, 3, ignore_index=ignore_index, backend=backend)
    assert_same(found, scipy_class_distance(torch.where(labels == ignore_index, -1, labels), 3))


def test_class_distance_writes_into_out(backend):
    labels = scene("blobs", (9, 14))
    out = torch.full((2, 3, 9, 14), math.nan)
    found = rw.class_distance_transform(labels, 3, out=out, backend=backend)
    assert found.data_ptr() == out.data_ptr()
    assert_same(out, scipy_class_distance(labels, 3))


@pytest.mark.parametrize("num_classes", [1, 16, 60])
def test_class_distance_with_few_and_with_many_classes(backend, num_classes):
    labels = scene("blobs", (11, 19), num_classes=num_classes, batch=1)
    found = rw.class_distance_transform(labels, num_classes, backend=backend)
    assert_same(found, scipy_class_distance(labels, num_classes))


# --- kinds of arrays -------------------------------------------------------------------------------------------


def test_numpy_labels_give_a_numpy_result(backend):
    labels = scene("blobs", (9, 14))
    found = rw.distance_transform(labels.numpy(), backend=backend)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rw.distance_transform(labels, backend=backend).numpy())
    assert isinstance(rw.class_distance_transform(labels.numpy(), 3, backend=backend), np.ndarray)


@pytest.mark.parametrize("kind", ["flipped", "read-only", "big-endian", "fortran", "uint16", "bool"])
def test_numpy_labels_of_any_memory_layout_are_read_right(backend, kind):
    labels = scene("blobs", (9, 14), num_classes=2).numpy()
    expected = scipy_distance(torch.from_numpy(labels))
    given = {
        "flipped": np.ascontiguousarray(labels[:, ::-1, ::-1])[:, ::-1, ::-1],
        "read-only": labels.copy(),
        "big-endian": labels.astype(">i4"),
        "fortran": np.asfortranarray(labels),
        "uint16": labels.astype(np.uint16),
        "bool": labels.astype(bool),
    }[kind]
    given.flags.writeable = kind != "read-only"
    np.testing.assert_allclose(rw.distance_transform(given, backend=backend), expected, rtol=1e-6)


def test_a_numpy_buffer_is_written(backend):
    labels = scene("blobs", (9, 14))
    out = np.zeros(labels.shape, np.float32)
    rw.distance_transform(labels.numpy(), out=out, backend=backend)
    np.testing.assert_allclose(out, scipy_distance(labels), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=readable)
def test_labels_that_are_alike_in_their_low_bits_differ(backend, dtype):
    labels = torch.tensor([[0, 256, 0, 256], [256, 0, 256, 0]]).to(dtype)
    assert (rw.distance_transform(labels[None], backend=backend) == 1).all()


@pytest.mark.parametrize("row", range(11))
def test_a_nearer_border_two_rows_away_is_found_from_every_row(backend, row):
    # Elsewhere the nearest is 2 steps of 1.42 along the row, 8.07 when squared; from two rows away it is 4 + 2.02.
    labels = torch.tensor([[1, 0, 0, 0, 1]] * 11)
    labels[row] = torch.tensor([1, 1, 0, 1, 1])
    found = rw.distance_transform(labels[None], spacing=(1.0, 1.42), backend=backend)
    assert_same(found, scipy_distance(labels[None], (1.0, 1.42)))


# --- any labels at all -----------------------------------------------------------------------------------------


@st.composite
def _labels_and_spacing(draw, highest):
    axes = draw(st.integers(1, 3))
    shape = draw(st.tuples(*[st.integers(1, (70, 20, 9)[axes - 1])] * axes))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.int64]))
    values = draw(st.lists(st.integers(0, highest), min_size=1, max_size=4, unique=True))
    labels = draw(hnp.arrays(dtype, (1, *shape), elements=st.sampled_from(values), fill=st.just(values[0])))
    spacing = draw(st.lists(st.floats(0.05, 20), min_size=axes, max_size=axes))
    return torch.from_numpy(labels), spacing


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=_labels_and_spacing(highest=200), black_border=st.booleans())
def test_distance_of_any_labels_is_what_scipy_gives(backend, case, black_border):
    labels, spacing = case
    found = rw.distance_transform(
        labels, spacing=spacing, black_border=black_border, spatial_dims=labels.dim() - 1, backend=backend
    )
    assert_same(found, scipy_distance(labels, spacing, black_border), rtol=2e-6)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=_labels_and_spacing(highest=6))
def test_class_distance_of_any_labels_is_what_scipy_gives(backend, case):
    labels, spacing = case
    found = rw.class_distance_transform(labels, 7, spacing=spacing, spatial_dims=labels.dim() - 1, backend=backend)
    assert_same(found, scipy_class_distance(labels, 7, spacing), rtol=2e-6)
