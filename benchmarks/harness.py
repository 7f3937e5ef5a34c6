"""Timing: contenders of a case take turns, so that whatever else the machine does hits them all.

A turn is one run, or the median of as many as fit into 20 ms.

A ratio is that of the medians; its spread is the interquartile range of the ratios within each turn.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

COPY = "copy of the same bytes"


@dataclass(frozen=True)
class Contender:
    """Something that is timed, and how its answer is judged first."""

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], str | None] = lambda _: None  # why an answer is wrong, None if it is right
    prepare: Callable[[], None] = lambda: None  # before every run, outside the timing
    missing: str | None = None  # why it cannot run here
    seconds: float | None = None  # timed once in this process already, as it takes too long to repeat


@dataclass(frozen=True)
class Measured:
    """The timings of a contender, one per turn; none if it is missing or wrong."""

    name: str
    seconds: list[float] = field(default_factory=list)
    refused: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


@dataclass(frozen=True)
class Effort:
    """How long a case may be measured, and how often."""

    budget: float
    fewest: int
    most: int = 60
    # Seconds that a turn lasts, if its runs are shorter: a millisecond on its own would measure what the contender
    # before it left in the caches and how long a thread takes to wake.
    turn: float = 0.0


EFFORTS = {"full": Effort(2.0, 5, turn=0.02), "quick": Effort(0.5, 3, turn=0.02), "tiny": Effort(0.0, 1)}
# So many runs are enough for the median of a turn.
MOST_RUNS = 100
# A turn of a contender slower than this is not repeated more than twice.
SLOW = 2.0


@contextlib.contextmanager
def quiet(threads: int) -> Iterator[None]:
    """`threads` for torch and for the peers that ask it, and no garbage collection."""
    before, collected = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collected:
            gc.enable()


def _timed(contender: Contender) -> tuple[float, Any]:
    contender.prepare()
    start = time.perf_counter()
    result = contender.run()
    return time.perf_counter() - start, result


def _turn(contender: Contender, lasting: float) -> float:
    """The median of one run, or of as many as fit into the turn."""
    runs: list[float] = []
    gone = 0.0
    while not runs or (gone < lasting and len(runs) < MOST_RUNS):
        seconds, result = _timed(contender)
        runs.append(seconds)
        gone += seconds
        del result
    return statistics.median(runs)


def _first_run(contender: Contender) -> tuple[float, str | None]:
    """Seconds of a warm-up run, and why the contender is out of the race."""
    if contender.missing:
        return 0.0, f"missing: {contender.missing}"
    if contender.seconds is not None:
        return contender.seconds, None
    try:
        seconds, result = _timed(contender)
    except Exception as error:  # one contender that fails must not cost the table
        return 0.0, f"fails: {type(error).__name__}: {error}"
    wrong = contender.check(result)
    return seconds, f"wrong: {wrong}" if wrong else None


def interleave(contenders: Sequence[Contender], threads: int, effort: Effort) -> dict[str, Measured]:
    """Checks every contender, then times them in turns: A B C, A B C, ..."""
    with quiet(threads):
        first = {contender.name: _first_run(contender) for contender in contenders}
        racing = [c for c in contenders if first[c.name][1] is None and c.seconds is None]
        measured = {name: Measured(name, refused=refused) for name, (_, refused) in first.items()}
        for contender in contenders:
            if contender.seconds is not None and not contender.missing:
                measured[contender.name].seconds.append(contender.seconds)
        quick_turn = sum(max(first[c.name][0], effort.turn) for c in racing if first[c.name][0] < SLOW)
        turns = min(effort.most, max(effort.fewest, int(effort.budget / max(quick_turn, 1e-6))))
        for turn in range(turns):
            for contender in racing:
                if first[contender.name][0] < SLOW or turn < 2:
                    measured[contender.name].seconds.append(_turn(contender, effort.turn))
    return measured


def ratio(numerator: Measured, denominator: Measured) -> tuple[float, tuple[float, float]]:
    """Ratio of the medians, and the quartiles of the ratios turn by turn.

    Only turns that both took count, unless one of them was timed a single time, which goes with every turn.
    """
    above, below = numerator.seconds, denominator.seconds
    if 1 in (len(above), len(below)):
        pairs = [a / b for a in above for b in below]
    else:
        above, below = above[: len(below)], below[: len(above)]
        pairs = [a / b for a, b in zip(above, below, strict=True)]
    value = statistics.median(above) / statistics.median(below)
    if len(pairs) < 2:
        return value, (value, value)
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return value, (low, high)


def copy_contender(moved: int) -> Contender:
    """The floor: a copy that reads half of `moved` bytes and writes the other half."""
    source = torch.ones(max(moved // 8, 1))
    target = torch.empty_like(source).fill_(0)
    return Contender(COPY, lambda: target.copy_(source))


def copy_bandwidth(threads: int, moved: int = 1 << 28) -> float:
    """Bytes per second of a copy far larger than the caches, reads and writes counted."""
    contender = copy_contender(moved)
    return moved / interleave([contender], threads, Effort(0.5, 5))[COPY].median
