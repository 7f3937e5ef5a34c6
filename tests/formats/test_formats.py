"""Label maps of every kind of file: the values, the spacing of every axis, what is refused before it is read."""

import gzip
import io
import json
import locale
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from precompute_cases import AFFINE, SPACING, blob, write_nifti

from rwkernels.backends.threads import limited_to
from rwkernels.formats import ReadOptions, files, in_order, open_labels, whole_labels

nibabel = pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
sitk = pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra `precompute` is not installed")

LABELS = blob((13, 10, 7))
OPTIONS = ReadOptions()


def read(path: Path, options: ReadOptions = OPTIONS) -> np.ndarray:
    opened = open_labels(path, options)
    labels = whole_labels(opened.load())
    assert labels.shape == opened.shape
    assert labels.flags.c_contiguous
    assert labels.flags.writeable
    return labels


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_nifti_comes_as_nibabel_gives_it(tmp_path, suffix, dtype):
    path = write_nifti(tmp_path / f"a{suffix}", LABELS.astype(dtype))
    assert (read(path) == LABELS).all()
    assert read(path).dtype == np.uint8
    assert open_labels(path, OPTIONS).spacing == pytest.approx(SPACING)
    backwards = ReadOptions(axes="zyx")
    assert (read(path, backwards) == LABELS.transpose(2, 1, 0)).all()
    assert open_labels(path, backwards).spacing == pytest.approx(SPACING[::-1])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr", ".nii.gz"])
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_the_same_scan_is_the_same_array_at_the_same_place_in_every_format(tmp_path, suffix, axes):
    """SimpleITK writes the scan; what nibabel makes of its NIfTI is the truth."""
    write_nifti(tmp_path / "truth.nii.gz", LABELS)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "truth.nii.gz")), str(tmp_path / f"scan{suffix}"))
    options = ReadOptions(axes=axes)
    truth, found = (open_labels(tmp_path / name, options) for name in ("truth.nii.gz", f"scan{suffix}"))
    assert (found.load() == truth.load()).all()
    assert found.shape == truth.shape
    assert found.spacing == pytest.approx(truth.spacing)
    np.testing.assert_allclose(found.affine, truth.affine, atol=1e-5)
    expected = AFFINE if axes == "xyz" else AFFINE[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(found.affine, expected, atol=1e-5)


@pytest.mark.parametrize("suffix", [".gipl", ".gipl.gz", ".vtk"])
def test_formats_without_directions_hold_the_array_and_its_spacing(tmp_path, suffix):
    image = sitk.GetImageFromArray(LABELS.transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    before = locale.setlocale(locale.LC_ALL)
    found = open_labels(tmp_path / f"scan{suffix}", OPTIONS)
    assert locale.setlocale(locale.LC_ALL) == before  # ITK's reader of VTK files leaves another
    assert (found.load() == LABELS).all()
    assert found.spacing == pytest.approx(SPACING)
    assert locale.setlocale(locale.LC_ALL) == before


def test_a_compressed_nrrd_and_one_of_two_axes_are_read(tmp_path):
    image = sitk.GetImageFromArray(LABELS[0].T)
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "flat.nrrd"), useCompression=True)
    assert (read(tmp_path / "flat.nrrd") == LABELS[0]).all()
    assert open_labels(tmp_path / "flat.nrrd", OPTIONS).spacing == (0.5, 2.0)
    assert open_labels(tmp_path / "flat.nrrd", ReadOptions(axes="zyx")).spacing == (2.0, 0.5)


def test_an_axis_of_one_for_time_is_dropped_and_several_channels_are_refused(tmp_path):
    path = write_nifti(tmp_path / "time.nii.gz", LABELS[..., None])
    assert (read(path) == LABELS).all()
    path = write_nifti(tmp_path / "two.nii.gz", np.stack([LABELS, LABELS], -1))
    with pytest.raises(ValueError, match=r"expected one channel and 1 to 3 axes of pixels, got shape \[13, 10, 7, 2\]"):
        read(path)
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([LABELS, LABELS], -1), isVector=True), str(tmp_path / "two.nrrd"))
    with pytest.raises(ValueError, match="expected one channel, got 2"):
        read(tmp_path / "two.nrrd")


