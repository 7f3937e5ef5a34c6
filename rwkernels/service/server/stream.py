"""One stream of a client: its requests are read, checked and admitted; their answers are sent in order."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import numpy as np

from rwkernels.service.server import logs
from rwkernels.service.server.admission import Admission
from rwkernels.service.server.batching import Batcher, Job
from rwkernels.service.server.launches import Built
from rwkernels.service.server.memory import Room, Slots
from rwkernels.service.server.metrics import Metrics
from rwkernels.service.wire import messages
from rwkernels.service.wire.limits import Limits
from rwkernels.service.wire.messages import Answer, MalformedError, RefusedError

_NOTHING = np.empty(0, np.uint8)
_SHUTDOWN = "the service is shutting down"
_LEAVE = Answer(0, error=(messages.CLOSING, _SHUTDOWN))
_HERE = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:")
"""Clients on this machine."""
_LEAVES = 5.0
"""Seconds that a client gets to stop sending."""


class Ended(Exception):
    """The service ends a stream: with which status, for which reason, and what the client hears."""

    def __init__(self, code: Any, reason: str, text: str) -> None:
        super().__init__(text)
        self.code, self.reason, self.text = code, reason, text


@dataclass(frozen=True)
class Shared:
    """What the streams of a service share."""

    limits: Limits
    metrics: Metrics
    batcher: Batcher
    admission: Admission
    room: Room
    draining: asyncio.Event


class Stream:
    """Reads and answers one exchange. A reading task is ahead of the answers by `window` requests at most."""

    def __init__(self, shared: Shared, context: Any) -> None:
        self._shared, self._context = shared, context
        limits = shared.limits
        # So that nobody who leaves answers unread takes all the room there is.
        self._share = Admission(limits.window, limits.admitted_bytes // 4)
        self._ordered: asyncio.Queue[Job | Built | Answer | Ended | None] = asyncio.Queue()  # as long as its share
        self._held: set[Job] = set()
        self._slots = Slots(shared.room)
        self._waits = False  # for a message
        self._last = time.monotonic()  # when one came, or an answer was sent
        self._writing: float | None = None  # an answer, since then
        self._unread: Ended | None = None
        self._leaving = False  # nothing more is taken
        self._left, self._read_all_done = asyncio.Event(), asyncio.Event()
        self._is_here = context.peer().startswith(_HERE)
        self._ends_at = time.monotonic() + limits.stream_time
        self.id = logs.new_id()
        self.messages, self.bytes, self.answered = 0, 0, 0

    async def run(self) -> None:
        """Serves the stream until it ends.

        Raises:
            Ended: The service ends it.
        """
        beside = (self._read(), self._watch(asyncio.current_task()), self._leave())
        tasks = [asyncio.create_task(found) for found in beside]
        try:
            while await self._send(await self._ordered.get()):  # in no variable: what is sent takes no memory any more
                pass
        except asyncio.CancelledError:
            if self._unread is None:
                raise
            raise self._unread from None
        finally:
            for task in tasks:
                task.cancel()
            for job in self._held:
                job.future.cancel()
                job.forget()  # its room is given back
                self._release(job)
            self._held.clear()
            self._slots.close()

    async def _read(self) -> None:
        """Queues jobs, and at last how the stream ended."""
        end: Ended | None = None
        try:
            await self._read_all()
        except Ended as ended:
            end = ended
        except MalformedError as error:
            end = Ended(grpc.StatusCode.INVALID_ARGUMENT, "malformed", str(error))
        except asyncio.CancelledError:
            raise
        except Exception:
            logs.event(logging.ERROR, "reading failed", stream=self.id, exc_info=True)
            end = Ended(grpc.StatusCode.INTERNAL, "internal", "internal error")
        self._read_all_done.set()
        if not self._leaving:
            self._ordered.put_nowait(end)

    async def _read_all(self) -> None:
        while True:
            if self._shared.draining.is_set():
                self._end(_LEAVE)
            self._waits = True
            message = await self._context.read()
            self._waits = False
            if message is grpc.aio.EOF:
                if self.messages == 0 and not self._leaving:
                    raise MalformedError("stream: expected a request, got none")
                return
            if self._leaving:
                continue  # the client hears, or has heard, that this is not taken
            received = self._last = time.monotonic()
            self._count(len(message))
            await self._take(memoryview(message), received)
            del message

    @property
    def left(self) -> bool:
        """Whether the client knows that nothing more is taken."""
        return self._left.is_set()

    async def _watch(self, serving: asyncio.Task[None] | None) -> None:
        """Ends the stream when the limits of time say so."""
        limits = self._shared.limits
        while True:
            now = time.monotonic()
            if self._writing is not None and now - self._writing >= limits.idle_time:
                self._unread = Ended(grpc.StatusCode.DEADLINE_EXCEEDED, "unread", "an answer was not read in time")
                assert serving is not None
                serving.cancel()
                return
            silent = self._waits and not self._held
            if now >= self._ends_at:
                text = "the stream has lasted too long, open another"
                self._end(Ended(grpc.StatusCode.UNAVAILABLE, "stream_time", text))
            elif silent and now - self._last >= limits.idle_time:
                text = f"nothing came for {limits.idle_time:g} seconds"
                self._end(Ended(grpc.StatusCode.DEADLINE_EXCEEDED, "idle", text))
            due = now if self._writing is None else self._writing
            if not self._leaving:
                due = min(due, self._last if silent else now, self._ends_at - limits.idle_time)
            await asyncio.sleep(due + limits.idle_time - now)

    def _end(self, end: Ended | Answer) -> None:
        """Queues the end, unless there is one; nothing that is read from now on is taken."""
        if not self._leaving:
            self._leaving = True
            self._ordered.put_nowait(end)

    async def _leave(self) -> None:
        """When the service shuts down: tells the client, after its last answer, that nothing more is taken.

        Reads until it sends nothing more, for a client that sends to a stream which has ended loses the answers it has
        not read.
        """
        await self._shared.draining.wait()
        if self._waits:  # else a request is being taken, and the reader tells
            self._end(_LEAVE)
        await self._left.wait()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_all_done.wait(), _LEAVES)
        self._ordered.put_nowait(Ended(grpc.StatusCode.UNAVAILABLE, "shutdown", _SHUTDOWN))

    def _count(self, size: int) -> None:
        limits = self._shared.limits
        self.messages += 1
        self._shared.metrics.received.inc(size)
        if self.messages > limits.stream_messages:
            self._end_used_up("messages", limits.stream_messages)
        self._count_bytes(size)

    def _count_bytes(self, size: int) -> None:
        limit = self._shared.limits.stream_bytes
        self.bytes += size
        if self.bytes > limit:
            self._end_used_up("bytes", limit)

    def _end_used_up(self, what: str, limit: int) -> NoReturn:
        text = f"stream: expected at most {limit} {what}, open another"
        raise Ended(grpc.StatusCode.UNAVAILABLE, f"stream_{what}", text)

    async def _take(self, message: memoryview, received: float) -> None:
        """Checks and admits one request."""
        header, payload = messages.split(message)
        try:
            request = messages.request(header, payload, self._shared.limits)
        except RefusedError as error:
            await self._refuse(error.id, "ValueError", str(error))
            return
        if request.slot is not None and request.in_slot:
            left = self._slots.sent(request.slot, request.payload_bytes)
            if left is None:
                raise MalformedError("in_slot: expected a slot that has room for the labels")
            payload = left
            self._count_bytes(len(payload))
        size = request.payload_bytes + request.built_bytes + request.answer_bytes
        await self._share.acquire(size)
        try:
            await self._shared.admission.acquire(size, self._shared.limits.admission_time)
        except BaseException as error:
            self._share.release(size)
            if not isinstance(error, TimeoutError):
                raise
            await self._refuse(request.id, "Unavailable", "the service is busy, come again")
            return
        slot = None
        if request.slot is not None and self._is_here:
            slot = self._slots.take(request.slot, request.answer_bytes)
        job = Job(request, payload, asyncio.get_running_loop().create_future(), size, received, slot)
        self._held.add(job)
        self._shared.batcher.submit(job)
        self._ordered.put_nowait(job)

    async def _refuse(self, number: int, kind: str, text: str) -> None:
        await self._share.acquire(0)  # who reads no answers is read no further
        self._ordered.put_nowait((Answer(number, error=(kind, text)), _NOTHING))

    async def _send(self, item: Job | Built | Answer | Ended | None) -> bool:
        """Sends what comes next; whether more may follow."""
        if item is None:
            return False
        if isinstance(item, Ended):
            raise item
        if isinstance(item, Answer):
            await self._write(messages.packed(item))
            self._left.set()
            return True
        answer, payload = await item.future if isinstance(item, Job) else item
        message = b"".join((messages.packed(answer), payload))
        await self._write(message)
        self.answered += 1
        self._observe(item, answer, len(message))
        if isinstance(item, Job):
            self._held.discard(item)
            self._release(item)
        else:
            self._share.release(0)
        return True

    async def _write(self, message: bytes) -> None:
        self._writing = time.monotonic()
        await self._context.write(message)
        self._writing = None
        self._last = time.monotonic()

    def _release(self, job: Job) -> None:
        self._share.release(job.size)
        self._shared.admission.release(job.size)

    def _observe(self, item: Job | Built, answer: Answer, size: int) -> None:
        metrics = self._shared.metrics
        outcome = "answered" if answer.error is None else answer.error[0]
        metrics.requests.labels(outcome).inc()
        metrics.sent.inc(size)
        if isinstance(item, Job):
            seconds = time.monotonic() - item.received
            metrics.latency.observe(seconds)
            if answer.error is None:
                metrics.pixels.inc(math.prod(item.request.shape))
            shape = list(item.request.shape)
        else:
            seconds, shape = 0.0, []
        level = logging.DEBUG if answer.error is None else logging.INFO
        if logs.logger().isEnabledFor(level):
            request = f"{self.id}-{answer.id}"
            logs.event(level, "request", request=request, outcome=outcome, shape=shape, seconds=round(seconds, 6))
