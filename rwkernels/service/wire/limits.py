"""What a service takes, from whom, and for how long: every bound in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rwkernels import checks

MIB = 1 << 20
HEADER_BYTES = 64 << 10
"""The largest header of a message."""
ENVELOPE_BYTES = HEADER_BYTES + 8
"""What a message has beside its payload."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a service. Sizes are bytes, times seconds.

    Attributes:
        request_bytes: Labels (and largest distances) of one request. A longer message is refused by its length, before
            its content is read.
        answer_bytes: Map of one request, in the dtype asked for and in float32 while it is built.
        images: Images of a request.
        classes: Number of classes.
        axis: Pixels along one axis.
        admitted_bytes: Requests and answers together that the service holds at a time: waiting, being built, being
            sent. Readers of further requests wait, and with them the clients, by the flow control of HTTP/2.
        admitted_requests: The same, as a number of requests.
        shared_bytes: Memory that clients on this machine read answers from; beyond it, and where it is 0, answers are
            sent.
        admission_time: How long a request waits for that before its client is told to come again.
        joined_bytes: Small requests are joined into one launch until their labels have so many bytes.
        window: Requests of one stream that are admitted at a time.
        streams: Streams at a time.
        stream_messages: Requests of one stream.
        stream_bytes: Bytes of all requests of one stream.
        idle_time: How long a stream may say nothing, or leave an answer unread.
        stream_time: How long a stream may last.
    """

    request_bytes: int = 64 * MIB
    answer_bytes: int = 256 * MIB
    images: int = 4096
    classes: int = 4096
    axis: int = 1 << 20
    admitted_bytes: int = 1024 * MIB
    admitted_requests: int = 256
    shared_bytes: int = 1024 * MIB
    admission_time: float = 10.0
    joined_bytes: int = MIB
    window: int = 8
    streams: int = 64
    stream_messages: int = 1_000_000
    stream_bytes: int = 1 << 40
    idle_time: float = 60.0
    stream_time: float = 24 * 3600.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                checks.integer(field.name, value, lowest=0 if field.name == "shared_bytes" else 1)
            elif checks.number(field.name, value) <= 0:
                raise ValueError(f"{field.name}: expected a positive number of seconds, got {value}")
        for name in ("request_bytes", "answer_bytes"):
            if getattr(self, name) > (1 << 31) - 1 - ENVELOPE_BYTES:
                raise ValueError(
                    f"{name}: expected less than 2 GiB, which no message exceeds, got {getattr(self, name)}"
                )
        if self.admitted_bytes < self.request_bytes + self.answer_bytes:
            raise ValueError(
                f"admitted_bytes: expected room for one request and its answer, {self.request_bytes} + "
                f"{self.answer_bytes}, got {self.admitted_bytes}"
            )
