"""What client and service say to each other: a magic number, a JSON header and raw bytes, checked in full.

A message is `RWK1`, the length of the header (uint32, little endian), the header and the payload. Nothing in it is
executed, unpickled or decompressed. A request carries labels; the answer carries the foreground of their map (or a
dense map), or an error. Labels are not sent back.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, Struct

from rwkernels.maps.families import FAMILIES
from rwkernels.service.wire import labels
from rwkernels.service.wire.limits import HEADER_BYTES, Limits
from rwkernels.service.wire.memory import SLOTS, Place

VERSION = 3
METHOD = f"/rwkernels.v{VERSION}.Maps/Exchange"
"""gRPC's name of the call: a stream of requests, and one of their answers."""
_MAGIC = b"RWK1"
_PREFIX = struct.Struct("<4sI")

ANSWER_BYTES = {"uint8": 1, "uint16": 2, "float16": 2, "float32": 4}
CLOSING = "Closing"
"""Kind of the error that answers no request: none that follows on this stream is taken."""
_ERRORS = ("TypeError", "ValueError", "RuntimeError", "Unavailable", CLOSING)
LONGEST_TEXT = 2000
"""Characters of an error."""

# Numbers beyond 1e300 are there by mistake.
_Id = Annotated[int, Meta(ge=0, lt=2**53)]
_Size = Annotated[int, Meta(ge=0)]
_Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
_Step = Annotated[float, Meta(gt=0, lt=1e300)]
_Version = Annotated[int, Meta(ge=VERSION, le=VERSION)]


def answers_of(family: str) -> tuple[str, ...]:
    """The forms in which a map of the family, a key of `FAMILIES`, can come back."""
    return ("float16", "float32") if FAMILIES[family].dense else ("uint8", "uint16", "float32")


class MalformedError(ValueError):
    """A message that is none of this protocol; its stream is not read further."""


