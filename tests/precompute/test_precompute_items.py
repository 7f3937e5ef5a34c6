"""What an item of a store holds: labels, codes, distances, metadata, and NIfTI on request."""

import math
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from precompute_cases import AFFINE, LABELS, SPACING, blob, run, two_sources, write_nifti

import rwkernels as rw
from rwkernels.data import class_max
from rwkernels.data.store import Store, record
from rwkernels.maps.quantised import decode, encode, largest_error
from rwkernels.precompute import items, shards
from rwkernels.precompute.settings import Settings

nibabel = pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
sitk = pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")


@pytest.fixture
def folders(tmp_path):
    return two_sources(tmp_path)


def test_an_item_holds_labels_codes_and_where_they_are_from(folders):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    assert list(Store(target).items()) == ["a.nii.gz", "more/b.nii"]
    item = zarr.open_group(str(target), mode="r")["a.nii.gz"]
    assert (item["labels"][...] == LABELS).all()
    assert item["labels"].dtype == np.uint8
    expected = rw.rectified_map(torch.from_numpy(LABELS)[None], 4, spacing=SPACING, backend="reference")
    found = decode(item["foreground"][...])
    assert item["foreground"].dtype == np.uint16
    assert np.abs(found - expected.foreground[0].numpy()).max() <= largest_error(16) + 1e-6
    kept = record(target / "a.nii.gz")
    assert kept["version"] == rw.__version__
    assert kept["spacing"] == pytest.approx(SPACING)
    np.testing.assert_allclose(kept["affine"], AFFINE)
    assert kept["source"]["path"] == "a.nii.gz"
    digest = subprocess.run(["sha256sum", source / "a.nii.gz"], capture_output=True, text=True, check=True).stdout
    assert kept["source"]["sha256"] == digest.split()[0]
    largest = class_max(torch.from_numpy(LABELS)[None], 4, spacing=SPACING)[0]
    assert kept["class_max"] == pytest.approx(largest.tolist(), rel=1e-6)


@pytest.mark.parametrize("black_border", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 1])
@pytest.mark.parametrize("shape", [(21, 18, 13), (40, 31), (3, 1, 50)])
def test_the_largest_distances_are_those_of_the_transform(black_border, ignore_index, shape):
    spacing = (3.0, 0.5, 1.25)[: len(shape)]
    for labels in (blob(shape), np.zeros(shape, np.uint8), np.random.default_rng(0).integers(0, 4, shape, np.uint8)):
        settings = Settings(4, black_border=black_border, ignore_index=ignore_index)
        made = items.make(labels, spacing, settings, 1, "cpu")
        options = {"spacing": spacing, "ignore_index": ignore_index, "black_border": black_border}
        batch = torch.from_numpy(labels)[None]
        assert made.class_max == pytest.approx(class_max(batch, 4, **options)[0].tolist(), rel=1e-6)
        expected = encode(rw.rectified_map(batch, 4, **options).foreground[0], 16)
        np.testing.assert_array_equal(made.foreground, expected.numpy())
        whole = items.make(labels, spacing, replace(settings, bits=32), 1, "cpu")
        assert whole.class_max == made.class_max
        expected = rw.rectified_map(batch, 4, backend="reference", **options)
        np.testing.assert_allclose(whole.foreground, expected.foreground[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "family"),
    [
        (["--maps", "boundary", "--map-option", "inside_offset=1"], rw.boundary_map),
        (["--maps", "active_contour", "--dense"], rw.active_contour_map),
        (["--maps", "constant", "--map-option", "beta=3", "--dense"], rw.constant_map),
        (["--dense", "--bits", "32", "--ignore-index", "2", "--black-border"], rw.rectified_map),
        (["--dense", "--bits", "8"], rw.rectified_map),
        (["--dense", "--spacing", "2,1,5"], rw.rectified_map),
    ],
)
def test_every_family_is_what_its_function_gives_and_stands_the_comparison(folders, options, family, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4, *options, "--verify", "all") == 0
    assert "2 of 2 maps verified against SciPy" in capsys.readouterr().out
    keywords = {"backend": "reference"}
    if family in (rw.rectified_map, rw.boundary_map):
        keywords["spacing"] = (2.0, 1.0, 5.0) if "--spacing" in options else SPACING
    if "--ignore-index" in options:
        keywords |= {"ignore_index": 2, "black_border": True}
    keywords |= {"inside_offset": 1.0} if family is rw.boundary_map else {}
    keywords |= {"beta": 3.0} if family is rw.constant_map else {}
    expected = family(torch.from_numpy(LABELS)[None], 4, **keywords)
    expected = expected if isinstance(expected, torch.Tensor) else expected.dense()
    item = zarr.open_group(str(target / "a.nii.gz"), mode="r")
    torch.testing.assert_close(torch.from_numpy(item["dense"][...]), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(21, 18, 13), (8, 9, 16), (40, 31), (3, 21, 18, 13), (50,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint16, np.float32])
