"""What follows from a problem alone, against numbers written by hand: fast backends and the reference share it."""

import math

import pytest
import torch

from rwkernels.backends.problem import (
    BadInputError,
    CompactProblem,
    LossProblem,
    MapProblem,
    all_class_scales,
    gradient_scale,
    mean_divisor,
    per_image,
    reduced,
    refuse_bad_values,
    scaled_gradient,
)


def problem(**changes):
    """Two images of 2 x 3 pixels, three classes; four pixels of the first and one of the second are ignored."""
    labels = torch.tensor([[[0, 1, 9], [9, 9, 9]], [[2, 9, 0], [0, 1, 1]]])
    given = {
        "logits": torch.zeros(2, 3, 2, 3),
        "maps": torch.zeros(2, 2, 3),
        "labels": labels,
        "background": None,
        "class_scale": None,
        "image_count": None,
        "background_value": 1.0,
        "ignore_index": 9,
        "include_background": True,
        "reduction": "mean",
        "validate": False,
        "backend": None,
        "groups": 0,
    }
    return LossProblem(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(2 + 5) * 3]),
        ({"include_background": False}, [(2 + 5) * 2]),
        ({"ignore_index": None}, [12 * 3]),
        ({"ignore_index": None, "include_background": False}, [12 * 2]),
        ({"groups": 2}, [2 * 3, 5 * 3]),
        ({"groups": 2, "ignore_index": None}, [6 * 3, 6 * 3]),
        ({"image_count": torch.tensor([1, 3])}, [4 * 3]),  # what the map brings is not counted again
        ({"labels": torch.full((2, 2, 3), 9)}, [1]),
        ({"labels": torch.full((2, 2, 3), 9), "groups": 2}, [1, 1]),
    ],
    ids=str,
)
def test_the_divisor_of_a_mean_is_the_pixels_that_count_times_the_channels(changes, expected):
    found = mean_divisor(problem(**changes))
    assert found.dtype == torch.float64
    assert found.tolist() == expected


def test_a_value_of_a_run_is_that_of_each_of_its_images():
    four = problem(logits=torch.zeros(4, 3, 2, 3), groups=2)
    assert per_image(torch.tensor([5.0, 7.0]), four).tolist() == [5, 5, 7, 7]


@pytest.mark.parametrize(
    ("changes", "upstream", "divide", "expected"),
    [
        ({}, None, True, [1 / 21, 1 / 21]),
        ({}, 2.0, True, [2 / 21, 2 / 21]),
        ({}, 2.0, False, [2, 2]),
        ({}, None, False, None),
        ({"reduction": "sum"}, 3.0, True, [3, 3]),
        ({"reduction": "sum"}, None, True, None),
        ({"groups": 2}, [2.0, 4.0], True, [2 / 6, 4 / 15]),
    ],
    ids=str,
)
def test_a_gradient_is_scaled_by_what_comes_in_over_the_divisor(changes, upstream, divide, expected):
    given = None if upstream is None else torch.tensor(upstream)
    image, pixel = gradient_scale(problem(**changes), given, divide)
    assert pixel is None
    if expected is None:
        assert image is None
    else:
        assert image is not None
        assert image.dtype == torch.float64
        torch.testing.assert_close(image, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_a_gradient_of_every_pixels_loss_is_scaled_pixel_by_pixel():
    incoming = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2).transpose(1, 2)
    image, pixel = gradient_scale(problem(reduction="none"), incoming, True)
    assert image is None
    assert pixel is not None
    assert pixel.dtype == torch.float32
    assert pixel.is_contiguous()
    assert pixel.tolist() == incoming.tolist()
    assert gradient_scale(problem(reduction="none"), None, True) == (None, None)


def test_a_kept_gradient_is_scaled_in_its_own_dtype_and_in_place_only_where_asked():
    kept = torch.ones(2, 3, 2, 3, dtype=torch.bfloat16)
    found = scaled_gradient(problem(groups=2), kept, torch.tensor([2.0, 4.0]), divide=False, in_place=False)
    assert found.dtype == torch.bfloat16
    assert (found[0] == 2).all()
    assert (found[1] == 4).all()
    assert (kept == 1).all()
    same = scaled_gradient(problem(), kept, torch.tensor(21.0), divide=True, in_place=True)
    assert same is kept
    assert (kept == 1).all()  # 21 over the 21 of the divisor
    scaled_gradient(problem(), kept, torch.tensor(3.0), divide=False, in_place=True)
    assert (kept == 3).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [10 / 21]),
        ({"reduction": "sum"}, [10]),
        ({"groups": 2}, [3 / 6, 7 / 15]),
        ({"groups": 2, "reduction": "sum"}, [3, 7]),
        ({"labels": torch.full((2, 2, 3), 9)}, [10]),  # nothing counts: over 1, and no NaN
    ],
    ids=str,
)
def test_sums_of_images_are_reduced_run_by_run(changes, expected):
    found = reduced(torch.tensor([3.0, 7.0], dtype=torch.float64), problem(**changes))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-7, atol=0)
    wide = reduced(torch.tensor([3.0, 7.0], dtype=torch.float64), problem(logits=torch.zeros(2, 3, 2, 3).double()))
    assert wide.dtype == torch.float64


def test_a_channel_that_is_left_out_has_the_scale_zero():
    assert all_class_scales(problem()) is None
    assert all_class_scales(problem(include_background=False)).tolist() == [0, 1, 1]
    scale = torch.tensor([[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]])
    assert all_class_scales(problem(class_scale=scale)) is scale
    assert all_class_scales(problem(class_scale=scale, include_background=False)).tolist() == [[0, 3, 4], [0, 6, 7]]


def test_a_compact_map_is_known_by_its_axes_and_the_loss_by_its_logits():
    assert problem().compact
    assert not problem(maps=torch.zeros(2, 3, 2, 3)).compact
    assert (problem().runs, problem(groups=2).runs) == (1, 2)
    assert (problem().channels, problem(include_background=False).channels) == (3, 2)
    dtypes = {
        dtype: problem(logits=torch.zeros(2, 3, 2, 3, dtype=dtype)).loss_dtype
        for dtype in (torch.float64, torch.float16)
    }
    assert dtypes == {torch.float64: torch.float64, torch.float16: torch.float32}


def test_maps_have_a_channel_for_every_class():
    labels = torch.zeros(2, 5, 7, dtype=torch.uint8)
    assert MapProblem(labels, 3, (1.0, 1.0), None, False, None, True, None).shape == [2, 3, 5, 7]
    assert CompactProblem(labels, labels.float(), None, 1.0, None, 3, None, None).shape == [2, 3, 5, 7]


def test_a_bad_label_is_told_before_a_bad_maximum_and_ignored_or_absent_ones_are_none():
    labels = torch.tensor([[[0, 1, 1]], [[0, 9, 3]]])
    maxima = torch.tensor([[1.0, math.inf, 0.0], [1.0, 0.0, 0.0]])
    given = MapProblem(labels, 3, (1.0, 1.0), maxima, False, 9, True, None)
    with pytest.raises(BadInputError) as found:
        refuse_bad_values(given)
    assert (found.value.argument, found.value.index) == ("labels", 5)
    with pytest.raises(BadInputError) as found:
        refuse_bad_values(given._replace(labels=labels.clamp(max=2)))  # 9 is no longer there
    assert (found.value.argument, found.value.index) == ("class_max", 1)
    refuse_bad_values(given._replace(labels=torch.zeros_like(labels)))