class RefusedError(ValueError):
    """A well-formed request, of number `id`, that this service does not take."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.id = number


class Request(Struct, frozen=True):
    """Which map of which labels.

    Attributes:
        id: The client's number for the request, which the answer repeats.
        family: A key of `FAMILIES`.
        shape: `[B, *S]` of the labels.
        dtype: Of the labels, little endian; those of less than a byte are packed (`rwkernels.service.wire.labels`).
        num_classes: Number of classes K.
        answer: dtype of the answer: codes (`uint8`, `uint16`) or values.
        spacing: A row of one number per spatial axis for all images, or one row for each, or None.
        ignore_index: Label of pixels that do not count, or None.
        black_border: Count the outside of the image as another label.
        options: Further options of the family.
        class_max: Whether float32 `[B, K]` follows the labels: the largest distances to divide by.
        slot: Of the stream, whose memory the client can read and has no more need of (`rwkernels.service.wire.memory`).
        in_slot: Whether what else follows the header lies there.
        version: Of the protocol.
    """

    id: _Id
    family: str
    shape: Annotated[tuple[_Size, ...], Meta(min_length=2, max_length=4)]
    dtype: str
    num_classes: Annotated[int, Meta(ge=1, lt=2**31)]
    answer: str
    spacing: tuple[tuple[_Step, ...], ...] | None = None
    ignore_index: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    black_border: bool = False
    options: dict[str, _Number] = {}
    class_max: bool = False
    slot: Annotated[int, Meta(ge=0, lt=SLOTS)] | None = None
    in_slot: bool = False
    version: _Version = VERSION

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
        if FAMILIES[self.family].dense:
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
    def settings(self) -> Request:
        """What decides how a map is made; requests that agree in it can be made in one launch."""
        dtype = labels.unpacked_dtype(self.dtype)
        return msgspec.structs.replace(self, id=0, shape=(0, *self.shape[1:]), dtype=dtype, slot=None, in_slot=False)

    @property
    def has_rows_of_spacing(self) -> bool:
        """Whether images have a spacing each."""
        return self.spacing is not None and len(self.spacing) > 1

    @property
    def common_spacing(self) -> tuple[float, ...] | None:
        """The spacing of all images, unless they have none or one each."""
        return None if self.spacing is None or len(self.spacing) > 1 else self.spacing[0]


class Answer(Struct, frozen=True):
    """The answer to a request: a map, or an error.

    Attributes:
        id: The request's.
        shape: Of the map.
        dtype: Of the map: codes or values.
        background: Value at every other class; None for a dense map.
        image_count: Pixels of every image that count, or None where all do.
        memory: Where the map is, if not in the payload.
        error: Kind (`TypeError`, `ValueError`, `RuntimeError`, `Unavailable` or `CLOSING`) and text.
        version: Of the protocol.
    """

    id: _Id
    shape: tuple[_Size, ...] = ()
    dtype: str = ""
    background: _Number | None = None
    image_count: tuple[_Size, ...] | None = None
    memory: Place | None = None
    error: tuple[str, Annotated[str, Meta(max_length=LONGEST_TEXT)]] | None = None
    version: _Version = VERSION


def packed(header: Request | Answer) -> bytes:
    """The start of a message: the payload follows it. Its length is a multiple of 16, so that codes lie aligned.

    Raises:
        ValueError: The header is too long.
    """
    text = msgspec.json.encode(header)
    text += b" " * (-(_PREFIX.size + len(text)) % 16)
    if len(text) > HEADER_BYTES:
        raise ValueError(f"header: expected at most {HEADER_BYTES} bytes, got {len(text)} (fewer images in one call)")
    return _PREFIX.pack(_MAGIC, len(text)) + text


def split(message: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a message, without copying the payload.

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


# msgspec's own decoder takes the last of repeated keys.
_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)

_Header = TypeVar("_Header", Request, Answer)


def _read(header: Mapping[str, Any], kind: type[_Header]) -> _Header:
    """The header as a structure whose fields have the right types and bounds; no key is missing, and none unknown."""
    if header.keys() != set(kind.__struct_fields__):
        raise MalformedError(f"header: expected the keys {', '.join(kind.__struct_fields__)}")
    try:
        return msgspec.convert(header, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).replace("`", "").partition(" - at $.")
        raise MalformedError(f"{place or 'header'}: {text[0].lower()}{text[1:]}") from None


def _one_of(name: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise MalformedError(f"{name}: expected one of {', '.join(options)}, got {value[:40]!r}")


def request(header: Mapping[str, Any], payload: memoryview, limits: Limits) -> Request:
    """The request in a message, checked against the limits; nothing was allocated for it before.

    Raises:
        MalformedError: Keys, types or lengths are wrong.
        RefusedError: The request is too large for this service.
    """
    found = _read(header, Request)
    _one_of("family", found.family, FAMILIES)
    _one_of("dtype", found.dtype, labels.BITS)
    family = FAMILIES[found.family]
    _one_of("answer", found.answer, answers_of(found.family))
    for name in found.options:
        _one_of("options", name, family.options)
    if found.class_max and not family.divided:
        raise MalformedError("class_max: expected none for a map that is not divided by distances")
    if not family.measured and (found.black_border or found.spacing is not None):
        raise MalformedError("spacing, black_border: expected null and false for a map without distances")
    if found.spacing is not None:
        images, *axes = found.shape
        if len(found.spacing) not in (1, max(images, 1)) or any(len(row) != len(axes) for row in found.spacing):
            raise MalformedError(
                f"spacing: expected a row of {len(axes)} numbers for all or for each of {images} images"
            )
    for name, value, limit, what in (
        ("shape[0]", found.shape[0], limits.images, "images"),
        ("shape", max(found.shape[1:]), limits.axis, "pixels along an axis"),
        ("num_classes", found.num_classes, limits.classes, "classes"),
        ("labels", max(found.payload_bytes, found.label_bytes), limits.request_bytes, "bytes"),
        ("map", max(found.answer_bytes, found.built_bytes), limits.answer_bytes, "bytes"),
    ):
        if value > limit:
            raise RefusedError(
                found.id, f"{name}: expected at most {limit} {what} (a limit of the service), got {value}"
            )
    if found.in_slot and found.slot is None:
        raise MalformedError("in_slot: expected false without a slot")
    expected = 0 if found.in_slot else found.payload_bytes
    if len(payload) != expected:
        raise MalformedError(f"payload: expected {expected} bytes for this shape, got {len(payload)}")
    return found


def answer(header: Mapping[str, Any], payload: memoryview, asked: Request) -> Answer:
    """The answer to `asked` in a message.

    Raises:
        MalformedError: It is no answer to that.
    """
    found = _read(header, Answer)
    kind = None if found.error is None else found.error[0]
    if found.id != asked.id and kind != CLOSING:
        raise MalformedError(f"id: expected {asked.id}, got {found.id}")
    if kind is not None:
        _one_of("error", kind, _ERRORS)
        return found
    if found.shape != asked.answer_shape:
        raise MalformedError(f"shape: expected {list(asked.answer_shape)}, got {list(found.shape)}")
    if found.dtype != asked.answer:
        raise MalformedError(f"dtype: expected {asked.answer}, got {found.dtype[:40]!r}")
    if found.memory is not None and asked.slot is None:
        raise MalformedError("memory: expected null, or where the memory of a slot is")
    expected = asked.answer_bytes if found.memory is None else 0
    if len(payload) != expected:
        raise MalformedError(f"payload: expected {expected} bytes, got {len(payload)}")
    if (found.background is None) != FAMILIES[asked.family].dense:
        raise MalformedError("background: expected a number for a compact map, null for a dense one")
    if found.image_count is not None:
        if len(found.image_count) != asked.shape[0]:
            raise MalformedError("image_count: expected one number for each image")
        if max(found.image_count, default=0) > math.prod(asked.shape[1:]):
            raise MalformedError("image_count: expected numbers of pixels")
    return found
