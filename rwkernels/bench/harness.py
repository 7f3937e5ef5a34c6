"""Timing: contenders of a case take turns, so that whatever else the machine does hits them all.

A turn is one run, or the median of as many as fit into some milliseconds. A ratio is the median of the ratios within
each turn, its spread their interquartile range. Whoever answers wrongly is named and not timed.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rwkernels.bench import clock as clocks
from rwkernels.bench.clock import Clock

COPY = "copy of the same bytes"
COPY_DENSE = "copy of the dense bytes"
COPIES = (COPY, COPY_DENSE)
RIGHT, WRONG, MISSING, FAILED = "right", "wrong", "missing", "failed"


def _anything(_: Any) -> None:
    return None


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Contender:
    """Something that is timed, and how its answer is judged first."""

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], str | None] = _anything  # why an answer is wrong, None if it is right
    prepare: Callable[[], None] = _nothing  # before every run, outside the timing
    missing: str | None = None  # why it cannot run here
    seconds: float | None = None  # timed once in this process already, as it takes too long to repeat
    buffer: str = ""  # "fresh" or "reused": where the result goes; "" where that is no question
    moved: int | None = None  # the least it must read and write, where that is not what the case says


Maker = Callable[[str], Contender]
"""Makes the contender of a name, with its inputs. Raises `Missing` if it cannot run here."""


class Missing(Exception):
    """A contender cannot run here; the message says why."""


def absent(name: str, reason: str) -> Contender:
    """A contender that cannot run here: listed, never skipped in silence."""
    return Contender(name, _nothing, missing=reason)


def make(makers: Mapping[str, Maker], names: Iterable[str]) -> list[Contender]:
    """The contenders called `names`, in that order."""
    made = []
    for name in names:
        try:
            made.append(makers[name](name))
        except Missing as reason:
            made.append(absent(name, str(reason)))
    return made


def in_a_loop(maker: Maker) -> Maker:
    """The same contender right after a parallel operator of torch, whose threads stay awake for some milliseconds."""
    values = torch.randn(400_000)

    def make(name: str) -> Contender:
        contender = maker(name)

        def prepare() -> None:
            contender.prepare()
            values.exp()

        return replace(contender, prepare=prepare)

    return make


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; thrice the value if there is one alone, NaN if there is none."""
    if len(values) < 2:
        return (values[0] if values else math.nan,) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass(frozen=True)
class Measured:
    """The timings of a contender, one per turn; none unless its answer is right."""

    name: str
    seconds: list[float] = field(default_factory=list)
    verdict: str = RIGHT
    reason: str = ""

    @property
    def median(self) -> float:
        """Median of the turns; NaN if there are none."""
        return quartiles(self.seconds)[1]


@dataclass(frozen=True)
class Effort:
    """How long a case may be measured, and how often."""

    budget: float
    fewest: int
    most: int = 60
    # Seconds that a turn lasts, if its runs are shorter: a millisecond on its own would measure what the contender
    # before it left in the caches and how long a thread takes to wake.
    turn: float = 0.0
    # A contender slower than `slow` takes `fewest` turns or three; one slower than `once` takes one: on a CPU the run
    # that was checked, on a GPU the last warm-up.
    slow: float = 0.7
    once: float = 3.0


EFFORTS = {
    "full": Effort(1.0, 5, turn=0.015, slow=0.5, once=2.0),
    "quick": Effort(0.2, 3, turn=0.008, slow=0.15, once=0.8),
    "tiny": Effort(0.0, 2, once=0.5),
}
# So many runs are enough for the median of a turn.
MOST_RUNS = 100


def _set_threads(count: int) -> None:
    """For torch (and what follows it: this package, `edt` as it is called here) and for the peers that are loaded."""
    torch.set_num_threads(count)
    loaded = {name: module for name in ("cv2", "SimpleITK", "diplib") if (module := sys.modules.get(name)) is not None}
    if "cv2" in loaded:
        loaded["cv2"].setNumThreads(count)
    if "SimpleITK" in loaded:
        loaded["SimpleITK"].ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    if "diplib" in loaded:
        loaded["diplib"].SetNumberOfThreads(count)


