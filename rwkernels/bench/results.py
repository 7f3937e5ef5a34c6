"""What was found: rows, scaling curves and the machine; and how they are kept as JSON of pytest-benchmark.

The file can be given to `pytest-benchmark compare`: one entry per contender, case and number of threads, whose
statistics are those of the interleaved turns. All else is in `extra_info`. Contenders that were not timed (missing, or
wrong) have no statistics, so they stand beside the entries, under "not_ranked".
"""

from __future__ import annotations

import gzip
import importlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from rwkernels.bench.harness import COPIES, RIGHT, quartiles
from rwkernels.pages import counted

FORMAT = 1
_DIGITS = 5

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Ratio:
    """A comparison with a goal, if it has one. `kind` as in `registry.Goal`."""

    peer: str
    value: float
    low: float
    high: float
    kind: str = "faster"
    goal: int | float | None = None  # an integer stays one in JSON

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None or math.isnan(self.value):
            return None
        return self.value >= self.goal if self.kind == "faster" else self.value <= self.goal


@dataclass(frozen=True)
class Row:
    """One contender of one case at one number of threads."""

    case: str
    family: str
    task: str
    contender: str
    threads: int
    verdict: str = RIGHT
    reason: str = ""
    seconds: tuple[float, ...] = ()
    peer: str = ""
    ratio: float | None = None  # times faster than the peer of the case
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratios: tuple[Ratio, ...] = ()  # to others, and those with goals
    moved: int = 0  # the least it must read and write, bytes
    share: float | None = None  # of the speed of a copy of the same bytes, taking turns
    peak: int | None = None  # bytes beyond the inputs, None where it was not measured
    buffer: str = ""
    of_truth: bool = False  # timed a single time, while the truth was computed
    per_second: float | None = None
    device: str = "cpu"
    shape: tuple[int, ...] = ()
    pattern: str = ""
    num_classes: int = 0
    spacing: tuple[float, ...] | None = None
    dtype: str = "float32"
    layout: str = "contiguous"
    curve: str = ""
    axis: str = ""
    axis_value: int = 0
    fitted: bool = False
    limit: float | None = None
    exponent: float | None = None
    warm_ups: int = 0
    clocks: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it is this package."""
        return self.contender.startswith("rwkernels")

    @property
    def ranked(self) -> bool:
        """Whether it was timed: it is there, and its answer is right."""
        return self.verdict == RIGHT and bool(self.seconds)

    @property
    def median(self) -> float:
        """Median of the turns."""
        return quartiles(self.seconds)[1]

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the turns."""
        low, _, high = quartiles(self.seconds)
        return low, high

    @property
    def name(self) -> str:
        """As in pytest-benchmark."""
        return f"{self.case} / {self.contender} / {threads_text(self.threads)}"


