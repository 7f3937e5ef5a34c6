"""Every kind of batch gets its map from MapLoader, with the settings of the loader and of the batch."""

import pickle

import numpy as np
import pytest
import torch
from data_cases import (
    CLASSES,
    IMAGE,
    LABELS,
    Batch,
    BatchWithoutField,
    FrozenBatch,
    FrozenBatchWithoutField,
    Images,
    Sample,
    SampleWithMap,
    assert_is_map_of,
    only,
)

import rwkernels as rw
from rwkernels.data import MapLoader
from rwkernels.data.building import MapBuilder

# --- batches ------------------------------------------------------------------------------------------------------


def test_a_dict_gets_the_map_under_its_key_and_is_not_changed_itself():
    batch = {"image": IMAGE, "label": LABELS, "id": ["a", "b", "c", "d"]}
    found = only([batch])
    assert list(found) == ["image", "label", "id", "map"]
    assert found["label"] is LABELS
    assert "map" not in batch
    assert_is_map_of(found["map"], LABELS)


def test_a_tuple_and_a_list_get_the_map_appended():
    for batch in [(IMAGE, LABELS), [IMAGE, LABELS]]:
        found = only([batch])
        assert type(found) is type(batch)
        assert len(batch) == 2
        assert found[0] is IMAGE
        assert_is_map_of(found[2], LABELS)


def test_labels_are_where_label_key_says():
    assert_is_map_of(only([(LABELS, IMAGE)], label_key=0)[2], LABELS)
    assert_is_map_of(only([(IMAGE, LABELS)], label_key=-1)[2], LABELS)
    found = only([{"seg": LABELS}], label_key="seg", map_key="rrw")
    assert_is_map_of(found["rrw"], LABELS)


def test_a_namedtuple_keeps_its_fields_and_gets_one_more_where_it_has_none_for_the_map():
    found = only([Sample(IMAGE, LABELS)])
    assert found._fields == ("image", "label", "map")
    assert type(found).__name__ == "Sample"
    assert_is_map_of(found.map, LABELS)
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is type(found)
    assert_is_map_of(again.map, LABELS)
    found = only([SampleWithMap(IMAGE, LABELS, None)])
    assert type(found) is SampleWithMap
    assert_is_map_of(found.map, LABELS)


