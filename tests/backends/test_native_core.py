"""The compiled module itself: what it refuses, and how it says so."""

import copy
import pickle
from typing import Any

import pytest
import torch
from loss_cases import needs_native

from rwkernels.backends import native
from rwkernels.backends.native.compiled import address, checked
from rwkernels.backends.problem import BadInputError

pytestmark = needs_native
SHAPE, K = (2, 3, 300, 257), 3  # pixels enough for every thread to be woken


def map_problem(image: torch.Tensor, class_max: torch.Tensor | None = None, **changed: Any) -> Any:
    """The core's description of labels."""
    arguments = {
        "labels": image.data_ptr(),
        "label_dtype": "u1",
        "shape": tuple(image.shape),
        "spacing": (),
        "black_border": False,
        "num_classes": K,
        "class_max": address(class_max),
        "ignore": None,
        "validate": True,
        "threads": 1,
    }
    return native.core().MapProblem(**arguments | changed)


def loss_problem(values: torch.Tensor, image: torch.Tensor, foreground: torch.Tensor, **changed: Any) -> Any:
    """The core's description of a loss with a compact map."""
    arguments = {
        "logits": values.data_ptr(),
        "dtype": "f4",
        "shape": tuple(values.shape),
        "strides": values.stride(),
        "map": foreground.data_ptr(),
        "map_dtype": "f4",
        "map_strides": None,
        "labels": image.data_ptr(),
        "label_dtype": "u1",
        "ignore": None,
        "background": 0,
        "background_value": 1.0,
        "class_scale": 0,
        "scale_groups": 1,
        "validate": True,
        "threads": 1,
    }
    return native.core().LossProblem(**arguments | changed)