@dataclass(frozen=True)
class Curve:
    """The exponent of one contender along one axis: time ~ axis ** exponent, by least squares on logarithms."""

    curve: str
    axis: str
    contender: str
    threads: int
    device: str
    exponent: float
    error: float | None  # standard error; None with two points
    points: int
    first: int
    last: int
    limit: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the exponent stays under its limit, up to twice its standard error; None without one."""
        return None if self.limit is None else self.exponent - 2 * (self.error or 0.0) <= self.limit


@dataclass
class Run:
    """All of a run."""

    scale: str
    machine: dict[str, Any]
    bandwidth: dict[int, float]  # bytes per second of a large copy, by threads
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)  # seconds by case
    estimated: float = 0.0  # sum of the estimated efforts
    interrupted: bool = False
    when: str = ""
    commit: dict[str, Any] = field(default_factory=dict)
    renewed: tuple[str, ...] = ()  # cases that were measured again later

    def of_family(self, family: str) -> list[Row]:
        """The rows of a family, in the order in which they were measured."""
        return [row for row in self.rows if row.family == family]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by what `key` gives for them, in the order in which it gave each first."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def threads_text(count: int) -> str:
    """One thread, two threads."""
    return counted(count, "thread")


# --- JSON ------------------------------------------------------------------------------------------------------


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def extra_info(row: Row) -> dict[str, Any]:
    """All of a row but its times; what says nothing is left out."""
    kept = {key: value for key, value in asdict(row).items() if key != "seconds"}
    defaults = asdict(Row("", "", "", "", 0))
    return {key: _rounded(value) for key, value in kept.items() if key == "threads" or value != defaults[key]}


def statistics_of(seconds: Sequence[float]) -> dict[str, Any]:
    """As pytest-benchmark computes them, and the turns themselves."""
    stats: Any = importlib.import_module("pytest_benchmark.stats").Stats()
    seconds = _rounded(list(seconds))
    for value in seconds:
        stats.update(value)
    return {**_rounded(stats.as_dict()), "iterations": 1, "data": seconds}


def entry(row: Row) -> dict[str, Any]:
    """An entry of "benchmarks"."""
    return {
        "group": f"{row.case} / {threads_text(row.threads)}",
        "name": row.name,
        "fullname": f"rwkernels.bench::{row.name}",
        "params": None,
        "param": None,
        "extra_info": extra_info(row),
        "options": {"timer": "cuda_events" if row.device == "cuda" else "perf_counter"},
        "stats": statistics_of(row.seconds),
    }


def to_json(run: Run) -> dict[str, Any]:
    """The whole file."""
    import pytest_benchmark

    return {
        "machine_info": run.machine,
        "commit_info": run.commit,
        "benchmarks": [entry(row) for row in run.rows if row.ranked],
        "datetime": run.when or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": pytest_benchmark.__version__,
        "not_ranked": [extra_info(row) for row in run.rows if not row.ranked],
        "rwkernels": {
            "format": FORMAT,
            "scale": run.scale,
            "interrupted": run.interrupted,
            "copy_bytes_per_second": {str(threads): _rounded(speed) for threads, speed in run.bandwidth.items()},
            "seconds_per_case": _rounded(run.took),
            "estimated_seconds": _rounded(run.estimated),
            "curves": [_rounded(asdict(curve)) for curve in run.curves],
            "renewed": list(run.renewed),
        },
    }


def _turns(stats: dict[str, Any]) -> tuple[float, ...]:
    """The turns; pytest-benchmark leaves them out unless told otherwise; then what has the same quartiles."""
    return tuple(stats.get("data") or (stats["q1"], stats["median"], stats["q3"]))


def from_json(kept: dict[str, Any]) -> Run:
    """A run as it was kept. Raises `ValueError` if the file is none of ours."""
    own = kept.get("rwkernels")
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        raise ValueError('expected a file that "rwkernels bench --save" wrote')
    timed = [(msgspec.convert(entry["extra_info"], Row), entry["stats"]) for entry in kept["benchmarks"]]
    rows = [replace(row, seconds=_turns(stats)) for row, stats in timed]
    rows += msgspec.convert(kept["not_ranked"], list[Row])
    order = {case: place for place, case in enumerate(own["seconds_per_case"])}
    rows.sort(key=lambda row: (order.get(row.case, len(order)), row.threads))
    return Run(
        scale=own["scale"],
        machine=kept["machine_info"],
        bandwidth={int(threads): speed for threads, speed in own["copy_bytes_per_second"].items()},
        rows=rows,
        curves=msgspec.convert(own["curves"], list[Curve]),
        took=own["seconds_per_case"],
        estimated=own["estimated_seconds"],
        interrupted=own["interrupted"],
        when=kept["datetime"],
        commit=kept["commit_info"],
        renewed=tuple(own.get("renewed", ())),
    )


def dumped(run: Run) -> str:
    """Text of the file: one entry a line, so that it is small and two files can be told apart line by line."""
    kept = to_json(run)
    parts = []
    for key, value in kept.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value)
            parts.append(f'"{key}":[\n{lines}\n]' if value else f'"{key}":[]')
        else:
            parts.append(f'"{key}":{json.dumps(value, separators=(",", ":"))}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(path: Path) -> Run:
    """The run in a JSON file (`.gz` too), or the newest one in a folder."""
    if path.is_dir():
        files = sorted((*path.glob("*.json"), *path.glob("*.json.gz")), key=lambda file: file.stat().st_mtime)
        if not files:
            raise ValueError(f"{path}: expected a folder with a JSON file of an earlier run, found none")
        path = files[-1]
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return from_json(json.loads(text))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


# --- scaling ---------------------------------------------------------------------------------------------------


def fit(points: Iterable[tuple[float, float]]) -> tuple[float, float | None]:
    """Exponent of y ~ x ** e by least squares on logarithms, and its standard error (None with two points)."""
    xs, ys = np.log(np.array([*points], np.float64)).T
    if len(xs) < 3:
        return float(np.polyfit(xs, ys, 1)[0]), None
    (slope, _), covariance = np.polyfit(xs, ys, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _key(row: Row) -> tuple[str, str, int, str]:
    """What points of one line have in common."""
    return row.curve, row.contender, 0 if row.axis == "threads" else row.threads, row.device


def with_curves(rows: Sequence[Row]) -> tuple[list[Row], list[Curve]]:
    """The curves of all rows that lie on one, and the rows with the exponents filled in."""
    points = [row for row in rows if row.curve and row.ranked and row.contender not in COPIES]
    curves, exponents = [], {}
    for key, group in grouped(points, _key).items():
        used = [row for row in group if row.fitted]
        if len({row.axis_value for row in used}) < 2:
            continue
        slope, error = fit((row.axis_value, row.median) for row in used)
        values = sorted(row.axis_value for row in used)
        limit = group[0].limit if group[0].ours else None
        curves.append(
            Curve(key[0], group[0].axis, key[1], key[2], key[3], slope, error, len(used), values[0], values[-1], limit)
        )
        exponents[key] = slope
    filled = [replace(row, exponent=exponents.get(_key(row))) if row.curve else row for row in rows]
    return filled, curves


def with_renewed(run: Run, again: Run) -> Run:
    """`run` with the cases of `again`, a later one of the same scale, in place of its own."""
    if again.scale != run.scale or again.interrupted:
        raise ValueError(f"again: expected a whole run of scale {run.scale!r}, got {again.scale!r} or a part")
    unknown = sorted(set(again.took) - set(run.took))
    if unknown:
        raise ValueError(f"again: expected cases of the earlier run, got {unknown[0]!r}")
    rows = [row for case in run.took for row in (again if case in again.took else run).rows if row.case == case]
    rows, curves = with_curves(rows)
    renewed = tuple(case for case in run.took if case in {*run.renewed, *again.took})
    return replace(run, rows=rows, curves=curves, renewed=renewed)
