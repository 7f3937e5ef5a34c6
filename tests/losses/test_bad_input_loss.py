"""Every wrong argument of the losses is refused by name, with what was expected and what came."""

import numpy as np
import pytest
import torch
from loss_cases import make_case, random_labels, random_logits

import rwkernels as rw

CLASSES = 3
LOGITS = random_logits((2, CLASSES, 5, 7))
LABELS = random_labels((2, 5, 7), CLASSES)
MAPS = make_case().maps
DENSE = make_case("dense").maps


def _changed(**fields):
    """The map with other fields."""
    values = {"labels": MAPS.labels, "foreground": MAPS.foreground, "background": 1.0, "num_classes": CLASSES}
    return rw.RectifiedMap(**{**values, **fields})


def _function(*arguments, **options):
    return lambda: rw.region_wise_loss(*arguments, **options)


# What is called, the error, the argument that it names first, what was expected, and what came.
OF_THE_FUNCTION = {
    "logits of a list": (
        _function([[1.0]], MAPS),
        (TypeError, "logits", "a torch.Tensor", "list"),
    ),
    "logits of an array": (
        _function(LOGITS.numpy(), MAPS),
        (TypeError, "logits", "a torch.Tensor", "ndarray"),
    ),
    "logits that are integers": (
        _function(LOGITS.long(), MAPS),
        (TypeError, "logits", "float32, float64, bfloat16 or float16", "a int64 tensor"),
    ),
    "logits that are complex": (
        _function(LOGITS.to(torch.complex64), MAPS),
        (TypeError, "logits", "float32", "a complex64 tensor"),
    ),
    "logits without spatial axes": (
        _function(LOGITS[:, :, 0, 0], MAPS),
        (ValueError, "logits", r"\[B, K, \*S\]", r"shape \[2, 3\]"),
    ),
    "logits of four spatial axes": (
        _function(LOGITS[..., None, None], MAPS),
        (ValueError, "logits", "1 to 3 spatial axes", r"shape \[2, 3, 5, 7, 1, 1\]"),
    ),
    "logits without a channel": (
        _function(LOGITS[:, :0], MAPS),
        (ValueError, "logits", "at least one channel", r"shape \[2, 0, 5, 7\]"),
    ),
    "a map of more classes than the logits": (
        _function(LOGITS, _changed(num_classes=4)),
        (ValueError, "maps", r"\(3\)", "num_classes=4"),
    ),
    "a map of fewer classes than the logits": (
        _function(LOGITS, _changed(num_classes=2)),
        (ValueError, "maps", r"\(3\)", "num_classes=2"),
    ),
    "a compact map of a smaller image": (
        _function(LOGITS, MAPS[:, 1:]),
        (ValueError, "maps.labels", r"\[2, 5, 7\]", r"shape \[2, 4, 7\]"),
    ),
    "a compact map of fewer images": (
        _function(LOGITS, MAPS[:1]),
        (ValueError, "maps.labels", r"\[2, 5, 7\]", r"shape \[1, 5, 7\]"),
    ),
    "a foreground of another shape": (
        _function(LOGITS, _changed(foreground=MAPS.foreground[:, 1:])),
        (ValueError, "maps.foreground", r"\[2, 5, 7\]", r"shape \[2, 4, 7\]"),
    ),
    "a background of another shape": (
        _function(LOGITS, _changed(background=MAPS.foreground[:1])),
        (ValueError, "maps.background", r"\[2, 5, 7\]", r"shape \[1, 5, 7\]"),
    ),
    "a class scale of another length": (
        _function(LOGITS, _changed(class_scale=torch.ones(4))),
        (ValueError, "maps.class_scale", r"\[3\]", r"shape \[4\]"),
    ),
    "a count of other images": (
        _function(LOGITS, _changed(ignore_index=-1, image_count=torch.ones(3, dtype=torch.int64))),
        (ValueError, "maps.image_count", r"\[2\]", r"shape \[3\]"),
    ),
    "floating labels inside a map": (
        _function(LOGITS, _changed(labels=MAPS.labels.float())),
        (TypeError, "maps.labels", "integer labels", "a float32 tensor"),
    ),
    "an integer foreground": (
        _function(LOGITS, _changed(foreground=MAPS.labels)),
        (TypeError, "maps.foreground", "float32", "a int64 tensor"),
    ),
    "an integer background": (
        _function(LOGITS, _changed(background=MAPS.labels)),
        (TypeError, "maps.background", "float32", "a int64 tensor"),
    ),
    "a map over arrays": (
        _function(LOGITS, rw.rectified_map(LABELS.numpy(), CLASSES)),
        (TypeError, "maps", "torch tensors", "arrays"),
    ),
    "a dense map of another shape": (
        _function(LOGITS, DENSE[..., 1:]),
        (ValueError, "maps", r"\[2, 3, 5, 7\]", r"shape \[2, 3, 5, 6\]"),
    ),
    "a dense map that would broadcast": (
        _function(LOGITS, DENSE[:1]),
        (ValueError, "maps", r"\[2, 3, 5, 7\]", r"shape \[1, 3, 5, 7\]"),
    ),
    "a dense map of another class count": (
        _function(LOGITS, DENSE[:, 1:]),
        (ValueError, "maps", r"\[2, 3, 5, 7\]", r"shape \[2, 2, 5, 7\]"),
    ),
    "labels in the place of a map": (
        _function(LOGITS, LABELS),
        (TypeError, "maps", "a floating map or a RectifiedMap", "a int64 tensor"),
    ),
    "a boolean map": (
        _function(LOGITS, DENSE > 0),
        (TypeError, "maps", "float32", "a bool tensor"),
    ),
    "a list as a map": (
        _function(LOGITS, [1.0]),
        (TypeError, "maps", "a torch.Tensor", "list"),
    ),
    "no map": (
        _function(LOGITS, None),
        (TypeError, "maps", "a torch.Tensor", "NoneType"),
    ),
    "an array as a map": (
        _function(LOGITS, np.zeros((2, 3, 5, 7))),
        (TypeError, "maps", "a torch.Tensor", "ndarray"),
    ),
    "labels beside a compact map": (
        _function(LOGITS, MAPS, labels=LABELS),
        (ValueError, "labels", "None", "a int64 tensor"),
    ),
    "another ignore_index than the map's": (
        _function(LOGITS, _changed(ignore_index=255), ignore_index=-1),
        (ValueError, "ignore_index", "255", "-1"),
    ),
    "a dense map with ignore_index and no labels": (
        _function(LOGITS, DENSE, ignore_index=-1),
        (ValueError, "labels", "the labels of the map", "None"),
    ),
    "labels of another shape": (
        _function(LOGITS, DENSE, labels=LABELS[:, 1:], ignore_index=-1),
        (ValueError, "labels", r"\[2, 5, 7\]", r"shape \[2, 4, 7\]"),
    ),
    "labels with two channels": (
        _function(LOGITS, DENSE, labels=LABELS[:, None].expand(2, 2, 5, 7), ignore_index=-1),
        (ValueError, "labels", r"\[2, 5, 7\]", r"shape \[2, 2, 5, 7\]"),
    ),
    "floating labels": (
        _function(LOGITS, DENSE, labels=LABELS.float(), ignore_index=-1),
        (TypeError, "labels", "integer labels", "a float32 tensor"),
    ),
    "labels of a list": (
        _function(LOGITS, DENSE, labels=[0], ignore_index=-1),
        (TypeError, "labels", "a torch.Tensor", "list"),
    ),
    "an ignore_index that is no integer": (
        _function(LOGITS, DENSE, labels=LABELS, ignore_index=1.5),
        (TypeError, "ignore_index", "an integer", "1.5"),
    ),
    "an ignore_index that is a truth value": (
        _function(LOGITS, DENSE, labels=LABELS, ignore_index=True),
        (TypeError, "ignore_index", "an integer", "True"),
    ),
    "an unknown reduction": (
        _function(LOGITS, MAPS, reduction="average"),
        (ValueError, "reduction", "'mean', 'sum', 'none'", "'average'"),
    ),
    "a reduction of None": (
        _function(LOGITS, MAPS, reduction=None),
        (ValueError, "reduction", "'mean', 'sum', 'none'", "None"),
    ),
    "include_background that is a number": (
        _function(LOGITS, MAPS, include_background=0),
        (TypeError, "include_background", "True or False", "0"),
    ),
    "recompute that is a word": (
        _function(LOGITS, MAPS, recompute="yes"),
        (TypeError, "recompute", "True or False", "'yes'"),
    ),
    "validate that is a number": (
        _function(LOGITS, MAPS, validate=1),
        (TypeError, "validate", "True, False or None|True or False", "1"),
    ),
    "an unknown backend": (
        _function(LOGITS, MAPS, backend="fortran"),
        (ValueError, "backend", "'native', 'triton', 'cucim', 'reference'", "'fortran'"),
    ),
    "logits elsewhere than the compact map": (
        _function(LOGITS.to("meta"), MAPS),
        (ValueError, "maps.labels", "on meta like logits", "on cpu"),
    ),
    "a compact map elsewhere": (
        _function(LOGITS, MAPS.to("meta")),
        (ValueError, "maps.labels", "on cpu like logits", "on meta"),
    ),
    "a foreground elsewhere": (
        _function(LOGITS, _changed(foreground=MAPS.foreground.to("meta"))),
        (ValueError, "maps.foreground", "on cpu like logits", "on meta"),
    ),
    "a background elsewhere": (
        _function(LOGITS, _changed(background=MAPS.foreground.to("meta"))),
        (ValueError, "maps.background", "on cpu like logits", "on meta"),
    ),
    "a class scale elsewhere": (
        _function(LOGITS, _changed(class_scale=torch.ones(3, device="meta"))),
        (ValueError, "maps.class_scale", "on cpu like logits", "on meta"),
    ),
    "a dense map elsewhere": (
        _function(LOGITS, DENSE.to("meta")),
        (ValueError, "maps", "on cpu like logits", "on meta"),
    ),
    "labels elsewhere": (
        _function(LOGITS, DENSE, labels=LABELS.to("meta"), ignore_index=-1),
        (ValueError, "labels", "on cpu like logits", "on meta"),
    ),
    "a count elsewhere": (
        _function(LOGITS, _changed(ignore_index=-1, image_count=torch.ones(2, dtype=torch.int64, device="meta"))),
        (ValueError, "maps.image_count", "on cpu like logits", "on meta"),
    ),
}


