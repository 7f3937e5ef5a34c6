"""The regression guard: `rwkernels bench guard`, and how its files are written."""

from dataclasses import replace
from pathlib import Path

import pytest

from rwkernels import bench, cli, files

guard = pytest.importorskip("benchmarks.guard", reason="benchmarks/ is not beside the tests")
guard_rows = pytest.importorskip("benchmarks.guard_rows", reason="benchmarks/ is not beside the tests")

needs_core = pytest.mark.skipif(guard.core_path() is None, reason="the compiled core is missing")
BEFORE = guard.Counts("instructions", "GCC, AVX2", {"a": 1000.0, "b": 1000.0})


def test_the_guard_names_the_rows_that_grew():
    assert guard.grown(BEFORE, replace(BEFORE, rows={"a": 1019.0, "b": 1021.0})) == ["b"]


@needs_core
@pytest.mark.parametrize("name", list(guard_rows.ROWS))
def test_the_rows_of_the_guard_run_over_the_core_alone(name):
    prepared = guard_rows.prepare(str(guard.core_path()), name)
    assert prepared.run() in (None, -1)
    assert prepared.moved > 0


@pytest.mark.parametrize(("grows", "code"), [(1.0, 0), (1.05, 1)])
def test_the_guard_stores_and_checks(grows, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "core_path", lambda: tmp_path)
    monkeypatch.setattr(guard.shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(guard, "instructions", lambda _: BEFORE)
    path = str(tmp_path / "guard.json")
    assert cli.main(["bench", "guard", "--save", "--baseline", path]) == 0
    monkeypatch.setattr(guard, "instructions", lambda _: replace(BEFORE, rows={"a": 1000.0 * grows, "b": 990.0}))
    assert cli.main(["bench", "guard", "--check", "--baseline", path]) == code
    assert ("GREW: a" in capsys.readouterr().err) == (code == 1)


def test_counts_of_another_compiler_are_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "core_path", lambda: tmp_path)
    monkeypatch.setattr(guard.shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(guard, "instructions", lambda _: BEFORE)
    path = str(tmp_path / "guard.json")
    cli.main(["bench", "guard", "--save", "--baseline", path])
    monkeypatch.setattr(guard, "instructions", lambda _: replace(BEFORE, core="clang, AVX2"))
    assert cli.main(["bench", "guard", "--check", "--baseline", path]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert cli.main(["bench", "guard", "--check", "--baseline", str(tmp_path / "none.json")]) == 2


def test_a_baseline_that_cannot_be_written_ends_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "core_path", lambda: tmp_path)
    monkeypatch.setattr(guard.shutil, "which", lambda _: "valgrind")
    monkeypatch.setattr(guard, "instructions", lambda _: BEFORE)
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "guard.json"  # a file is no folder, for root neither
    assert cli.main(["bench", "guard", "--save", "--baseline", str(path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_outside_a_checkout_the_guard_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "rwkernels" / "bench" / "__init__.py"))
    assert cli.main(["bench", "guard", "--check"]) == 2
    assert "expected a checkout of rwkernels, which has benchmarks/guard.py" in capsys.readouterr().err


def test_a_file_that_cannot_be_replaced_is_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    files.write(path, "before")

    def broken(*_):
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no room"):
        files.write(path, b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
