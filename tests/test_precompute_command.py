"""`rwkernels precompute` from folders to stores: what is made, skipped, rebuilt, refused and reported."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from precompute_cases import AFFINE, SPACING, blob, contents, parse, run, write_nifti, write_volumes

import rwkernels as rw
from rwkernels.data import class_max
from rwkernels.precompute import items, shards
from rwkernels.precompute.settings import Settings
from rwkernels.precompute.store import PARTIAL, Store, record
from rwkernels.quantised import decode, largest_error

nibabel = pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
sitk = pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")

LABELS = blob((21, 18, 13))


@pytest.fixture
def folders(tmp_path):
    source = tmp_path / "labels"
    write_nifti(source / "a.nii.gz", LABELS)
    write_nifti(source / "more" / "b.nii", blob((9, 12, 8), seed=3).astype(np.float32))
    return source, tmp_path / "maps"


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
        map_, found = items.make(labels, spacing, settings, 1, "cpu")
        options = {"spacing": spacing, "ignore_index": ignore_index, "black_border": black_border}
        batch = torch.from_numpy(labels)[None]
        assert found == pytest.approx(class_max(batch, 4, **options)[0].tolist(), rel=1e-6)
        expected = rw.rectified_map(batch, 4, backend="reference", **options)
        torch.testing.assert_close(map_.foreground, expected.foreground[0], rtol=1e-6, atol=1e-6)


def test_classes_are_counted_over_all_labels_when_they_are_not_given(folders, capsys):
    source, target = folders
    write_nifti(source / "c.nii.gz", LABELS + 2)
    assert run(source, target) == 0
    assert "6 classes found in 3 label maps" in capsys.readouterr().out
    assert {record(target / name)["settings"]["num_classes"] for name in Store(target).items()} == {6}


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


def test_what_is_done_is_skipped_and_what_changed_is_made_anew(folders, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    before = contents(target)
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    os.utime(source / "a.nii.gz")  # a new time alone changes nothing
    assert run(source, target, "--num-classes", 4) == 0
    assert "0 maps built (0 B before compression), 2 already there, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()} == times
    write_nifti(source / "a.nii.gz", np.flip(LABELS, 0).copy())
    assert run(source, target, "--num-classes", 4) == 0
    assert "1 map built" in capsys.readouterr().out
    assert (zarr.open_group(str(target / "a.nii.gz"), mode="r")["labels"][...] == np.flip(LABELS, 0)).all()
    assert run(source, target, "--num-classes", 4, "--bits", 8) == 0
    assert "2 maps built" in capsys.readouterr().out
    write_nifti(source / "a.nii.gz", LABELS)
    assert run(source, target, "--num-classes", 4, "--rebuild") == 0
    assert contents(target) == before


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


def damage_shard(item: Path) -> None:
    path = item / "foreground" / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate_shard(item: Path) -> None:
    os.truncate(item / "labels" / "c.0.0.0", 10)


def remove_shard(item: Path) -> None:
    (item / "labels" / "c.0.0.0").unlink()


def truncate_metadata(item: Path) -> None:
    os.truncate(item / "zarr.json", 100)


def remove_metadata(item: Path) -> None:
    (item / "zarr.json").unlink()


def change_metadata(item: Path) -> None:
    text = (item / "zarr.json").read_text()
    (item / "zarr.json").write_text(text.replace('"background": 1.0', '"background": 2.0'))


def replace_by_file(item: Path) -> None:
    shutil.rmtree(item)
    item.write_text("no item")


@pytest.mark.parametrize(
    "harm",
    [
        damage_shard,
        truncate_shard,
        remove_shard,
        truncate_metadata,
        remove_metadata,
        change_metadata,
        replace_by_file,
    ],
)
def test_a_damaged_item_is_found_and_rebuilt(folders, harm, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    before = contents(target)
    harm(target / "a.nii.gz")
    assert contents(target) != before
    capsys.readouterr()
    assert run(source, target, "--num-classes", 4) == 0
    assert "1 map built" in capsys.readouterr().out
    assert contents(target) == before


def test_bad_sources_are_reported_at_the_end_and_stop_nobody(folders, capsys):
    source, target = folders
    (source / "broken.nii.gz").write_bytes(b"nothing of the kind")
    np.save(source / "half.npy", np.full((3, 4), 0.5))
    np.save(source / "nine.npy", np.full((3, 4), 9))
    (source / "gone.npy").symlink_to(source / "nowhere.npy")
    (source / "notes.txt").write_text("no label map, and not called one")
    assert run(source, target, "--num-classes", 4) == 1
    out, err = capsys.readouterr()
    assert "2 maps built" in out
    assert "4 failed:\n" in err
    assert "broken.nii.gz: no NIfTI file: the header is missing or cut off\n" in err
    assert "half.npy: labels: expected whole numbers, got 0.5 at (0, 0)\n" in err
    assert "nine.npy: labels: expected integers in [0, 4), got 9 at (0, 0, 0)\n" in err
    assert "gone.npy: [Errno 2] No such file or directory" in err
    assert list(Store(target).items()) == ["a.nii.gz", "more/b.nii"]
    assert not (target / PARTIAL).exists()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(folders, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4, "--include", "a.*") == 0
    before = contents(target)
    write_nifti(source / "c.nii.gz", blob((100, 100, 50)))
    (source / "bad.nii").write_bytes(b"?")
    capsys.readouterr()
    assert run(source, target, "--num-classes", 4, "--dry-run") == 1
    out, err = capsys.readouterr()
    assert "kept" in out.splitlines()[0]
    assert "build      1.5 MB  c.nii.gz  (missing)" in out
    assert "2 maps to build, at most 1.5 MB before compression; 1 already there" in out
    assert "bad.nii: no NIfTI file" in err
    assert contents(target) == before
    assert run(source, target.parent / "new", "--dry-run", "--include", "*.gz") == 0
    assert not (target.parent / "new").exists()


def test_sources_that_differ_in_their_suffix_alone_have_items_of_their_own(tmp_path):
    source, target = tmp_path / "labels", tmp_path / "maps"
    write_nifti(source / "a.nii.gz", LABELS)
    write_nifti(source / "a.nii", LABELS)
    np.save(source / "a.npy", LABELS)
    np.save(source / "__a.npy", LABELS)
    np.save(source / "%5F%5Fa.npy", LABELS)
    np.save(source / "ä b.npy", LABELS)
    assert run(source, target, "--num-classes", 4) == 0
    names = list(Store(target).items())
    assert len(names) == 6
    assert {"a.nii.gz", "a.nii", "a.npy", "%5F%5Fa.npy", "%255F%255Fa.npy", "ä b.npy"} == set(names)


def test_maps_beside_their_sources_are_no_sources(folders, capsys):
    source, _ = folders
    assert run(source, "--beside", "--num-classes", 4, "--nifti") == 0
    assert list(Store(source, beside=True).items()) == ["a.nii.gz.map.zarr", "more/b.nii.map.zarr"]
    before = contents(source)
    capsys.readouterr()
    assert run(source, "--beside", "--num-classes", 4, "--nifti") == 0
    assert "0 maps built (0 B before compression), 2 already there, 0 failed" in capsys.readouterr().out
    assert contents(source) == before
    assert run(source / "a.nii.gz", "--beside", "--num-classes", 4, "--nifti") == 0


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


def test_outputs_do_not_leave_the_store_by_links(folders, tmp_path, capsys):
    source, target = folders
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    assert run(source, target, "--num-classes", 4, "--include", "a.*") == 0
    (target / "more").symlink_to(outside)  # a folder of the store that leads out of it
    shutil.rmtree(target / "a.nii.gz")
    (target / "a.nii.gz").symlink_to(outside)  # an item that does
    capsys.readouterr()
    assert run(source, target, "--num-classes", 4) == 1
    assert "more/b.nii: more: expected a folder of the store, got a link or a file" in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert not (target / "a.nii.gz").is_symlink()
    assert record(target / "a.nii.gz") is not None
    (target / "more").unlink()
    (target / PARTIAL).symlink_to(outside)
    assert run(source, target, "--num-classes", 4) == 1
    assert f"{PARTIAL}: expected a folder, got a link" in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", ""])
def test_no_name_of_a_source_leads_out_of_the_store(tmp_path, name):
    with pytest.raises(ValueError, match="source: expected a relative path"):
        Store(tmp_path).item_name(name)


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(folders):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    store = Store(target)
    try:
        with store.writing("x.npy") as item:
            mine = item.parent
            machine, _, started, rest = mine.name.split("-")
            dead = subprocess.run(
                [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
            )
            partial = target / PARTIAL
            left = [
                partial / f"{machine}-{dead.stdout.strip()}-{started}-{rest}",
                partial / f"{machine}-{child.pid}-1-{rest}",  # its number was used again
            ]
            old, young = partial / "elsewhere-1-1-a", partial / "elsewhere-1-1-b"
            for folder in (*left, old, young):
                (folder / "item").mkdir(parents=True)
            os.utime(old, (0, 0))
            assert run(source, target, "--num-classes", 4) == 0
            assert {path.name for path in partial.iterdir()} == {mine.name, young.name}
            item.mkdir()
    finally:
        child.kill()
        child.wait()


def test_a_map_that_is_wrong_does_not_stand_the_comparison(folders, capsys, monkeypatch):
    source, target = folders
    original = items.make

    def wrong(*arguments):
        map_, largest = original(*arguments)
        map_.foreground[5, 5, 5] *= 0.999
        return map_, largest

    monkeypatch.setattr(items, "make", wrong)
    assert run(source, target, "--num-classes", 4, "--include", "a.*", "--verify", "1") == 1
    out, err = capsys.readouterr()
    assert "0 of 1 map verified against SciPy" in out
    assert "a.nii.gz: not verified: foreground is off by" in err


def test_a_sample_for_the_comparison_is_a_number_a_fraction_or_all(folders, capsys):
    source, target = folders
    write_volumes(source, 8, (6, 7))
    for amount, expected in (("3", "3 of 3"), ("0.5", "5 of 5"), ("all", "10 of 10"), ("99", "10 of 10")):
        assert run(source, target, "--num-classes", 4, "--verify", amount) == 0
        assert f"{expected} maps verified" in capsys.readouterr().out
    for amount in ("0", "1.5", "-1", "some", "nan"):
        assert run(source, target, "--num-classes", 4, f"--verify={amount}") == 2
        assert "--verify: expected a number of items, a fraction between 0 and 1, or all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{source}"], "DST: expected a folder for the maps, or --beside"),
        (["{source}", "{source}"], "DST: expected another folder than that of the sources"),
        (["{source}/none", "{target}"], "SRC: expected a folder or a label map"),
        (["{source}", "{source}/a.nii.gz"], "DST: expected a folder, got the file"),
        (["{source}", "{other}"], "DST: expected an empty folder or a store of this command"),
        (["{source}", "{target}", "--beside"], "DST: expected none with --beside"),
        (["{source}", "{target}", "--include", "*.nrrd"], "SRC: expected label maps"),
        (["{source}", "{target}", "--maps", "boundary", "--bits", "16"], "bits: expected 32"),
        (["{source}", "{target}", "--map-option", "beta=2"], "map_options: expected further options of rectified_map"),
        (["{source}", "{target}", "--device", "cuda:0"], "--device: expected a device of this machine"),
        (
            ["{source}", "{target}", "--scheduler", "tcp://host"],
            "--scheduler: expected an address like tcp://host:8786",
        ),
        (["{source}", "{target}", "--scheduler", "file:///etc:1"], "--scheduler: expected an address like"),
        (["{source}", "{target}", "--cluster", "local", "--scheduler", "a:1"], "--scheduler: expected none with"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(folders, arguments, message, capsys):
    source, target = folders
    if "--device" in arguments and torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    other = source.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("chapter 1")
    names = {"source": source, "target": target, "other": other}
    assert run(*[argument.format(**names) for argument in arguments], "--num-classes", 4) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_options_that_are_no_numbers_are_usage_errors(capsys):
    for option, value in (("--workers", "0"), ("--spacing", "1,-2"), ("--max-bytes", "2X"), ("--map-option", "beta")):
        with pytest.raises(SystemExit):
            parse("a", "b", f"{option}={value}")
        assert f"argument {option}: expected" in capsys.readouterr().err
    assert parse("a", "b", "--max-bytes", "2G").max_bytes == 2 << 30


def test_a_map_that_needs_more_than_the_limit_is_refused(folders, capsys):
    source, target = folders
    write_nifti(source / "c.nii.gz", blob((60, 60, 60)))
    assert run(source, target, "--num-classes", 4, "--max-bytes", "1M") == 1
    assert (
        "c.nii.gz: labels and map: expected at most 1048576 bytes (--max-bytes), got 1728000" in capsys.readouterr().err
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("black_border", [False, True])
def test_the_distance_of_a_pixel_is_right_where_its_lines_meet_no_other_label(spacing, black_border):
    labels = np.ones((41, 50), np.uint8)
    labels[20] = labels[:, 22:25] = 0  # a cross: along its arms there is nothing else
    labels[:4, :30] = 2
    found = rw.distance_transform(labels[None], spacing=spacing, black_border=black_border)[0]
    for place in [(20, 23), (20, 22), (20, 0), (3, 0), (40, 24), (0, 35), (40, 49)]:
        assert items.distance_at(labels, place, spacing, black_border) == pytest.approx(found[place], rel=1e-6), place
    assert items.distance_at(np.zeros((5, 6), np.uint8), (2, 2), spacing) == math.inf


def test_several_processes_write_what_one_does_and_a_dead_one_takes_its_item_alone(tmp_path, capsys, monkeypatch):
    source = tmp_path / "labels"
    write_volumes(source, 12)
    assert run(source, tmp_path / "one", "--num-classes", 4) == 0
    assert run(source, tmp_path / "two", "--num-classes", 4, "--workers", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # A source at which whoever reads it is killed, as one that is out of memory is.
    monkeypatch.setenv("RWKERNELS_TEST_DEADLY", "deadly.npy")
    shutil.copy(source / "v000.npy", source / "deadly.npy")
    arguments = [source, tmp_path / "three", "--num-classes", 4, "--workers", 2]
    script = (
        "import sys, precompute_deadly\n"
        "from precompute_cases import run\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(run(*sys.argv[1:]))\n"
    )
    (tmp_path / "main.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, tmp_path / "main.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    assert "12 maps built" in done.stdout
    assert "1 failed:\n  deadly.npy: its process died twice (killed, or out of memory)" in done.stderr
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_a_folder_that_is_already_another_zarr_group_is_refused(folders, capsys):
    source, target = folders
    zarr.create_group(str(target))
    assert run(source, target, "--num-classes", 4) == 2
    assert "DST: expected a store of this command, got another Zarr group" in capsys.readouterr().err


def test_maps_without_a_source_are_mentioned(folders, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    (source / "a.nii.gz").unlink()
    assert run(source, target, "--num-classes", 4) == 0
    assert "1 map in" in capsys.readouterr().out
    assert json.loads((target / "zarr.json").read_text())["node_type"] == "group"
