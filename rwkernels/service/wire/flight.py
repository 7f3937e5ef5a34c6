"""The little of Arrow Flight's wire format that the service speaks: `FlightData` with a descriptor and app_metadata.

pyarrow's own Flight server cannot bound what it reads: it lets gRPC receive messages of any size, inflates gzip and
compressed IPC before Python sees them, and waits for a silent client for ever. The service therefore stands on gRPC's
own server, which is told the largest message and to inflate nothing, and reads `FlightData` itself. Clients are any
Flight client; ours is pyarrow's.

References:
    https://arrow.apache.org/docs/format/Flight.html; https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rwkernels.service.wire.fields import MalformedError

EXCHANGE = "/arrow.flight.protocol.FlightService/DoExchange"

_DESCRIPTOR, _DATA_HEADER, _APP_METADATA, _DATA_BODY = 1, 2, 3, 1000
_TYPE, _COMMAND = 1, 2
_COMMAND_TYPE = 2
_VARINT, _BYTES = 0, 2
_LONGEST_DESCRIPTOR = 1024


@dataclass(frozen=True)
class Data:
    """What came in one `FlightData`: the command of its descriptor and its app_metadata, or None."""

    command: bytes | None
    metadata: memoryview | None


def parse(message: bytes) -> Data:
    """Reads one `FlightData` without copying its bytes.

    Raises:
        MalformedError: It is none, or carries Arrow IPC data, which this service does not read.
    """
    command: bytes | None = None
    metadata: memoryview | None = None
    seen = set()
    for field, value in _fields(memoryview(message)):
        if field in seen:
            raise MalformedError(f"FlightData: expected field {field} once")
        seen.add(field)
        if isinstance(value, int):
            raise MalformedError(f"FlightData: expected no integer in field {field}")
        if field == _DESCRIPTOR:
            command = _command(value)
        elif field == _APP_METADATA:
            metadata = value
        elif field not in (_DATA_HEADER, _DATA_BODY) or len(value) > 0:
            # Empty fields are what some clients send for absent ones.
            raise MalformedError("FlightData: expected requests as app_metadata, without Arrow IPC data")
    return Data(command, metadata)


def pack(start: bytes, payload: memoryview | bytes) -> bytes:
    """A `FlightData` whose app_metadata is `start` followed by `payload`."""
    tag = bytes([_APP_METADATA << 3 | _BYTES]) + _varint(len(start) + len(payload))
    return b"".join((tag, start, payload))


def pack_descriptor(command: bytes, metadata: bytes | None = None) -> bytes:
    """A `FlightData` with a descriptor, as clients send first."""
    inner = bytes([_TYPE << 3 | _VARINT, _COMMAND_TYPE, _COMMAND << 3 | _BYTES]) + _varint(len(command)) + command
    outer = bytes([_DESCRIPTOR << 3 | _BYTES]) + _varint(len(inner)) + inner
    return outer if metadata is None else outer + pack(metadata, b"")


def _command(descriptor: memoryview) -> bytes:
    if len(descriptor) > _LONGEST_DESCRIPTOR:
        raise MalformedError(f"FlightDescriptor: expected at most {_LONGEST_DESCRIPTOR} bytes, got {len(descriptor)}")
    kind, command = 0, b""
    for field, value in _fields(descriptor):
        if field == _TYPE and isinstance(value, int):
            kind = value
        elif field == _COMMAND and isinstance(value, memoryview):
            command = bytes(value)
        else:
            raise MalformedError("FlightDescriptor: expected a command")
    if kind != _COMMAND_TYPE:
        raise MalformedError("FlightDescriptor: expected a command")
    return command


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        if key & 7 == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
        elif key & 7 == _BYTES:
            length, at = _read_varint(message, at)
            if length > len(message) - at:
                raise MalformedError("FlightData: it ends before its last field does")
            yield key >> 3, message[at : at + length]
            at += length
        else:
            raise MalformedError("FlightData: expected integers and bytes alone")


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise MalformedError("FlightData: expected an integer of at most ten bytes")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
