"""What client and service say to each other: a magic number, a JSON header and raw bytes, checked in full.

A message is `RWK1`, the length of the header (uint32, little endian), the header and the payload. Nothing in it is
executed, unpickled or decompressed. A request carries labels; the answer carries the foreground of their map (or a
dense map), or an error. Labels are not sent back.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rwkernels.maps.families import FAMILIES, MEASURED
from rwkernels.service.wire import fields, labels
from rwkernels.service.wire.fields import MalformedError
from rwkernels.service.wire.limits import HEADER_BYTES, Limits
from rwkernels.service.wire.memory import SLOTS, Place

COMMAND = b"rwkernels.maps/2"
"""The descriptor's command of the Flight call: which service, and which version of its messages."""
VERSION = 2
_MAGIC = b"RWK1"
_PREFIX = struct.Struct("<4sI")

ANSWER_BYTES = {"uint8": 1, "uint16": 2, "float16": 2, "float32": 4}
_ANSWERS = {
    "rectified": ("uint8", "uint16", "float32"),
    "active_contour": ("uint8", "uint16", "float32"),
    "constant": ("uint8", "uint16", "float32"),
    "boundary": ("float16", "float32"),
}
_OPTIONS = {"constant": ("alpha", "beta"), "boundary": ("absent", "inside_offset")}
CLOSING = "Closing"
"""Kind of the error that answers no request: none that follows on this stream is taken."""
_ERRORS = ("TypeError", "ValueError", "RuntimeError", "Unavailable", CLOSING)
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Request:
    """Which map of which labels. Every field was checked.

    Attributes:
        id: The client's number for the request, which the answer repeats.
        family: A key of `FAMILIES`.
        shape: `[B, *S]` of the labels.
        dtype: Of the labels, little endian; those of less than a byte are packed (`rwkernels.service.wire.labels`).
        num_classes: Number of classes K.
        answer: dtype of the answer: codes (`uint8`, `uint16`) or values.
        spacing: One number per spatial axis, or a row of them for each image, or None.
        ignore_index: Label of pixels that do not count, or None.
        black_border: Count the outside of the image as another label.
        options: Further options of the family.
        class_max: Whether float32 `[B, K]` follows the labels: the largest distances to divide by.
        slot: Of the stream, whose memory the client can read and has no more need of (`rwkernels.service.wire.memory`).
        in_slot: Whether what else follows the header lies there.
    """

    id: int
    family: str
    shape: tuple[int, ...]
    dtype: str
    num_classes: int
    answer: str
    spacing: tuple[Any, ...] | None = None
    ignore_index: int | None = None
    black_border: bool = False
    options: tuple[tuple[str, float], ...] = ()
    class_max: bool = False
    slot: int | None = None
    in_slot: bool = False

    @property
    def label_bytes(self) -> int:
        """Bytes of the labels once they are unpacked."""
        return math.prod(self.shape) * max(labels.BITS[self.dtype] // 8, 1)

    @property
    def sent_label_bytes(self) -> int:
        """Bytes of the labels on their way."""
        return -(-math.prod(self.shape) * labels.BITS[self.dtype] // 8)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all that follows the header."""
        return self.sent_label_bytes + (4 * self.shape[0] * self.num_classes if self.class_max else 0)

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Shape of the map: that of the labels, or `[B, K, *S]` where it is dense."""
        if self.family == "boundary":
            return (self.shape[0], self.num_classes, *self.shape[1:])
        return self.shape

    @property
    def answer_bytes(self) -> int:
        """Bytes of the map as it is sent."""
        return math.prod(self.answer_shape) * ANSWER_BYTES[self.answer]

    @property
    def built_bytes(self) -> int:
        """Bytes of the map as it is built, in float32, with one number for each class of every image."""
        return 4 * (math.prod(self.answer_shape) + self.shape[0] * self.num_classes)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides how a map is made; requests that agree in it can be made in one launch."""
        return (
            self.family,
            self.shape[1:],
            labels.unpacked_dtype(self.dtype),
            self.num_classes,
            self.answer,
            self.spacing,
            self.ignore_index,
            self.black_border,
            self.options,
            self.class_max,
        )

    @property
    def has_rows_of_spacing(self) -> bool:
        """Whether images have a spacing each."""
        return self.spacing is not None and isinstance(self.spacing[0], tuple)

    def header(self) -> dict[str, Any]:
        """The fields as they are sent."""
        return {
            "version": VERSION,
            "id": self.id,
            "family": self.family,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "num_classes": self.num_classes,
            "answer": self.answer,
            "spacing": self.spacing,
            "ignore_index": self.ignore_index,
            "black_border": self.black_border,
            "options": dict(self.options),
            "class_max": self.class_max,
            "slot": self.slot,
            "in_slot": self.in_slot,
        }


@dataclass(frozen=True)
class Answer:
    """The answer to a request: a map, or an error.

    Attributes:
        id: The request's.
        shape: Of the map.
        dtype: Of the map: codes or values.
        background: Value at every other class; None for a dense map.
        image_count: Pixels of every image that count, or None where all do.
        memory: Where the map is, if not in the payload.
        error: Kind and text of an error, or None. The other fields are then empty.
    """

    id: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    background: float | None = None
    image_count: tuple[int, ...] | None = None
    memory: Place | None = None
    error: tuple[str, str] | None = None

    def header(self) -> dict[str, Any]:
        """The fields as they are sent."""
        if self.error is not None:
            kind, text = self.error
            return {"version": VERSION, "id": self.id, "error": {"kind": kind, "text": text[:_LONGEST_TEXT]}}
        return {
            "version": VERSION,
            "id": self.id,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "background": self.background,
            "image_count": self.image_count,
            "memory": None if self.memory is None else self.memory.header(),
        }


def packed(header: Mapping[str, Any]) -> bytes:
    """The start of a message; its payload follows, at a multiple of 16 bytes."""
    text = _ENCODER.encode(header).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % 16)
    if len(text) > HEADER_BYTES:
        raise ValueError(f"header: expected at most {HEADER_BYTES} bytes, got {len(text)} (fewer images in one call)")
    return _PREFIX.pack(_MAGIC, len(text)) + text


def split(message: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a message. Nothing is copied but the header.

    Raises:
        MalformedError: This is no message.
    """
    if len(message) < _PREFIX.size:
        raise MalformedError(f"message: expected at least {_PREFIX.size} bytes, got {len(message)}")
    magic, length = _PREFIX.unpack_from(message)
    if magic != _MAGIC:
        raise MalformedError(f"message: expected it to start with {_MAGIC!r}")
    if length > min(HEADER_BYTES, len(message) - _PREFIX.size):
        raise MalformedError(f"header: expected at most {HEADER_BYTES} bytes and no more than came, got {length}")
    try:
        header = _DECODER.decode(bytes(message[_PREFIX.size : _PREFIX.size + length]).decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, digits without end, brackets without end
        raise MalformedError("header: expected JSON without repeated keys and constants") from error
    if not isinstance(header, dict):
        raise MalformedError("header: expected a JSON object")
    return header, message[_PREFIX.size + length :]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated key")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)

_REQUEST_KEYS = frozenset(Request(0, "", (1,), "uint8", 1, "uint8").header())
_ANSWER_KEYS = frozenset(Answer(0).header())
_ERROR_KEYS = frozenset(("version", "id", "error"))


def identity(header: Mapping[str, Any]) -> int:
    """The number of the request or answer, once its version and number were checked."""
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        raise MalformedError(f"version: expected {VERSION}")
    return fields.integer(header, "id", 0, 2**53)


def request(header: Mapping[str, Any], payload: memoryview, limits: Limits) -> Request:
    """The request in a message, checked against the limits; nothing was allocated for it before.

    Raises:
        MalformedError: Keys, types or lengths are wrong.
        fields.RefusedError: The request is too large for this service.
    """
    number = identity(header)
    fields.keys(header, _REQUEST_KEYS)
    family = fields.choice(header, "family", tuple(FAMILIES))
    shape = header["shape"]
    if not isinstance(shape, list) or not 2 <= len(shape) <= 4 or not all(type(size) is int for size in shape):
        raise MalformedError("shape: expected [B, *S], integers, with one to three spatial axes")
    if min(shape) < 0:
        raise MalformedError("shape: expected no negative sizes")
    fields.at_most("shape[0]", shape[0], limits.images, "images")
    fields.at_most("shape", max(shape[1:]), limits.axis, "pixels along an axis")
    num_classes = fields.integer(header, "num_classes", 1, 2**31)
    fields.at_most("num_classes", num_classes, limits.classes, "classes")
    ignore_index = header["ignore_index"]
    if ignore_index is not None:
        ignore_index = fields.integer(header, "ignore_index", -(2**63), 2**63)
    found = Request(
        id=number,
        family=family,
        shape=tuple(shape),
        dtype=fields.choice(header, "dtype", tuple(labels.BITS)),
        num_classes=num_classes,
        answer=fields.choice(header, "answer", _ANSWERS[family]),
        spacing=_spacing(header["spacing"], family, shape),
        ignore_index=ignore_index,
        black_border=fields.flag(header, "black_border"),
        options=_options(header["options"], family),
        class_max=fields.flag(header, "class_max"),
        slot=None if header["slot"] is None else fields.integer(header, "slot", 0, SLOTS),
        in_slot=fields.flag(header, "in_slot"),
    )
    if found.class_max and family != "rectified":
        raise MalformedError('class_max: expected none but for "rectified" maps')
    if found.black_border and family not in MEASURED:
        raise MalformedError("black_border: expected false for a map without distances")
    fields.at_most("labels", max(found.payload_bytes, found.label_bytes), limits.request_bytes, "bytes")
    fields.at_most("map", max(found.answer_bytes, found.built_bytes), limits.answer_bytes, "bytes")
    if found.in_slot and found.slot is None:
        raise MalformedError("in_slot: expected false without a slot")
    expected = 0 if found.in_slot else found.payload_bytes
    if len(payload) != expected:
        raise MalformedError(f"payload: expected {expected} bytes for this shape, got {len(payload)}")
    return found


def _error(header: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and text of the error in the header of an answer."""
    fields.keys(header, _ERROR_KEYS)
    error = header["error"]
    if not isinstance(error, dict) or error.keys() != {"kind", "text"} or not isinstance(error["text"], str):
        raise MalformedError("error: expected its kind and text")
    return fields.choice(error, "kind", _ERRORS), error["text"][:_LONGEST_TEXT]


def answer(header: Mapping[str, Any], payload: memoryview, asked: Request) -> Answer:
    """The answer to `asked` in a message.

    Raises:
        MalformedError: It is no answer to that.
    """
    number = identity(header)
    error = _error(header) if "error" in header else None
    if number != asked.id and (error is None or error[0] != CLOSING):
        raise MalformedError(f"id: expected {asked.id}, got {number}")
    if error is not None:
        return Answer(number, error=error)
    fields.keys(header, _ANSWER_KEYS)
    shape, background, count = (header[name] for name in ("shape", "background", "image_count"))
    if not isinstance(shape, list) or shape != list(asked.answer_shape):
        raise MalformedError(f"shape: expected {list(asked.answer_shape)}")
    if header["dtype"] != asked.answer:
        raise MalformedError(f"dtype: expected {asked.answer}")
    memory = None if header["memory"] is None else Place.read(header["memory"])
    if header["memory"] is not None and (memory is None or asked.slot is None):
        raise MalformedError("memory: expected null, or where the memory of a slot is")
    expected = asked.answer_bytes if memory is None else 0
    if len(payload) != expected:
        raise MalformedError(f"payload: expected {expected} bytes, got {len(payload)}")
    dense = asked.family == "boundary"
    if (background is None) != dense or not (dense or fields.is_number(background)):
        raise MalformedError("background: expected a number for a compact map, null for a dense one")
    if count is not None:
        pixels = math.prod(asked.shape[1:])
        if not isinstance(count, list) or len(count) != asked.shape[0]:
            raise MalformedError("image_count: expected one number for each image")
        if not all(type(value) is int and 0 <= value <= pixels for value in count):
            raise MalformedError("image_count: expected numbers of pixels")
        count = tuple(count)
    return Answer(number, tuple(shape), asked.answer, None if dense else float(background), count, memory)


def _spacing(value: Any, family: str, shape: list[int]) -> tuple[Any, ...] | None:
    """None, one number per axis, or as many for each image, as tuples."""
    if value is None:
        return None
    if family not in MEASURED:
        raise MalformedError("spacing: expected null for a map without distances")
    axes = len(shape) - 1
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if any(
        not isinstance(row, list) or len(row) != axes or not all(fields.is_number(step) and step > 0 for step in row)
        for row in rows
    ):
        raise MalformedError(f"spacing: expected {axes} positive numbers, or as many for each image")
    found = tuple(tuple(map(float, row)) for row in rows)
    if rows is not value:
        return found[0]
    if len(found) != shape[0]:
        raise MalformedError(f"spacing: expected a row for each of {shape[0]} images, got {len(found)}")
    return found


def _options(value: Any, family: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, dict) or not value.keys() <= set(_OPTIONS.get(family, ())):
        raise MalformedError(f"options: expected an object with options of the family {family}")
    if not all(fields.is_number(number) for number in value.values()):
        raise MalformedError("options: expected numbers")
    return tuple(sorted((name, float(number)) for name, number in value.items()))
