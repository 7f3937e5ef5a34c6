"""Many requests over one stream: a thread sends while the caller takes the answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace
from torch import Tensor

from rwkernels.service.client.connection import Exchange
from rwkernels.service.client.memory import SharedMemory
from rwkernels.service.wire import messages
from rwkernels.service.wire.memory import Bytes, OutOfReachError
from rwkernels.service.wire.messages import Answer, Request

_WORTH_A_SLOT = 64 << 10
"""Bytes of an answer; smaller ones are as fast in a message."""


@dataclass
class Asked:
    """A request under way, with its payload, to be sent again if its stream breaks."""

    labels: Tensor
    request: Request
    payload: Sequence[Bytes]
    answered_in_slot: bool = False

    def message(self) -> bytes:
        """What is sent."""
        payload = () if self.request.in_slot else self.payload
        return b"".join([messages.packed(self.request), *(part.data for part in payload)])

    def without_slot(self) -> Asked:
        """The same, to be answered in a message."""
        return Asked(self.labels, replace(self.request, slot=None, in_slot=False), self.payload)


class Pipeline:
    """Sends the requests of `source`, at most `window` ahead of those that are done.

    With `shares_memory`, larger answers are asked for in memory that is shared with the service.
    """

    def __init__(
        self,
        source: Iterator[Asked],
        exchange: Callable[[Iterator[bytes]], Exchange],
        window: int,
        shares_memory: bool,
    ) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._exchange = exchange(iter(self._requests.get, None))
        # As many slots for maps in use as for those under way.
        self._memory = SharedMemory(2 * window) if shares_memory else None
        self._window = window
        self._turns = threading.Semaphore(window)
        self._asked: queue.SimpleQueue[Asked | Exception | None] = queue.SimpleQueue()
        self._stopped = self._broken = False
        threading.Thread(target=self._feed, args=(source,), name="rwkernels-requests", daemon=True).start()

    def asked(self) -> Iterator[Asked]:
        """The requests in order. Each counts as done when the next is asked for.

        Raises:
            Exception: What the source raised, in its turn.
        """
        while (item := self._asked.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            if item.request.slot is not None and not item.answered_in_slot and self._memory is not None:
                self._memory.give_back(item.request.slot)
            self._turns.release()

    @property
    def broken(self) -> bool:
        """Whether no further answer comes of the stream, and nothing more is sent."""
        return self._broken

    def receive(self) -> memoryview | None:
        """The next answer; None where the stream is broken, and the rest has to be asked for in another way."""
        if self._broken:
            return None
        try:
            return self._exchange.receive()
        except BaseException:
            self._broken = True
            raise

    def payload(self, asked: Asked, answer: Answer, sent: memoryview) -> memoryview | Bytes:
        """The map in an answer: an array that can be kept where it is, or else something to copy it from.

        Raises:
            OutOfReachError: This process cannot read it. No further answers are asked for in memory.
        """
        memory, slot = self._memory, asked.request.slot
        if answer.memory is None:
            return sent
        if memory is None or slot is None:
            raise OutOfReachError(answer.memory.name)
        try:
            found = memory.payload(slot, answer.memory, asked.request.answer_bytes)
        except OutOfReachError:
            self._memory = None
            raise
        asked.answered_in_slot = True
        return found if memory.kept <= self._window else found.data

    def leave(self) -> None:
        """Takes no further answers, and sends no further requests."""
        self._broken = True

    def finish(self) -> None:
        """Waits for the end of the stream, after its last answer: else the service counts that one as cancelled."""
        if not self._broken:
            self._exchange.finish()

    def cancel(self) -> None:
        """Ends the stream at once; whoever waits for an answer gets an error."""
        self._exchange.cancel()

    def close(self) -> None:
        """Sends nothing more, and ends the stream."""
        self._stopped = True
        self._turns.release()
        self._requests.put(None)  # else a thread of gRPC waits for ever
        self._exchange.cancel()

    def _feed(self, source: Iterator[Asked]) -> None:
        try:
            for item in source:
                self._turns.acquire()
                if self._stopped:
                    return
                self._take_slot(item)
                message = item.message()
                self._asked.put(item)
                self._requests.put(None if self._broken else message)
        except Exception as error:
            self._asked.put(error)
        finally:
            self._requests.put(None)
            self._asked.put(None)

    def _take_slot(self, item: Asked) -> None:
        """Names a slot for the answer if there is one, and leaves the payload there if its memory is known."""
        memory = self._memory
        if memory is None or item.request.answer_bytes < _WORTH_A_SLOT or (slot := memory.take()) is None:
            return
        item.request = replace(item.request, slot=slot, in_slot=memory.leave(slot, item.payload))
