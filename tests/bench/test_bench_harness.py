"""The harness of the benchmarks: what it must refuse, how it takes turns, and what times a GPU."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch

from rwkernels.bench import results
from rwkernels.bench.clock import StreamClock, parse_clocks
from rwkernels.bench.harness import Contender, Effort, Measured, absent, interleave, ratio


def test_contenders_take_turns_after_a_checked_run_and_a_warm_up_each():
    order: list[str] = []
    racing = [Contender(name, lambda name=name: order.append(name)) for name in "ab"]
    measured = interleave(racing, 1, Effort(0.0, 3))
    assert "".join(order) == "aabb" + "ababab"
    assert [len(measured[name].seconds) for name in "ab"] == [3, 3]


def test_a_turn_repeats_short_runs_until_it_has_lasted():
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        time.sleep(0.001)

    racing = [Contender(name, lambda name=name: run(name)) for name in "ab"]
    measured = interleave(racing, 1, Effort(0.0, 2, turn=0.005))
    turns = [len(list(runs)) for _, runs in itertools.groupby(order[4:])]
    assert len(turns) == 4
    assert all(1 < runs <= 5 for runs in turns)
    assert all(len(m.seconds) == 2 and m.median >= 0.001 for m in measured.values())


def test_a_slow_contender_takes_three_turns_and_a_very_slow_one_only_the_checked_run():
    delays = {"fast": 0.0, "slow": 0.01, "slowest": 0.03}
    racing = [Contender(name, lambda delay=delay: time.sleep(delay)) for name, delay in delays.items()]
    measured = interleave(racing, 1, Effort(0.0, 6, slow=0.005, once=0.02))
    assert [len(measured[name].seconds) for name in delays] == [6, 3, 1]
    assert measured["slowest"].seconds[0] >= 0.03


def test_a_wrong_answer_is_named_and_not_timed():
    wrong = Contender("a", lambda: 1, lambda _: "off by one")
    measured = interleave([wrong, Contender("b", lambda: 1)], 1, Effort(0, 2))
    assert measured["a"] == Measured("a", [], "wrong", "off by one")
    assert len(measured["b"].seconds) == 2


def test_a_contender_that_raises_does_not_stop_the_others():
    measured = interleave([Contender("a", lambda: 1 // 0), Contender("b", lambda: 1)], 1, Effort(0, 2))
    assert measured["a"].verdict == "failed"
    assert "ZeroDivisionError" in measured["a"].reason
    assert len(measured["b"].seconds) == 2


def test_a_missing_contender_is_listed_and_never_run():
    measured = interleave([absent("peer", "peer is not installed")], 1, Effort(0, 2))
    assert measured["peer"] == Measured("peer", [], "missing", "peer is not installed")


def test_threads_are_set_for_the_race_and_put_back():
    before, seen = torch.get_num_threads(), []
    interleave([Contender("a", lambda: seen.append(torch.get_num_threads()))], 1, Effort(0, 1))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_ratio_is_the_median_of_the_turns_and_lies_within_their_quartiles():
    value, spread = ratio(Measured("a", [2.0, 4.0, 6.0]), Measured("b", [1.0, 2.0, 1.0]))
    assert value == 2.0
    assert spread == (2.0, 4.0)
    # The medians are 5 and 1, their ratio 5; in most turns it is 1.
    value, (low, high) = ratio(Measured("a", [1.0, 1.0, 5.0, 9.0, 9.0]), Measured("b", [1.0, 1.0, 1.0, 9.0, 9.0]))
    assert (low, value, high) == (1.0, 1.0, 1.0)


class Slow:
    """A clock on which the first run takes 1.5 s and every other 1 ms."""

    def __init__(self, warm_ups: int) -> None:
        self.warm_ups, self.runs = warm_ups, 0

    def measure(self, run, prepare):
        self.runs += 1
        return (1.5 if self.runs == 1 else 0.001), run()

    def state(self):
        return {}


@pytest.mark.parametrize("warm_ups", [0, 3], ids=["CPU", "GPU"])
def test_a_cold_first_run_does_not_make_a_contender_slow(warm_ups):
    clock = Slow(warm_ups)
    found = interleave([Contender("a", lambda: None)], 1, Effort(1.5, 5, turn=0.02), clock)["a"]
    assert len(found.seconds) == 60
    assert set(found.seconds) == {0.001}


def test_a_first_run_that_takes_very_long_is_repeated_on_a_gpu_only():
    effort = Effort(0.0, 5, once=1.0)
    assert interleave([Contender("a", lambda: None)], 1, effort, Slow(0))["a"].seconds == [1.5]
    assert interleave([Contender("a", lambda: None)], 1, effort, Slow(3))["a"].seconds == [0.001] * 5


def test_a_contender_timed_once_is_set_against_every_turn_of_the_other():
    value, spread = ratio(Measured("a", [8.0]), Measured("b", [1.0, 2.0, 4.0]))
    assert value == 4.0
    assert spread == (3.0, 6.0)


def test_the_exponent_of_a_power_law_is_found_exactly_and_its_error_is_nothing():
    slope, error = results.fit((n, 3e-9 * n**1.5) for n in (10, 100, 1000))
    assert math.isclose(slope, 1.5)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert results.fit([(2, 1.0), (4, 8.0)]) == (pytest.approx(3.0), None)


def test_the_error_of_an_exponent_is_that_of_linear_regression():
    from scipy import stats

    points = [(1, 1.0), (2, 2.5), (4, 3.7), (8, 9.0)]
    expected = stats.linregress([math.log(x) for x, _ in points], [math.log(y) for _, y in points])
    assert results.fit(points) == (pytest.approx(expected.slope), pytest.approx(expected.stderr))


@pytest.mark.parametrize(
    ("exponent", "error", "limit", "met"),
    [(1.09, 0.0, 1.1, True), (1.11, 0.0, 1.1, False), (1.29, 0.1, 1.1, True), (1.31, 0.1, 1.1, False),
     (1.2, None, 1.1, False), (9.0, 0.1, None, None)],
)  # fmt: skip
def test_an_exponent_may_pass_its_limit_by_twice_its_standard_error(exponent, error, limit, met):
    curve = results.Curve("map", "pixels", "rwkernels", 1, "cpu", exponent, error, 5, 1, 9, limit)
    assert curve.met is met


# --- a GPU's clock, with a stand-in for the stream -------------------------------------------------------------


class Stream:
    """Work on a stream takes time of its own, and events are records of where it was."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []

    def work(self, what: str, milliseconds: float) -> None:
        self.order.append(what)
        self.now += milliseconds

    def clock(self) -> StreamClock:
        return StreamClock(
            lambda: Event(self),
            lambda: self.work("flush", 7.0),
            lambda: self.order.append("wait"),
            lambda: {"mhz": 1},
            2,
        )


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.time = stream, math.nan

    def record(self) -> None:
        self.stream.order.append("record")
        self.time = self.stream.now

    def synchronize(self) -> None:
        self.stream.order.append("wait for event")

    def elapsed_time(self, other: Event) -> float:
        assert self.stream.order[-1] == "wait for event"
        return other.time - self.time


