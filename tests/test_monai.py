"""Region-wise maps in MONAI's own pipeline, and losses that follow MONAI's conventions."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from loss_cases import FAMILIES, eager_loss, loss_and_gradient, random_labels, random_logits, written_out
from monai.data import CacheDataset, DataLoader, MetaTensor, decollate_batch, list_data_collate
from monai.losses import DeepSupervisionLoss, DiceLoss
from monai.networks import one_hot
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    Rotate90d,
    Spacingd,
)
from samples import scene, scipy_distance

import rwkernels as rw
from rwkernels.integrations.monai import RegionWiseLoss, RegionWiseMap, RegionWiseMapd, RegionWiseMapDict

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


# --- the transform ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "turned"])
def test_the_spacing_of_an_axis_is_the_length_of_a_step_along_it(turned):
    image = label()
    image.affine = affine(0.5, 2.0, 3.0, turned=turned)
    found = RegionWiseMap(CLASSES)(image)
    plain = image.as_tensor()
    distance = scipy_distance(plain, (0.5, 2.0, 3.0))
    largest = torch.stack([distance[plain == k].max() for k in range(CLASSES)])
    torch.testing.assert_close(found.as_tensor().double(), -distance / largest[plain], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.as_tensor(), true_map(plain, (0.5, 2.0, 3.0)))


def test_an_oblique_affine_gives_the_length_of_its_columns():
    angle = torch.tensor(0.5, dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    image = label()
    image.affine = turn @ affine(0.5, 2.0, 3.0)
    torch.testing.assert_close(
        RegionWiseMap(CLASSES)(image).as_tensor(), true_map(image.as_tensor(), (0.5, 2.0, 3.0)), rtol=1e-5, atol=1e-6
    )


def test_a_slice_with_a_3d_affine_takes_its_first_two_columns_wherever_it_lies():
    image = MetaTensor(scene("blobs", (9, 11), CLASSES)[:1], affine=affine(0.5, 2.0, 9.0, turned=True))
    found = RegionWiseMap(CLASSES)(image)
    torch.testing.assert_close(found.as_tensor(), true_map(image.as_tensor(), (0.5, 2.0)))


@pytest.mark.parametrize(
    ("given", "meant"), [(None, None), (2.0, 2.0), ((1.0, 4.0, 0.3), (1.0, 4.0, 0.3)), ("affine", (0.5, 2.0, 3.0))]
)
def test_a_spacing_can_be_given_or_left_out(given, meant):
    found = RegionWiseMap(CLASSES, spacing=given)(label())
    torch.testing.assert_close(found.as_tensor(), true_map(label().as_tensor(), meant))


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["tensor", "array"])
def test_arrays_without_an_affine_have_a_spacing_of_one(kind):
    found = RegionWiseMap(CLASSES)(kind(label().as_tensor().numpy()))
    torch.testing.assert_close(torch.as_tensor(found).as_subclass(torch.Tensor), true_map(label().as_tensor(), None))


def test_the_map_keeps_the_metadata_of_its_label():
    image = label(meta={"filename_or_obj": "here.nii.gz"})
    found = RegionWiseMap(CLASSES)(image)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, image.affine)
    assert found.meta["filename_or_obj"] == "here.nii.gz"
    assert found.dtype == torch.float32
    assert image.dtype == torch.int64  # the label is left as it was


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int16], ids=str)
def test_labels_may_have_any_dtype_that_monai_loads(dtype):
    torch.testing.assert_close(RegionWiseMap(CLASSES)(label().to(dtype)), RegionWiseMap(CLASSES)(label()))


def test_one_hot_labels_give_the_map_of_their_labels():
    hot = MetaTensor(one_hot(label()[None], CLASSES)[0], affine=label().affine)
    torch.testing.assert_close(RegionWiseMap(CLASSES)(hot).as_tensor(), RegionWiseMap(CLASSES)(label()).as_tensor())


def test_labels_that_overlap_are_refused_with_the_pixel():
    hot = one_hot(label()[None], CLASSES)[0]
    hot[:, 2, 3, 1] = torch.tensor([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"label: expected one-hot, .* got \[0.0, 1.0, 1.0\] at \(0, 2, 3, 1\)"):
        RegionWiseMap(CLASSES)(hot)
    with pytest.raises(ValueError, match=r"label: expected one channel of labels or 3 of one-hot, got"):
        RegionWiseMap(CLASSES)(hot[:2])


def test_the_dictionary_transform_adds_maps_and_leaves_the_rest_alone():
    sample = {"image": torch.zeros(1, 9, 11, 6), "first": label(), "second": label(), "name": "a"}
    found = RegionWiseMapDict(["first", "second"], CLASSES)(sample)
    assert set(found) == {*sample, "first_map", "second_map"}
    assert "first_map" not in sample
    assert all(found[key] is sample[key] for key in sample)
    named = RegionWiseMapd("first", CLASSES, map_keys="z", maps="boundary")(sample)
    torch.testing.assert_close(
        named["z"].as_tensor(), rw.boundary_map(label().as_tensor(), CLASSES, spacing=(0.5, 2.0, 3.0))[0]
    )
    with pytest.raises(KeyError):
        RegionWiseMapd("third", CLASSES)(sample)
    assert set(RegionWiseMapd("third", CLASSES, allow_missing_keys=True)(sample)) == set(sample)
    with pytest.raises(ValueError, match="map_keys: expected one for each of 2 keys, got 1"):
        RegionWiseMapd(["first", "second"], CLASSES, map_keys="z")


# --- the pipeline -------------------------------------------------------------------------------------------------


def write(folder, count):
    """Images and labels as NIfTI files whose arrays lie turned in space, each with a spacing of its own."""
    import nibabel

    files = []
    for i in range(count):
        labels = scene("blobs", (14, 12, 10), CLASSES, batch=count)[i].numpy().astype(np.uint8)
        image = labels + np.random.default_rng(i).normal(0, 0.3, labels.shape)
        placed = affine(1.0 + i, 2.0, 0.5, turned=True).numpy()
        names = {key: str(folder / f"{key}_{i}.nii.gz") for key in ("image", "label")}
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), placed), names["image"])
        nibabel.save(nibabel.Nifti1Image(labels, placed), names["label"])
        files.append(names)
    return files


def number_pixels(sample):
    """Adds an image of pixel numbers, which says after any move where every pixel came from."""
    labels = sample["label"]
    numbers = torch.arange(labels.numel(), dtype=torch.float32).view(labels.shape)
    return {
        **sample,
        "number": MetaTensor(numbers, affine=labels.affine),
        "case": int("label_1" in labels.meta["filename_or_obj"]),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_a_cached_map_is_cropped_flipped_collated_and_decollated_with_its_label(family, workers, tmp_path):
    both = ["image", "label"]
    loaded = [
        LoadImaged(both),
        EnsureChannelFirstd(both),
        Orientationd(both, "RAS", labels=None),
        Spacingd(both, (1.0, 0.5, 2.0), mode=("bilinear", "nearest")),
        RegionWiseMapd("label", CLASSES, map_keys="map", maps=family),
        number_pixels,
    ]
    every = [*both, "map", "number"]
    moved = [
        RandCropByPosNegLabeld(every, "label", (6, 8, 6), num_samples=2),
        RandFlipd(every, prob=0.5, spatial_axis=0),
        RandRotate90d(every, prob=0.5, spatial_axes=(0, 2)),
    ]
    files = write(tmp_path, 2)
    whole = [Compose(loaded)(names) for names in files]
    for sample in whole:
        plain = sample["label"].as_tensor().long()
        options = {"spacing": (1.0, 0.5, 2.0), "backend": "reference"}
        expected = rw.rectified_map(plain, CLASSES, **options).foreground
        expected = rw.boundary_map(plain, CLASSES, **options)[0] if family == "boundary" else expected
        torch.testing.assert_close(sample["map"].as_tensor(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(sample["map"].affine, sample["label"].affine)

    dataset = CacheDataset(files, Compose([*loaded, *moved]), progress=False)
    dataset.transform.set_random_state(0)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list_data_collate)
    loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=True, maps=family)
    for batch in loader:
        assert batch["map"].shape == (4, 1 if family == "rectified" else CLASSES, *batch["label"].shape[2:])
        assert isinstance(batch["map"], MetaTensor)
        logits = random_logits((4, CLASSES, *batch["label"].shape[2:])).requires_grad_()
        loss = loss_fn(logits, batch["label"], batch["map"])
        loss.backward()
        labels = batch["label"].as_tensor()[:, 0].long()
        maps = batch["map"].as_tensor()
        dense = written_out(rw.RectifiedMap(labels, maps[:, 0], 1.0, CLASSES)) if family == "rectified" else maps
        torch.testing.assert_close(loss.double(), eager_loss(logits.detach().double(), dense.double()))
        assert logits.grad.abs().sum() > 0
        for single in decollate_batch(batch):
            number = single["number"].as_tensor().long().flatten()
            for key in ("map", "label"):  # still what the whole image has there
                found = single[key].as_tensor().flatten(1)
                assert torch.equal(found, whole[single["case"]][key].as_tensor().flatten(1)[:, number])


def test_labels_that_are_to_be_moved_lazily_are_moved_before_their_map_is_made(tmp_path):
    (names,) = write(tmp_path, 1)
    both = ["image", "label"]
    steps = [
        LoadImaged(both),
        EnsureChannelFirstd(both),
        Orientationd(both, "RAS", labels=None),
        Rotate90d(both, spatial_axes=(0, 1)),
        pickle.loads(pickle.dumps(RegionWiseMapd("label", CLASSES))),  # as for workers that are spawned
    ]
    eager, lazy = Compose(steps)(names), Compose(steps, lazy=True)(names)
    assert eager["label"].shape != torch.Size([1, 14, 12, 10])
    torch.testing.assert_close(lazy["label_map"].as_tensor(), eager["label_map"].as_tensor())


def test_a_compact_map_in_a_sample_is_collated():
    samples = [{"map": rw.rectified_map(image[None], CLASSES)[0]} for image in scene("blobs", (9, 11), CLASSES)]
    found = list_data_collate(samples)["map"]
    assert torch.equal(found.dense(), rw.rectified_map(scene("blobs", (9, 11), CLASSES), CLASSES).dense())


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


CONVENTIONS = list(itertools.product([False, True], [False, True], [False, True], ["mean", "sum", "none"]))


@pytest.mark.parametrize(("to_onehot_y", "softmax", "include_background", "reduction"), CONVENTIONS)
@pytest.mark.parametrize("ignore_index", [None, 255], ids=["none-ignored", "ignore255"])
@pytest.mark.parametrize("family", FAMILIES)
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
    coarse = rw.supervision.resample_labels(labels, (6, 2))
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
