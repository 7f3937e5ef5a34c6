"""`rwkernels precompute` from folders to stores: what is made, skipped, rebuilt, refused and reported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from precompute_cases import LABELS, blob, contents, parse, run, two_sources, write_nifti, write_volumes

from rwkernels.data.store import PARTIAL, Store, record
from rwkernels.precompute import items, runner
from rwkernels.precompute.settings import Settings

nibabel = pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
zarr = pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
sitk = pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")


@pytest.fixture
def folders(tmp_path):
    return two_sources(tmp_path)


def test_classes_are_counted_over_all_labels_when_they_are_not_given(folders, capsys):
    source, target = folders
    write_nifti(source / "c.nii.gz", LABELS + 2)
    assert run(source, target) == 0
    assert "6 classes found in 3 label maps" in capsys.readouterr().out
    assert {record(target / name)["settings"]["num_classes"] for name in Store(target).items()} == {6}


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


def test_a_map_that_is_wrong_does_not_stand_the_comparison(folders, capsys, monkeypatch):
    source, target = folders
    original = items.make

    def wrong(*arguments):
        made = original(*arguments)
        made.foreground[5, 5, 5] *= 0.999
        return made

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


def test_maps_without_a_source_are_mentioned(folders, capsys):
    source, target = folders
    assert run(source, target, "--num-classes", 4) == 0
    (source / "a.nii.gz").unlink()
    assert run(source, target, "--num-classes", 4) == 0
    assert "1 map in" in capsys.readouterr().out
    assert json.loads((target / "zarr.json").read_text())["node_type"] == "group"


def build_and_die_the_first_time(job):
    """A worker that is killed after its item is there, and before anybody hears of it."""
    outcome = items.build(job)
    died = job.root.parent / "died"
    if not died.exists():
        died.touch()
        os._exit(1)
    return outcome


@pytest.mark.parametrize(("before", "status"), [(False, "built"), (True, "kept")])
def test_an_item_of_a_process_that_died_before_it_said_so_counts_as_built(tmp_path, before, status):
    write_volumes(tmp_path / "labels", 1)
    target = tmp_path / "maps"
    assert run(tmp_path / "labels", target, "--num-classes", 4) == 0
    (name,) = Store(target).items()
    settings = Settings(**{**record(target / name)["settings"], "num_classes": 4})
    if before:
        os.utime(target / name, (0, 0))
    else:
        shutil.rmtree(target / name)
    job = items.Job("v000.npy", tmp_path / "labels", Store(target), settings, 1 << 30)
    outcomes = list(runner.processes(build_and_die_the_first_time, [job], 1))
    assert [outcome.status for outcome in outcomes] == [status]
    assert (tmp_path / "died").exists()
