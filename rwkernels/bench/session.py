"""Measures cases: the interleaved timing, the memory, the ratios and the curves, all as rows."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import rwkernels as rw
from rwkernels.bench import clock as clocks
from rwkernels.bench import memory
from rwkernels.bench.harness import (
    COPIES,
    COPY,
    COPY_DENSE,
    EFFORTS,
    FAILED,
    RIGHT,
    Contender,
    Measured,
    copy_bandwidth,
    copy_contender,
    interleave,
    ratio,
)
from rwkernels.bench.registry import Case, Goal, cases
from rwkernels.bench.results import Ratio, Row, Run, with_curves
from rwkernels.commands import processors

Progress = Callable[[Case, int, float], None]
"""Called when a case begins and after each part of it: the case, its threads, the effort that is done."""

PACKAGES = (
    "torch", "numpy", "triton", "scipy", "edt", "monai", "opencv-python-headless", "SimpleITK", "diplib",
    "cupy-cuda12x", "cupy-cuda13x", "cucim-cu12", "cucim-cu13", "pytest-benchmark",
)  # fmt: skip


def thread_counts(case: Case, chosen: Sequence[int] | None = None) -> list[int]:
    """How many threads a case is measured with."""
    most = processors()
    if case.device != "cpu":
        return [most]
    if case.threads == "all" and chosen is None:
        return [most]
    if case.threads == "sweep":
        return sorted({min(1 << power, most) for power in range(most.bit_length() + 1)})
    counts = sorted({1, most}) if chosen is None else list(chosen)
    return counts[-1:] if case.threads == "all" else counts


def devices() -> list[str]:
    """What is measured here: the CPU, and a GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def all_cases(scale: str) -> list[Case]:
    """The cases of every device of this machine."""
    return [case for device in devices() for case in cases(scale, device)]


