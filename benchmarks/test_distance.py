from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.report import Line
from benchmarks.rows import Case

FAMILY = "distance"


def test_answers_are_right_and_ratios_are_recorded(
    race: Callable[[Case, int], list[Line]], case: Case, threads: int
) -> None:
    lines = race(case, threads)
    refused = {line.refused for line in lines if line.refused}
    assert not [reason for reason in refused if "wrong" in reason]
    if refused:
        pytest.skip("; ".join(sorted(refused)))
    assert all(line.ours > 0 and line.peer > 0 for line in lines)
