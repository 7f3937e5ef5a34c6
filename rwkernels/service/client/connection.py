"""The client's side of a stream: a connection for each process, opened when it is first used."""

from __future__ import annotations

import os
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkernels.service.wire import messages, security
from rwkernels.service.wire.limits import ENVELOPE_BYTES

FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
if "grpc" not in sys.modules:
    os.environ.setdefault(FORK_SUPPORT, "1")  # gRPC reads it as it is imported, and then survives fork()

import grpc  # noqa: E402

_SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")
_SURVIVES_FORK = os.environ.get(FORK_SUPPORT, "").lower() in ("1", "true", "yes")
_MOMENT = 0.1
"""Seconds that requests under way get to be answered before this process forks."""


class UnavailableError(ConnectionError):
    """The service cannot be reached, or asks to come again later."""


class ClosingError(UnavailableError):
    """The service takes no further requests on a stream."""


@dataclass(frozen=True)
class Target:
    """Which service, and what it is shown. Files are read when a connection is opened, in the process that opens it.

    Attributes:
        url: `grpc://HOST:PORT` or `grpc+tls://HOST:PORT`.
        token: The token, if it was given as text.
        token_file: Or a file of it; without both, the environment variable RWKERNELS_TOKEN.
        root_certificates: PEM file of those that the service's certificate is to be signed by; else the system's.
        client_certificate: PEM file of the client's own certificate, where the service asks for one.
        client_key: PEM file of its key.
        answer_bytes: The largest answer to take.
        connect_time: Seconds that one attempt to connect may take.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    token_file: str | os.PathLike[str] | None = None
    root_certificates: str | os.PathLike[str] | None = None
    client_certificate: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    answer_bytes: int = 1 << 30
    connect_time: float = 20.0

    def checked(self, insecure: bool) -> Target:
        """The target itself, unless it makes no sense or would show a token to others on the way."""
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError, TypeError):
            host = port = None
        if host is None or port is None or parts.scheme not in _SCHEMES or parts.path or parts.query or parts.username:
            raise ValueError(f"url: expected grpc://HOST:PORT or grpc+tls://HOST:PORT, got {self.url!r}")
        encrypted = parts.scheme == "grpc+tls"
        if not encrypted and (self.root_certificates or self.client_certificate or self.client_key):
            raise ValueError(f"url: expected grpc+tls:// beside certificates, got {self.url!r}")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_key: expected client_certificate and client_key together")
        if not encrypted and not insecure and not security.is_loopback(host):
            raise ValueError(
                f"url: expected grpc+tls:// for another machine, got {self.url!r} (labels and tokens could be read on "
                "the way; insecure=True allows it)"
            )
        return self

    @property
    def is_here(self) -> bool:
        """Whether the service may be on this machine and able to share memory."""
        return sys.platform == "linux" and security.is_loopback(urlsplit(self.url).hostname or "")

    def headers(self) -> list[tuple[str, str]]:
        """What every call carries."""
        token = self.token or next(iter(security.read_tokens(self.token_file)), None)
        return [] if token is None else [("authorization", f"Bearer {token}")]

    def open(self) -> Any:
        """A channel of gRPC."""
        parts = urlsplit(self.url)
        options = [
            ("grpc.max_receive_message_length", self.answer_bytes + ENVELOPE_BYTES),
            ("grpc.per_message_decompression", 0),
            # Else a forked process would get its parent's connection, which nobody reads there.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.min_reconnect_backoff_ms", max(round(self.connect_time * 1000), 100)),  # of an attempt
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Python's gRPC joins the pieces of a message one by one: large maps come in few.
            ("grpc.http2.max_frame_size", 4 << 20),
            ("grpc.experimental.tcp_read_chunk_size", 1 << 20),
            ("grpc.experimental.tcp_min_read_chunk_size", 1 << 20),
            ("grpc.experimental.tcp_max_read_chunk_size", 8 << 20),
        ]
        if parts.scheme != "grpc+tls":
            return grpc.insecure_channel(parts.netloc, options)
        files = {
            "root_certificates": self.root_certificates or ssl.get_default_verify_paths().cafile,
            "client_key": self.client_key,
            "client_certificate": self.client_certificate,
        }
        read = [None if path is None else security.read_file(name, Path(path)) for name, path in files.items()]
        return grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(*read), options)


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_under_way: set[Any] = set()
"""What waits for an answer."""
_inherited: list[Any] = []
"""Channels of a parent process, not this one's to close, nor for the garbage collector."""
_mid_stream = False  # this process, when it was forked
_cut_off = ""  # why no service can be asked in this process


