"""Region-wise maps of TorchIO subjects, and the warning where a later transform would spoil them."""

import pickle
import warnings

import pytest
import torch
import torchio as tio
from loss_cases import FAMILIES, random_logits
from samples import scene, scipy_distance

import rwkernels as rw
from rwkernels.integrations.torchio import MapSubject, RegionWiseMap, check_order, read_map

CLASSES = 3
SHAPE = (14, 12, 10)
SPACING = (0.5, 2.0, 3.0)


def affine():
    """Voxel to world, with the array's axes along the world's in another order and one of them reversed."""
    found = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))[[1, 2, 0, 3]]
    found[0] *= -1
    return found.numpy()


def subject(seed=0, **images):
    labels = scene("blobs", SHAPE, CLASSES, batch=3)[seed : seed + 1]
    noisy = labels + torch.randn(labels.shape, generator=torch.Generator().manual_seed(seed))
    return tio.Subject(
        image=tio.ScalarImage(tensor=noisy, affine=affine()),
        label=tio.LabelMap(tensor=labels.to(torch.uint8), affine=affine()),
        **images,
    )


def labels_of(found):
    return found.label.data.long()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("output", ["foreground", "dense"])
def test_the_map_is_that_of_the_label_map_in_its_spacing(output, family):
    if (family, output) == ("boundary", "foreground"):
        with pytest.raises(ValueError, match='output: expected "dense" for boundary maps'):
            RegionWiseMap(CLASSES, maps=family, output=output)
        return
    found = RegionWiseMap(CLASSES, maps=family, output=output)(subject())
    assert type(found.map) is tio.ScalarImage
    assert (found.map.affine == found.label.affine).all()
    expected = rw.RegionWiseLoss(family, spacing=SPACING, backend="reference").build_map(labels_of(found), CLASSES)
    if isinstance(expected, rw.RectifiedMap):
        expected = expected.dense() if output == "dense" else expected.foreground[None]
    torch.testing.assert_close(found.map.data[None], expected, rtol=1e-5, atol=1e-5)


def test_the_axes_of_the_spacing_are_those_of_the_array():
    found = RegionWiseMap(CLASSES)(subject())
    labels = labels_of(found)
    distance = scipy_distance(labels, SPACING)
    largest = torch.stack([distance[labels == k].max() for k in range(CLASSES)])
    torch.testing.assert_close(found.map.data.double(), -distance / largest[labels], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "meant"), [(None, None), (2.0, 2.0), ((1.0, 4.0, 0.3), (1.0, 4.0, 0.3))])
def test_a_spacing_can_be_given_or_left_out(given, meant):
    found = RegionWiseMap(CLASSES, spacing=given)(subject())
    expected = rw.rectified_map(labels_of(found), CLASSES, spacing=meant).foreground
    torch.testing.assert_close(found.map.data, expected)


def test_a_flat_image_has_the_map_of_two_axes():
    labels = scene("blobs", (14, 12), CLASSES)[:1]
    flat = tio.Subject(label=tio.LabelMap(tensor=labels[..., None]))
    expected = rw.rectified_map(labels, CLASSES).foreground
    torch.testing.assert_close(RegionWiseMap(CLASSES)(flat).map.data[..., 0], expected)


def test_one_hot_label_maps_give_the_same_map_and_overlapping_ones_are_refused():
    hot = tio.OneHot(num_classes=CLASSES)(subject())
    torch.testing.assert_close(RegionWiseMap(CLASSES)(hot).map.data, RegionWiseMap(CLASSES)(subject()).map.data)
    hot.label.data[:, 1, 2, 3] = 1
    with pytest.raises(ValueError, match="label: expected one-hot, one 1 among 0s"):
        RegionWiseMap(CLASSES)(hot)


def test_the_subject_that_came_in_is_left_as_it_was():
    given = subject()
    before = given.label.data.clone()
    found = RegionWiseMap(CLASSES, map_name="z")(given)
    assert set(found) == {"image", "label", "z"}
    assert set(given) == {"image", "label"}
    assert torch.equal(given.label.data, before)
    assert type(given) is tio.Subject


