"""The threads that launch the map builder, and which requests each joins."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rwkernels.service.server import logs
from rwkernels.service.server.launches import Asked, Built, Launcher
from rwkernels.service.server.memory import Slot
from rwkernels.service.server.metrics import Metrics
from rwkernels.service.wire.messages import Answer, Request

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

    def forget(self) -> None:
        """Lets go of the labels and of the slot: whoever still holds the job keeps no memory with it."""
        self.payload = self.slot = None


class Batcher:
    """Builds the maps of jobs, first come first served, in one thread for each launcher.

    A launch takes the first job and, while it is small, whatever else waits and fits to it. Nothing waits for more to
    come, so that a lone request is launched at once.
    """

    def __init__(
        self, launchers: Sequence[Launcher], metrics: Metrics, joined_bytes: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._metrics, self._joined_bytes, self._loop = metrics, joined_bytes, loop
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._launched_at: dict[Launcher, float] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(launcher,), name="rwkernels-builder", daemon=True)
            for launcher in launchers
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job."""
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._jobs.append(job)
            self._changed.notify()

    def alive(self) -> bool:
        """Whether all threads work and none is stuck in a launch."""
        now = time.monotonic()
        stuck = any(now - at >= _LONGEST_LAUNCH for at in list(self._launched_at.values()))
        return not stuck and all(thread.is_alive() for thread in self._threads)

    def close(self, timeout: float = 10.0) -> bool:
        """Ends the threads once all jobs are done; whether they did within `timeout`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

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

    def _work(self, launcher: Launcher) -> None:
        while jobs := self._take():
            # A client may be gone, and with it the labels, at any moment.
            wanted = [
                (job, Asked(job.request, payload, job.slot)) for job in jobs if (payload := job.payload) is not None
            ]
            if wanted:
                self._launch(launcher, wanted)
            del jobs, wanted  # and with them their answers, however long the next one takes to come

    def _launch(self, launcher: Launcher, wanted: list[tuple[Job, Asked]]) -> None:
        self._launched_at[launcher] = start = time.monotonic()
        jobs = [job for job, _ in wanted]
        for job in jobs:
            self._metrics.waiting.observe(start - job.received)
        try:
            built = launcher.run([asked for _, asked in wanted])
        except Exception:
            logs.event(logging.ERROR, "launch failed", exc_info=True)
            built = [
                (Answer(job.request.id, error=("RuntimeError", "the map could not be built")), b"") for job in jobs
            ]
        del self._launched_at[launcher]
        self._metrics.launches.inc()
        self._metrics.joined.observe(len(jobs))
        self._metrics.building.observe(time.monotonic() - start)
        for job in jobs:
            job.forget()
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
