"""The region-wise loss with MONAI's conventions, alone and inside the losses of this package."""

import numpy as np
import pytest
import torch
from choices import pairwise
from loss_cases import FAMILIES, REDUCTIONS, eager_loss, loss_and_gradient, random_labels, random_logits, written_out
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceLoss
from samples import scene

import rwkernels as rw
from rwkernels.integrations.monai import RegionWiseLoss, RegionWiseMap

CLASSES = 3


def affine(*spacing, turned=False):
    """Voxel to world; `turned` puts the array's axes along the world's in another order and direction."""
    found = np.diag([*spacing, 1.0])
    if turned:
        found = found[[1, 2, 0, 3]] * np.array([[-1.0], [1.0], [1.0], [1.0]])
    return torch.as_tensor(found)


def label(shape=(9, 11, 6), **options):
    return MetaTensor(scene("blobs", shape, CLASSES)[:1], affine=affine(0.5, 2.0, 3.0), **options)


def true_map(labels, spacing):
    return rw.rectified_map(labels, CLASSES, spacing=spacing, backend="reference").foreground


# --- the loss -----------------------------------------------------------------------------------------------------


def problem(ignore_index=None, hot=False):
    logits = random_logits((2, CLASSES, 7, 10))
    labels = random_labels((2, 7, 10), CLASSES, ignore_index)
    target = labels[:, None]
    if hot:
        target = torch.stack([labels == k for k in range(CLASSES)], 1).float()
    return logits, labels, target


def truth(logits, labels, family="rectified", ignore_index=None, **options):
    maps = rw.RegionWiseLoss(family, ignore_index=ignore_index).build_map(labels, CLASSES)
    dense = written_out(maps) if isinstance(maps, rw.RectifiedMap) else maps.double()
    return eager_loss(logits.double(), dense, labels, ignore_index, **options)


@pairwise(
    family=FAMILIES,
    reduction=REDUCTIONS,
    ignore_index=[None, 255],
    to_onehot_y=[False, True],
    softmax=[False, True],
    include_background=[False, True],
)
def test_every_convention_of_monai_gives_the_loss_it_means(
    family, ignore_index, to_onehot_y, softmax, include_background, reduction
):
    logits, labels, target = problem(ignore_index, hot=not to_onehot_y)
    keywords = {
        "to_onehot_y": to_onehot_y,
        "softmax": softmax,
        "include_background": include_background,
        "reduction": reduction,
    }
    loss_fn = RegionWiseLoss(maps=family, ignore_index=ignore_index, **keywords)

    def ours(x):
        return loss_fn(x if softmax else x.softmax(1), target).sum()

    def meant(x):
        return truth(x, labels, family, ignore_index, include_background=include_background, reduction=reduction).sum()

    loss, gradient = loss_and_gradient(ours, logits)
    expected, true_gradient = loss_and_gradient(meant, logits.double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-5, atol=1e-5)
    if reduction == "none":
        assert loss_fn(logits if softmax else logits.softmax(1), target).shape == (2, 1, 7, 10)
    DiceLoss(**keywords)(logits if softmax else logits.softmax(1), problem(None, hot=not to_onehot_y)[2])  # as theirs


def test_images_of_a_batch_keep_their_own_spacing():
    logits, labels, target = problem()
    affines = torch.stack([affine(1.0, 1.0, 1.0), affine(1.0, 5.0, 1.0)])
    batch = MetaTensor(target, affine=affines)
    batch.is_batch = True
    found = RegionWiseLoss(to_onehot_y=True, softmax=True)(logits, batch)
    parts = [
        rw.RegionWiseLoss(spacing=s)(logits[i : i + 1], labels[i : i + 1])
        for i, s in enumerate([(1.0, 1.0), (1.0, 5.0)])
    ]
    torch.testing.assert_close(found, sum(parts) / 2)
    ignoring = RegionWiseLoss(to_onehot_y=True, softmax=True, spacing=None)(logits, batch)
    torch.testing.assert_close(ignoring, rw.RegionWiseLoss()(logits, labels))
    assert abs(float(found - ignoring)) > 1e-4


