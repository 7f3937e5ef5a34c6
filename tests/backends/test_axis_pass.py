"""The single steps of the transform that blocks of a large volume take, with every instruction set."""

import numpy as np
import pytest
import torch
from samples import scene

from rwkernels.backends import native, reference

# The axis that is passed, of images whose lines are as long as the ways to search them: windows, divide and conquer.
PASSES = [((7, 5), 0), ((3, 33, 70), 1), ((67, 5, 9), 0), ((2, 131, 37), 1), ((300, 33), 0)]


def squares(shape, axis, seed=0, inf=True):
    """Squared distances as they come from the pass before, some hyperplanes without any."""
    random = np.random.default_rng(seed)
    field = random.integers(1, 5000, shape).astype(np.float32)
    if inf:
        np.moveaxis(field, axis, 0)[random.random(shape[axis]) < 0.2] = np.inf
    return torch.from_numpy(field)


def both(field, labels, *arguments):
    found, expected = field.clone(), field.clone()
    native.pass_axis(found, labels, *arguments)
    reference.pass_axis(expected, labels, *arguments)
    return found, expected


@pytest.mark.parametrize("name", ["blobs", "random", "uniform", "one-odd-pixel"])
@pytest.mark.parametrize(("shape", "axis"), PASSES, ids=str)
def test_a_pass_has_the_bits_of_the_reference(isa, shape, axis, name):
    labels = scene(name, shape, batch=1, dtype=torch.uint8)[0]
    if len(shape) == 3 and axis == 1:  # images side by side: each has its own hyperplanes without distances
        field = torch.stack([squares(shape[1:], 0, seed) for seed in range(shape[0])])
    else:
        field = squares(shape, axis)
    for unit, border in ((1.0, False), (0.37, True)):
        found, expected = both(field, labels, axis, unit, False, border)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("border", [False, True])
def test_the_first_pass_reads_no_distances(isa, border):
    for shape in ((9, 70), (4, 1), (1, 1031)):
        labels = scene("sparse", shape, batch=1, dtype=torch.int32)[0]
        found, expected = both(torch.full(shape, torch.nan), labels, 1, 1.0, True, border)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("unit", [1.0, 0.37])
def test_columns_whose_nearest_rows_lie_far_apart_have_the_bits_of_the_reference(isa, unit):
    """Too many candidates for columns side by side: they are finished one by one, by their lower envelope."""
    rows, columns = 1024, 40
    field = torch.from_numpy(np.random.default_rng(0).uniform(1e6, 3e6, (rows, columns)).astype(np.float32).round())
    for column in range(columns):
        field[(column * 389) % rows, column] = 1.0
        field[(column * 389 + 500) % rows, column] = 9.0
    labels = torch.zeros(rows, columns, dtype=torch.uint8)
    found, expected = both(field, labels, 0, unit, False, False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_classes", [1, 3, 40])
@pytest.mark.parametrize("ignore_index", [None, 0, -1, 300])
def test_rectifying_and_the_largest_of_classes_are_those_of_the_reference(isa, num_classes, ignore_index):
    random = np.random.default_rng(num_classes)
    for size in (1, 37, 70_001):  # one vector, and more than one thread's piece
        labels = torch.from_numpy(random.integers(0, num_classes, size).astype(np.int16))
        if ignore_index is not None:
            labels[size // 2 :: 5] = ignore_index
        field = torch.from_numpy(random.integers(1, 900, size).astype(np.float32))
        largest = native.largest_of_classes(field, labels, num_classes)
        assert torch.equal(largest, reference.largest_of_classes(field, labels, num_classes))
        given = torch.from_numpy(random.uniform(5, 20, num_classes).astype(np.float32))
        for class_max in (None, given):
            found, expected = field.clone(), field.clone()
            arguments = (labels, num_classes, 1.5 * largest, class_max, 0.7, ignore_index)
            native.rectify(found, *arguments)
            reference.rectify(expected, *arguments)
            torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("label", "ignore_index"), [(2, None), (2, 2), (0, -1)])
def test_a_block_of_an_image_of_one_label_is_minus_one_or_ignored(isa, label, ignore_index):
    field = torch.full((50,), torch.inf)
    expected = field.clone()
    arguments = (torch.full((50,), label), 3, torch.full((3,), torch.inf), None, 1.0, ignore_index)
    native.rectify(field, *arguments)
    reference.rectify(expected, *arguments)
    assert torch.equal(field, expected)
    assert set(field.tolist()) == {0.0 if label == ignore_index else -1.0}


def test_what_the_core_cannot_pass_is_refused(isa):
    field, labels = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.uint8)
    for unit in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="unit: expected a positive finite number"):
            native.pass_axis(field, labels, 0, unit, False, False)
    with pytest.raises(ValueError, match="inner: expected 1 on the first axis"):
        native.pass_axis(field, labels, 0, 1.0, True, False)
    assert torch.equal(field, torch.zeros(3, 4))
