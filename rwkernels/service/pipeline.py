"""Many requests over one stream: a thread sends while the caller takes the answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from rwkernels.service.connection import Exchange
from rwkernels.service.messages import Request


@dataclass
class Asked:
    """A request under way, with the message to send again if its stream breaks."""

    labels: Tensor
    request: Request
    message: bytes


class Pipeline:
    """Sends the requests of `source`, at most `window` ahead of those that are done."""

    def __init__(self, source: Iterator[Asked], exchange: Exchange | None, window: int) -> None:
        self._exchange = exchange
        self._slots = threading.Semaphore(window)
        self._asked: queue.SimpleQueue[Asked | Exception | None] = queue.SimpleQueue()
        self._stopped = self._leaving = False
        self._sent_all = self._received_all = exchange is None
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
            self._slots.release()

    @property
    def broken(self) -> bool:
        """Whether no further answer comes of the stream."""
        return self._received_all

    def receive(self) -> memoryview | None:
        """The next answer; None where the stream is broken, and the rest has to be asked for in another way."""
        if self._received_all or self._exchange is None:
            return None
        try:
            return self._exchange.receive()
        except BaseException:
            self._received_all = self._sent_all = True
            raise

    def leave(self) -> None:
        """Takes no further answers, and sends no further requests."""
        self._received_all = self._leaving = True

    def cancel(self) -> None:
        """Ends the stream at once."""
        if self._exchange is not None:
            self._exchange.cancel()

    def stop(self) -> None:
        """Sends nothing more."""
        self._stopped = True
        self._slots.release()

    def _feed(self, source: Iterator[Asked]) -> None:
        try:
            for item in source:
                self._slots.acquire()
                if self._stopped:
                    return
                self._asked.put(item)
                self._send(item.message)
            self._send(None)
        except Exception as error:
            self._asked.put(error)
        finally:
            self._asked.put(None)

    def _send(self, message: bytes | None) -> None:
        """Sends a message, or that none follows.

        Where the stream is broken, answers may still be on their way; whoever waits for the others gets an error.
        """
        if self._sent_all or self._exchange is None:
            return
        try:
            if message is None or self._leaving:
                self._sent_all = True
                self._exchange.no_more()
            else:
                self._exchange.send(message)
        except (ConnectionError, TimeoutError, PermissionError):
            self._sent_all = True
