"""What the service counts, and the HTTP port that tells: Prometheus' text, liveness and readiness."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app, start_http_server

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


class Monitor:
    """Answers `/metrics`, `/live` and `/ready` over HTTP, in threads of its own.

    `/live` is 200 while the thread that builds maps is alive, `/ready` is 200 while new requests are taken; 503 else.
    """

    def __init__(
        self, host: str, port: int, metrics: Metrics, live: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        figures: Callable[..., Iterable[bytes]] = make_wsgi_app(metrics.registry)
        pages = {"/live": (live, b"live\n", b"dead\n"), "/ready": (ready, b"ready\n", b"not ready\n")}

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                return figures(environ, start_response)
            if path in pages:
                asked, good, bad = pages[path]
                status, body = ("200 OK", good) if asked() else ("503 Service Unavailable", bad)
            else:
                status, body = "404 Not Found", b"not found\n"
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]

        self._server, self._thread = start_http_server(port, host.strip("[]"), metrics.registry)
        self._server.set_app(answer)
        handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type(
            handler.__name__, (handler,), {"timeout": 5}
        )  # for those who say nothing
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
