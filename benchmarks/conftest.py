"""The cases of `rwkernels bench` as tests: `pytest benchmarks/ [--scale quick] [-k T2]`.

Contenders of a case take turns once; every test then hands the turns of one contender to pytest-benchmark, whose
statistics, files and comparisons are thus those of the interleaved times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest

from rwkernels.bench import memory, results, session
from rwkernels.bench.inputs import SCALES
from rwkernels.bench.registry import Case
from rwkernels.bench.results import Row, Run, threads_text


class Replay:
    """A timer that tells times that were taken before: 0, then the length of a turn, and so on."""

    def __init__(self) -> None:
        self.waiting: list[float] = []

    def __call__(self) -> float:
        return self.waiting.pop(0)


replay = Replay()
_rows: dict[str, list[Row]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", choices=SCALES, default="full", help="size of the benchmark inputs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "contender", "threads"} <= set(metafunc.fixturenames):
        marked = [
            pytest.param(
                case,
                name,
                threads,
                id=f"{case.id} / {name} / {threads_text(threads)}",
                marks=pytest.mark.benchmark(timer=replay, group=f"{case.id} / {threads_text(threads)}"),
            )
            for case in session.all_cases(metafunc.config.getoption("scale"))
            for threads in session.thread_counts(case)
            for name in case.names
        ]
        metafunc.parametrize(("case", "contender", "threads"), marked)


@pytest.fixture(scope="session")
def race(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], list[Row]]]:
    """The rows of a case, measured when the first of its tests asks."""
    scale = request.config.getoption("scale")
    with memory.server(scale) as server:

        @lru_cache(maxsize=1)
        def measured(case: Case) -> list[Row]:
            _rows[case.id] = session.measure_case(case, session.thread_counts(case), scale, server)
            return _rows[case.id]

        yield measured


@pytest.fixture
def hand_over(benchmark: Any) -> Callable[[Row], None]:
    """Gives the turns of a row to pytest-benchmark."""

    def hand(row: Row) -> None:
        benchmark.name, benchmark.fullname = row.name, f"rwkernels.bench::{row.name}"
        benchmark.param = benchmark.params = None
        benchmark.extra_info.update(results.extra_info(row))
        replay.waiting = [tick for seconds in row.seconds for tick in (0.0, seconds)]
        benchmark.pedantic(lambda: None, rounds=len(row.seconds))

    return hand


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(session.machine())


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """The rest of the file, so that `rwkernels bench --compare` reads it too."""
    rows, curves = results.with_curves([row for listed in _rows.values() for row in listed])
    took = dict.fromkeys(_rows, 0.0)
    run = Run(config.getoption("scale"), {}, {}, rows, curves, took)
    kept = results.to_json(run)
    output_json["not_ranked"], output_json["rwkernels"] = kept["not_ranked"], kept["rwkernels"]