class Connection:
    """The connection of this process to a service. Safe for several threads; not pickled.

    gRPC lets a process fork that is at rest: a child then opens a connection of its own. A child that was forked in the
    middle of a stream or of an attempt to connect refuses to work instead of hanging, for there gRPC may not have come
    to rest in time.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._channel: Any = None
        self._headers: list[tuple[str, str]] = []
        _connections.add(self)

    def ask(self, message: bytes, timeout: float) -> memoryview:
        """The answer to one request, over a stream of its own that has to be over in `timeout` seconds."""
        # As any other stream on the wire, but it takes a thread less.
        method = self._open().unary_stream(messages.METHOD)
        exchange = Exchange(self._target.url, method(message, timeout=timeout, metadata=self._headers))
        try:
            answer = exchange.receive()
            exchange.finish()
            return answer
        finally:
            exchange.cancel()

    def exchange(self, requests: Iterator[bytes]) -> Exchange:
        """Opens a stream; a thread of gRPC takes its requests and sends them."""
        method = self._open().stream_stream(messages.METHOD)
        return Exchange(self._target.url, method(requests, metadata=self._headers))

    def _open(self) -> Any:
        if _cut_off:
            raise ConnectionError(
                f"{self._target.url}: {_cut_off}, and gRPC does not work here; start worker processes before, or by "
                "multiprocessing_context='spawn'"
            )
        with self._lock:
            if self._channel is None:
                self._headers, self._channel = self._target.headers(), self._target.open()
                _expect_forks()
            return self._channel

    def close(self) -> None:
        """Closes it; the next stream opens another."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def inherit(self) -> None:
        """In a forked process: forgets the parent's channel."""
        self._lock = threading.Lock()
        _inherited.append(self._channel)
        self._channel = None


def _before_fork() -> None:
    global _mid_stream
    end = time.monotonic() + _MOMENT
    while (_mid_stream := bool(_under_way)) and time.monotonic() < end:
        time.sleep(0.005)


def _in_child() -> None:
    global _cut_off
    _under_way.clear()
    for connection in list(_connections):
        connection.inherit()
    if _mid_stream:
        _cut_off = "this process was forked while its parent was asking a service"
    elif not _SURVIVES_FORK:
        _cut_off = f"this process was forked from one that imported grpc without {FORK_SUPPORT}=1"


@cache
def _expect_forks() -> None:
    """Once gRPC has a channel: what is registered later is called earlier, while gRPC's own threads still work."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_child=_in_child)


_ERRORS: dict[Any, type[Exception]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimeoutError,
    grpc.StatusCode.CANCELLED: TimeoutError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionError,
}


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turns gRPC's errors into Python's own, which pass through processes and name the service."""
    try:
        yield
    except grpc.RpcError as error:
        kind = _ERRORS.get(error.code(), ConnectionError)
        text = "no answer in time" if kind is TimeoutError else (error.details() or "").partition("\n")[0][:500]
        raise kind(f"{url}: {text}") from None


class Exchange:
    """One stream: requests go out, answers come back in the same order. It is to be cancelled at last in any case."""

    def __init__(self, url: str, call: Any) -> None:
        self._url, self._call = url, call
        _under_way.add(call)

    def receive(self) -> memoryview:
        """The next answer."""
        with _translated(self._url):
            answer = next(self._call, None)
        if answer is None:
            raise UnavailableError(f"{self._url}: the service ended the stream without an answer")
        return memoryview(answer)

    def finish(self) -> None:
        """Waits for the end of the stream, after its last answer."""
        with _translated(self._url):
            answer = next(self._call, None)
        if answer is not None:
            raise ConnectionError(f"{self._url}: expected the end of the stream, got one answer more")

    def cancel(self) -> None:
        """Ends the stream at once, unless it has ended; whoever waits for it gets an error."""
        self._call.cancel()
        _under_way.discard(self._call)


class Watch:
    """Calls `cancel` when an answer was waited for `timeout` seconds, until it is closed."""

    def __init__(self, timeout: float, cancel: Callable[[], None]) -> None:
        self._timeout, self._cancel = timeout, cancel
        self._since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._wait, name="rwkernels-watch", daemon=True).start()

    def __enter__(self) -> None:
        """The wait begins."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """It is over."""
        self._since = None

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _wait(self) -> None:
        while (left := self._left()) > 0:
            if self._closed.wait(left):
                return
        self._cancel()

    def _left(self) -> float:
        since = self._since
        return self._timeout if since is None else since + self._timeout - time.monotonic()