@pytest.mark.parametrize("pixels", [1 << 27, 2000, 1])
def test_zarr_reads_every_shape_and_type_that_is_packed_here(tmp_path, monkeypatch, shape, dtype, pixels):
    monkeypatch.setattr(shards, "PIXELS", pixels)  # all chunks in one file, some, one
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    chunks = (8, 9, 4) if len(shape) == 3 else (1, 8, 9, 4) if len(shape) == 4 else (16,) * len(shape)
    shards.write(tmp_path / "a", values, chunks, "half of it")
    found = zarr.open_array(str(tmp_path / "a"), mode="r")
    assert (found[...] == values).all()
    assert found.dtype == values.dtype
    assert found.chunks == chunks
    box = tuple(slice(1, side - 1) for side in shape)
    assert (found[box] == values[box]).all()
    assert dict(found.attrs) == {"value": "half of it"}
    files = len(list((tmp_path / "a").glob("c.*")))
    assert files == math.prod(-(-n // s) for n, s in zip(shape, shards.shard_shape(shape, chunks), strict=True))
    assert (files > 1) == (pixels < values.size)


def test_what_cannot_be_compressed_is_copied_and_all_comes_back(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1 << 16, (64, 64, 64)).astype(np.uint16)
    half = noise.copy()
    half[:, :, 8:] = 7
    for name, values, low, high in (
        ("noise", noise, 1.0, 1.001),
        ("half", half, 0.1, 0.5),
        ("zero", half * 0, 0, 0.05),
    ):
        shards.write(tmp_path / name, values, (32, 64, 64))
        (file,) = (path for path in (tmp_path / name).iterdir() if path.name.startswith("c"))
        assert low <= file.stat().st_size / values.nbytes <= high
        assert np.array_equal(zarr.open_array(tmp_path / name, mode="r")[:], values)


@pytest.mark.parametrize(("shape", "dtype"), [((70, 64, 3), np.uint16), ((71, 64, 3), np.uint16), ((9, 8), np.float32)])
@pytest.mark.parametrize("meaning", ["", "-code / 65535"])
def test_the_metadata_of_an_array_are_those_that_zarr_writes(tmp_path, shape, dtype, meaning):
    chunks = tuple(min(64, side) for side in shape)
    itemsize = np.dtype(dtype).itemsize
    zarr.create_array(
        str(tmp_path / "theirs"),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=tuple(-(-side // chunk) * chunk for side, chunk in zip(shape, chunks, strict=True)),
        compressors=(
            zarr.codecs.BloscCodec(typesize=itemsize, cname="lz4", clevel=1, shuffle="bitshuffle"),
            zarr.codecs.Crc32cCodec(),
        ),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={"value": meaning} if meaning else {},
    )
    shards.write(tmp_path / "ours", np.zeros(shape, dtype), chunks, meaning)
    assert (tmp_path / "ours" / "zarr.json").read_bytes() == (tmp_path / "theirs" / "zarr.json").read_bytes()


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nifti_lies_where_its_source_does(tmp_path, suffix, axes):
    write_nifti(tmp_path / "labels" / "a.nii.gz", LABELS)
    if suffix == ".nrrd":
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "labels" / "a.nii.gz")), str(tmp_path / "labels" / "a.nrrd"))
    name = f"a{suffix}"
    for dense in ([], ["--dense"]):
        target = tmp_path / f"maps{len(dense)}"
        assert run(tmp_path / "labels", target, "--num-classes", 4, "--axes", axes, "--nifti", *dense) == 0
        image = nibabel.load(target / name / "map.nii")
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        expected = rw.rectified_map(torch.from_numpy(LABELS)[None], 4, spacing=SPACING, backend="reference")
        truth = expected.dense()[0].movedim(0, -1) if dense else expected.foreground[0]
        np.testing.assert_allclose(image.get_fdata(), truth.numpy(), atol=1e-5)
