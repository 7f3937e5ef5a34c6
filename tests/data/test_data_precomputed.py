"""`PrecomputedMaps`: whole volumes and boxes, what is read for them, workers, and stores that are refused."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from precompute_cases import SPACING, blob, run, write_nifti
from torch.utils.data import DataLoader

import rwkernels as rw
from rwkernels.data import PrecomputedMaps
from rwkernels.maps.quantised import largest_error

pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")

SHAPES = [(70, 40, 33), (66, 50, 20), (24, 20, 90)]
LABELS = [blob(shape, seed) for seed, shape in enumerate(SHAPES)]
ALLOWED = largest_error(16) + 1e-6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precomputed")
    for index, labels in enumerate(LABELS):
        write_nifti(folder / "labels" / f"v{index}.nii.gz", labels)
    assert run(folder / "labels", folder / "maps", "--num-classes", 4) == 0
    return folder / "labels", folder / "maps"


@pytest.fixture
def stores(made, tmp_path):
    """Copies that a test may harm."""
    for folder in made:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "labels", tmp_path / "maps"


def reference(index):
    return rw.rectified_map(torch.from_numpy(LABELS[index])[None], 4, spacing=SPACING, backend="reference")[0]


def test_a_sample_is_labels_and_their_map_and_the_loss_takes_it(made):
    data = PrecomputedMaps(made[1], made[0])
    assert len(data) == 3
    for index in range(3):
        sample = data[index]
        assert sample["name"] == f"v{index}.nii.gz"
        assert sample["spacing"] == pytest.approx(SPACING)
        assert (sample["label"].numpy() == LABELS[index]).all()
        expected = reference(index)
        assert float((sample["map"].foreground - expected.foreground).abs().max()) <= ALLOWED
        logits = torch.randn(1, 4, *SHAPES[index], requires_grad=True)
        loss = rw.region_wise_loss(logits, sample["map"][None])
        loss.backward()
        truth = rw.region_wise_loss(logits.detach(), expected[None], backend="reference")
        assert float(loss.detach()) == pytest.approx(float(truth), abs=ALLOWED)
    assert (data["v1.nii.gz"]["label"].numpy() == LABELS[1]).all()
    assert data.class_max(1).tolist() == pytest.approx(
        rw.data.class_max(torch.from_numpy(LABELS[1])[None], 4, spacing=SPACING)[0].tolist()
    )
    with pytest.raises(KeyError):
        data["v9.nii.gz"]
    with pytest.raises(IndexError):
        data[3]


def test_a_box_is_that_of_the_whole_volume(made):
    data = PrecomputedMaps(made[1])
    start, size = (60, 3, 1), (9, 30, 32)
    box = tuple(slice(at, at + rows) for at, rows in zip(start, size, strict=True))
    found, whole = data.crop(0, start, size), data[0]
    assert torch.equal(found["label"], whole["label"][box])
    assert torch.equal(found["map"].foreground, whole["map"].foreground[box])
    assert found["start"] == start
    for bad in ((62, 3, 1), (0, 0), (-1, 0, 0)):
        with pytest.raises(ValueError, match="start"):
            data.crop(0, bad, size)


def test_a_box_reads_only_the_chunks_that_it_touches(made, monkeypatch):
    data = PrecomputedMaps(made[1])
    data[0]
    read = []
    original = zarr.storage.LocalStore.get

    async def counted(self, key, *arguments, **keywords):
        found = await original(self, key, *arguments, **keywords)
        read.append(0 if found is None else len(found))
        return found

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    whole = (data[0], sum(read))[1]
    read.clear()
    data.crop(0, (65, 0, 0), (5, 40, 33))  # the second chunk of two, with 6 of 70 rows
    assert 0 < sum(read) < 0.3 * whole


def test_boxes_are_drawn_anew_and_repeat_with_the_seed(made):
    data = PrecomputedMaps(made[1], patch_size=(16, 12, 8), transform=lambda sample: sample | {"seen": True})
    torch.manual_seed(3)
    first = [data[0] for _ in range(20)]
    torch.manual_seed(3)
    again = [data[0] for _ in range(20)]
    starts = [sample["start"] for sample in first]
    assert starts == [sample["start"] for sample in again]
    assert len(set(starts)) > 15
    assert all(sample["seen"] for sample in first)
    for sample in first:
        box = tuple(slice(at, at + rows) for at, rows in zip(sample["start"], (16, 12, 8), strict=True))
        assert (sample["label"].numpy() == LABELS[0][box]).all()
    with pytest.raises(ValueError, match=r"patch_size: expected a box inside of \[66, 50, 20\], got \[16, 12, 21\]"):
        PrecomputedMaps(made[1], patch_size=(16, 12, 21))[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_store_for_themselves(made, method):
    data = PrecomputedMaps(made[1], made[0], patch_size=(16, 12, 8))
    data[0]  # opened here before any worker is started
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=method, timeout=60)
    (batch,) = list(loader)
    assert isinstance(batch["map"], rw.RectifiedMap)
    assert batch["map"].foreground.shape == (3, 16, 12, 8)
    for index, name in enumerate(batch["name"]):
        start = [int(axis[index]) for axis in batch["start"]]
        box = tuple(slice(at, at + rows) for at, rows in zip(start, (16, 12, 8), strict=True))
        item = int(name[1])
        assert (batch["label"][index].numpy() == LABELS[item][box]).all()
        error = batch["map"].foreground[index] - reference(item).foreground[box]
        assert float(error.abs().max()) <= ALLOWED
    loss = rw.region_wise_loss(torch.zeros(3, 4, 16, 12, 8), batch["map"])
    assert torch.isfinite(loss)


def test_it_is_pickled_without_what_is_open(made):
    data = PrecomputedMaps(made[1], made[0])
    size = len(pickle.dumps(data))
    data[0]
    assert len(pickle.dumps(data)) == size
    assert torch.equal(pickle.loads(pickle.dumps(data))[2]["label"], data[2]["label"])


def test_a_store_whose_labels_changed_is_refused(stores):
    source, target = stores
    changed = LABELS[1].copy()
    changed[0, 0, 0] += 1
    write_nifti(source / "v1.nii.gz", changed)
    message = "v1.nii.gz: expected the labels that its map was made of, but .* changed since"
    with pytest.raises(ValueError, match=message):
        PrecomputedMaps(target, source)
    lazy = PrecomputedMaps(target, source, check="access")
    lazy[0]
    with pytest.raises(ValueError, match=message):
        lazy[1]
    with pytest.raises(ValueError, match=message):
        lazy.crop(1, (0, 0, 0), (4, 4, 4))
    PrecomputedMaps(target, source, check="never")[1]
    PrecomputedMaps(target)[1]
    (source / "v1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"v1.nii.gz: expected its label map at .*v1\.nii\.gz"):
        PrecomputedMaps(target, source)
    with pytest.raises(ValueError, match="check: expected one of 'open', 'access', 'never', got str 'lazy'"):
        PrecomputedMaps(target, source, check="lazy")


def test_a_damaged_item_is_an_error_and_not_another_map(stores):
    _, target = stores
    shard = target / "v0.nii.gz" / "foreground" / "c.0.0.0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"v0.nii.gz: expected a whole item, but foreground/c.0.0.0 is missing or cut"):
        PrecomputedMaps(target)[0]
    shard.unlink()
    with pytest.raises(ValueError, match=r"v0.nii.gz: .* is missing or cut off"):
        PrecomputedMaps(target)[0]
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    shard.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"checksum"):
        PrecomputedMaps(target)[0]
    data = PrecomputedMaps(target)
    os.truncate(target / "v2.nii.gz" / "zarr.json", 50)
    with pytest.raises(ValueError, match=r"v2.nii.gz: expected a whole item, got damaged metadata"):
        data["v2.nii.gz"]


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="store: expected a folder of maps"):
        PrecomputedMaps(tmp_path / "none")
    with pytest.raises(ValueError, match="store: expected a folder with maps of `rwkernels precompute`"):
        PrecomputedMaps(tmp_path)


def test_boundary_maps_and_maps_beside_their_labels_are_read_back(stores):
    source, _ = stores
    assert run(source, "--beside", "--num-classes", 4, "--maps", "boundary", "--include", "v0*") == 0
    data = PrecomputedMaps(source, source)
    assert data.names == ("v0.nii.gz.map.zarr",)
    expected = rw.boundary_map(torch.from_numpy(LABELS[0])[None], 4, spacing=SPACING, backend="reference")[0]
    torch.testing.assert_close(data["v0.nii.gz"]["map"], expected, rtol=1e-5, atol=1e-5)
    cropped = data.crop(0, (1, 2, 3), (4, 5, 6))["map"]
    torch.testing.assert_close(cropped, expected[:, 1:5, 2:7, 3:9], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='class_max: expected a store of "rectified" maps'):
        data.class_max(0)


def test_ignored_pixels_and_other_families_keep_their_meaning(tmp_path):
    labels = LABELS[0].astype(np.int16)
    labels[:5] = -1
    np.save(tmp_path / "a.npy", labels)
    options = ["--num-classes", 4, "--ignore-index", -1]
    assert run(tmp_path / "a.npy", tmp_path / "maps", *options) == 0
    sample = PrecomputedMaps(tmp_path / "maps", tmp_path / "a.npy")[0]
    assert sample["label"].dtype == torch.int8
    expected = rw.rectified_map(torch.from_numpy(labels)[None], 4, ignore_index=-1, backend="reference")
    assert int(sample["map"].count) == int(expected.count)
    logits = torch.randn(1, 4, *labels.shape)
    found = rw.region_wise_loss(logits, sample["map"][None])
    assert float(found) == pytest.approx(float(rw.region_wise_loss(logits, expected)), abs=ALLOWED)
    assert run(tmp_path / "a.npy", tmp_path / "flat", *options, "--maps", "constant", "--map-option", "beta=0.5") == 0
    maps = PrecomputedMaps(tmp_path / "flat")[0]["map"]
    truth = rw.constant_map(torch.from_numpy(labels)[None], 4, beta=0.5, ignore_index=-1)[0]
    assert float((maps.foreground - truth.foreground).abs().max()) <= ALLOWED
