"""A service in another process answers with the maps that are built here, through every way into a loader."""

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("grpc", reason="needs the extra `service`")
from data_cases import Images
from service_cases import TOKEN, some_labels

import rwkernels as rw
from rwkernels.data import AddMap, MapCollate, MapLoader
from rwkernels.data.building import MapBuilder
from rwkernels.maps.quantised import decode, encode, largest_error
from rwkernels.service import RemoteMapBuilder


@pytest.fixture(scope="module")
def url():
    """Of the command itself, as it is started from a shell."""
    command = [sys.executable, "-m", "rwkernels", "serve", "--port", "0", "--monitor-port", "0", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RWKERNELS_TOKEN"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        listening = json.loads(process.stderr.readline())
        assert listening["event"] == "listening"
        yield f"grpc://127.0.0.1:{listening['port']}"
        process.terminate()
        rest = [json.loads(line)["event"] for line in process.stderr]
    assert process.returncode == 0
    assert rest[-2:] == ["stopping", "stopped"]


def both(url, labels, classes=3, batch=None, **options):
    """The map of the service and that of the local builder."""
    local = MapBuilder(classes, **options)
    remote = RemoteMapBuilder(url, classes, **options)
    batch = {} if batch is None else batch
    return remote.of_batch(batch, labels), local.of_batch(batch, labels)


def assert_same_map(found, expected):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        return
    assert torch.equal(found.labels, expected.labels)
    assert found.foreground.dtype == torch.float32
    assert torch.equal(found.foreground, expected.foreground)
    for name in ("background", "num_classes", "ignore_index", "class_scale"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.image_count is None) == (expected.image_count is None)
    if expected.image_count is not None:
        assert torch.equal(found.image_count, expected.image_count)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 13, 22), (3, 5, 7, 9), (1, 1, 40), (0, 4, 5), (2, 1, 6, 5)])
def test_a_rectified_map_comes_back_bit_for_bit(url, shape, dtype):
    assert_same_map(*both(url, some_labels(*shape).to(dtype)))


@pytest.mark.parametrize(
    ("maps", "options"),
    [
        ("rectified", {"spacing": (0.3, 2.5), "black_border": True}),
        ("rectified", {"ignore_index": 2}),
        ("boundary", {}),
        ("boundary", {"spacing": (0.3, 2.5), "map_options": {"absent": 3.0, "inside_offset": 1}, "ignore_index": 0}),
        ("active_contour", {"ignore_index": 2}),
        ("constant", {"map_options": {"alpha": 2.0, "beta": 3.5}}),
    ],
)
def test_every_family_has_the_local_builders_values_and_settings(url, maps, options):
    assert_same_map(*both(url, some_labels(3, 13, 22), maps=maps, **options))


def test_one_axis_a_channel_axis_and_118_classes_are_taken(url):
    assert_same_map(*both(url, some_labels(4, 37), spatial_dims=1))
    assert_same_map(*both(url, some_labels(2, 13, 22)[:, None]))
    assert_same_map(*both(url, some_labels(2, 40, 50, classes=118), classes=118))


def test_wide_and_negative_labels_travel_whole(url):
    labels = some_labels(2, 13, 22)
    labels[0, :3] = -100
    assert_same_map(*both(url, labels, ignore_index=-100))
    labels = some_labels(2, 13, 22) + 900
    assert_same_map(*both(url, labels, classes=903))


def test_images_keep_their_own_spacing_and_largest_distances(url):
    labels = some_labels(3, 13, 22)
    batch = {"spacing": torch.tensor([[1.0, 2.0], [0.1, 2.0], [3.0, 1 / 3]]), "largest": torch.full((3, 3), 50.0)}
    assert_same_map(*both(url, labels, batch=batch, spacing_key="spacing"))
    assert_same_map(*both(url, labels, batch=batch, class_max_key="largest"))
    batch["largest"][1, 2] = 0.0
    with pytest.raises(ValueError, match=r"got 0\.0 for class 2 of image 1"):
        both(url, labels, batch=batch, class_max_key="largest")


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_are_as_close_as_their_bits_allow(url, bits):
    labels = some_labels(2, 64, 48)
    found = RemoteMapBuilder(url, 3, bits=bits).of_batch({}, labels)
    expected = rw.rectified_map(labels, 3)
    away = (found.foreground - expected.foreground).abs().max()
    assert 0 < away <= largest_error(bits)
    assert torch.equal(found.foreground == -1, expected.foreground == -1)


