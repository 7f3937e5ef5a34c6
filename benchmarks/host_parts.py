"""Where the host's time of a step goes: clocks at the seams between its parts, for `host_time`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock


@dataclass
class Parts:
    """Clocks of parts within parts: the innermost one that was entered runs, the others stand still."""

    seconds: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    inner: Counter[str] = field(default_factory=Counter)  # how many parts were entered from each
    _within: list[str] = field(default_factory=lambda: ["step"])
    _since: float = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with the clock of `part`."""

        @functools.wraps(function, updated=())
        def call(*arguments: Any, **options: Any) -> Any:
            now = time.perf_counter()
            self.seconds[self._within[-1]] += now - self._since
            self.calls[part] += 1
            self.inner[self._within[-1]] += 1
            self._within.append(part)
            self._since = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                now = time.perf_counter()
                self.seconds[part] += now - self._since
                self._within.pop()
                self._since = time.perf_counter()

        return call

    def of(self, step: Callable[[], object], times: int) -> dict[str, float]:
        """Seconds of every part of one step, the clocks' own taken off."""
        outside, inside = self._overhead()
        self._restart()
        for _ in range(times):
            self._since = time.perf_counter()
            step()
            self.seconds["step"] += time.perf_counter() - self._since
        return {
            part: max(seconds - outside * self.inner[part] - inside * self.calls[part], 0.0) / times
            for part, seconds in self.seconds.items()
        }

    def _restart(self) -> None:
        for counted in (self.seconds, self.calls, self.inner):
            counted.clear()

    def _overhead(self, times: int = 20000) -> tuple[float, float]:
        """What a call that does nothing adds to the part around it, and to its own."""
        self._restart()
        nothing = self.timed("nothing", lambda: None)
        self._since = time.perf_counter()
        for _ in range(times):
            nothing()
        self.seconds["step"] += time.perf_counter() - self._since
        return self.seconds["step"] / times, self.seconds["nothing"] / times


@contextlib.contextmanager
def seams(parts: Parts) -> Iterator[None]:
    """A context in which the parts of a step on the Triton backend have their clocks, by plans and by operators."""
    import torch

    def launching(original: Callable[..., Any]) -> Callable[..., Any]:
        def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
            parts.timed(f"launch {kernel.fn.__name__}", original)(kernel, *arguments, **constants)

        return launch

    def binding(original: Callable[..., Any]) -> Callable[..., Any]:
        def binary(call: Any, *arguments: Any) -> Any:
            run = original(call, *arguments)
            return run and parts.timed(f"launch {call.kernel.fn.__name__}", run)

        return binary

    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, made: Callable[..., Any]) -> None:
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, made(getattr(owner, name))))

        def clock(owner: Any, names: Sequence[str], part: str) -> None:
            for name in names:
                patch(owner, name, functools.partial(parts.timed, part.format(name)))

        clock(torch, ("empty", "empty_like", "empty_strided", "zeros"), "allocation")
        clock(torch.Tensor, ("new_empty", "new_zeros"), "allocation")
        clock(torch.Tensor, ("backward",), "backward")
        clock(torch.ops.rwkernels, ("rectified", "region_wise"), "operator {}")
        clock(_module("ops.planned"), ("key_of",), "key of a plan")
        triton, replay = _module("backends.triton"), _module("backends.triton.replay")
        clock(triton, ("fill_rectified", "loss", "scale_gradient"), "backend {}")
        patch(replay, "_binary", binding)
        clock(getattr(replay, "Replay", None), ("__call__",), "plan: arguments of launches")
        plans = _module("backends.triton.plans")
        clock(getattr(plans, "StepPlan", None), ("__call__", "scale"), "plan: results, and what stands around")
        for module in (triton, _module("backends.triton.maps"), _module("backends.triton.losses")):
            patch(module, "launch", launching)
        kept = getattr(_module("ops.planned"), "_plans", None)
        if kept is not None:  # they have bound launches without a clock
            stack.enter_context(mock.patch.dict(kept, clear=True))
        yield


def _module(name: str) -> Any:
    """A module of the package; None where there is no such module."""
    try:
        return importlib.import_module(f"rwkernels.{name}")
    except ImportError:
        return None
