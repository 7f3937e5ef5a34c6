"""The client's side of a stream: a connection for each process, opened when it is first used."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkernels.service.extras import needs
from rwkernels.service.wire import messages, security
from rwkernels.service.wire.limits import ENVELOPE_BYTES
from rwkernels.service.wire.security import Secret

_SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")


class UnavailableError(ConnectionError):
    """The service cannot be reached, or asks to come again later."""


class ClosingError(UnavailableError):
    """The service takes no further requests on a stream."""


def require() -> None:
    """Finds out at once whether pyarrow is there."""
    with needs("pyarrow"):
        importlib.import_module("pyarrow.flight")


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
    token: Secret | None = None
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

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every call carries."""
        if self.token is not None:
            token: str | None = self.token.reveal()
        else:
            token = next(iter(security.read_tokens(self.token_file)), None)
        return [] if token is None else [(b"authorization", b"Bearer " + token.encode())]

    def open(self) -> Any:
        """A client of pyarrow."""
        from pyarrow import flight

        options: dict[str, Any] = {
            "generic_options": [
                ("grpc.max_receive_message_length", self.answer_bytes + ENVELOPE_BYTES),
                ("grpc.per_message_decompression", 0),
                # Else a forked process would get its parent's connection, which nobody reads there.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.min_reconnect_backoff_ms", max(round(self.connect_time * 1000), 100)),  # of an attempt
                ("grpc.max_reconnect_backoff_ms", 2000),
            ]
        }
        for name, argument in (
            ("root_certificates", "tls_root_certs"),
            ("client_certificate", "cert_chain"),
            ("client_key", "private_key"),
        ):
            path = getattr(self, name)
            if path is not None:
                options[argument] = security.read_file(name, Path(path))
        return flight.FlightClient(self.url, **options)


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_inherited: list[Any] = []
"""Clients of a parent process, not this one's to close, nor for the garbage collector; None for what has no name."""
_GRPC_ENDS = 5.0
"""Seconds that its threads get to end before this process forks; they take hundredths, unless one is connecting."""
_GRPC_THREADS = ("event_engine", "grpc_", "lifeguard", "default-exec", "resolver-exec")
_opened = False  # a client of gRPC, in this process
_at_work = False  # gRPC, when this process was forked


def _grpc_is_at_work() -> bool:
    """Whether threads of gRPC run in this process; nothing in it says so. Only Linux tells."""
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                if (task / "comm").read_text().startswith(_GRPC_THREADS):
                    return True
    return False


class Connection:
    """The connection of this process to a service. Safe for several threads; not pickled.

    gRPC does not survive `fork()` while it is in use. Connections at rest are therefore closed before this process
    forks, and opened again by whoever needs them. In a child that was forked while gRPC was at work all the same, in
    the middle of a stream or of an attempt to connect, they refuse to work instead of hanging; only Linux tells.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.RLock()  # the garbage collector may end a stream while it is held
        self._client: Any = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._streams = 0
        _connections.add(self)

    def exchange(self, timeout: float | None) -> Exchange:
        """Opens a stream that has to be over in `timeout` seconds."""
        global _opened
        if _inherited:
            raise ConnectionError(
                f"{self._target.url}: this process was forked while its parent was asking a service, and gRPC does not "
                "work here; start worker processes before, or by multiprocessing_context='spawn'"
            )
        from pyarrow import flight

        with self._lock:
            if self._client is None:
                _opened = True
                self._headers = self._target.headers()
                self._client = self._target.open()
            client, headers = self._client, self._headers
            self._streams += 1
        try:
            options = flight.FlightCallOptions(timeout=timeout, headers=headers)
            with translated(self._target.url):
                writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(messages.COMMAND), options)
        except BaseException:
            self._ended()
            raise
        return Exchange(self._target.url, writer, reader, self._ended)

    def _ended(self) -> None:
        with self._lock:
            self._streams -= 1

    def close(self) -> None:
        """Closes it; the next stream opens another."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def rest(self) -> bool:
        """Closes it if it is open and no stream is; whether it did."""
        with self._lock:
            if self._client is None or self._streams > 0:
                return False
        self.close()
        return True

    @property
    def in_use(self) -> bool:
        """Whether a stream is open."""
        return self._streams > 0

    def inherit(self) -> None:
        """In a forked process: forgets the parent's client."""
        self._lock = threading.RLock()
        self._streams = 0
        if self._client is not None:
            _inherited.append(self._client)
            self._client = None