def test_arrays_of_numpy_are_read_in_both_orders_and_by_name(tmp_path):
    np.save(tmp_path / "c.npy", LABELS)
    np.save(tmp_path / "f.npy", np.asfortranarray(LABELS.astype(">u2")))
    np.savez_compressed(tmp_path / "a.npz", seg=LABELS, image=np.zeros((3, 3)))
    np.savez(tmp_path / "b.npz", first=LABELS, second=LABELS + 1)
    for name in ("c.npy", "f.npy", "a.npz"):
        assert (read(tmp_path / name) == LABELS).all()
    assert (read(tmp_path / "b.npz", ReadOptions(key="second")) == LABELS + 1).all()
    with pytest.raises(ValueError, match="key: expected --key, as the file holds first, second"):
        read(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="key: expected one of first, second, got 'third'"):
        read(tmp_path / "b.npz", ReadOptions(key="third"))


def test_a_batch_and_a_channel_of_one_are_no_axes_of_an_array_and_more_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", LABELS[None, None])
    assert open_labels(tmp_path / "one.npy", OPTIONS).shape == LABELS.shape
    assert (read(tmp_path / "one.npy") == LABELS).all()
    np.save(tmp_path / "two.npy", np.stack([LABELS, LABELS]))
    with pytest.raises(ValueError, match=r"expected one channel and 1 to 3 axes of pixels, got shape \[2, 13, 10, 7\]"):
        read(tmp_path / "two.npy")


def test_the_unit_of_the_spacing_is_known_of_scans_and_pictures(tmp_path):
    for unit, found in (("mm", "mm"), ("unknown", "mm"), ("micron", None)):
        image = nibabel.Nifti1Image(LABELS, np.eye(4))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert open_labels(tmp_path / "a.nii", OPTIONS).unit == found
    Image.fromarray(LABELS[0]).save(tmp_path / "a.png")
    Image.fromarray(LABELS[0]).save(tmp_path / "b.png", dpi=(254, 254))
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(tmp_path / "a.mha"))
    for name, found in (("a.png", "pixels"), ("b.png", "mm"), ("a.mha", "mm")):
        assert open_labels(tmp_path / name, OPTIONS).unit == found
        assert open_labels(tmp_path / name, ReadOptions(spacing=(2.0,))).unit is None