def test_an_image_that_is_no_label_map_or_not_there_is_refused_by_name():
    with pytest.raises(TypeError, match=r"image: expected a torchio.LabelMap, got ScalarImage"):
        RegionWiseMap(CLASSES, label="image")(subject())
    with pytest.raises(KeyError, match="lesion"):
        RegionWiseMap(CLASSES, label="lesion")(subject())
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 2\)"):
        RegionWiseMap(2)(subject())


# --- a training pipeline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_patches_of_a_loader_have_the_whole_volumes_map(family, workers):
    transform = tio.Compose([RegionWiseMap(CLASSES, maps=family), tio.RandomFlip(axes=(0, 1, 2))])
    numbers = torch.arange(14 * 12 * 10.0).view(1, *SHAPE)  # says after any move where a voxel came from
    subjects = [subject(i, number=tio.LabelMap(tensor=numbers, affine=affine())) for i in range(2)]
    whole = [RegionWiseMap(CLASSES, maps=family)(one).map.data.flatten(1) for one in subjects]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects, transform=transform), 8, 4, tio.UniformSampler(6), num_workers=workers
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        batches = list(tio.SubjectsLoader(queue, batch_size=4, num_workers=0))
    assert len(batches) == 2
    for batch in batches:
        labels, maps = batch["label"][tio.DATA], batch["map"][tio.DATA]
        for image in range(4):
            number = batch["number"][tio.DATA][image].long().flatten()
            found = maps[image].flatten(1)
            assert any(torch.equal(found, one[:, number]) for one in whole)
        logits = random_logits((4, CLASSES, 6, 6, 6))
        read = read_map(maps, labels, CLASSES)
        true_class = labels.long() == torch.arange(CLASSES).view(1, -1, 1, 1, 1)
        dense = maps if family == "boundary" else torch.where(true_class, maps, 1.0)
        torch.testing.assert_close(rw.region_wise_loss(logits, read), (logits.softmax(1) * dense).mean())


def test_the_history_of_a_subject_builds_the_map_again():
    found = RegionWiseMap(CLASSES, map_name="z", maps="boundary", spacing=2.0)(subject())
    again = found.get_composed_history()(subject())
    torch.testing.assert_close(again.z.data, found.z.data)


# --- warnings -----------------------------------------------------------------------------------------------------

MAP = RegionWiseMap(CLASSES)
SPOILERS = {
    "RandomAffine": (tio.RandomAffine(), "Affine after RegionWiseMap leaves a map that is not that of the labels"),
    "Resample": (tio.Resample((1, 1, 1)), "Resample after RegionWiseMap leaves a map"),
    "Pad": (tio.Pad(1), "Pad after RegionWiseMap leaves a map"),
    "RandomNoise": (tio.RandomNoise(), "Noise after RegionWiseMap changes the map as if it were an image"),
    "ZNormalization": (tio.ZNormalization(), "ZNormalization after RegionWiseMap changes the map"),
    "Lambda": (tio.Lambda(lambda x: 2 * x), "Lambda after RegionWiseMap may change the map"),
}
HARMLESS = {
    "RandomFlip": tio.RandomFlip(axes=(0, 1), flip_probability=1),
    "Crop": tio.Crop(1),
    "ToCanonical": tio.ToCanonical(),
    "Transpose": tio.Transpose(),
    "excluded-noise": tio.RandomNoise(exclude=["map"]),
    "included-affine": tio.RandomAffine(include=["image"]),
    "labels-only": tio.Lambda(lambda x: x, types_to_apply=[tio.LABEL]),
    "labels-of-another": tio.RemapLabels({2: 0}, exclude=["label"]),
    "flip-of-both": tio.Flip((0, 1), include=["label", "map"]),
    "affine-of-neither": tio.RandomAffine(exclude=["label", "map"]),
    "resampled-image": tio.Resample((1, 1, 1), scalars_only=True, exclude=["map"]),
}
PARTED = {
    "flip-without-map": (tio.Flip((0, 1), exclude=["map"]), "moves 'label' and not 'map'"),
    "flip-with-label": (tio.Flip((0, 1), include=["image", "label"]), "moves 'label' and not 'map'"),
    "flip-of-map": (tio.Flip((0, 1), exclude=["label"]), "moves 'map' and not 'label'"),
    "affine-without-map": (tio.RandomAffine(exclude=["map"]), "moves 'label' and not 'map'"),
    "crop-without-map": (tio.CropOrPad((8, 8, 8), exclude=["map"]), "moves 'label' and not 'map'"),
    "anisotropy": (tio.RandomAnisotropy(scalars_only=False), "leaves a map that is not that of the labels"),
    "anisotropy-of-scalars": (tio.RandomAnisotropy(scalars_only=True), "moves 'map' and not 'label'"),
    "RemapLabels": (tio.RemapLabels({2: 0}), "changes the labels that the map is of"),
    "identity": (tio.RemapLabels({0: 0, 1: 1, 2: 2}), "changes the labels that the map is of"),
    "RemoveLabels": (tio.RemoveLabels([1]), "changes the labels that the map is of"),
    "KeepLargestComponent": (tio.KeepLargestComponent(), "changes the labels that the map is of"),
    "Contour": (tio.Contour(), "changes the labels that the map is of"),
    "SequentialLabels": (tio.SequentialLabels(), "changes the labels that the map is of"),
    "OneHot": (tio.OneHot(num_classes=CLASSES), "changes the labels that the map is of"),
}
nested = pytest.mark.parametrize(
    "nest", [lambda t: t, lambda t: tio.Compose([t]), lambda t: tio.OneOf([t])], ids=["plain", "Compose", "OneOf"]
)


