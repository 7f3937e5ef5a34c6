"""Region-wise maps in MONAI's own pipeline: transforms, affines, collation."""

import pickle

import numpy as np
import pytest
import torch
from loss_cases import eager_loss, random_logits, written_out
from monai.data import CacheDataset, DataLoader, MetaTensor, decollate_batch, list_data_collate
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
