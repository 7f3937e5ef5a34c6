"""`rwkernels bench guard`: has one of seven key rows become dearer? Counted in instructions, for clocks are too noisy.

The rows are the loops in which the package spends its time on a CPU (the distance transform in 2D and in 3D, the
rectified and the boundary map, and the loss with a dense and with a compact map), and a small image's whole step.
`guard_rows` runs them through the C++ core alone, without torch, under Valgrind's callgrind; the count of n + 1 runs
less that of one, over n, is a row's. It depends on the code and on the compiler, not on the machine or how busy it is,
so counts can be kept with the code. They hold for one compiler and one instruction set (Valgrind shows the core at most
AVX2), which the file names; under another one a check refuses, and a baseline of one's own is a `--save` away.

Where Valgrind is missing, times are compared instead: the ratio of every row to a copy of as many bytes, taken in turns
in the same run. That is of one machine only, so the file says which and the tolerance is wide.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import guard_rows
from rwkernels.bench import add_guard_arguments
from rwkernels.commands import problem
from rwkernels.files import write

RUNS = 3
TOLERANCE = {"instructions": 1.02, "ratios": 1.3}


@dataclass(frozen=True)
class Counts:
    """What was counted: how, with which core, and the number of every row."""

    kind: str  # "instructions" or "ratios"
    core: str  # compiler and instruction set; for ratios the machine too
    rows: dict[str, float]


def core_path() -> Path | None:
    """The compiled core, found without importing the package."""
    spec = importlib.util.find_spec("rwkernels._native")
    return Path(spec.origin) if spec is not None and spec.origin else None


def compiler(core: Path) -> str:
    """The compiler that the core says it was built with."""
    found = sorted(set(re.findall(rb"(?:GCC: \([^)]*\)|clang version) [\d.]+", core.read_bytes())))
    return ", ".join(text.decode() for text in found) or "unknown compiler"


def _collected(core: Path, row: str, runs: int, folder: Path) -> int:
    """Instructions of a process that runs a row so often."""
    command = [
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind.out'}",
        sys.executable, "-s", "-S", str(Path(guard_rows.__file__)), str(core), row, str(runs),
    ]  # fmt: skip
    # Seeds of hashes, and whatever else an environment changes in an interpreter's start, are instructions too.
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"callgrind could not run {row}: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1])


def instructions(core: Path) -> Counts:
    """Instructions of one run of every row."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in guard_rows.ROWS:
            once = _collected(core, row, 1, Path(folder))
            rows[row] = float((_collected(core, row, 1 + RUNS, Path(folder)) - once) // RUNS)
    return Counts("instructions", f"{compiler(core)}, at most AVX2, {platform.machine()}", rows)


def ratios(core: Path) -> Counts:
    """The time of every row over that of a copy of as many bytes, in turns."""
    from rwkernels.bench.harness import COPY, Contender, Effort, copy_contender, interleave, ratio

    rows = {}
    for row in guard_rows.ROWS:
        prepared = guard_rows.prepare(str(core), row)
        contenders = [Contender(row, prepared.run), copy_contender(prepared.moved)]
        measured = interleave(contenders, 1, Effort(1.0, 15, turn=0.02))
        rows[row] = ratio(measured[row], measured[COPY])[0]
    return Counts("ratios", f"{compiler(core)}, {platform.machine()}, {_processor()}", rows)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


def load(path: Path) -> Counts:
    """Stored counts. Raises `ValueError` if the file holds none."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        return Counts(str(kept["kind"]), str(kept["core"]), {k: float(v) for k, v in kept["rows"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--baseline: {path} holds no counts ({error}); --save makes it") from None


def grown(before: Counts, now: Counts) -> list[str]:
    """The rows that cost more than the tolerance allows."""
    allowed = TOLERANCE[now.kind]
    return [row for row, count in now.rows.items() if row in before.rows and count > allowed * before.rows[row]]


def report(now: Counts, before: Counts | None) -> str:
    """The counts as lines of text."""
    unit = "instructions" if now.kind == "instructions" else "times a copy"
    lines = [f"{now.kind}: {now.core}"]
    for row, count in now.rows.items():
        text = f"{count:14,.0f}" if now.kind == "instructions" else f"{count:14.2f}"
        line = f"  {row:<24}{text} {unit}"
        if before is not None and row in before.rows:
            line += f", {100 * (count / before.rows[row] - 1):+.2f} %"
        lines.append(line)
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Counts, and stores or checks. 0 if nothing grew, 1 if something did, 2 if it cannot be said."""
    core = core_path()
    if core is None:
        return problem("bench guard", "the compiled core is missing")
    before: Counts | None = None
    if args.check:
        try:
            before = load(args.baseline)
        except ValueError as error:
            return problem("bench guard", error)
    counted = shutil.which("valgrind") is not None and not args.ratios
    now = instructions(core) if counted else ratios(core)
    comparable = before is not None and (before.kind, before.core) == (now.kind, now.core)
    print(report(now, before if comparable else None))
    if args.store:
        try:
            write(args.baseline, json.dumps(asdict(now), indent=1) + "\n")
        except OSError as error:
            return problem("bench guard", f"--baseline: {args.baseline} cannot be written ({error})")
        print(f"wrote {args.baseline}")
    if before is None:
        return 0
    if not comparable:
        return problem("bench guard", f"{args.baseline} is of {before.kind}, {before.core}; not comparable")
    worse = grown(before, now)
    for row in worse:
        print(f"GREW: {row}, more than {100 * (TOLERANCE[now.kind] - 1):.0f} %", file=sys.stderr)
    return 1 if worse else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard")
    add_guard_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
