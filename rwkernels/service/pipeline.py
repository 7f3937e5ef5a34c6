"""Many requests over one stream: a thread sends while the caller takes the answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

    def __init__(self, source: Iterator[Asked], exchange: Exchange, window: int) -> None:
        self._exchange = exchange
        self._slots = threading.Semaphore(window)
        self._asked: queue.SimpleQueue[Asked | Exception | None] = queue.SimpleQueue()
        self._stopped = False
        self.broken = False
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
                self._try(self._exchange.send, item.message)
            self._try(self._exchange.no_more)
        except Exception as error:
            self._asked.put(error)
        finally:
            self._asked.put(None)

    def _try(self, function: Any, *arguments: Any) -> None:
        """Sends, unless the stream is broken: whoever waits for its answers finds that out as well."""
        if not self.broken:
            try:
                function(*arguments)
            except (ConnectionError, TimeoutError, PermissionError):
                self.broken = True
