"""The store of `rwkernels precompute`: damage is found, nothing leaves it, nothing half-written stays."""

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from precompute_cases import LABELS, contents, run, two_sources, write_nifti

from rwkernels.data import store
from rwkernels.data.store import PARTIAL, Store, record

nibabel = pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
sitk = pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")


@pytest.fixture
def folders(tmp_path):
    return two_sources(tmp_path)


@pytest.mark.parametrize("library", ["libdeflate", "zlib"])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, 700_001])
def test_the_checksum_of_a_file_is_crc32_whichever_library_computes_it(tmp_path, library, size, monkeypatch):
    if library == "zlib":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    store._crc32.cache_clear()
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    store.finish(tmp_path, {})
    assert record(tmp_path)["files"] == {"file": [size, zlib.crc32(data)]}
    store._crc32.cache_clear()


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


def test_a_folder_that_is_already_another_zarr_group_is_refused(folders, capsys):
    source, target = folders
    zarr.create_group(str(target))
    assert run(source, target, "--num-classes", 4) == 2
    assert "DST: expected a store of this command, got another Zarr group" in capsys.readouterr().err