def bad_labels() -> tuple[torch.Tensor, int]:
    """Labels of which several are bad, in both images, and where the first one lies."""
    labels = torch.randint(K, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = labels.view(-1)
    places = [150_001, 150_000, flat.numel() - 1, flat.numel() // 2 + 5]
    flat[places] = 200
    return labels, min(places)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_first_bad_label_is_named_for_any_number_of_threads(isa, threads):
    core = native.core()
    labels, place = bad_labels()
    field, count = torch.empty(SHAPE), torch.zeros(SHAPE[0], dtype=torch.int64)
    channels = torch.zeros(SHAPE[0], K, *SHAPE[1:])
    described = map_problem(labels, threads=threads)
    assert core.first_bad_label(described) == place
    lossy = loss_problem(channels, labels, field.zero_(), threads=threads)
    grad, sums, signs = torch.empty_like(channels), torch.zeros(2, dtype=torch.float64), torch.zeros(SHAPE).int()
    rest = {"image_scale": 0, "pixel_scale": 0, "pixel_loss": 0}
    calls = [
        lambda: core.class_distance(described, out=channels.data_ptr(), squared=False),
        lambda: core.boundary(described, out=channels.data_ptr(), absent=0.0, inside_offset=0.0),
        lambda: core.rectified(described, field=field.data_ptr(), count=count.data_ptr()),
        lambda: core.region_wise(
            lossy, grad=grad.data_ptr(), grad_strides=grad.stride(), image_sums=sums.data_ptr(), **rest
        ),
        lambda: core.negatives(lossy, probabilities=False, wrong=False, out=signs.data_ptr()),
    ]
    for call in calls:
        with pytest.raises(core.BadValue, match=rf"^labels: bad value at flat index {place}$") as caught:
            call()
        assert (caught.value.argument, caught.value.index) == ("labels", place)
    assert isinstance(caught.value, ValueError)
    assert count.tolist() == [labels[0].numel()] * 2  # all are counted, and everything is written, before it is raised
    assert sums.isnan().all()
    assert signs.view(-1)[place] == -1


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_first_bad_maximum_of_a_present_class_is_named(threads):
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[:, :, :10] = 2  # class 1 is absent
    class_max = torch.tensor([[1.0, 0.0, 5.0], [3.0, float("nan"), -1.0]])
    field = torch.empty(SHAPE)
    described = map_problem(labels, class_max, validate=False, threads=threads)
    with pytest.raises(native.core().BadValue, match=r"^class_max: bad value at flat index 5$") as caught:
        native.core().rectified(described, field=field.data_ptr(), count=0)
    assert (caught.value.argument, caught.value.index) == ("class_max", 5)


def test_what_the_core_raises_becomes_what_every_backend_raises():
    labels, place = bad_labels()
    out = torch.empty(SHAPE)
    with pytest.raises(BadInputError, match=f"^labels: bad value at flat index {place}$") as caught:
        checked(native.core().rectified, map_problem(labels), field=out.data_ptr(), count=0)
    for same in (caught.value, copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert (type(same), same.argument, same.index) == (BadInputError, "labels", place)


def test_nothing_but_a_problem_is_taken_by_its_place():
    core, out = native.core(), torch.empty(SHAPE)
    labels, _ = bad_labels()
    problem = map_problem(labels)
    for wrong in (
        lambda: core.distance(problem, out.data_ptr(), False),
        lambda: core.boundary(problem, out.data_ptr(), 0.0, 0.0),
        lambda: core.MapProblem(labels.data_ptr(), "u1", SHAPE, (), False, K, 0, None, True, 1),
        lambda: core.region_wise(
            problem, grad=0, grad_strides=(), image_scale=0, pixel_scale=0, image_sums=0, pixel_loss=0
        ),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            wrong()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label_dtype": "u2"}, "label_dtype: expected u1, i1, i2, i4 or i8, got 'u2'"),
        ({"shape": (4,)}, r"shape: expected \[B, \*S\] with 1 to 3 spatial axes"),
        ({"shape": (1, -1, 2)}, "shape: expected numbers of 0 or more"),
        ({"shape": (0, 2**40, 2**40)}, "shape: more elements than memory can hold"),
        ({"shape": (1, 2**31, 2)}, r"shape: expected fewer than 2\^31 rows along an axis"),
        ({"spacing": (1.0,)}, "spacing: expected one number for every spatial axis, or none"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing: expected positive finite numbers, got 0"),
        ({"spacing": (1.0, 1e13, 1.0)}, "spacing: expected a ratio of at most 1e12 between axes"),
        ({"num_classes": -1}, "num_classes: expected 0 to 2147483645, got -1"),
        ({"labels": 0}, "labels: missing"),
    ],
)
def test_a_problem_of_maps_that_makes_no_sense_is_refused(changed, message):
    labels, _ = bad_labels()
    with pytest.raises(ValueError, match=message):
        map_problem(labels, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "f1"}, "dtype: expected f4, f8, bf or f2, got 'f1'"),
        ({"map_dtype": "bf"}, "map_dtype: expected f4 or f8 for a compact map"),
        ({"shape": (1,)}, r"shape: expected \[B, K, \*S\] with at most 3 spatial axes"),
        ({"shape": (1, 0, 4, 4)}, "shape: expected at least one class"),
        ({"strides": (1,)}, "strides: expected 2 to 5 strides, got 1"),
        ({"strides": (1, 1, -1, 1)}, "strides: expected strides of 0 or more, got -1"),
        ({"logits": 0}, "logits: missing"),
        ({"map": 0}, "map: missing"),
        ({"labels": 0}, "labels: a compact map needs them"),
        ({"labels": 0, "ignore": 3, "map_strides": (48, 16, 4, 1)}, "labels: ignore needs them"),
        ({"background": 8, "map_strides": (48, 16, 4, 1)}, "background: a dense map has none"),
        ({"scale_groups": 2}, "scale_groups: expected a divisor of the number of images"),
        ({"threads": 0}, "threads: expected at least 1"),
    ],
)
def test_a_problem_of_losses_that_makes_no_sense_is_refused(changed, message):
    logits, labels = torch.zeros(1, K, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        loss_problem(logits, labels, torch.zeros(1, 4, 4), **changed)