def test_images_with_their_own_spacing_come_as_codes_too(url):
    labels = some_labels(3, 64, 48)
    batch = {"spacing": torch.tensor([[1.0, 2.0], [0.1, 2.0], [3.0, 1 / 3]])}
    found = RemoteMapBuilder(url, 3, bits=16, spacing_key="spacing").of_batch(batch, labels)
    for image, row in enumerate(batch["spacing"].tolist()):
        expected = rw.rectified_map(labels[image : image + 1], 3, spacing=row).foreground
        assert torch.equal(found.foreground[image : image + 1], decode(encode(expected)))


def test_a_map_is_written_where_it_is_wanted(url):
    labels = some_labels(2, 64, 48)
    out = torch.full((2, 64, 48), 7.0)
    found = RemoteMapBuilder(url, 3).of_batch({}, labels, out)
    assert found.foreground.data_ptr() == out.data_ptr()
    assert torch.equal(out, rw.rectified_map(labels, 3).foreground)
    with pytest.raises(ValueError, match="out: expected"):
        RemoteMapBuilder(url, 3).of_batch({}, labels, out[:1])


def test_boundary_maps_travel_as_halves_if_those_hold_them(url):
    labels = some_labels(2, 64, 48)
    found = RemoteMapBuilder(url, 3, maps="boundary", bits=16).of_batch({}, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, rw.boundary_map(labels, 3).half().float())
    with pytest.raises(ValueError, match="float16 cannot hold"):
        RemoteMapBuilder(url, 3, maps="boundary", bits=16, spacing=70000.0).of_batch({}, labels)


@pytest.mark.parametrize("labels", [torch.tensor([[[0, 1], [0, 3]]]), torch.tensor([[[0, 300], [0, 1]]])])
def test_a_bad_label_is_told_in_the_words_of_the_local_builder(url, labels):
    with pytest.raises(ValueError, match="labels: expected integers in") as local:
        MapBuilder(3).of_batch({}, labels)
    with pytest.raises(ValueError, match="labels: expected integers in") as remote:
        RemoteMapBuilder(url, 3).of_batch({}, labels)
    assert str(remote.value) == str(local.value)


@pytest.mark.parametrize("depth", [1, 3])
def test_map_loader_takes_the_service_as_its_builder(url, depth):
    data = Images(size=10)
    loader = MapLoader(DataLoader(data, batch_size=3), builder=RemoteMapBuilder(url, 3), depth=depth)
    found = list(loader)
    assert len(found) == 4
    for index, (_, labels, maps) in enumerate(found):
        expected = data.labels(3 * index, min(3 * index + 3, 10))
        assert maps.labels is labels
        assert_same_map(maps, rw.rectified_map(expected, 3))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_a_connection_each(url, start):
    builder = RemoteMapBuilder(url, 3)
    data = Images(size=8, transform=AddMap(builder=builder))
    loader = DataLoader(data, batch_size=4, num_workers=2 if start == "fork" else 1, multiprocessing_context=start)
    for index, (_, labels, maps) in enumerate(loader):
        assert torch.equal(labels, data.labels(4 * index, 4 * index + 4))
        assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)
    collate = DataLoader(Images(size=4), batch_size=4, num_workers=1, collate_fn=MapCollate(builder=builder))
    ((_, labels, maps),) = list(collate)
    assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)


def test_a_builder_of_ones_own_excludes_other_options(url):
    builder = RemoteMapBuilder(url, 3)
    with pytest.raises(ValueError, match="spacing: expected to be given to the builder"):
        MapLoader([], builder=builder, spacing=2.0)
    with pytest.raises(ValueError, match="num_classes: expected 3"):
        MapLoader([], 4, builder=builder)
    with pytest.raises(ValueError, match="black_border: expected to be given to the builder"):
        AddMap(builder=builder, black_border=True)
    with pytest.raises(TypeError, match="builder: expected a map builder"):
        MapCollate(builder=rw.rectified_map)
    with pytest.raises(TypeError, match="num_classes: expected an integer"):
        MapLoader([])


