from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from benchmarks.report import Line
from benchmarks.rows import Case


def test_answers_are_right_and_ratios_are_recorded(
    race: Callable[[Case, int], list[Line]], case: Case, threads: int
) -> None:
    lines = race(case, threads)
    assert not [line.refused for line in lines if line.ours_fails]
    unranked = {line.refused for line in lines if line.refused}
    if unranked:
        pytest.skip("; ".join(sorted(unranked)))
    assert all(math.isfinite(line.ratio) for line in lines)