def test_class_weights_are_those_of_the_true_class():
    logits, labels, target = problem()
    weight = [0.5, 1.0, 3.0]
    for softmax in (True, False):
        found = RegionWiseLoss(to_onehot_y=True, softmax=softmax, weight=weight)(
            logits if softmax else logits.softmax(1), target
        )
        torch.testing.assert_close(found, rw.RegionWiseLoss(class_weight=weight)(logits, labels))


@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("ignore_index", [None, 255], ids=["none-ignored", "ignore255"])
def test_a_compact_map_may_stand_for_the_target_and_brings_what_it_ignores(ignore_index, softmax):
    logits, labels, _ = problem(ignore_index)
    maps = rw.rectified_map(labels, CLASSES, ignore_index=ignore_index)
    found = RegionWiseLoss(to_onehot_y=True, softmax=softmax)(logits if softmax else logits.softmax(1), maps)
    torch.testing.assert_close(found, rw.RegionWiseLoss(ignore_index=ignore_index)(logits, labels))


def test_it_joins_monais_dice_in_a_combined_loss():
    logits, labels, target = problem()
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    joined = rw.CombinedLoss(dice, RegionWiseLoss(to_onehot_y=True, softmax=True))
    torch.testing.assert_close(joined(logits, target), dice(logits, target) + rw.RegionWiseLoss()(logits, labels))


def test_monais_deep_supervision_rebuilds_the_map_of_every_level():
    logits, labels, target = problem()
    halves = random_logits((2, CLASSES, 3, 5))
    loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=True)
    found = DeepSupervisionLoss(loss_fn, weight_mode="same")([logits, halves], target.float())
    small = torch.nn.functional.interpolate(target.float(), (3, 5), mode="nearest-exact")
    expected = rw.RegionWiseLoss()(logits, labels) + rw.RegionWiseLoss()(halves, small)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "target", "message"),
    [
        ({"to_onehot_y": True}, (2, CLASSES, 7, 10), r"target: expected labels \[B, 1, \*S\]"),
        ({"to_onehot_y": True}, (2, 7, 10), r"target: expected labels \[B, 1, \*S\]"),
        ({}, (2, 1, 7, 10), r"target: expected one-hot \[B, K, \*S\] \(to_onehot_y=True takes labels\)"),
        ({}, (2, CLASSES, 7, 9), "target: expected one-hot"),
    ],
)
def test_a_target_that_does_not_follow_the_convention_is_refused(options, target, message):
    with pytest.raises(ValueError, match=message):
        RegionWiseLoss(softmax=True, **options)(problem()[0], torch.zeros(target))


def test_logits_where_probabilities_are_expected_are_refused():
    logits, _, target = problem()
    with pytest.raises(ValueError, match=r"input: expected probabilities in \[0, 1\], got .*softmax=True takes logits"):
        RegionWiseLoss(to_onehot_y=True)(logits, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "pixdim"}, "spacing: expected one of 'affine'"),
        ({"spacing": -1.0}, "spacing: expected"),
        ({"reduction": "median"}, "median"),
        ({"maps": "rrw"}, "maps: expected one of"),
    ],
)
def test_bad_settings_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        RegionWiseLoss(**options)