def test_pages_of_several_sizes_are_no_label_map(tmp_path):
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        for page in (LABELS[0], LABELS[0].T):
            file.write(page)
    with pytest.raises(ValueError, match="labels: expected pages of one size, got 2 sizes"):
        read(tmp_path / "sizes.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_tiff_stacks_are_read_whatever_packs_them(tmp_path, compression):
    if compression:
        pytest.importorskip("imagecodecs", reason="packs TIFF files")
    tifffile.imwrite(tmp_path / "stack.tif", LABELS.astype(np.uint16), compression=compression)
    assert (read(tmp_path / "stack.tif") == LABELS).all()
    assert open_labels(tmp_path / "stack.tif", OPTIONS).spacing == (1.0, 1.0, 1.0)


def test_tiff_spacing_is_that_of_imagej_and_of_ome(tmp_path):
    settings = {"resolution": (1 / 0.5, 1 / 0.25), "metadata": {"spacing": 3.0, "unit": "um", "axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "imagej.tif", LABELS, imagej=True, **settings)
    assert open_labels(tmp_path / "imagej.tif", OPTIONS).spacing == pytest.approx((3.0, 0.25, 0.5))
    sizes = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 3.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", LABELS, metadata=sizes)
    assert open_labels(tmp_path / "a.ome.tif", OPTIONS).spacing == pytest.approx((3.0, 0.25, 0.5))


def test_pictures_of_one_channel_are_read_and_a_palette_is_indices(tmp_path):
    flat = LABELS[:, :, 3]
    Image.fromarray(flat).save(tmp_path / "grey.png")
    Image.fromarray(flat.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    coloured = Image.fromarray(flat).convert("P")
    coloured.putpalette([value for k in range(256) for value in (255 - k, k, 7 * k % 256)])
    coloured.save(tmp_path / "palette.png")
    Image.fromarray(flat > 0).save(tmp_path / "bits.png", dpi=(254, 127))
    assert (read(tmp_path / "grey.png") == flat).all()
    assert (read(tmp_path / "deep.png") == flat.astype(int) * 300).all()
    assert (read(tmp_path / "palette.png") == flat).all()
    assert (read(tmp_path / "bits.png") == (flat > 0)).all()
    assert open_labels(tmp_path / "bits.png", OPTIONS).spacing == pytest.approx((0.2, 0.1), rel=1e-3)
    Image.fromarray(np.stack([flat] * 3, -1)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="expected one channel, got RGB with 3"):
        read(tmp_path / "colours.png")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_and_groups_are_read(tmp_path, version):
    chunks = {"chunks": (4, 4, 4), "zarr_format": version}
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=LABELS.shape, dtype="uint8", **chunks)
    array[...] = LABELS
    array.attrs["spacing"] = list(SPACING)
    group = zarr.create_group(str(tmp_path / "b.zarr"), zarr_format=version)
    group.create_array("labels", shape=LABELS.shape, dtype="int32", chunks=(5, 5, 5))[...] = LABELS
    group.create_array("other", shape=(3,), dtype="int32")
    for name in ("a.zarr", "b.zarr"):
        assert (read(tmp_path / name) == LABELS).all()
    assert open_labels(tmp_path / "a.zarr", OPTIONS).spacing == SPACING
    for key in ("missing", "../a.zarr", "/etc"):
        with pytest.raises(ValueError, match="key: expected one of labels, other"):
            read(tmp_path / "b.zarr", ReadOptions(key=key))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (16, 1, 16), (17, 3, 40), (33, 20, 15), (15, 2, 64), (70, 61, 48), (5, 0, 3), (4, 7), (3,)]
)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2"])
def test_any_order_in_memory_comes_with_the_last_axis_fastest(shape, dtype, threads):
    values = np.random.default_rng(0).integers(-128, 128, shape).astype(dtype)
    for axes in (range(len(shape)), range(len(shape))[::-1]):
        turned = np.ascontiguousarray(values.transpose(*axes)).transpose(*axes)
        turned.flags.writeable = False
        with limited_to(threads):
            found = in_order(turned)
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_floats_have_to_be_whole_and_the_smallest_type_is_taken():
    assert whole_labels(np.array([[0.0, 3.0]], np.float32)).dtype == np.uint8
    assert whole_labels(np.array([[-1, 3]])).dtype == np.int8
    assert whole_labels(np.array([[0, 300]], np.uint16)).dtype == np.int16
    assert whole_labels(np.array([[0, 70_000]], np.uint64)).dtype == np.int32
    assert whole_labels(np.array([[True, False]])).tolist() == [[1, 0]]
    for bad in (0.5, np.nan, np.inf, 2.0**60):
        with pytest.raises(ValueError, match=r"labels: expected whole numbers, got .* at \(0, 1\)"):
            whole_labels(np.array([[0.0, bad]]))


def test_the_limit_is_held_against_the_header_before_anything_is_allocated(tmp_path):
    """Headers that claim a terabyte over a file of a few bytes."""
    huge = (10_000, 10_000, 10_000)
    header = nibabel.Nifti1Header()
    header.set_data_shape(huge)
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(8))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(8)))
    np.lib.format.write_array_header_1_0(file := io.BytesIO(), {"descr": "|u1", "fortran_order": False, "shape": huge})
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("labels.npy", file.getvalue())
    (tmp_path / "a.nrrd").write_text("NRRD0004\ntype: uchar\ndimension: 3\nsizes: 10000 10000 10000\nencoding: raw\n\n")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=huge, dtype="uint8", chunks=(64, 64, 64))
    zarr.create_array(str(tmp_path / "b.zarr"), shape=(4, 4), dtype="uint8", chunks=(100_000, 1_000_000))
    for name in ("a.nii", "a.nii.gz", "a.npy", "a.npz", "a.nrrd", "a.zarr", "b.zarr"):
        with pytest.raises(ValueError, match=r"expected at most 1000000000 bytes \(--max-bytes\), got 10000000"):
            open_labels(tmp_path / name, ReadOptions(max_bytes=10**9))


