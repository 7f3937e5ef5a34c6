"""`MapService`: the long-running service that owns a device and answers batches of labels with their maps."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import torch

from rwkernels import checks
from rwkernels.service.server import logs
from rwkernels.service.server.admission import Admission
from rwkernels.service.server.batching import Batcher
from rwkernels.service.server.launches import Launcher
from rwkernels.service.server.memory import Room
from rwkernels.service.server.metrics import Metrics
from rwkernels.service.server.stream import Ended, Shared, Stream
from rwkernels.service.wire import messages, security
from rwkernels.service.wire.limits import ENVELOPE_BYTES, Limits
from rwkernels.service.wire.security import Certificates, Tokens

_BUSY = "the service is busy, come again"


class MapService:
    """Answers streams of requests with maps. `start`, `drain` and `stop` are called in one asyncio loop.

    Args:
        host: Where to listen. Anything but a loopback address needs certificates and tokens, unless forced.
        port: 0 for any that is free.
        device: Where maps are built.
        threads: Threads of the core on the CPU; None for as many as torch uses.
        limits: Bounds of requests, streams and times.
        tokens: Clients have to name one of them, if there are any.
        certificates: For TLS.
        insecure: Of `"plaintext"` and `"anonymous"`, what is allowed on other than loopback addresses.

    Raises:
        ValueError: It would be exposed, or an argument has a wrong value.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        limits: Limits | None = None,
        tokens: Tokens | None = None,
        certificates: Certificates | None = None,
        insecure: tuple[str, ...] = (),
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.metrics = Metrics()
        self._tokens = Tokens([]) if tokens is None else tokens
        self._certificates = certificates
        authenticated = len(self._tokens) > 0 or (certificates is not None and certificates.client_roots is not None)
        security.refuse_exposed(host, encrypted=certificates is not None, authenticated=authenticated, forced=insecure)
        self._host, self.port = "127.0.0.1" if host == "localhost" else host, port
        count = torch.get_num_threads() if threads is None else checks.integer("threads", threads, lowest=1)
        # Two on the CPU: while one checks and answers, the other builds.
        where = torch.device(device)
        self._launchers = [Launcher(where, count) for _ in range(2 if where.type == "cpu" else 1)]
        self._server: Any = None
        self._shared: Shared | None = None
        self._streams = 0
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    async def start(self) -> None:
        """Starts to listen; `port` is then the one in use.

        Raises:
            OSError: The address cannot be listened on.
        """
        shared = Shared(
            self.limits,
            self.metrics,
            Batcher(self._launchers, self.metrics, self.limits.joined_bytes, asyncio.get_running_loop()),
            Admission(self.limits.admitted_requests, self.limits.admitted_bytes),
            Room(self.limits.shared_bytes),
            asyncio.Event(),
        )
        self.metrics.admitted.set_function(lambda: shared.admission.requests)
        self.metrics.admitted_bytes.set_function(lambda: shared.admission.size)
        self.metrics.shared_bytes.set_function(lambda: shared.room.used)
        self._server = grpc.aio.server(
            options=_channel_options(self.limits), compression=grpc.Compression.NoCompression
        )
        service, _, method = messages.METHOD[1:].partition("/")
        handler = grpc.stream_stream_rpc_method_handler(self._exchange)  # bytes in, bytes out
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        where = f"{security.address(self._host)}:{self.port}"
        try:
            port = self._listen(where)
        except RuntimeError as error:
            shared.batcher.close()
            raise OSError(f"cannot listen on {where}") from error
        if port == 0:
            shared.batcher.close()
            raise OSError(f"cannot listen on {where}")
        self.port, self._shared = port, shared
        await self._server.start()
        self.metrics.ready.set(1)

    def _listen(self, where: str) -> int:
        found = self._certificates
        if found is None:
            return int(self._server.add_insecure_port(where))
        credentials = grpc.ssl_server_credentials(
            [(found.key, found.certificate)],
            root_certificates=found.client_roots,
            require_client_auth=found.client_roots is not None,
        )
        return int(self._server.add_secure_port(where, credentials))

    def live(self) -> bool:
        """Whether maps can still be built."""
        return self._shared is not None and self._shared.batcher.alive()

    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.live() and self._shared is not None and not self._shared.draining.is_set()

    async def drain(self, grace: float) -> bool:
        """Takes no new requests, and finishes those that were taken; whether that was done after `grace` seconds."""
        assert self._shared is not None
        self._shared.draining.set()
        self.metrics.ready.set(0)
        try:
            await asyncio.wait_for(self._all_ended.wait(), grace)
        except asyncio.TimeoutError:
            return False
        return True

    async def stop(self, flush: float | None = None) -> None:
        """Ends what is left, at once, or when answers that were written have left this machine's buffers.

        Args:
            flush: Seconds to wait for that.
        """
        if self._server is not None:
            await self._server.stop(flush)
        if self._shared is not None:
            await asyncio.to_thread(self._shared.batcher.close)

    async def _exchange(self, _: Any, context: Any) -> None:
        """One call of a client."""
        assert self._shared is not None
        start = time.monotonic()
        stream = Stream(self._shared, context)
        outcome = "cancelled"
        self._streams += 1
        self._all_ended.clear()
        self.metrics.streams.set(self._streams)
        try:
            self._admit(context)
            logs.event(logging.DEBUG, "stream", stream=stream.id, peer=context.peer())
            await stream.run()
            outcome = "finished"
        except asyncio.CancelledError:
            outcome = "shutdown" if stream.left else outcome
            raise
        except Ended as ended:
            outcome = ended.reason
            self.metrics.refused.labels(ended.reason).inc()
            await context.abort(ended.code, ended.text)
        except Exception:
            outcome = "internal"
            logs.event(logging.ERROR, "stream failed", stream=stream.id, exc_info=True)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            self._streams -= 1
            self.metrics.streams.set(self._streams)
            if self._streams == 0:
                self._all_ended.set()
            level = logging.INFO if outcome in ("finished", "cancelled", "shutdown") else logging.WARNING
            logs.event(
                level,
                "stream ended",
                stream=stream.id,
                peer=context.peer(),
                outcome=outcome,
                messages=stream.messages,
                answered=stream.answered,
                bytes=stream.bytes,
                seconds=round(time.monotonic() - start, 3),
            )

    def _admit(self, context: Any) -> None:
        """Refuses a call before anything of it is read."""
        assert self._shared is not None
        if len(self._tokens):
            found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
            if len(found) != 1 or not self._tokens.allow(found[0]):
                raise Ended(grpc.StatusCode.UNAUTHENTICATED, "token", "authorization: expected a token of this service")
        if self._shared.draining.is_set():
            raise Ended(grpc.StatusCode.UNAVAILABLE, "shutdown", "the service is shutting down")
        if self._streams > self.limits.streams:
            raise Ended(grpc.StatusCode.UNAVAILABLE, "streams", _BUSY)


def _channel_options(limits: Limits) -> list[tuple[str, int]]:
    return [
        # Refused by the length in front of it. The largest request is that of the limits, whatever is in it.
        ("grpc.max_receive_message_length", limits.request_bytes + ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        # A compressed message stays compressed, and so is no message of ours: nothing is inflated, bombs neither.
        ("grpc.per_message_decompression", 0),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 600_000),  # those without a stream; clients open another
        ("grpc.so_reuseport", 0),  # a second service on the port is an error, not a rival
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
