"""CombinedLoss: a region loss joined with a region-wise one, equally or fading from one into the other."""

import io

import pytest
import torch
from loss_cases import (
    loss_and_gradient,
    random_labels,
    random_logits,
)
from torch import nn

import rwkernels as rw

CLASSES = 4
SHAPE = (7, 10)


def _labels(shape=SHAPE, ignore_index=None, seed=0, **options):
    return random_labels((2, *shape), CLASSES, ignore_index, seed, **options)


def _logits(shape=SHAPE, dtype=torch.float32):
    return random_logits((2, CLASSES, *shape), dtype)


def _combined(**options):
    return rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(), **options)


def _parts():
    return nn.CrossEntropyLoss()(_logits(), _labels()), rw.RegionWiseLoss()(_logits(), _labels())


def test_the_equal_schedule_is_the_sum_of_both_losses_in_every_epoch():
    loss_fn = _combined()
    for _ in range(3):
        torch.testing.assert_close(loss_fn(_logits(), _labels()), sum(_parts()))
        loss_fn.step()


def test_the_gradual_schedule_goes_from_one_to_a_hundredth_by_a_hundredth_an_epoch():
    loss_fn = _combined(schedule="gradual")
    region, region_wise = _parts()
    for epoch in range(120):
        alpha = max(1 - 0.01 * epoch, 0.01)  # section 4.3
        assert float(loss_fn.alpha) == pytest.approx(alpha, abs=1e-12)
        if epoch in (0, 40, 99, 119):
            expected = alpha * region + (1 - alpha) * region_wise
            torch.testing.assert_close(loss_fn(_logits(), _labels()), expected)
        loss_fn.step()


def test_step_and_least_alpha_can_be_chosen():
    loss_fn = _combined(schedule="gradual", alpha_step=0.3, alpha_min=0.25)
    found = []
    for _ in range(5):
        found.append(float(loss_fn.alpha))
        loss_fn.step()
    assert found == pytest.approx([1.0, 0.7, 0.4, 0.25, 0.25])


def test_alpha_is_in_the_state_dict_and_training_resumes_with_it():
    loss_fn = _combined(schedule="gradual")
    for _ in range(30):
        loss_fn.step()
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    resumed = _combined(schedule="gradual")
    resumed.load_state_dict(torch.load(file))
    assert resumed(_logits(), _labels()) == loss_fn(_logits(), _labels())
    resumed.step()
    assert float(resumed.alpha) == pytest.approx(0.69)


def test_both_parts_of_a_combined_loss_send_a_gradient_to_the_logits():
    labels = _labels()
    loss_fn = _combined(schedule="gradual", alpha_step=0.25)
    loss_fn.step()
    _, found = loss_and_gradient(lambda x: loss_fn(x, labels), _logits())
    _, region = loss_and_gradient(lambda x: nn.CrossEntropyLoss()(x, labels), _logits())
    _, region_wise = loss_and_gradient(lambda x: rw.RegionWiseLoss()(x, labels), _logits())
    torch.testing.assert_close(found, 0.75 * region + 0.25 * region_wise)


def test_a_map_spares_the_combined_loss_to_build_its_own():
    labels = _labels()
    maps = rw.active_contour_map(labels, CLASSES)
    expected = nn.CrossEntropyLoss()(_logits(), labels) + rw.region_wise_loss(_logits(), maps)
    torch.testing.assert_close(_combined()(_logits(), labels, maps), expected)


def test_the_gradual_schedule_stays_in_the_dtype_of_the_loss():
    loss_fn = _combined(schedule="gradual")
    loss_fn.step()
    assert loss_fn(_logits(), _labels()).dtype == torch.float32
    assert loss_fn(_logits(dtype=torch.float64), _labels()).dtype == torch.float64


def test_alpha_survives_a_cast_of_the_model_to_half_precision():
    loss_fn = _combined(schedule="gradual")
    loss_fn.step()
    loss_fn.bfloat16()
    for _ in range(59):
        loss_fn.step()
    assert float(loss_fn.alpha) == pytest.approx(0.4)
    assert loss_fn.to("meta").alpha.device.type == "meta"


def test_the_representation_of_a_combined_loss_shows_both_parts_and_the_schedule():
    text = repr(_combined(schedule="gradual"))
    for part in ("CrossEntropyLoss()", "RegionWiseLoss('rectified')", "schedule='gradual'", "alpha_step=0.01"):
        assert part in text


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "compact"])
@pytest.mark.parametrize(
    "options", [{"ignore_index": -1}, {"class_weight": [1.0, 2.0, 3.0, 4.0]}], ids=["ignored", "weighted"]
)
def test_a_combined_loss_with_a_map_is_that_which_builds_it(options, dense):
    labels = _labels(ignore_index=options.get("ignore_index"))
    loss_fn = rw.CombinedLoss(nn.CrossEntropyLoss(ignore_index=-1), rw.RegionWiseLoss(**options))
    maps = rw.rectified_map(labels, CLASSES, ignore_index=options.get("ignore_index"))
    found = loss_fn(_logits(), labels, maps.dense() if dense else maps)
    torch.testing.assert_close(found, loss_fn(_logits(), labels))


def test_a_combined_loss_gives_a_loss_of_the_users_own_the_map_alone():
    loss_fn = rw.CombinedLoss(lambda x, labels: x.sum() * 0, lambda x, maps: maps.sum())
    maps = torch.ones_like(_logits())
    assert loss_fn(_logits(), _labels(), maps) == maps.sum()
    with pytest.raises(TypeError, match="labels: expected labels for the region loss, got a RectifiedMap"):
        loss_fn(_logits(), rw.rectified_map(_labels(), _logits().shape[1]))
