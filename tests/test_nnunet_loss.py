"""The losses of the nnU-Net trainers, level by level; nothing here needs nnU-Net itself."""

import pytest
import torch
from loss_cases import eager_loss, loss_and_gradient, random_labels, random_logits
from samples import one_hot, scipy_class_distance, scipy_distance
from torch import nn

import rwkernels as rw
from rwkernels.integrations.nnunet.loss import DeepSupervisionLoss, level_loss
from rwkernels.integrations.schedule import set_epoch

CLASSES = 3
SHAPES = [(12, 9), (6, 9), (3, 5)]
SPACINGS = [(0.7, 1.1), (1.4, 1.1), (2.8, 2.2)]
WEIGHTS = [0.6, 0.4, 0.0]


def rectified(labels, spacing):
    """Eq. 4 by SciPy, dense and in float64."""
    distance = scipy_distance(labels, spacing)
    truth = one_hot(labels, CLASSES)
    per_class = (distance.unsqueeze(1) * truth).flatten(2).amax(2)
    return torch.where(truth > 0, -distance.unsqueeze(1) / per_class[..., None, None], 1.0)


def boundary(labels, spacing):
    """Eq. 3 by SciPy."""
    truth = one_hot(labels, CLASSES)
    outside = scipy_class_distance(labels, CLASSES, spacing)
    return torch.where(truth > 0, -scipy_distance(labels, spacing).unsqueeze(1), outside)


FAMILIES = {"rectified": rectified, "boundary": boundary}


def levels():
    """Logits and labels of every level; the labels as nnU-Net has them, with a channel axis."""
    outputs = [random_logits((2, CLASSES, *shape), seed=i) for i, shape in enumerate(SHAPES)]
    labels = [random_labels((2, *shape), CLASSES, seed=i) for i, shape in enumerate(SHAPES)]
    return outputs, [at_level[:, None] for at_level in labels]


def build(maps="rectified", **options):
    losses = [level_loss(maps, spacing=spacing, ignore_index=None, **options) for spacing in SPACINGS[:2]]
    return DeepSupervisionLoss([*losses, None], WEIGHTS)


@pytest.mark.parametrize("maps", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=["int16-labels", "float-labels"])
def test_the_map_of_a_level_is_that_of_its_own_labels_and_spacing(dtype, maps):
    outputs, targets = levels()
    expected = sum(
        weight * eager_loss(output.double(), FAMILIES[maps](target[:, 0], spacing))
        for weight, output, target, spacing in zip(WEIGHTS[:2], outputs, targets, SPACINGS, strict=False)
    )
    found = build(maps)(outputs, [target.to(dtype) for target in targets])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    shared = DeepSupervisionLoss([rw.RegionWiseLoss(maps, spacing=SPACINGS[0])] * 2 + [None], WEIGHTS)
    assert abs(float(shared(outputs, targets) - expected)) > 1e-4  # the spacing of the first level would not do


def test_a_level_of_weight_zero_is_not_looked_at():
    outputs, targets = levels()
    expected = build()(outputs, targets)
    outputs[2].fill_(float("nan"))
    targets[2].fill_(99)
    assert build()(outputs, targets) == expected


def test_every_level_that_counts_gets_its_weighted_gradient():
    outputs, targets = levels()
    leaves = [output.requires_grad_() for output in outputs]
    build()(leaves, targets).backward()
    for i in (0, 1):
        alone = level_loss("rectified", spacing=SPACINGS[i], ignore_index=None)
        _, gradient = loss_and_gradient(lambda x, i=i, alone=alone: alone(x, targets[i]), leaves[i])
        torch.testing.assert_close(leaves[i].grad, WEIGHTS[i] * gradient)
    assert leaves[2].grad is None


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ([None], [0.5, 0.5], r"weights: expected one per level \(1\), got 2"),
        ([None, None], [0.0, 0.0], "weights: expected one that is not 0, got none"),
    ],
)
def test_weights_that_fit_no_level_are_refused(losses, weights, message):
    with pytest.raises(ValueError, match=message):
        DeepSupervisionLoss(losses, weights)


def test_a_level_too_few_or_a_lone_tensor_is_refused_by_name():
    outputs, targets = levels()
    with pytest.raises(ValueError, match="outputs: expected a list of 3 levels, got 2"):
        build()(outputs[:2], targets)
    with pytest.raises(ValueError, match="targets: expected a list of 3 levels, got Tensor"):
        build()(outputs, targets[0])


def squeezed_cross_entropy(logits, labels):
    return nn.functional.cross_entropy(logits, labels[:, 0])


def test_an_epoch_sets_the_alpha_of_every_level_where_as_many_steps_would():
    loss_fn = build(region_loss=squeezed_cross_entropy, schedule="gradual")
    stepped = rw.CombinedLoss(squeezed_cross_entropy, rw.RegionWiseLoss(), schedule="gradual")
    for epoch in range(120):
        if epoch in (0, 1, 57, 99, 119):
            assert set_epoch(loss_fn, epoch) == float(stepped.alpha)
            assert {float(part.alpha) for part in loss_fn.losses[:2]} == {float(stepped.alpha)}
        stepped.step()
    assert set_epoch(loss_fn, 3) == pytest.approx(0.97)  # back, as a continued training may go


def test_alpha_mixes_the_two_losses_at_every_level():
    outputs, targets = levels()
    loss_fn = build(region_loss=squeezed_cross_entropy, schedule="gradual", alpha_step=0.25)
    set_epoch(loss_fn, 1)
    expected = sum(
        weight * (0.75 * squeezed_cross_entropy(output, target) + 0.25 * rw.RegionWiseLoss(spacing=s)(output, target))
        for weight, output, target, s in zip(WEIGHTS[:2], outputs, targets, SPACINGS, strict=False)
    )
    torch.testing.assert_close(loss_fn(outputs, targets), expected)


@pytest.mark.parametrize("options", [{}, {"region_loss": squeezed_cross_entropy}], ids=["alone", "equal"])
def test_without_a_gradual_schedule_an_epoch_changes_nothing(options):
    outputs, targets = levels()
    loss_fn = build(**options)
    before = loss_fn(outputs, targets)
    assert set_epoch(loss_fn, 50) is None
    assert loss_fn(outputs, targets) == before
