"""Structured logs: one JSON object a line, through the standard logging."""

from __future__ import annotations

import datetime
import json
import logging
import secrets
from typing import Any, TextIO

NAME = "rwkernels.service"


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
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


def event(level: int, name: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Logs `name` with fields. Nothing a client sent is in them but sizes, numbers and its address."""
    logger().log(level, name, extra={"fields": fields}, exc_info=exc_info)


def write_to(stream: TextIO, level: int) -> logging.Handler:
    """Writes the service's logs to `stream` as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    found = logger()
    found.addHandler(handler)
    found.setLevel(level)
    found.propagate = False
    return handler


def new_id() -> str:
    """An id for a stream; with the number of a request in it, that is the id of the request."""
    return secrets.token_hex(6)
