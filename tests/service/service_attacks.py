"""Messages that no well-behaved client sends, through gRPC itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import msgspec
import torch
from service_cases import TOKEN, some_labels

import rwkernels as rw
from rwkernels.maps.quantised import encode
from rwkernels.service.wire import messages

INVALID, TOO_LARGE, UNKNOWN = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
)


class Client:
    """Sends raw messages over one channel."""

    def __init__(self, port: int, token: str | None = TOKEN) -> None:
        # A channel of its own: channels with equal options share connections.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._call = self._channel.stream_stream(messages.METHOD)
        self._token = token

    def send(
        self, requests: list[bytes], token: str | bool = True, compression: Any = None
    ) -> tuple[grpc.StatusCode, list[bytes]]:
        """The status that a stream of `requests` ends with, and the answers that came before."""
        metadata = []
        if token is not False:
            metadata.append(("authorization", f"Bearer {self._token if token is True else token}"))
        call = self._call(iter(requests), metadata=metadata, timeout=30, compression=compression)
        answers: list[bytes] = []
        with contextlib.suppress(grpc.RpcError):
            answers.extend(call)
        return call.code(), answers

    def close(self) -> None:
        self._channel.close()


class Talk:
    """One stream, spoken message by message."""

    def __init__(self, port: int) -> None:
        self._client = Client(port, token=None)
        self._given: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = self._client._call(iter(self._given.get, None), timeout=30)

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        self._given.put(packed(header, payload))

    def hear(self) -> tuple[dict[str, Any], memoryview]:
        """Header and payload of the next answer."""
        return messages.split(memoryview(next(self.call)))

    def ask(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], memoryview]:
        """Those of the answer."""
        self.send(header, payload)
        return self.hear()

    def end(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        self._given.put(None)
        with contextlib.suppress(grpc.RpcError):
            list(self.call)
        found = self.call.code(), self.call.details()
        self._client.close()
        return found


def header(**changes: Any) -> dict[str, Any]:
    """The header of a good request, with changes; a change to `None` of what cannot be None stays."""
    good = messages.Request(7, "rectified", (1, 3, 4), "uint8", 3, "uint8")
    return {**msgspec.to_builtins(good), **changes}


def packed(found: Any, payload: bytes = bytes(12)) -> bytes:
    """The message of a header, valid JSON or not, and a payload."""
    text = found if isinstance(found, bytes) else json.dumps(found).encode()
    return struct.pack("<4sI", b"RWK1", len(text)) + text + payload


GOOD = packed(header())


def without(name: str) -> dict[str, Any]:
    found = header()
    del found[name]
    return found


def wrong_headers() -> list[tuple[str, Any]]:
    """Headers with one thing wrong."""
    wrong: dict[str, list[Any]] = {
        "version": [0, 1, 2, 4, "3", 3.0, None, True],
        "id": [-1, 2**60, "7", 7.5, None, False],
        "family": ["", "Rectified", None, 3, ["rectified"], "__class__"],
        "shape": [[], [1], [1, 3], [1, 3, 4, 5, 6], [1, -3, -4], [-1, 3, 4], [1, 3.0, 4], ["1", 3, 4], 12, None,
                  [True, 3, 4],
                  [1, 2**62, 2**62], [1, 1 << 20, 1 << 20], [4096, 4096, 4096], [2**63, 3, 4],
                  [0, 3, 4], [1, 4, 4], [10**400, 3, 4]],
        "dtype": ["float32", "uint1", "uint2", "uint3", "uint16", "uint64", "int32", "object", "O", "<u1", None, 1],
        "num_classes": [0, -3, 10**9, 2**40, 3.0, "3", None, True],
        "answer": ["float64", "float16", "object", None, 8],
        "spacing": [0, [], [[]], [1.0, 1.0], [[1.0]], [[1.0, 0.0]], [[1.0, -1.0]], [[1.0, 1.0, 1.0]], [["1", "1"]],
                    [[1.0, 1.0], [1.0, 1.0]], [[[1.0, 1.0]]], {}, [[None, 1]], [[1.0, 10**400]], [[True, 1.0]]],
        "ignore_index": [0.5, "0", [], 2**70],
        "black_border": [0, 1, None, "no"],
        "options": [None, [], {"alpha": 1.0}, {"out": 1.0}, {"__init__": 1}],
        "class_max": [True, 1, None],
    }  # fmt: skip
    found: list[tuple[str, Any]] = [
        (f"{name}={value!r:.40}", header(**{name: value})) for name, values in wrong.items() for value in values
    ]
    found += [(f"without {name}", without(name)) for name in header()]
    found += [
        ("unknown key", header(command="rm")),
        ("a list", [1, 2]),
        ("a number", 12),
        ("nothing", b""),
        ("not JSON", b"{"),
        ("not UTF-8", b"\xff\xfe{}"),
        ("NaN", json.dumps(header(spacing=[[1.0, 1.0]])).replace("1.0", "NaN").encode()),
        ("infinity", json.dumps(header(spacing=[[1.0, 1.0]])).replace("1.0", "1e999").encode()),
        ("brackets without end", b"[" * 60000),
        ("digits without end", b'{"version":' + b"9" * 60000 + b"}"),
        ("a repeated key", json.dumps(header()).replace('"id": 7', '"id": 7, "id": 8').encode()),
        ("a pickle", b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."),
    ]
    return found


def envelopes() -> list[tuple[str, list[bytes]]]:
    """Messages that are none."""
    text = json.dumps(header()).encode()
    return [
        ("no request", []),
        ("nothing", [b""]),
        ("nothing after a request", [GOOD, b""]),
        ("random bytes", [random.Random(1).randbytes(300)]),
        ("a magic number alone", [b"RWK1"]),
        ("a header longer than the message", [struct.pack("<4sI", b"RWK1", 2**32 - 1)]),
        ("a header longer by a byte", [struct.pack("<4sI", b"RWK1", len(text) + 1) + text]),
        ("a header of more than 64 KiB", [packed(text + b" " * (64 << 10))]),
        ("another magic number", [b"PK\x03\x04" + bytes(20)]),
        ("a small letter in the magic number", [b"rWK1" + GOOD[4:]]),
        ("a header in another order of bytes", [struct.pack(">4sI", b"RWK1", len(text)) + text + bytes(12)]),
    ]


def truncated() -> Iterator[tuple[str, list[bytes]]]:
    """A good request, cut anywhere."""
    for at in itertools.count():
        cut = 1 + (at * 7) % (len(GOOD) - 1)
        yield f"cut after {cut} bytes", [GOOD[:cut]]


def flipped() -> Iterator[tuple[str, list[bytes]]]:
    """A good request with some bits turned; it may still be good."""
    source = random.Random(7)
    for at in itertools.count():
        found = bytearray(GOOD)
        for _ in range(source.randint(1, 4)):
            found[source.randrange(len(found))] ^= 1 << source.randrange(8)
        yield f"flipped {at}", [bytes(found)]


def payloads() -> list[tuple[str, list[bytes]]]:
    """Payloads of a wrong length, and labels that are none of the classes."""
    found = [(f"payload of {size}", [packed(header(), bytes(size))]) for size in (0, 1, 11, 13, 24, 100_000)]
    return [
        *found,
        ("class 3 of 3", [packed(header(), bytes([3] * 12))]),
        ("class 3 of 3, packed", [packed(header(dtype="uint2"), bytes([255] * 3))]),
        ("packed, a byte more", [packed(header(dtype="uint2"), bytes(4))]),
        ("class 255", [packed(header(), bytes([255] * 12))]),
    ]


def garbage(port: int, data: bytes) -> None:
    """Bytes that are no HTTP/2, and a connection that ends in the middle of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)


def good_answer(client: Client) -> bool:
    """Whether the service still answers correctly."""
    labels = some_labels(2, 13, 22).to(torch.uint8)
    request = messages.Request(5, "rectified", (2, 13, 22), "uint8", 3, "uint8")
    code, answers = client.send([messages.packed(request) + labels.numpy().tobytes()])
    if code is not grpc.StatusCode.OK or len(answers) != 1:
        return False
    found, payload = messages.split(memoryview(answers[0]))
    messages.answer(found, payload, request)
    return bytes(payload) == encode(rw.rectified_map(labels, 3).foreground, 8).numpy().tobytes()