def _module(*arguments, **options):
    return lambda: rw.RegionWiseLoss(**options)(*arguments)


OF_THE_MODULES = {
    "an unknown family": (
        lambda: rw.RegionWiseLoss("rectifed"),
        (ValueError, "maps", "'rectified', 'boundary', 'active_contour', 'constant'", "'rectifed'"),
    ),
    "a spacing of zero": (
        lambda: rw.RegionWiseLoss(spacing=(1.0, 0.0)),
        (ValueError, "spacing", "positive numbers", r"\(1.0, 0.0\)"),
    ),
    "a spacing that is no number": (
        lambda: rw.RegionWiseLoss(spacing=float("nan")),
        (ValueError, "spacing", "a finite number", "nan"),
    ),
    "a spacing for other axes": (
        _module(LOGITS, LABELS, spacing=(1.0, 1.0, 2.0)),
        (ValueError, "spacing", r"one number or 2", "3"),
    ),
    "an ignore_index that is no integer": (
        lambda: rw.RegionWiseLoss(ignore_index="void"),
        (TypeError, "ignore_index", "an integer", "'void'"),
    ),
    "an unknown reduction": (
        lambda: rw.RegionWiseLoss(reduction="average"),
        (ValueError, "reduction", "'mean', 'sum', 'none'", "'average'"),
    ),
    "include_background that is a number": (
        lambda: rw.RegionWiseLoss(include_background=1),
        (TypeError, "include_background", "True or False", "1"),
    ),
    "class weights of another length": (
        _module(LOGITS, LABELS, class_weight=[1.0, 2.0]),
        (ValueError, "class_weight", r"\[3\]", r"shape \[2\]"),
    ),
    "class weights that are words": (
        lambda: rw.RegionWiseLoss(class_weight=["a", "b"]),
        (TypeError, "class_weight", "a number", "'a'"),
    ),
    "class weights that are integers": (
        lambda: rw.RegionWiseLoss(class_weight=torch.tensor([1, 2, 3])),
        (TypeError, "class_weight", "float32", "a int64 tensor"),
    ),
    "class weights that are one number": (
        lambda: rw.RegionWiseLoss(class_weight=2.0),
        (TypeError, "class_weight", "one number per class", "float 2.0"),
    ),
    "class weights in a table": (
        lambda: rw.RegionWiseLoss(class_weight=torch.ones(1, 3)),
        (TypeError, "class_weight", "one number per class", r"shape \[1, 3\]"),
    ),
    "class weights on another device": (
        lambda: rw.RegionWiseLoss(class_weight=[1.0, 2.0, 3.0]).to("meta")(LOGITS, LABELS),
        (ValueError, "(class_)?weight", "on cpu", "on meta"),
    ),
    "labels on another device": (
        _module(LOGITS, LABELS.to("meta")),
        (ValueError, "labels", "on cpu like logits", "on meta"),
    ),
    "labels out of range": (
        _module(LOGITS, LABELS + 1),
        (ValueError, "labels", r"integers in \[0, 3\)", "got 3 at"),
    ),
    "labels of another shape": (
        _module(LOGITS, LABELS[:, :-1]),
        (ValueError, "labels", r"\[2, 5, 7\]", r"shape \[2, 4, 7\]"),
    ),
    "one-hot labels": (
        _module(LOGITS, torch.nn.functional.one_hot(LABELS).movedim(-1, 1)),
        (ValueError, "labels", r"\[2, 5, 7\]", r"shape \[2, 3, 5, 7\]"),
    ),
    "labels of a list": (
        _module(LOGITS, [[0]]),
        (TypeError, "labels_or_maps", "a torch.Tensor", "list"),
    ),
    "labels twice": (
        _module(LOGITS, LABELS, LABELS),
        (ValueError, "labels", "None beside labels", "a int64 tensor"),
    ),
    "labels beside a compact map": (
        _module(LOGITS, MAPS, LABELS),
        (ValueError, "labels", "None", "a int64 tensor"),
    ),
    "logits of a list": (
        _module([0.0], LABELS),
        (TypeError, "logits", "a torch.Tensor", "list"),
    ),
    "a family for the boundary loss": (
        lambda: rw.BoundaryLoss(maps="rectified"),
        (TypeError, "maps", "no such argument", "BoundaryLoss"),
    ),
    "an absent value that is no number": (
        lambda: rw.BoundaryLoss(absent="zero"),
        (TypeError, "absent", "a number", "'zero'"),
    ),
    "an infinite inside_offset": (
        lambda: rw.BoundaryLoss(inside_offset=float("inf")),
        (ValueError, "inside_offset", "a finite number", "inf"),
    ),
    "an unknown schedule": (
        lambda: rw.CombinedLoss(torch.nn.CrossEntropyLoss(), rw.RegionWiseLoss(), schedule="linear"),
        (ValueError, "schedule", "'equal', 'gradual'", "'linear'"),
    ),
    "a step of more than one": (
        lambda: rw.CombinedLoss(torch.nn.CrossEntropyLoss(), rw.RegionWiseLoss(), alpha_step=2),
        (ValueError, "alpha_step", r"\[0, 1\]", "2"),
    ),
    "a least alpha below zero": (
        lambda: rw.CombinedLoss(torch.nn.CrossEntropyLoss(), rw.RegionWiseLoss(), alpha_min=-0.1),
        (ValueError, "alpha_min", r"\[0, 1\]", "-0.1"),
    ),
    "a region loss that cannot be called": (
        lambda: rw.CombinedLoss(3, rw.RegionWiseLoss()),
        (TypeError, "region_loss", "a loss", "int 3"),
    ),
}


