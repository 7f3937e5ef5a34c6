"""The alpha of a combined loss, told by the epoch that a framework counts."""

import pytest
from loss_cases import random_labels, random_logits
from torch import nn

import rwkernels as rw
from rwkernels.integrations.schedule import set_epoch


def combined(**options):
    return rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(), **options)


def test_an_epoch_sets_alpha_where_as_many_steps_would():
    loss_fn = rw.DeepSupervisionLoss(combined(schedule="gradual"))
    stepped = combined(schedule="gradual")
    for epoch in range(120):
        if epoch in (0, 1, 57, 99, 119):
            assert set_epoch(loss_fn, epoch) == float(loss_fn.loss.alpha) == float(stepped.alpha)
        stepped.step()
    assert set_epoch(loss_fn, 3) == pytest.approx(0.97)  # back, as a continued training may go


@pytest.mark.parametrize("make", [rw.RegionWiseLoss, combined], ids=["alone", "equal"])
def test_without_a_gradual_schedule_an_epoch_changes_nothing(make):
    loss_fn, logits, labels = make(), random_logits((2, 3, 6, 7)), random_labels((2, 6, 7), 3)
    before = loss_fn(logits, labels)
    assert set_epoch(loss_fn, 50) is None
    assert loss_fn(logits, labels) == before
