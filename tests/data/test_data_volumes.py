"""Maps of whole volumes for their patches: crops of maps, and the largest distances that patches take along."""

import pytest
import torch
from samples import scene, scipy_distance

import rwkernels as rw
from rwkernels.data import MapLoader, class_max, crop

CLASSES = 3
VOLUMES = scene("blobs", (14, 31, 26), num_classes=CLASSES)
SPACING = (2.0, 1.0, 0.5)
START, SIZE = (3, 5, 4), (8, 16, 12)
BOX = (slice(3, 11), slice(5, 21), slice(4, 16))


def test_image_labels_and_maps_are_cropped_to_the_same_box():
    images = torch.randn(2, 4, *VOLUMES.shape[1:])
    maps = rw.rectified_map(VOLUMES, CLASSES, spacing=SPACING)
    dense = rw.boundary_map(VOLUMES, CLASSES, spacing=SPACING)
    found = crop(START, SIZE, images, VOLUMES, maps, dense, VOLUMES.numpy())
    assert torch.equal(found[0], images[(..., *BOX)])
    assert torch.equal(found[1], VOLUMES[(..., *BOX)])
    torch.testing.assert_close(found[2].dense(), maps.dense()[(..., *BOX)])
    assert torch.equal(found[3], dense[(..., *BOX)])
    assert (found[4] == VOLUMES.numpy()[(..., *BOX)]).all()
    assert found[0].data_ptr() == images[(..., *BOX)].data_ptr()
    assert torch.equal(crop((0, 0, 0), VOLUMES.shape[1:], VOLUMES)[0], VOLUMES)  # a box may end with the volume


def test_a_box_that_leaves_the_volume_is_refused():
    label = VOLUMES[0]
    for start, size, message in [
        ((7, 5, 4), SIZE, r"values\[0\]: expected last axes that hold rows \[7, 5, 4\] to \[15, 21, 16\], got shape"),
        ((-1, 5, 4), SIZE, "start: expected an integer >= 0, got -1"),
        (START, (0, 1, 1), "size: expected an integer >= 1, got 0"),
        (START, (8, 16), "size: expected one number for each of 3 axes of start"),
        ((0, 0, 0, 0), (1, 1, 1, 1), r"values\[0\]: expected last axes"),
    ]:
        with pytest.raises(ValueError, match=message):
            crop(start, size, label)
    with pytest.raises(TypeError, match=r"values\[1\]: expected a tensor, array or map, got str 'name'"):
        crop(START, SIZE, label, "name")


@pytest.mark.parametrize("black_border", [False, True])
def test_the_largest_distance_of_every_class_is_that_of_scipy(black_border):
    distance = scipy_distance(VOLUMES, SPACING, black_border)
    pairs = zip(distance, VOLUMES, strict=True)
    expected = torch.stack([torch.stack([d[v == k].max() for k in range(CLASSES)]) for d, v in pairs])
    found = class_max(VOLUMES, CLASSES, spacing=SPACING, black_border=black_border)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)
    found = class_max(VOLUMES.to(torch.uint8).numpy(), CLASSES, spacing=SPACING, black_border=black_border)
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=1e-6, atol=0.0)


def test_with_the_largest_distances_the_map_of_the_volume_is_the_same():
    largest = class_max(VOLUMES, CLASSES, spacing=SPACING)
    found = rw.rectified_map(VOLUMES, CLASSES, spacing=SPACING, class_max=largest)
    expected = rw.rectified_map(VOLUMES, CLASSES, spacing=SPACING)
    torch.testing.assert_close(found.foreground, expected.foreground)


def test_absent_ignored_and_filling_classes_have_a_maximum_that_patches_can_use():
    labels = torch.zeros(3, 6, 9, dtype=torch.long)
    labels[0, :, 5:] = -1
    labels[0, 2, 0] = 2
    labels[2] = -1
    found = class_max(labels, CLASSES, ignore_index=-1)
    expected = scipy_distance(labels[:1])[0]
    assert found[0].tolist() == pytest.approx([float(expected[labels[0] == 0].max()), 0.0, 1.0])
    assert found[1].tolist() == [1.0, 0.0, 0.0]  # class 0 fills the image
    assert found[2].tolist() == [0.0, 0.0, 0.0]
    patches = labels[:, 1:5, 1:4]
    maps = rw.rectified_map(patches, CLASSES, class_max=found, ignore_index=-1)
    assert maps.foreground[1].unique().tolist() == [-1.0]


@pytest.mark.parametrize(("ignore_index", "bad"), [(None, -1), (-1, 3)])
def test_a_bad_label_is_named(ignore_index, bad):
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    labels[0, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"labels: expected integers in \[0, 3\).*got {bad} at \(0, 2, 3\)"):
        class_max(labels, CLASSES, ignore_index=ignore_index)
    class_max(labels, CLASSES, ignore_index=ignore_index, validate=False)


def test_a_patch_has_another_map_than_its_volume():
    patch, whole = crop(START, SIZE, VOLUMES, rw.rectified_map(VOLUMES, CLASSES, spacing=SPACING))
    own = rw.rectified_map(patch, CLASSES, spacing=SPACING)
    assert float((own.foreground - whole.foreground).abs().max()) > 0.3
    largest = class_max(VOLUMES, CLASSES, spacing=SPACING)
    (scaled,) = MapLoader([{"label": patch, "max": largest}], CLASSES, spacing=SPACING, class_max_key="max")
    error = (scaled["map"].foreground - whole.foreground).abs()
    # Distances to boundaries inside the patch are right; beyond them the patch sees a boundary too far away.
    distance, own_distance = (rw.distance_transform(x, spacing=SPACING) for x in (VOLUMES, patch))
    right = distance[(..., *BOX)] == own_distance
    assert float(error[right].max()) < 1e-6
    assert 0.2 < float(right.float().mean()) < 1
    assert float((scaled["map"].foreground - whole.foreground).max()) < 1e-6