def machine() -> dict[str, Any]:
    """The machine and the versions, in the shape of pytest-benchmark's `machine_info`."""
    from rwkernels.backends import instruction_sets

    versions = {"rwkernels": rw.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    plugin: Any = importlib.import_module("pytest_benchmark.plugin")
    found: dict[str, Any] = plugin.pytest_benchmark_generate_machine_info()
    cpu = found["cpu"]
    found |= {
        "node": "",  # whose machine it is is nobody's business
        "python_build": list(found["python_build"]),
        "release": ".".join(found["release"].split(".")[:2]),
        "cpu": {key: cpu.get(key) for key in ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size")},
        "processors": processors(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "instruction_set": instruction_sets()[0],
        "backends": [str(status) for status in rw.backends()],
        "versions": versions,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "l2_cache_size": properties.L2_cache_size,
            "capability": f"{properties.major}.{properties.minor}",
            **clocks.driver_clocks(torch.device("cuda:0")),
        }
    return found


def _commit() -> dict[str, Any]:
    with contextlib.suppress(Exception):
        info = importlib.import_module("pytest_benchmark.utils").get_commit_info("rwkernels")
        return {key: info.get(key) for key in ("id", "time", "dirty", "branch", "project")}
    return {}


# --- one case --------------------------------------------------------------------------------------------------


def _base(case: Case, name: str, threads: int) -> Row:
    point = case.point
    return Row(
        case=case.id,
        family=case.family,
        task=case.task.title,
        contender=name,
        threads=threads,
        peer=case.peer,
        device=case.device,
        shape=case.task.shape,
        pattern=case.task.pattern,
        num_classes=case.task.num_classes,
        spacing=case.task.spacing,
        dtype=case.dtype,
        layout=case.layout,
        moved=case.moved,
        curve=point.curve if point else "",
        axis=point.axis if point else "",
        axis_value=0 if point is None else threads if point.axis == "threads" else point.value,
        fitted=point.fitted if point else False,
        limit=point.limit if point else None,
    )


def _comparison(goal: Goal, measured: dict[str, Measured]) -> Ratio | None:
    ours, peer = measured[goal.ours], measured.get(goal.peer)
    if peer is None or not (ours.seconds and peer.seconds):
        return None
    value, (low, high) = ratio(*((peer, ours) if goal.kind == "faster" else (ours, peer)))
    return Ratio(goal.peer, value, low, high, goal.kind, goal.goal)


def _row(case: Case, contender: Contender, threads: int, measured: dict[str, Measured], judged: bool) -> Row:
    """Times, verdict and ratios of one contender."""
    found = measured[contender.name]
    row = replace(
        _base(case, contender.name, threads),
        verdict=found.verdict,
        reason=found.reason,
        buffer=contender.buffer,
        of_truth=contender.seconds is not None,
        moved=contender.moved or case.moved,
    )
    if not found.seconds:
        return row
    peer, copy, copied = measured[case.peer], measured[COPY], case.moved
    if row.moved > _MUCH_MORE * case.moved:
        copy, copied = measured[COPY_DENSE], max(row.moved, 1)
    if peer.seconds:
        value, (low, high) = ratio(peer, found)
        row = replace(row, ratio=value, ratio_low=low, ratio_high=high)
    goals = [replace(goal, goal=goal.goal if judged else None) for goal in case.goals if goal.ours == contender.name]
    ratios = tuple(r for r in (_comparison(goal, measured) for goal in goals if goal.kind != "memory") if r)
    # Speed over that of the copy: bytes over time of both.
    share = ratio(copy, found)[0] * row.moved / copied if copy.seconds else None
    per_second = case.task.shape[0] / found.median if case.unit == "map" else None
    return replace(row, seconds=tuple(found.seconds), ratios=ratios, share=share, per_second=per_second)


def _with_copies(case: Case, device: torch.device) -> list[Contender]:
    """The contenders and the copy; a second one where somebody writes so much more that caches matter."""
    contenders = case.make()
    copies = [copy_contender(case.moved, device)]
    most = max(contender.moved or 0 for contender in contenders)
    if most > _MUCH_MORE * case.moved:
        copies.append(copy_contender(most, device, COPY_DENSE))
    return [*contenders, *copies]


_MUCH_MORE = 2


def _with_peak(case: Case, row: Row, peaks: dict[str, int], judged: bool) -> Row:
    if row.contender not in peaks:
        return row
    ratios = row.ratios
    gradient = case.task.pixels * case.task.num_classes * getattr(torch, case.dtype).itemsize
    for goal in case.goals:
        if goal.kind == "memory" and goal.ours == row.contender and judged:
            value = peaks[row.contender] / gradient
            ratios = (*ratios, Ratio(goal.peer, value, value, value, goal.kind, goal.goal))
    return replace(row, peak=peaks[row.contender], ratios=ratios)


def _gpu_peak(contender: Contender) -> int:
    contender.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender.run()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before, 1)


# Seconds of a run from which on two more of them are not worth a peak.
_SLOW = 1.0


def _peaks(
    case: Case, contenders: Sequence[Contender], rows: Sequence[Row], threads: int, server: memory.Server | None
) -> dict[str, int]:
    """Peak memory of those that are right and quick enough to run twice more."""
    names = sorted({row.contender for row in rows if row.ranked and row.median < _SLOW and row.contender not in COPIES})
    if case.memory == "ours":
        names = [name for name in names if name.startswith("rwkernels") or name == case.peer]
    if case.memory == "" or not names:
        return {}
    if case.device != "cpu":
        return {contender.name: _gpu_peak(contender) for contender in contenders if contender.name in names}
    return server.ask(case.id, [name for name in case.names if name in names], threads) if server else {}


def measure_case(
    case: Case,
    counts: Sequence[int],
    scale: str,
    server: memory.Server | None = None,
    progress: Progress = lambda case, threads, done: None,
) -> list[Row]:
    """All rows of a case. An error of one number of threads gives rows that say so, and leaves the others alone."""
    progress(case, counts[0], 0.0)
    judged = scale == "full"  # goals are set for the full inputs
    rows: list[Row] = []
    try:
        device = torch.device(case.device)
        clock = clocks.of(device)
        contenders = _with_copies(case, device)
    except Exception as error:
        progress(case, counts[-1], case.effort * len(counts))
        return [row for count in counts for row in _failed(case, count, "the case cannot be set up", error)]
    for count in counts:
        progress(case, count, 0.0)
        try:
            measured = interleave(contenders, count, EFFORTS[scale], clock)
            state = clock.state()
            for contender in contenders:
                row = _row(case, contender, count, measured, judged)
                warm_ups = clock.warm_ups or int(len(row.seconds) > 1)
                rows.append(replace(row, warm_ups=1 + warm_ups, clocks=state))
        except Exception as error:
            rows = [row for row in rows if row.threads != count]
            rows += _failed(case, count, "the race failed", error)
        progress(case, count, 0.8 * case.effort)
    try:
        last = [row for row in rows if row.threads == counts[-1]]
        peaks = _peaks(case, contenders, last, counts[-1], server)
    except Exception as error:  # the timings stand without them
        warnings.warn(f"{case.id}: no peak memory: {_told(error)}", RuntimeWarning, stacklevel=2)
        peaks = {}
        if server is not None:
            server.close()  # an answer that is half read must not be taken for that of the next case
    rows = [_with_peak(case, row, peaks, judged) if row.threads == counts[-1] else row for row in rows]
    progress(case, counts[-1], 0.2 * case.effort * len(counts))
    gc.collect()
    return rows


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _failed(case: Case, threads: int, what: str, error: Exception) -> list[Row]:
    reason = f"{what}: {_told(error)}"
    return [replace(_base(case, name, threads), verdict=FAILED, reason=reason) for name in case.names]


# --- all of them -----------------------------------------------------------------------------------------------


def effort(chosen: Sequence[Case], threads: Sequence[int] | None) -> float:
    """Estimated seconds of the cases."""
    return sum(case.effort * len(thread_counts(case, threads)) for case in chosen)


def measure(
    chosen: Sequence[Case], scale: str, threads: Sequence[int] | None = None, progress: Progress | None = None
) -> Run:
    """Measures all `chosen` cases; what there is so far, if the user interrupts."""
    most = processors()
    counts = sorted({1, most}) if threads is None else list(threads)
    size = 1 << 22 if scale == "tiny" else 1 << 28
    run = Run(
        scale=scale,
        machine=machine(),
        bandwidth={count: copy_bandwidth(count, moved=size) for count in counts},
        estimated=effort(chosen, threads),
        commit=_commit(),
    )
    if any(case.device == "cuda" for case in chosen):
        run.machine["gpu"]["copy_bytes_per_second"] = copy_bandwidth(most, "cuda", moved=size)
    with memory.server(scale) as server:
        try:
            for case in chosen:
                start = time.perf_counter()
                run.rows += measure_case(
                    case, thread_counts(case, threads), scale, server, progress or (lambda case, threads, done: None)
                )
                run.took[case.id] = time.perf_counter() - start
        except KeyboardInterrupt:
            run.interrupted = True
    run.rows, run.curves = with_curves(run.rows)
    return run


def failures(run: Run) -> list[Row]:
    """Rows in which this package answers wrongly or not at all."""
    return [row for row in run.rows if row.ours and row.verdict not in (RIGHT, "missing")]
