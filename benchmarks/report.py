"""From a case to lines of the table, and the table itself."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import rwkernels as rw
from benchmarks import memory
from benchmarks.contenders import OURS
from benchmarks.harness import COPY, EFFORTS, Contender, Measured, copy_contender, interleave, quiet, ratio
from benchmarks.rows import Case, Comparison


@dataclass(frozen=True)
class Line:
    """One comparison, measured. Times are in seconds; for peak memory they are bytes."""

    row: str
    task: str
    threads: int
    contender: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    low: float
    high: float
    kind: str
    goal: float | None
    moved: int  # bytes that have to be read and written
    over_floor: float  # our time over that of a copy of as many bytes
    turns: int
    refused: str | None = None  # why there is no ratio: a peer is missing, an answer is wrong

    @property
    def ours_fails(self) -> bool:
        """Whether an answer of ours is wrong or does not come."""
        return any(reason.startswith(OURS) for reason in (self.refused or "").split("; "))

    @property
    def met(self) -> bool | None:
        if self.goal is None or self.refused:
            return None
        return self.ratio >= self.goal if self.kind == "faster" else self.ratio <= self.goal

    def record(self) -> dict[str, Any]:
        """What is kept in JSON."""
        return {**asdict(self), "met": self.met}


def run(case: Case, contenders: Sequence[Contender], threads: int, scale: str) -> list[Line]:
    """Measures a case with its contenders: a line for each of its comparisons. Tiny inputs have no goals."""
    comparisons = case.comparisons
    if scale == "tiny":
        comparisons = tuple(replace(comparison, goal=None) for comparison in comparisons)
    if comparisons[0].kind == "memory":
        return [_memory_line(case, comparison, threads, scale) for comparison in comparisons]
    measured = interleave([*contenders, copy_contender(case.moved)], threads, EFFORTS[scale])
    return [_line(case, comparison, threads, measured) for comparison in comparisons]


def _line(case: Case, comparison: Comparison, threads: int, measured: dict[str, Measured]) -> Line:
    ours, peer = measured[comparison.ours], measured[comparison.peer]
    refused = "; ".join(f"{m.name} {m.refused}" for m in (ours, peer) if m.refused) or None
    value = low = high = over_floor = math.nan
    moved = comparison.moved or case.moved
    if ours.seconds:
        over_floor = ratio(ours, measured[COPY])[0] * case.moved / moved
    if not refused:
        top, bottom = (peer, ours) if comparison.kind == "faster" else (ours, peer)
        value, (low, high) = ratio(top, bottom)
        if comparison.kind == "growth":
            doubled = math.log(2 ** len(case.task.image_shape))
            value, low, high = (math.log(x) / doubled for x in (value, low, high))
    return Line(
        case.row,
        case.task.title,
        threads,
        comparison.ours,
        ours.median,
        comparison.peer,
        peer.median,
        value,
        low,
        high,
        comparison.kind,
        comparison.goal,
        moved,
        over_floor,
        min(len(ours.seconds), len(peer.seconds)),
        refused,
    )


def _memory_line(case: Case, comparison: Comparison, threads: int, scale: str) -> Line:
    found = memory.measure(scale, case.task, comparison.ours, threads)
    peak, gradient = float(found["peak"]), float(found["gradient"])
    value = peak / gradient
    return Line(
        case.row,
        case.task.title,
        threads,
        comparison.ours,
        peak,
        comparison.peer,
        gradient,
        value,
        value,
        value,
        comparison.kind,
        comparison.goal,
        int(gradient),
        math.nan,
        1,
    )


# --- text ------------------------------------------------------------------------------------------------------

COLUMNS = (
    "row", "task", "threads", "ours", "time", "peer", "time", "ratio", "[quartiles]", "goal", "met", "x floor",
)  # fmt: skip
_RIGHT = {2, 4, 6, 7, 8, 9, 11}
_SIGNS = {"faster": ">=", "within": "<=", "growth": "<=", "memory": "<="}


def header(bandwidths: dict[int, float], scale: str) -> str:
    """The machine, the versions, and how fast it copies."""
    import cpuinfo  # comes with pytest-benchmark

    versions = []
    for package in ("torch", "numpy", "scipy", "edt"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    backends = [str(status) for status in rw.backends() if status.device == "cpu"]
    cpu = cpuinfo.get_cpu_info()
    copies = ", ".join(f"{speed / 1e9:.1f} GB/s on {threads}" for threads, speed in bandwidths.items())
    lines = [
        f"rwkernels {rw.__version__} ({'; '.join(backends)})",
        f"{cpu.get('brand_raw', platform.processor())}, {cpu.get('count')} logical cores, {platform.platform()}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"copy of 256 MiB, reads and writes, on so many threads: {copies}",
        "ratio: of medians in the same run, contenders taking turns; floor: a copy of the bytes that must move, "
        "taking turns too",
        "growth: time ~ pixels^ratio from half the side; memory: peak beyond the inputs over the gradient",
    ]
    if scale != "full":
        lines.append(f"{scale} run: some inputs are smaller than those the goals are set for")
    return "\n".join(lines)


def _quantity(value: float, kind: str) -> str:
    if math.isnan(value):
        return "-"
    if kind == "memory":
        return f"{value / 2**20:.1f} MiB"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cells(line: Line) -> list[str]:
    goal = "-" if line.goal is None else f"{_SIGNS[line.kind]} {line.goal:g}"
    judgement = {True: "yes", False: "NO", None: "-"}[line.met]
    met = f"not ranked: {line.refused}" if line.refused else judgement
    return [
        line.row,
        line.task,
        str(line.threads),
        line.contender,
        _quantity(line.ours, line.kind),
        line.peer_name,
        _quantity(line.peer, line.kind),
        _number(line.ratio),
        f"[{_number(line.low)} {_number(line.high)}]",
        goal,
        met,
        _number(line.over_floor),
    ]


def table(lines: Sequence[Line]) -> str:
    """The aligned table."""
    rows = [list(COLUMNS), *[_cells(line) for line in lines]]
    refused = [False, *[line.refused is not None for line in lines]]
    widths = [
        max(len(cells[i]) for cells, skip in zip(rows, refused, strict=True) if not (skip and i == 10))
        for i in range(len(COLUMNS))
    ]

    def text(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([text(rows[0]), "  ".join("-" * width for width in widths), *map(text, rows[1:])])


def summary(lines: Sequence[Line]) -> str:
    """How many goals were met, and every one that was not."""
    judged = [line for line in lines if line.met is not None]
    missed = [line for line in judged if not line.met]
    unranked = [line for line in lines if line.refused]
    text = [f"{len(judged) - len(missed)} of {len(judged)} goals met"]
    text += [
        f"  missed: {line.row}, {line.task}, {line.threads} threads, {line.contender} against {line.peer_name}: "
        f"{_number(line.ratio)}, goal {_SIGNS[line.kind]} {line.goal:g}"
        for line in missed
    ]
    text += [f"  not ranked: {line.row}, {line.task}, {line.threads} threads: {line.refused}" for line in unranked]
    return "\n".join(text)


def versions_of_machine() -> dict[str, str]:
    """What is kept beside the lines in JSON."""
    return {
        "rwkernels": rw.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": next((status.name for status in rw.backends() if status.device == "cpu" and status.available), ""),
    }


def repeat(contenders: Sequence[Contender], line: Line, threads: int, pedantic: Callable[..., Any]) -> None:
    """Runs our contender of a line once more under pytest-benchmark's `pedantic`."""
    ours = next(contender for contender in contenders if contender.name == line.contender)
    with quiet(threads):
        pedantic(ours.run, setup=ours.prepare, rounds=3)