def test_a_stream_is_unpacked_no_further_than_its_header_says(tmp_path, monkeypatch):
    """A gzip bomb behind a small header, and a NIfTI extension that claims two gigabytes."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header["vox_offset"] = 352
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.write(bytes(300_000_000))
    unpacked = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: unpacked.append(data := original(self, size)) or data
    )
    assert (read(tmp_path / "bomb.nii.gz") == 0).all()
    assert sum(map(len, unpacked)) < 2000
    header["vox_offset"] = 1e9
    (tmp_path / "far.nii").write_bytes(header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", 2**31 - 1, 6) + bytes(99))
    with pytest.raises(ValueError, match="vox_offset: expected 348 to 1000000, got 1000000000"):
        open_labels(tmp_path / "far.nii", ReadOptions(max_bytes=10**6))


@pytest.mark.parametrize("library", ["libdeflate", "zlib"])
def test_a_gzip_stream_is_right_to_its_end_whichever_library_unpacks_it(tmp_path, library, monkeypatch):
    if library == "zlib":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    path = write_nifti(tmp_path / "a.nii.gz", LABELS)
    whole, plain = path.read_bytes(), gzip.decompress(path.read_bytes())
    several = gzip.compress(plain[:500]) + gzip.compress(plain[500:])
    for good in (whole, whole + bytes(16), several, gzip.compress(plain + b"more than the header says")):
        path.write_bytes(good)
        assert (read(path) == LABELS).all()
    changed = bytearray(plain)
    changed[-1] += 1
    other = gzip.compress(bytes(changed))
    for bad in (whole[:-8] + other[-8:], whole[:-4] + bytes(4), whole + b"no gzip", gzip.compress(plain[:-1])):
        path.write_bytes(bad)
        with pytest.raises((ValueError, OSError, EOFError, zlib.error)):
            read(path)


def test_one_gzip_stream_of_the_right_size_is_not_left_to_zlib(tmp_path, monkeypatch):
    path = write_nifti(tmp_path / "a.nii.gz", LABELS)
    unpacked = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: unpacked.append(data := original(self, size)) or data
    )
    assert (read(path) == LABELS).all()
    assert sum(map(len, unpacked)) == 540


def test_a_picture_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="decompression bomb"):
        open_labels(tmp_path / "bomb.png", OPTIONS)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", labels=np.array([Trap()], dtype=object))
    (tmp_path / "a.zarr").mkdir()
    metadata = {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "|O",
        "compressor": None,
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "pickle", "protocol": 5}],
    }
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(metadata))
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / ".zarray").write_text(json.dumps({**metadata, "dtype": "|u1"}))
    for name in ("a.npy", "a.npz", "a.zarr"):
        with pytest.raises(ValueError, match="labels: expected integers, got"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=r"codecs: expected .*, got pickle"):
        read(tmp_path / "b.zarr")
    assert not (tmp_path / "sprung").exists()


def test_a_header_may_name_one_file_beside_it_and_no_other(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    assert len(files.checksum(tmp_path / "a.mhd")[0]) == 64
    before = files.checksum(tmp_path / "a.mhd")
    raw = tmp_path / "a.raw"
    raw.write_bytes(raw.read_bytes()[:-1] + b"\1")
    assert files.checksum(tmp_path / "a.mhd") != before
    (tmp_path / "outside.raw").write_bytes(raw.read_bytes())
    (tmp_path / "in").mkdir()
    for name in ("../outside.raw", str(tmp_path / "outside.raw"), "LIST", "a%03d.raw"):
        (tmp_path / "in" / "b.mhd").write_text(text.replace("a.raw", name))
        with pytest.raises(ValueError, match="data file: expected the name of one file beside the header"):
            open_labels(tmp_path / "in" / "b.mhd", OPTIONS)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.npy", "a.npz", "a.tif", "a.png"])
def test_cut_off_and_foreign_files_are_errors_that_name_no_python(tmp_path, name):
    path = tmp_path / name
    if name.endswith((".nii", ".nii.gz")):
        write_nifti(path, LABELS)
    elif name.endswith(("nrrd", "mha")):
        sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(path))
    elif name.endswith("npy"):
        np.save(path, LABELS)
    elif name.endswith("npz"):
        np.savez(path, LABELS)
    elif name.endswith("tif"):
        tifffile.imwrite(path, LABELS)
    else:
        Image.fromarray(LABELS[0]).save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) * 2 // 3], whole[:20], b"", b"no label map" * 50):
        path.write_bytes(data)
        with pytest.raises((ValueError, OSError, EOFError, zipfile.BadZipFile, tifffile.TiffFileError)):
            read(path)
