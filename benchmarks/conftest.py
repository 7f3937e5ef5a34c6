"""The cases of `rows.py` as tests: `pytest benchmarks/ [--scale quick] [-k T2]`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import report
from benchmarks.inputs import SCALES
from benchmarks.rows import Case, cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", choices=SCALES, default="full", help="size of the benchmark inputs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        chosen = cases(metafunc.config.getoption("scale"))
        metafunc.parametrize("case", chosen, ids=[case.id for case in chosen])
    if "threads" in metafunc.fixturenames:
        counts = [1, 2] if (os.cpu_count() or 1) > 1 else [1]
        metafunc.parametrize("threads", counts, ids=[f"{count} threads" for count in counts])


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Case, int], list[report.Line]]:
    """Runs a case: the interleaved ratios go to `extra_info`, our own times to pytest-benchmark's statistics."""
    scale = request.config.getoption("scale")

    def run(case: Case, threads: int) -> list[report.Line]:
        contenders = case.make()
        lines = report.run(case, contenders, threads, scale)
        first = lines[0]
        benchmark.group = f"{case.row}, {threads} threads"
        benchmark.extra_info.update(
            ratio=first.ratio,
            goal=first.goal,
            met=first.met,
            bytes=first.moved,
            lines=[line.record() for line in lines],
        )
        report.repeat(contenders, first, threads, benchmark.pedantic)
        return lines

    return run
