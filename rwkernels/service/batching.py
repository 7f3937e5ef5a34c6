"""The one thread that launches the map builder, and which requests it joins."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from rwkernels.service import logs
from rwkernels.service.launches import Asked, Built, Launcher
from rwkernels.service.memory import Slot
from rwkernels.service.messages import Answer, Request
from rwkernels.service.metrics import Metrics

_LONGEST_LAUNCH = 600.0


@dataclass(eq=False)
class Job:
    """A request that was taken: what is asked, and where the answer is awaited."""

    request: Request
    payload: memoryview | None
    future: asyncio.Future[Built]
    size: int
    received: float = field(default_factory=time.monotonic)
    slot: Slot | None = None  # where the answer is to be written


class Batcher:
    """Builds the maps of jobs in a thread of its own, first come first served.

    A launch takes the first job and, while it is small, whatever else waits and fits to it. Nothing waits for more to
    come, so that a lone request is launched at once.
    """

    def __init__(
        self, launcher: Launcher, metrics: Metrics, joined_bytes: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._launcher, self._metrics, self._joined_bytes, self._loop = launcher, metrics, joined_bytes, loop
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._launched_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="rwkernels-builder", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job."""
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._jobs.append(job)
            self._changed.notify()

    def alive(self) -> bool:
        """Whether the thread works and is not stuck in a launch."""
        at = self._launched_at
        return self._thread.is_alive() and (at is None or time.monotonic() - at < _LONGEST_LAUNCH)

    def close(self, timeout: float = 10.0) -> bool:
        """Ends the thread once all jobs are done; whether it did within `timeout`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _take(self) -> list[Job]:
        """The jobs of the next launch; waits for one. None once the batcher is closed and all is done."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            taken = [self._jobs.popleft()]
            request = taken[0].request
            left = self._joined_bytes - request.label_bytes
            if left <= 0 or request.has_rows_of_spacing or not self._jobs:
                return taken
            settings = request.settings
            rest: deque[Job] = deque()
            for job in self._jobs:
                if job.request.label_bytes <= left and job.request.settings == settings:
                    left -= job.request.label_bytes
                    taken.append(job)
                else:
                    rest.append(job)
            self._jobs = rest
            return taken

    def _work(self) -> None:
        while jobs := self._take():
            # A client may be gone, and with it the labels, at any moment.
            wanted = [
                (job, Asked(job.request, payload, job.slot)) for job in jobs if (payload := job.payload) is not None
            ]
            if wanted:
                self._launch(wanted)

    def _launch(self, wanted: list[tuple[Job, Asked]]) -> None:
        self._launched_at = start = time.monotonic()
        jobs = [job for job, _ in wanted]
        for job in jobs:
            self._metrics.waiting.observe(start - job.received)
        try:
            built = self._launcher.run([asked for _, asked in wanted])
        except Exception:
            logs.event(logging.ERROR, "launch failed", exc_info=True)
            built = [
                (Answer(job.request.id, error=("RuntimeError", "the map could not be built")), b"") for job in jobs
            ]
        self._launched_at = None
        self._metrics.launches.inc()
        self._metrics.joined.observe(len(jobs))
        self._metrics.building.observe(time.monotonic() - start)
        for job in jobs:
            job.payload = None
        wanted.clear()
        _from_thread(self._loop, partial(_finish, jobs, built))


def _finish(jobs: list[Job], built: list[Built]) -> None:
    for job, one in zip(jobs, built, strict=True):
        if not job.future.done():
            job.future.set_result(one)


def _from_thread(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls `function` in the loop, unless that has ended: then nobody waits any more."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        if not loop.is_closed():
            raise