@contextlib.contextmanager
def quiet(threads: int) -> Iterator[None]:
    """`threads` for all contenders, and no garbage collection."""
    before, collected = torch.get_num_threads(), gc.isenabled()
    _set_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        _set_threads(before)
        if collected:
            gc.enable()


def _turn(contender: Contender, lasting: float, clock: Clock) -> float:
    """The median of one run, or of as many as fit into the turn."""
    runs: list[float] = []
    gone = 0.0
    while not runs or (gone < lasting and len(runs) < MOST_RUNS):
        seconds, result = clock.measure(contender.run, contender.prepare)
        runs.append(seconds)
        gone += seconds
        del result
    return statistics.median(runs)


def _first_run(contender: Contender, once: float, clock: Clock) -> tuple[float, str, str]:
    """Seconds of the last run before the turns, and the verdict on the answer of the first one with the reason.

    A first run can take a thousand times longer than the next (imports, kernels that are compiled, caches of plans).
    """
    if contender.missing:
        return 0.0, MISSING, contender.missing
    if contender.seconds is not None:
        return contender.seconds, RIGHT, ""
    try:
        seconds, result = clock.measure(contender.run, contender.prepare)
        wrong = contender.check(result)
        del result
        if wrong:
            return 0.0, WRONG, wrong
        for _ in range(clock.warm_ups or int(seconds <= once)):
            seconds, _ = clock.measure(contender.run, contender.prepare)
    except Exception as error:  # one contender that fails must not cost the table
        first_line = str(error).strip().split("\n")[0][:200]
        return 0.0, FAILED, f"{type(error).__name__}: {first_line}"
    return seconds, RIGHT, ""


def interleave(
    contenders: Sequence[Contender], threads: int, effort: Effort, clock: Clock | None = None
) -> dict[str, Measured]:
    """Checks every contender, then times them in turns: A B C, A B C, ..."""
    timer: Clock = clock or clocks.HostClock()
    with quiet(threads):
        first = {contender.name: _first_run(contender, effort.once, timer) for contender in contenders}
        measured = {name: Measured(name, [], verdict, reason) for name, (_, verdict, reason) in first.items()}
        racing = []
        for contender in contenders:
            seconds, verdict, _ = first[contender.name]
            if verdict == RIGHT and (contender.seconds is not None or seconds > effort.once):
                measured[contender.name].seconds.append(seconds)
            elif verdict == RIGHT:
                racing.append(contender)
        quick_turn = sum(max(first[c.name][0], effort.turn) for c in racing if first[c.name][0] < effort.slow)
        turns = min(effort.most, max(effort.fewest, int(effort.budget / max(quick_turn, 1e-6))))
        for turn in range(turns):
            for contender in racing:
                if first[contender.name][0] < effort.slow or turn < 3:
                    measured[contender.name].seconds.append(_turn(contender, effort.turn, timer))
    return measured


def ratio(numerator: Measured, denominator: Measured) -> tuple[float, tuple[float, float]]:
    """Median and quartiles of the ratios turn by turn.

    Only turns that both took count, unless one of them was timed a single time, which goes with every turn.
    """
    above, below = numerator.seconds, denominator.seconds
    if 1 in (len(above), len(below)):
        pairs = [a / b for a in above for b in below]
    else:
        above, below = above[: len(below)], below[: len(above)]
        pairs = [a / b for a, b in zip(above, below, strict=True)]
    low, value, high = quartiles(pairs)
    return value, (low, high)


def copy_contender(moved: int, device: torch.device | str = "cpu", name: str = COPY) -> Contender:
    """The floor: a copy that reads half of `moved` bytes and writes the other half."""
    source = torch.ones(max(moved // 8, 1), device=device)
    target = torch.zeros_like(source)
    return Contender(name, lambda: target.copy_(source), moved=max(moved, 8), buffer="reused")


def copy_bandwidth(threads: int, device: torch.device | str = "cpu", moved: int = 1 << 28) -> float:
    """Bytes per second of a copy far larger than the caches, reads and writes counted."""
    where = torch.device(device)
    contender = copy_contender(moved if where.type == "cpu" else 4 * moved, where)
    measured = interleave([contender], threads, Effort(0.5, 5), clocks.of(where))[COPY]
    return (contender.moved or moved) / measured.median
