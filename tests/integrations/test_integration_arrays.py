"""Maps written as arrays of channels and read back: what MONAI's and TorchIO's samples hold."""

import pytest
import torch
from loss_cases import FAMILIES, random_labels, random_logits, written_out

import rwkernels as rw
from rwkernels.integrations.arrays import ArrayMap, build, read_map

CLASSES = 3
SPACINGS = [(0.5, 2.0), (3.0, 1.0)]


def labels(ignore_index=None):
    return random_labels((2, 9, 11), CLASSES, ignore_index)


def maps_of(family, of_image, spacing, **options):
    return rw.RegionWiseLoss(family, spacing=spacing, **options).build_map(of_image, CLASSES)


def dense(maps):
    return written_out(maps).float() if isinstance(maps, rw.RectifiedMap) else maps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ignore_index", [None, 255], ids=["none-ignored", "ignore255"])
def test_images_of_one_batch_may_differ_in_spacing(ignore_index, family):
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    whole = labels(ignore_index)
    found = build(family, whole, CLASSES, SPACINGS, **options)
    alone = [maps_of(family, whole[i : i + 1], SPACINGS[i], **options) for i in range(2)]
    torch.testing.assert_close(dense(found), torch.cat([dense(maps) for maps in alone]), rtol=0, atol=0)
    expected = torch.stack(
        [
            rw.region_wise_loss(
                _logits()[i : i + 1], alone[i], **_extra(alone[i], whole[i : i + 1], options), reduction="sum"
            )
            for i in range(2)
        ]
    ).sum()
    counted = int((whole != 255).sum()) * CLASSES
    loss = rw.region_wise_loss(_logits(), found, **_extra(found, whole, options))
    torch.testing.assert_close(loss, expected / counted)


def _logits():
    return random_logits((2, CLASSES, 9, 11))


def _extra(maps, of_image, options):
    return options if isinstance(maps, rw.RectifiedMap) else {"labels": of_image, **options}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("output", ["foreground", "dense"])
@pytest.mark.parametrize("ignore_index", [None, 255], ids=["none-ignored", "ignore255"])
def test_what_is_written_and_cropped_with_its_labels_is_the_crop_of_the_map(ignore_index, output, family):
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    if (family, output) == ("boundary", "foreground"):
        with pytest.raises(ValueError, match='output: expected "dense" for boundary maps'):
            ArrayMap(CLASSES, family, output)
        return
    whole = labels(ignore_index)
    array = ArrayMap(CLASSES, family, output, **options)(whole[:, None].float()[:, 0], SPACINGS)
    assert array.shape == (2, 1 if output == "foreground" else CLASSES, 9, 11)
    assert array.dtype == torch.float32
    crop = (..., slice(2, 8), slice(3, 10))
    found = read_map(array[crop], whole[:, None][crop].float(), CLASSES, ignore_index)
    expected = build(family, whole, CLASSES, SPACINGS, **options)
    cropped = expected[(slice(None), *crop[1:])] if isinstance(expected, rw.RectifiedMap) else expected[crop]
    logits = _logits()[crop]
    loss = rw.region_wise_loss(logits, found, **_extra(found, whole[crop], options))
    truth = rw.region_wise_loss(logits, cropped, **_extra(cropped, whole[crop], options))
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=1e-6)


def test_the_smallest_array_is_the_default():
    assert {family: ArrayMap(CLASSES, family).output for family in FAMILIES} == {
        "rectified": "foreground",
        "boundary": "dense",
        "active_contour": "foreground",
        "constant": "foreground",
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"maps": "rrw"}, ValueError, "maps: expected one of 'rectified'"),
        ({"output": "compact"}, ValueError, "output: expected one of 'foreground', 'dense'"),
        ({"num_classes": 0}, ValueError, "num_classes: expected"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index: expected"),
        ({"class_max": 1.0}, TypeError, "class_max"),
    ],
)
def test_bad_settings_are_refused_before_the_first_sample(arguments, error, message):
    with pytest.raises(error, match=message):
        ArrayMap(**{"num_classes": CLASSES, **arguments})


def test_an_array_that_is_no_map_of_the_labels_is_refused():
    whole = labels()
    with pytest.raises(ValueError, match=r"array: expected a map \[B, 1, \*S\] or \[B, 3, \*S\]"):
        read_map(torch.zeros(2, 2, 9, 11), whole, CLASSES)
    with pytest.raises(TypeError, match="array: expected float32"):
        read_map(whole[:, None], whole, CLASSES)
    with pytest.raises(ValueError, match="labels: expected shape"):
        read_map(torch.zeros(2, 1, 9, 11), whole[:, 1:], CLASSES)