@pytest.mark.parametrize("kind", [Batch, FrozenBatch, BatchWithoutField])
def test_a_dataclass_gets_the_map_as_an_attribute_and_is_not_changed_itself(kind):
    batch = kind(IMAGE, LABELS)
    found = only([batch])
    assert type(found) is kind
    assert getattr(batch, "map", None) is None
    assert_is_map_of(found.map, LABELS)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"image": IMAGE}, {}, r"label_key: expected a key of the batch \('image'\), got 'label'"),
        ((IMAGE,), {}, r"label_key: expected an index into the batch, got 1 for a tuple of 1"),
        (Batch(IMAGE, LABELS), {"label_key": "seg"}, "label_key: expected an entry or attribute of the batch"),
        ({"label": LABELS, "map": IMAGE}, {}, "map_key: expected a key that the batch lacks, got 'map'"),
        (FrozenBatchWithoutField(IMAGE, LABELS), {}, "map_key: expected a batch that takes an attribute 'map'"),
        ({"label": [LABELS]}, {}, "label_key: expected labels, a tensor or an array, got list"),
        ({"label": LABELS + 1}, {}, r"labels: expected integers in \[0, 3\), got 3 at"),
        ({"label": LABELS + 0.5}, {}, "labels: expected whole numbers, got"),
        ({"label": LABELS}, {"spacing": (1.0, 2.0, 3.0)}, "spacing: expected one number or 2"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_the_name_of_the_argument(batch, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        only([batch], **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected an integer >= 1"),
        ({"maps": "distance"}, ValueError, "maps: expected one of 'rectified', 'boundary'"),
        ({"maps": 3}, TypeError, "maps: expected a family or a function of labels"),
        ({"maps": rw.rectified_map, "ignore_index": 1}, ValueError, "ignore_index: expected no such option beside"),
        ({"spacing": -1.0}, ValueError, "spacing: expected positive numbers"),
        ({"spacing": 1.0, "spacing_key": "s"}, ValueError, "spacing_key: expected None beside spacing"),
        ({"maps": "boundary", "class_max_key": "m"}, ValueError, "class_max_key: expected None for maps='boundary'"),
        ({"map_options": {"alpha": 2.0}}, ValueError, "map_options: expected further options of rectified_map"),
        ({"depth": 0}, ValueError, "depth: expected an integer >= 1"),
        ({"threads": 0}, ValueError, "threads: expected an integer >= 1"),
        ({"label_key": 1.5}, TypeError, "label_key: expected a key"),
        ({"loader": 7}, TypeError, "loader: expected an iterable of batches, got int 7"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, error, message):
    options = {"loader": [], "num_classes": CLASSES} | options
    with pytest.raises(error, match=message):
        MapLoader(options.pop("loader"), options.pop("num_classes"), **options)


# --- maps ---------------------------------------------------------------------------------------------------------


def test_every_family_is_the_function_of_its_name():
    batch = {"label": LABELS}
    found = only([batch], maps="boundary", spacing=(2.0, 0.5), map_options={"absent": 7.0})["map"]
    torch.testing.assert_close(found, rw.boundary_map(LABELS, CLASSES, spacing=(2.0, 0.5), absent=7.0))
    found = only([batch], maps="constant", map_options={"alpha": 2.0, "beta": 3.0})["map"]
    torch.testing.assert_close(found.dense(), rw.constant_map(LABELS, CLASSES, alpha=2.0, beta=3.0).dense())
    found = only([batch], maps="active_contour")["map"]
    torch.testing.assert_close(found.dense(), rw.active_contour_map(LABELS, CLASSES).dense())


def test_a_function_of_labels_makes_any_map():
    def maps(labels, power):
        return rw.distance_transform(labels).pow(power).unsqueeze(1)

    found = only([{"label": LABELS}], maps=maps, map_options={"power": 2})["map"]
    torch.testing.assert_close(found, rw.distance_transform(LABELS, squared=True).unsqueeze(1))


def test_options_reach_the_map():
    labels = LABELS.clone()
    labels[:, :3] = -1
    found = only([{"label": labels}], ignore_index=-1, black_border=True, spacing=(3.0, 1.0), backend="reference")
    assert_is_map_of(found["map"], labels, ignore_index=-1, black_border=True, spacing=(3.0, 1.0))
    assert int(found["map"].count) == int((labels >= 0).sum())


@pytest.mark.parametrize(
    "spacing",
    [
        torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [0.5, 3.0]]),
        [torch.tensor([1.0, 2.0, 1.0, 0.5]), torch.tensor([2.0, 1.0, 2.0, 3.0])],  # what collation makes of tuples
    ],
    ids=["rows", "columns"],
)
def test_every_image_of_a_batch_has_its_own_spacing(spacing):
    labels = LABELS.clone()
    labels[2, 4:] = -1
    found = only([{"label": labels, "step": spacing}], spacing_key="step", ignore_index=-1)["map"]
    for image, row in enumerate([(1.0, 2.0), (2.0, 1.0), (1.0, 2.0), (0.5, 3.0)]):
        one = labels[image : image + 1]
        assert_is_map_of(found[image : image + 1], one, spacing=row, ignore_index=-1)
    assert int(found.count) == int((labels >= 0).sum())


def test_a_spacing_for_all_images_of_the_batch_is_taken_from_it():
    found = only([{"label": LABELS, "step": (2.0, 0.5)}], spacing_key="step")["map"]
    assert_is_map_of(found, LABELS, spacing=(2.0, 0.5))
    found = only([{"label": LABELS, "step": torch.full((4,), 2.0)}], spacing_key="step", maps="boundary")["map"]
    torch.testing.assert_close(found, rw.boundary_map(LABELS, CLASSES, spacing=2.0))
    with pytest.raises(ValueError, match="spacing: expected one row for each of 4 images"):
        only([{"label": LABELS, "step": torch.ones(3, 2)}], spacing_key="step")


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_array_of_spacings_is_of_images_whatever_the_size_of_the_batch(size, kind):
    labels, steps = LABELS[:size], kind([2.0, 0.5, 1.0, 3.0][:size])
    found = only([{"label": labels, "step": steps}], spacing_key="step", maps="boundary")["map"]
    for image in range(size):
        one = slice(image, image + 1)
        torch.testing.assert_close(found[one], rw.boundary_map(labels[one], CLASSES, spacing=float(steps[image])))
    found = only([{"label": labels, "step": kind([[2.0, 0.5]] * size)}], spacing_key="step")["map"]
    assert_is_map_of(found, labels, spacing=(2.0, 0.5))
    with pytest.raises(ValueError, match=rf"one row for each of {size} images, \[B\] or \[B, axes\], or a tuple"):
        only([{"label": labels, "step": kind([2.0] * (size + 1))}], spacing_key="step")


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_spacing_may_be_an_array(kind):
    assert_is_map_of(only([(IMAGE, LABELS)], spacing=kind([2.0, 0.5]))[2], LABELS, spacing=(2.0, 0.5))
    with pytest.raises(ValueError, match="spacing: expected positive numbers"):
        MapLoader([], CLASSES, spacing=kind([2.0, -0.5]))


def test_the_largest_distances_of_the_volume_divide_those_of_its_patches():
    class_max = torch.tensor([[9.0, 8.0, 7.0]]).expand(4, 3)
    spacing = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    batch = {"label": LABELS, "max": class_max, "step": spacing}
    found = only([batch], class_max_key="max", spacing_key="step")["map"]
    for image in range(4):
        one = slice(image, image + 1)
        options = {"class_max": class_max[one], "spacing": spacing[image].tolist()}
        assert_is_map_of(found[one], LABELS[one], **options)


def test_labels_with_a_channel_axis_floats_and_arrays_are_taken():
    assert_is_map_of(only([{"label": LABELS[:, None].float()}])["map"], LABELS)
    assert_is_map_of(only([{"label": LABELS.numpy()}])["map"], LABELS)
    volumes = Images(shape=(1, 7, 9)).labels(0, 2)
    assert_is_map_of(only([{"label": volumes}], spatial_dims=3)["map"], volumes)
    assert only([{"label": volumes}])["map"].shape == (2, 7, 9)
    rows = LABELS[:, 0]
    assert_is_map_of(only([{"label": rows[:, None]}], spatial_dims=1)["map"], rows, spatial_dims=1)


# --- a buffer for the map -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("maps", ["rectified", "boundary", "active_contour", "constant"])
@pytest.mark.parametrize("rows", [None, [[1.0, 2.0]] * 4, [[1.0, 2.0], [0.5, 2.0], [3.0, 1.0], [1.0, 1.0]]])
def test_a_map_is_written_where_it_is_wanted(maps, rows):
    """Also where every image has a spacing of its own, and its map is made alone."""
    builder = MapBuilder(CLASSES, maps=maps, spacing_key=None if rows is None else "spacing")
    batch = {} if rows is None else {"spacing": torch.tensor(rows)}
    expected = builder.of_batch(batch, LABELS)
    dense = isinstance(expected, torch.Tensor)
    out = torch.full_like(expected if dense else expected.foreground, 7.0)
    found = builder.of_batch(batch, LABELS, out)
    values = found if dense else found.foreground
    assert values.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected if dense else expected.foreground)
    with pytest.raises(ValueError, match="out: expected"):
        builder.of_batch(batch, LABELS, out[..., :-1])