# --- together with the losses of this package ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_a_combined_loss_hands_it_the_map_of_the_transform_with_the_labels(family):
    labels = random_labels((2, 1, 12, 10), CLASSES)
    loss_fn = rw.CombinedLoss(DiceLoss(to_onehot_y=True), RegionWiseLoss(to_onehot_y=True, softmax=True, maps=family))
    array = torch.stack([RegionWiseMap(CLASSES, maps=family)(one) for one in labels])
    logits = random_logits((2, CLASSES, 12, 10))
    torch.testing.assert_close(loss_fn(logits, labels, array), loss_fn(logits, labels))
    wrapped = rw.DeepSupervisionLoss(loss_fn, [1.0])
    torch.testing.assert_close(wrapped([logits], labels, [array]), loss_fn(logits, labels))


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "combined"])
@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_deep_supervision_keeps_the_affine_and_widens_it_with_the_grid(family, joined):
    labels = random_labels((2, 1, 12, 8), CLASSES)
    target = MetaTensor(labels, affine=torch.stack([affine(5.0, 1.0, 1.0), affine(1.0, 3.0, 1.0)]))
    target.is_batch = True
    loss = RegionWiseLoss(to_onehot_y=True, softmax=True, maps=family)
    loss_fn = rw.CombinedLoss(lambda x, labels: 0 * x.sum(), loss) if joined else loss
    logits = [random_logits((2, CLASSES, 12, 8)), random_logits((2, CLASSES, 6, 2))]
    coarse = rw.losses.supervision.resample_labels(labels, (6, 2))
    fine = torch.cat(
        [
            rw.RegionWiseLoss(family, spacing=row).build_map(labels[i : i + 1, 0], CLASSES).dense()
            if family == "rectified"
            else rw.boundary_map(labels[i : i + 1, 0], CLASSES, spacing=row)
            for i, row in enumerate([(5.0, 1.0), (1.0, 3.0)])
        ]
    )
    wide = torch.cat(
        [
            rw.RegionWiseLoss(family, spacing=row).build_map(coarse[i : i + 1, 0], CLASSES).dense()
            if family == "rectified"
            else rw.boundary_map(coarse[i : i + 1, 0], CLASSES, spacing=row)
            for i, row in enumerate([(10.0, 4.0), (2.0, 12.0)])
        ]
    )
    expected = rw.region_wise_loss(logits[0], fine) + 0.5 * rw.region_wise_loss(logits[1], wide)
    found = rw.DeepSupervisionLoss(loss_fn, [1.0, 0.5])(logits, target)
    torch.testing.assert_close(torch.as_tensor(found), expected)
    one = torch.as_tensor(rw.DeepSupervisionLoss(loss_fn)(logits[:1], target))
    torch.testing.assert_close(one, torch.as_tensor(loss_fn(logits[0], target)))


@pytest.mark.parametrize("softmax", [False, True], ids=["probabilities", "logits"])
def test_labels_beside_a_given_map_are_checked(softmax):
    labels = random_labels((2, 1, 12, 10), CLASSES)
    array = torch.stack([RegionWiseMap(CLASSES)(one) for one in labels])
    labels[1, 0, 3, 4] = 7
    loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=softmax)
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 7 at \(1, 3, 4\)"):
        loss_fn(random_logits((2, CLASSES, 12, 10)).softmax(1), labels, array)
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 7 at \(1, 3, 4\)"):
        loss_fn(
            random_logits((2, CLASSES, 12, 10)).softmax(1),
            labels,
            rw.rectified_map(labels[:, 0].clamp(max=2), CLASSES).dense(),
        )


def test_an_ignored_label_that_the_dtype_of_labels_cannot_hold_ignores_none():
    labels = random_labels((2, 1, 12, 10), CLASSES).to(torch.uint8)
    values = random_logits((2, CLASSES, 12, 10)).softmax(1)
    found = RegionWiseLoss(to_onehot_y=True, ignore_index=258)(values, labels)  # 258 is 2 in uint8
    torch.testing.assert_close(found, RegionWiseLoss(to_onehot_y=True)(values, labels))


def test_weights_that_do_not_fit_are_refused_as_weight():
    with pytest.raises(TypeError, match=r"^weight: expected one number per class, got float 2\.0"):
        RegionWiseLoss(weight=2.0)
    with pytest.raises(TypeError, match=r"^weight: expected a number, got str"):
        RegionWiseLoss(weight=["a", "b"])
    loss_fn = RegionWiseLoss(weight=[1.0, 2.0], to_onehot_y=True, include_background=False, softmax=True)
    with pytest.raises(ValueError, match=r"^weight: expected shape "):
        loss_fn(random_logits((2, CLASSES, 12, 10)), random_labels((2, 1, 12, 10), CLASSES))
