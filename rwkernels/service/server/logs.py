"""Structured logs: one JSON object a line, through the standard logging."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

NAME = "rwkernels.service"
_LAST_LINES = 1.0
"""Seconds for the last lines of the log."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event and the fields that came with it."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


def logger() -> logging.Logger:
    """The logger of the service."""
    return logging.getLogger(NAME)


def event(level: int, name: str, *, exc_info: bool | BaseException = False, **fields: Any) -> None:
    """Logs `name` with fields. Nothing a client sent is in them but sizes, numbers and its address."""
    logger().log(level, name, extra={"fields": fields}, exc_info=exc_info)


class Writer(logging.Handler):
    """Writes records in a thread of its own, and drops them while that is behind.

    A pipe whose reader has stopped would else stop whoever logs, and with it the service.
    """

    def __init__(self, stream: TextIO, longest: int = 10_000) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(longest)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="rwkernels-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1  # under the handler's lock

    def close(self) -> None:
        """Waits for what is not written yet, a second at most."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=_LAST_LINES)
        self._thread.join(_LAST_LINES)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # a reader that is gone, a stream that was closed
                _put(self._stream, line)
            if self._lost > 0 and self._lines.empty():
                self._tell_of_lost()

    def _tell_of_lost(self) -> None:
        self.acquire()
        try:
            lost, self._lost = self._lost, 0
        finally:
            self.release()
        event(logging.WARNING, "lines of the log were lost", lines=lost)


def _put(stream: TextIO, line: str) -> None:
    """Writes a line, past the buffer of a file: at its end, Python would wait for the lock of that."""
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):
        stream.write(line + "\n")
        return
    data = memoryview(line.encode() + b"\n")
    while len(data) > 0:
        data = data[os.write(descriptor, data) :]


@contextmanager
def written_to(stream: TextIO, level: int) -> Iterator[None]:
    """Writes the service's logs to `stream` as JSON lines; all are written at the end, if somebody reads them."""
    handler = Writer(stream)
    found = logger()
    found.addHandler(handler)
    found.setLevel(level)
    found.propagate = False
    try:
        yield
    finally:
        found.removeHandler(handler)
        handler.close()


def new_id() -> str:
    """An id for a stream; with the number of a request in it, that is the id of the request."""
    return secrets.token_hex(6)