@nested
@pytest.mark.parametrize("name", SPOILERS)
def test_a_transform_that_spoils_the_map_warns_when_it_runs_and_when_the_order_is_checked(name, nest):
    transform, message = SPOILERS[name]
    pipeline = tio.Compose([MAP, nest(transform)])
    with pytest.warns(UserWarning, match=f"map: {message}"):
        found = pipeline(subject())
    assert not torch.equal(found.map.data, MAP(subject()).map.data)
    with pytest.warns(UserWarning, match="map: (Random)?" + message):
        check_order(pipeline)


@nested
@pytest.mark.parametrize("name", PARTED)
def test_a_transform_that_parts_the_map_from_its_labels_warns_when_it_runs_and_when_the_order_is_checked(name, nest):
    transform, message = PARTED[name]
    pipeline = tio.Compose([MAP, nest(transform)])
    given = subject()
    if name == "KeepLargestComponent":  # it wants two labels
        given.label.set_data((given.label.data > 0).to(torch.uint8))
    with pytest.warns(UserWarning, match=f"map: .* after RegionWiseMap {message}"):
        pipeline(given)
    with pytest.warns(UserWarning, match=f"map: .* after RegionWiseMap {message}"):
        check_order(pipeline)


@nested
@pytest.mark.parametrize("name", HARMLESS)
def test_a_transform_that_leaves_the_map_right_does_not_warn(name, nest):
    pipeline = tio.Compose([MAP, nest(HARMLESS[name])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pipeline(subject())
        check_order(pipeline)
    assert set(found.map.data.unique().tolist()) <= set(MAP(subject()).map.data.unique().tolist())


@pytest.mark.parametrize("name", SPOILERS)
def test_before_the_map_every_transform_is_welcome(name):
    pipeline = tio.Compose([SPOILERS[name][0], MAP])
    if name == "Lambda":  # it would double the labels
        pipeline = tio.Compose([tio.Lambda(lambda x: 2 * x, exclude=["label"]), MAP])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(subject())
        check_order(pipeline)


def test_a_crop_that_also_pads_warns_when_it_does():
    pipeline = tio.Compose([MAP, tio.CropOrPad((8, 8, 8))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(subject())
        check_order(pipeline)
    with pytest.warns(UserWarning, match="map: Pad after RegionWiseMap"):
        tio.Compose([MAP, tio.CropOrPad((20, 8, 8))])(subject())


def test_a_subject_with_a_map_goes_through_pickle_and_still_warns():
    found = pickle.loads(pickle.dumps(MAP(subject())))
    assert isinstance(found, MapSubject)
    with pytest.warns(UserWarning, match="map: Noise after RegionWiseMap"):
        tio.RandomNoise()(found)


def test_a_users_own_class_of_subject_is_kept():
    class Mine(tio.Subject):
        pass

    assert type(MAP(Mine(subject()))) is Mine
