"""The boundary map (Eq. 3) against the reference, SciPy and numbers made by hand, on every backend."""

from __future__ import annotations

import pytest
import torch
from choices import CPU_BACKENDS, pairwise
from samples import (
    ROW,
    SCENES,
    SHAPES,
    SPACING,
    assert_same,
    one_hot,
    scene,
    scipy_class_distance,
    scipy_distance,
)

import rwkernels as rw
from rwkernels.backends import reference

# --- boundary map, Eq. 3 ---------------------------------------------------------------------------------------


@pairwise(backend=CPU_BACKENDS, name=list(SCENES), shape=SHAPES)
def test_boundary_map_is_minus_the_inside_distance_and_plus_the_outside_distance(backend, name, shape):
    labels, spacing = scene(name, shape), SPACING[: len(shape)]
    found = rw.boundary_map(labels, 4, spacing=spacing, spatial_dims=len(shape), backend=backend)
    inside, outside = scipy_distance(labels, spacing), scipy_class_distance(labels, 4, spacing)
    expected = torch.where(one_hot(labels, 4) == 1, -inside.unsqueeze(1), outside)
    assert_same(found, torch.where(expected.isinf(), 0.0, expected))


def test_boundary_map_of_a_row_is_what_a_hand_computes(backend):
    found = rw.boundary_map(ROW, 4, backend=backend)
    expected = [[-3, -2, -1, 1, 2, 3], [3, 2, 1, -1, -1, 1], [5, 4, 3, 2, 1, -1], [0] * 6]
    assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize("absent", [0.0, 2.5, -1.0])
def test_boundary_map_of_an_absent_class_holds_absent_in_its_channel(backend, absent):
    labels = scene("without-class-one", (13, 37))
    found = rw.boundary_map(labels, 3, absent=absent, backend=backend)
    assert (found[:, 1] == absent).all()
    assert torch.equal(found[:, 0], rw.boundary_map(labels, 3, backend=backend)[:, 0])


def test_boundary_map_of_one_class_that_fills_the_image_is_zero_in_every_channel(backend):
    labels = torch.stack([torch.full((5, 34), 2), scene("blobs", (5, 34))[0]])
    found = rw.boundary_map(labels, 3, backend=backend)
    assert (found[0] == 0).all()
    assert (found[1] != 0).all()
    found = rw.boundary_map(labels, 3, absent=7.0, inside_offset=1.0, backend=backend)
    assert (found[0, 2] == 0).all()
    assert (found[0, :2] == 7).all()


def test_inside_offset_gives_the_variant_of_kervadec_et_al_in_units_of_spacing(backend):
    labels, spacing = scene("blobs", (13, 37)), (0.5, 2.0)
    plain = rw.boundary_map(labels, 3, spacing=spacing, backend=backend)
    found = rw.boundary_map(labels, 3, spacing=spacing, inside_offset=0.5, backend=backend)
    inside = one_hot(labels, 3) == 1
    torch.testing.assert_close(found[inside], plain[inside] + 0.5)
    assert torch.equal(found[~inside], plain[~inside])
    assert rw.boundary_map(ROW, 3, inside_offset=1.0, backend=backend)[0, 0, 0].tolist() == [-2, -1, 0, 1, 2, 3]


def test_a_black_border_bounds_the_inside_of_a_boundary_map_only(backend):
    labels, spacing = scene("blobs", (13, 37)), (0.5, 2.0)
    found = rw.boundary_map(labels, 3, spacing=spacing, black_border=True, backend=backend)
    inside, outside = scipy_distance(labels, spacing, black_border=True), scipy_class_distance(labels, 3, spacing)
    assert_same(found, torch.where(one_hot(labels, 3) == 1, -inside.unsqueeze(1), outside))


@pytest.mark.parametrize("ignore_index", [-1, -100, 255, 1])
def test_ignored_pixels_of_a_boundary_map_hold_zero_and_bound_regions(backend, ignore_index):
    labels = scene("blobs", (13, 37))
    labels[0, 4:7, 5:30] = ignore_index
    found = rw.boundary_map(labels, 3, ignore_index=ignore_index, backend=backend)
    ignored = labels == ignore_index
    assert (found.movedim(1, -1)[ignored] == 0).all()
    marked = torch.where(ignored, 3, labels)
    inside, outside = scipy_distance(marked), scipy_class_distance(marked, 3)
    expected = torch.where(one_hot(marked, 4)[:, :3] == 1, -inside.unsqueeze(1), outside)
    expected = torch.where(expected.isinf() | ignored.unsqueeze(1), 0.0, expected)
    assert_same(found, expected)


@pytest.mark.parametrize("num_classes", [1, 2, 40])
def test_boundary_map_with_few_and_with_many_classes(backend, num_classes):
    labels = scene("blobs", (11, 19), num_classes=num_classes, batch=1)
    assert_same(
        rw.boundary_map(labels, num_classes, backend=backend), reference.boundary(labels, num_classes, (1.0, 1.0))
    )