def test_a_builder_is_pickled_without_its_connection_and_shows_no_token(url, tmp_path):
    builder = RemoteMapBuilder(url, 3, token=TOKEN, spacing=(2.0, 1.0))
    labels = some_labels(2, 13, 22)
    expected = builder.of_batch({}, labels)
    again = pickle.loads(pickle.dumps(builder))
    assert_same_map(again.of_batch({}, labels), expected)
    assert TOKEN not in repr(builder) + repr(vars(builder)) + str(builder._target)
    (tmp_path / "token").write_text(TOKEN)
    from_file = RemoteMapBuilder(url, 3, token_file=tmp_path / "token")
    assert TOKEN.encode() not in pickle.dumps(from_file)


def test_many_batches_over_one_stream_come_in_order(url):
    batches = [some_labels(1 + seed % 3, 13 + seed, 22, seed=seed) for seed in range(30)]
    found = list(RemoteMapBuilder(url, 3).maps_of(batches, window=5))
    assert len(found) == 30
    for maps, labels in zip(found, batches, strict=True):
        assert_same_map(maps, rw.rectified_map(labels, 3))


def test_an_error_in_a_stream_comes_in_its_turn(url):
    good, bad = some_labels(1, 13, 22), torch.full((1, 4, 4), 5)
    stream = RemoteMapBuilder(url, 3).maps_of([good, good, bad, good])
    next(stream)
    next(stream)
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 5 at \(0, 0, 0\)"):
        next(stream)

    def broken():
        yield good
        raise RuntimeError("of the data set")

    stream = RemoteMapBuilder(url, 3).maps_of(broken())
    next(stream)
    with pytest.raises(RuntimeError, match="of the data set"):
        next(stream)


def test_a_stream_may_be_left_early(url):
    builder = RemoteMapBuilder(url, 3)
    for _ in range(3):
        stream = builder.maps_of((some_labels(2, 64, 64, seed=seed) for seed in range(1000)), window=8)
        next(stream)
        stream.close()
    assert_same_map(builder.of_batch({}, some_labels(2, 9, 9)), rw.rectified_map(some_labels(2, 9, 9), 3))


def test_the_example_of_the_document_runs(url):
    document = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert "grpc://127.0.0.1:8815" in example
    data = Images(size=4)
    batches = [some_labels(2, 13, 22, classes=4, seed=seed) for seed in range(3)]
    names = {"data_loader": DataLoader(data, batch_size=2), "batches": batches}
    exec(compile(example.replace("grpc://127.0.0.1:8815", url), "service.md", "exec"), names)
    for index, (_, labels, maps) in enumerate(names["loader"]):
        assert torch.equal(labels, data.labels(2 * index, 2 * index + 2))
        expected = rw.rectified_map(labels, 4).foreground
        assert (maps.foreground - expected).abs().max() <= largest_error(16)
    found = list(names["maps"])
    assert [maps.shape[0] for maps in found] == [2, 2, 2]
    for labels, maps in zip(batches, found, strict=True):
        assert (maps.foreground - rw.rectified_map(labels, 4).foreground).abs().max() <= largest_error(16)


def test_numpy_labels_of_a_batch_are_taken(url):
    ((_, labels, maps),) = MapLoader([(None, some_labels(2, 13, 22).numpy())], builder=RemoteMapBuilder(url, 3))
    assert isinstance(labels, np.ndarray | torch.Tensor)
    assert torch.equal(maps.foreground, rw.rectified_map(some_labels(2, 13, 22), 3).foreground)


def test_answers_raise_no_warning(url):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bits in (None, 8, 16):
            RemoteMapBuilder(url, 3, bits=bits).of_batch({}, some_labels(2, 13, 22))


def test_a_log_that_nobody_reads_stops_nobody(url):
    """The fixture reads its pipe, of 64 KiB, at the end alone; every call logs a line of more than 200 bytes."""
    builder = RemoteMapBuilder(url, 3, timeout=10)
    labels = some_labels(1, 3, 3)
    for _ in range(400):
        builder.of_batch({}, labels)
