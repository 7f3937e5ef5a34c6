"""What the service counts, and the HTTP port that tells: Prometheus' text, liveness and readiness."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

from rwkernels.service.extras import needs

with needs("prometheus_client"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        name = "rwkernels"
        self.requests = Counter(f"{name}_requests", "Requests answered, by outcome", ["outcome"], registry=registry)
        self.refused = Counter(f"{name}_streams_refused", "Streams ended for a reason", ["reason"], registry=registry)
        self.pixels = Counter(f"{name}_pixels", "Pixels of the maps that were sent", registry=registry)
        self.received = Counter(f"{name}_received_bytes", "Bytes of messages received", registry=registry)
        self.sent = Counter(f"{name}_sent_bytes", "Bytes of messages sent", registry=registry)
        self.launches = Counter(f"{name}_launches", "Launches of the map builder", registry=registry)
        self.joined = Histogram(
            f"{name}_launch_requests",
            "Requests joined in a launch",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.waiting = Histogram(
            f"{name}_wait_seconds", "From receiving a request to its launch", buckets=_SECONDS, registry=registry
        )
        self.building = Histogram(f"{name}_build_seconds", "Of a launch", buckets=_SECONDS, registry=registry)
        self.latency = Histogram(
            f"{name}_request_seconds",
            "From receiving a request to sending its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.streams = Gauge(f"{name}_streams", "Streams that are open", registry=registry)
        self.admitted = Gauge(f"{name}_admitted_requests", "Requests waiting, built or sent now", registry=registry)
        self.admitted_bytes = Gauge(f"{name}_admitted_bytes", "Bytes held for them", registry=registry)
        self.shared_bytes = Gauge(f"{name}_shared_bytes", "Memory that clients read answers from", registry=registry)
        self.ready = Gauge(f"{name}_ready", "1 while new requests are taken", registry=registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class Monitor:
    """Answers `/metrics`, `/live` and `/ready` over HTTP, in threads of its own.

    `/live` is 200 while the thread that builds maps is alive, `/ready` is 200 while new requests are taken; 503 else.
    """

    def __init__(
        self, host: str, port: int, metrics: Metrics, live: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        class Handler(_Handler):
            pages = {  # noqa: RUF012 - one class for each monitor
                "/metrics": lambda: (True, metrics.text(), CONTENT_TYPE_LATEST),
                "/live": lambda: (live(), b"live\n" if live() else b"dead\n", "text/plain"),
                "/ready": lambda: (ready(), b"ready\n" if ready() else b"not ready\n", "text/plain"),
            }

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else ThreadingHTTPServer.address_family
            daemon_threads = True

        self._server = Server((host.strip("[]"), port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="rwkernels-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Callable[[], tuple[bool, bytes, str]]]
    timeout = 5
    server_version = "rwkernels"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        good, body, kind = page() if page else (False, b"not found\n", "text/plain")
        self.send_response(200 if good else 503 if page else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no events."""