def _before_fork() -> None:
    global _at_work
    rested = [connection.rest() for connection in list(_connections)]
    if not sys.platform.startswith("linux"):
        time.sleep(_GRPC_ENDS / 10 if any(rested) else 0.0)
    elif _opened:
        _at_work = not _grpc_ends()


def _grpc_ends() -> bool:
    """Waits until gRPC is at rest, unless a stream is in use; whether it is."""
    start = time.monotonic()
    collected = False
    while _grpc_is_at_work():
        waited = time.monotonic() - start
        if waited > 0.05 and not collected:
            collected = True
            gc.collect()  # a stream that is over may be part of a cycle, in the traceback of an error say
            for connection in list(_connections):
                connection.rest()
        elif collected and (waited > _GRPC_ENDS or any(connection.in_use for connection in list(_connections))):
            return False
        time.sleep(0.005)
    return True


def _in_child() -> None:
    global _opened, _at_work
    if _at_work:
        _inherited.append(None)
    _opened = _at_work = False
    for connection in list(_connections):
        connection.inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


@dataclass(eq=False)
class _Ends:
    """Both ends of a stream, as pyarrow has them."""

    writer: Any
    reader: Any


class Exchange:
    """One stream: requests go out, answers come back in the same order.

    It lets go of pyarrow's objects once it is over, or else an exchange that is kept (in the traceback of an error,
    say) would keep gRPC at work, and this process from forking.
    """

    def __init__(self, url: str, writer: Any, reader: Any, ended: Callable[[], None]) -> None:
        self._url = url
        self._ends: _Ends | None = _Ends(writer, reader)
        weakref.finalize(self._ends, ended)  # when no thread uses them any more

    def _open(self) -> _Ends:
        """The ends. Not for a local variable, which a traceback would keep."""
        if self._ends is None:
            raise UnavailableError(f"{self._url}: the stream has ended")
        return self._ends

    def send(self, message: bytes) -> None:
        """Sends one request."""
        with translated(self._url):
            self._open().writer.write_metadata(message)

    def no_more(self) -> None:
        """Says that no request follows."""
        with translated(self._url):
            self._open().writer.done_writing()

    def receive(self) -> memoryview:
        """The next answer."""
        with translated(self._url):
            try:
                chunk = self._open().reader.read_chunk()
            except StopIteration:
                raise UnavailableError(f"{self._url}: the service ended the stream without an answer") from None
        if chunk.data is not None or chunk.app_metadata is None:
            raise ConnectionError(f"{self._url}: expected an answer as app_metadata, got something else")
        return memoryview(chunk.app_metadata)

    def finish(self) -> None:
        """Waits for the end of the stream, after its last answer."""
        with translated(self._url):
            try:
                self._open().reader.read_chunk()
            except StopIteration:
                self._open().writer.close()
                self._ends = None
                return
        raise ConnectionError(f"{self._url}: expected the end of the stream, got one answer more")

    def cancel(self) -> None:
        """Ends the stream at once; whoever waits for it gets an error."""
        ends, self._ends = self._ends, None
        if ends is None:
            return
        ends.reader.cancel()
        with suppress(Exception):  # else Arrow prints that it could not
            ends.writer.close()


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns Flight's errors into Python's own, which pass through processes and name the service."""
    from pyarrow import ArrowException, flight

    try:
        yield
    except flight.FlightUnavailableError as error:
        raise UnavailableError(f"{url}: {_first_line(error)}") from None
    except flight.FlightTimedOutError:
        raise TimeoutError(f"{url}: no answer in time") from None
    except (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError) as error:
        raise PermissionError(f"{url}: {_first_line(error)}") from None
    except flight.FlightCancelledError:
        raise TimeoutError(f"{url}: no answer in time") from None
    except (ArrowException, flight.FlightError) as error:
        raise ConnectionError(f"{url}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


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
