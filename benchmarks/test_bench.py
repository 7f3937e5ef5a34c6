from __future__ import annotations

from collections.abc import Callable

import pytest

from rwkernels.bench.registry import Case
from rwkernels.bench.results import Row


def test_the_answer_is_right_and_its_turns_are_recorded(
    race: Callable[[Case], list[Row]], hand_over: Callable[[Row], None], case: Case, contender: str, threads: int
) -> None:
    (row,) = [row for row in race(case) if (row.contender, row.threads) == (contender, threads)]
    if not row.ranked:
        reason = f"{row.verdict}: {row.reason}"
        assert not row.ours or row.verdict == "missing", reason
        pytest.skip(f"not ranked: {contender} is {reason}")
    hand_over(row)
    assert len(row.seconds) >= 1