def test_on_a_gpu_the_cache_is_flushed_before_and_outside_of_the_timing():
    stream = Stream()
    clock = stream.clock()
    seconds, result = clock.measure(lambda: stream.work("kernel", 3.0) or "result", lambda: stream.work("prepare", 5.0))
    assert seconds == pytest.approx(0.003)
    assert result == "result"
    assert stream.order == ["prepare", "flush", "wait", "record", "kernel", "record", "wait for event"]


def test_on_a_gpu_contenders_are_warmed_up_and_every_run_is_flushed():
    stream = Stream()
    measured = interleave([Contender("a", lambda: stream.work("kernel", 3.0))], 1, Effort(0, 4), stream.clock())
    assert measured["a"].seconds == pytest.approx([0.003] * 4)
    assert stream.order.count("kernel") == stream.order.count("flush") == 1 + 2 + 4


def test_clock_rates_are_read_as_the_driver_prints_them():
    found = parse_clocks("1755, 2619, 1980, 34, 0x0000000000000000\n")
    assert found == {
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 2619,
        "sm_clock_max_mhz": 1980,
        "temperature_c": 34,
        "throttled": "0x0000000000000000",
    }


@pytest.mark.gpu
def test_a_real_stream_is_timed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from rwkernels.bench import clock, harness

    device = torch.device("cuda")
    contender = harness.copy_contender(1 << 28, device)
    measured = interleave([contender], 1, Effort(0.1, 5), clock.of(device))[contender.name]
    assert len(measured.seconds) >= 5
    assert measured.median > 0
