"""How much a service holds at a time: who wants more waits for its turn."""

from __future__ import annotations

import asyncio
from collections import deque


class Admission:
    """Room for so many requests and so many bytes; those that do not fit wait in order.

    The reader of a stream waits here. It then reads nothing, so that gRPC takes no more from the connection than its
    window, and the client waits too.
    """

    def __init__(self, requests: int, size: int) -> None:
        self.requests, self.size = 0, 0
        self._most_requests, self._most_size = requests, size
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def acquire(self, size: int, timeout: float | None = None) -> None:
        """Waits for room.

        Raises:
            TimeoutError: There was none for `timeout` seconds.
        """
        if not self._waiting and self._fits(size):
            self._take(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            await asyncio.wait((turn,), timeout=timeout)  # wait_for may lose a cancellation (before Python 3.12)
            if not turn.done():
                raise TimeoutError
        except BaseException:
            if turn.done():
                self.release(size)
            else:
                turn.cancel()
                self._admit()  # those behind it may fit
            raise

    def release(self, size: int) -> None:
        """Gives back the room of one request."""
        self.requests -= 1
        self.size -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        # One alone always fits: a stream's share may be less than the largest request.
        return self.requests == 0 or (self.requests < self._most_requests and self.size + size <= self._most_size)

    def _take(self, size: int) -> None:
        self.requests += 1
        self.size += size

    def _admit(self) -> None:
        while self._waiting:
            turn, size = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(size):
                    return
                self._take(size)
                turn.set_result(None)
            self._waiting.popleft()