def _as_parameters(cases):
    return [pytest.param(call, *error, id=label.replace(" ", "-")) for label, (call, error) in cases.items()]


@pytest.mark.parametrize(("call", "error", "argument", "expected", "came"), _as_parameters(OF_THE_FUNCTION))
def test_the_function_names_the_wrong_argument_what_it_expected_and_what_came(call, error, argument, expected, came):
    with pytest.raises(error, match=rf"^{argument}: .*({expected}).*({came})"):
        call()


@pytest.mark.parametrize(("call", "error", "argument", "expected", "came"), _as_parameters(OF_THE_MODULES))
def test_the_modules_name_the_wrong_argument_what_they_expected_and_what_came(call, error, argument, expected, came):
    with pytest.raises(error, match=rf"^{argument}: .*({expected}).*({came})"):
        call()


def test_nothing_is_refused_of_what_these_tests_start_from():
    assert rw.region_wise_loss(LOGITS, MAPS).isfinite()
    assert rw.region_wise_loss(LOGITS, DENSE, labels=LABELS, ignore_index=-1).isfinite()
    assert rw.region_wise_loss(LOGITS, _changed()).isfinite()
    assert rw.RegionWiseLoss(class_weight=[1.0, 2.0, 3.0])(LOGITS, LABELS).isfinite()


def test_a_refused_call_leaves_no_trace_in_the_arguments():
    logits, labels = LOGITS.clone().requires_grad_(), LABELS.clone()
    labels[0, 0, 0] = CLASSES
    before = labels.clone()
    with pytest.raises(ValueError, match="labels"):
        rw.RegionWiseLoss()(logits, labels)
    assert logits.grad is None
    assert torch.equal(logits.detach(), LOGITS)
    assert torch.equal(labels, before)
