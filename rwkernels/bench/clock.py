"""What time is taken with: the host's clock for a CPU, events on the stream for a GPU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

WARM_UPS = 3
"""Runs of a contender on a GPU between the checked one and the first timed one; on a CPU one, if it is quick."""


class Clock(Protocol):
    """Takes the time of one run."""

    @property
    def warm_ups(self) -> int:
        """Runs before the first timed one, besides the checked one; 0: one, unless a run takes too long for it."""

    def measure(self, run: Callable[[], Any], prepare: Callable[[], None]) -> tuple[float, Any]:
        """Seconds of `run`, with `prepare` before it outside the timing, and what `run` returned."""

    def state(self) -> dict[str, Any]:
        """What the device says about itself now: clock rates, where it tells them."""


@dataclass(frozen=True)
class HostClock:
    """`time.perf_counter` around the call."""

    warm_ups: int = 0

    def measure(self, run: Callable[[], Any], prepare: Callable[[], None]) -> tuple[float, Any]:
        """See `Clock`."""
        prepare()
        start = time.perf_counter()
        result = run()
        return time.perf_counter() - start, result

    def state(self) -> dict[str, Any]:
        """Nothing: processors change their clocks faster than they could be read."""
        return {}


@dataclass
class StreamClock:
    """Two events around the call; before it, a buffer larger than the L2 cache is written, outside of the timing.

    What a contender computes on the host while the stream waits (SciPy, copies between the two) lies between the
    events and counts. The parts are arguments so that the order of things can be tested without a GPU.
    """

    new_event: Callable[[], torch.cuda.Event]
    flush: Callable[[], object]
    synchronize: Callable[[], object]
    read_clocks: Callable[[], dict[str, Any]] = field(default=dict)
    warm_ups: int = WARM_UPS

    def measure(self, run: Callable[[], Any], prepare: Callable[[], None]) -> tuple[float, Any]:
        """See `Clock`."""
        prepare()
        self.flush()
        start, stop = self.new_event(), self.new_event()
        self.synchronize()
        start.record()
        result = run()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3, result

    def state(self) -> dict[str, Any]:
        """Clock rates and temperature, as the driver reports them."""
        return self.read_clocks()


_QUERIES = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "sm_clock_max_mhz": "clocks.max.sm",
    "temperature_c": "temperature.gpu",
    "throttled": "clocks_throttle_reasons.active",
}


def driver_clocks(device: torch.device) -> dict[str, Any]:
    """What `nvidia-smi` says about the clocks of `device`; empty where it is not to be had."""
    identity = str(torch.cuda.get_device_properties(device).uuid)
    name = identity if identity.startswith("GPU-") else f"GPU-{identity}"
    command = [
        "nvidia-smi",
        f"--id={name}",
        f"--query-gpu={','.join(_QUERIES.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_clocks(printed)


def parse_clocks(printed: str) -> dict[str, Any]:
    """One line of numbers as `nvidia-smi` prints it, under our names."""
    values = [value.strip() for value in printed.strip().splitlines()[0].split(",")]
    return {name: int(v) if v.isdecimal() else v for name, v in zip(_QUERIES, values, strict=True)}


def of(device: torch.device) -> Clock:
    """The clock for contenders on `device`."""
    if device.type == "cpu":
        return HostClock()
    bytes_of_cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
    buffer = torch.empty(max(2 * bytes_of_cache, 1 << 26), dtype=torch.uint8, device=device)
    return StreamClock(
        new_event=lambda: torch.cuda.Event(enable_timing=True),
        flush=buffer.zero_,
        synchronize=lambda: torch.cuda.synchronize(device),
        read_clocks=lambda: driver_clocks(device),
    )
