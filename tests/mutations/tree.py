"""A copy of the working tree in which tests run: with mistakes in it, and with a core of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plant import BrokenError, Planted

PACKAGE = "rwkernels"
# Python reads this file when it starts, after those of editable installs, whose finders come before any path.
_OWN_PATH_FIRST = f"""\
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "{PACKAGE}" not in getattr(finder, "__module__", "")]
"""
# Read after `project()`: of a processor that it does not know, the core has the baseline alone, a third of the work.
_ONE_INSTRUCTION_SET = "set(CMAKE_SYSTEM_PROCESSOR any)\n"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_OUTCOMES = {0: "passed", 1: "failed", 2: "failed"}  # 2: the tests could not be collected


@dataclass(frozen=True)
class Tested:
    """What came of some tests: `passed`, `failed`, `crashed` or `timeout`; and the test that failed first."""

    outcome: str
    first: str
    seconds: float
    output: str = ""


def checkout() -> Path:
    """The root of the working tree that this file is part of."""
    return Path(__file__).resolve().parents[2]


def installed_core() -> Path:
    """The compiled core of the installed package, found without importing it."""
    for folder in sys.path:
        for found in sorted(Path(folder, PACKAGE).glob("_native*.so")):
            return found
    raise FileNotFoundError("no compiled core: install the package, or name one with --core")


class Tree:
    """The copy, in a folder that the caller removes."""

    def __init__(self, folder: Path, core: Path) -> None:
        self.root, self._build, self._start = folder / "tree", folder / "build", folder / "start"
        _copy(checkout(), self.root)
        self.package = self.root / PACKAGE
        self.core = self.package / core.name
        self._start.mkdir()
        (self._start / "sitecustomize.py").write_text(_OWN_PATH_FIRST)
        self.place_core(core)
        self._check_import()

    def place_core(self, core: Path) -> None:
        """Puts a compiled core beside the package's modules."""
        self.core.unlink(missing_ok=True)
        shutil.copy(core, self.core)

    def build_core(self) -> Path:
        """The core as the copy has it now, for one instruction set. Only what changed since the last time is compiled.

        Raises:
            BrokenError: It does not compile.
        """
        self._build.mkdir(exist_ok=True)
        chosen = self._build / "one_instruction_set.cmake"
        if not chosen.exists():
            chosen.write_text(_ONE_INSTRUCTION_SET)
            _made(["cmake", "-S", self.root, "-B", self._build, "-DCMAKE_BUILD_TYPE=Release",
                   f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_PROJECT_INCLUDE={chosen}"])  # fmt: skip
        _made(["cmake", "--build", self._build, "--parallel", str(len(os.sched_getaffinity(0)))])
        return next(self._build.glob("_native*.so"))

    def write(self, planted: Planted) -> None:
        """Writes a mistake into the copy."""
        planted.path.write_text(planted.text)

    def restore(self, planted: Planted) -> None:
        """Takes it out again."""
        planted.path.write_text(planted.before)

    def test(self, tests: Sequence[str], timeout: float) -> Tested:
        """Runs tests, as a `Mutation` names them, up to the first that fails.

        Raises:
            BrokenError: There are no such tests.
        """
        start = time.monotonic()
        for one in tests:
            name, _, chosen = one.partition(": ")
            found = self._pytest(self._file(name), chosen, timeout - (time.monotonic() - start))
            if found.outcome != "passed":
                break
        return Tested(found.outcome, found.first, time.monotonic() - start, found.output)

    def _file(self, name: str) -> Path:
        found = list((self.root / "tests").rglob(f"{name}.py"))
        if len(found) != 1:
            raise BrokenError(f"there are {len(found)} files {name}.py below tests/")
        return found[0]

    def _pytest(self, file: Path, chosen: str, timeout: float) -> Tested:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider",
                   "--hypothesis-seed=0", str(file), *(["-k", chosen] if chosen else [])]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=self.root, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=max(timeout, 1.0))
        except subprocess.TimeoutExpired:
            return Tested("timeout", "", 0.0)
        finally:
            _end(process)
        first = _FAILED.search(output)
        place = first[1].removeprefix("tests/") if first else ""
        if process.returncode < 0:
            return Tested("crashed", signal.Signals(-process.returncode).name, 0.0, output)
        if process.returncode not in _OUTCOMES:
            raise BrokenError(f"{file.name}: pytest chose no tests or could not run ({process.returncode})")
        return Tested(_OUTCOMES[process.returncode], place, 0.0, output)

    def _environment(self) -> dict[str, str]:
        path = [str(self._start), str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}

    def _check_import(self) -> None:
        """Refuses to go on where Python would take another package than the copy's."""
        code = f"import {PACKAGE}, {PACKAGE}._native as core; print({PACKAGE}.__file__, core.__file__, sep='\\n')"
        done = subprocess.run([sys.executable, "-c", code], cwd=self.root.parent, env=self._environment(),
                              capture_output=True, text=True, check=False)  # fmt: skip
        expected = [str(self.package / "__init__.py"), str(self.core)]
        if done.stdout.split("\n")[:2] != expected:
            raise RuntimeError(f"expected Python to import {expected}, got {done.stdout or done.stderr}")


def _copy(source: Path, target: Path) -> None:
    """Copies what git knows of a working tree, as it is there now, and what it would not ignore."""
    command = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    for name in sorted({name for name in names if (source / name).is_file()}):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _made(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
        raise BrokenError(f"it does not compile: {(lines or [done.stderr])[0].strip()}")


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
