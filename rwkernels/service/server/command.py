"""The command `rwkernels serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from rwkernels.service.server.service import MapService

PORT, MONITOR_PORT = 8815, 8816
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DONE, UNFINISHED, USAGE = 0, 1, 2
_FLUSH = 5.0
"""Seconds for answers on their way, once all are written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=PORT, help="0 for any that is free (default: %(default)s)")
    parser.add_argument(
        "--device", default="cpu", help="where maps are built: cpu, cuda, cuda:1 (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads of the core on the CPU (default: all)")
    parser.add_argument("--token-file", metavar="FILE", help="tokens of clients, one a line; else RWKERNELS_TOKEN")
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM chain of certificates")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM key of the certificate")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="clients need a certificate signed by one of these")
    parser.add_argument(
        "--insecure-plaintext", action="store_true", help="listen elsewhere than on loopback without TLS"
    )
    parser.add_argument("--insecure-anonymous", action="store_true", help="listen elsewhere without any token")
    parser.add_argument("--monitor-host", default="127.0.0.1", help="where /metrics, /live and /ready are answered")
    parser.add_argument("--monitor-port", type=int, default=MONITOR_PORT, help="0 for any that is free; -1 for none")
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds to finish what was taken (default: %(default)s)"
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    limits = parser.add_argument_group("limits", "of requests, of what is held at a time, and of streams")
    from rwkernels.service.wire.limits import Limits

    for field in dataclasses.fields(Limits):
        kind = int if field.type == "int" else float
        flag = "--" + field.name.replace("_", "-")
        limits.add_argument(flag, type=kind, default=field.default, help="(default: %(default)s)")


def run(parsed: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        0 once all that was taken is answered; 1 if that took longer than the grace, or something failed; 2 for a
        wrong option, a file that cannot be read, an address that cannot be listened on or a library that is missing.
    """
    try:
        from rwkernels.service.server import logs

        with logs.written_to(sys.stderr, getattr(logging, parsed.log_level.upper())):
            _keep_memory()
            return asyncio.run(_serve(parsed))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"rwkernels serve: {error}", file=sys.stderr)
        return USAGE


async def _serve(parsed: argparse.Namespace) -> int:
    from rwkernels.service.server import logs

    service = _service(parsed)
    from rwkernels.service.server.metrics import Monitor

    stop = asyncio.Event()
    hurry = asyncio.Event()

    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, asked_to_stop)
    await service.start()
    monitor = None
    finished = False
    try:
        if parsed.monitor_port >= 0:
            monitor = Monitor(parsed.monitor_host, parsed.monitor_port, service.metrics, service.live, service.ready)
        logs.event(
            logging.INFO,
            "listening",
            host=parsed.host,
            port=service.port,
            monitor=None if monitor is None else monitor.port,
            pid=os.getpid(),
            device=parsed.device,
        )
        await stop.wait()
        logs.event(logging.INFO, "stopping", grace=parsed.grace)
        drained = asyncio.create_task(service.drain(parsed.grace))
        await asyncio.wait((drained, asyncio.create_task(hurry.wait())), return_when=asyncio.FIRST_COMPLETED)
        finished = drained.done() and drained.result()
    finally:
        await service.stop(_FLUSH if finished else None)
        if monitor is not None:
            monitor.close()
    for number in _SIGNALS:  # a late one would kill the process before its last line is written
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    logs.event(logging.INFO, "stopped", finished=finished)
    return DONE if finished else UNFINISHED


def _keep_memory() -> None:
    """Lets glibc keep the memory of messages for the next ones.

    Given back to the kernel after each, it would be faulted in page by page for the next: that costs the service as
    much as all the rest of receiving and sending.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it takes
        libc.mallopt(trim_threshold, 512 << 20)


def _service(parsed: argparse.Namespace) -> MapService:
    from rwkernels.service.server import logs
    from rwkernels.service.server.service import MapService
    from rwkernels.service.wire import security
    from rwkernels.service.wire.limits import Limits

    if not 0 <= parsed.port < 1 << 16:
        raise ValueError(f"port: expected a number in [0, 65536), got {parsed.port}")
    if not -1 <= parsed.monitor_port < 1 << 16:
        raise ValueError(f"monitor_port: expected a number in [-1, 65536), got {parsed.monitor_port}")
    if (parsed.tls_cert is None) != (parsed.tls_key is None):
        raise ValueError("tls_key: expected tls_cert and tls_key together")
    if parsed.tls_client_ca is not None and parsed.tls_cert is None:
        raise ValueError("tls_client_ca: expected tls_cert and tls_key beside it")
    if parsed.monitor_port >= 0 and not security.is_loopback(parsed.monitor_host):
        raise ValueError(f"monitor_host: expected a loopback address (there is no token), got {parsed.monitor_host!r}")
    device = _device(parsed.device)
    certificates = None
    if parsed.tls_cert is not None:
        certificates = security.Certificates.read(parsed.tls_cert, parsed.tls_key, parsed.tls_client_ca)
    tokens = security.Tokens(security.read_tokens(parsed.token_file))
    for path in (parsed.token_file, parsed.tls_key):
        if path is not None and security.readable_by_others(path):
            logs.event(logging.WARNING, "others may read a file of secrets", file=path)
    forced = [name for name in ("plaintext", "anonymous") if getattr(parsed, f"insecure_{name}")]
    return MapService(
        parsed.host,
        parsed.port,
        device=device,
        threads=parsed.threads,
        limits=Limits(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Limits)}),
        tokens=tokens,
        certificates=certificates,
        insecure=tuple(forced),
    )


def _device(name: str) -> torch.device:
    """The device of that name, if maps can be built there."""
    import torch

    from rwkernels.backends import choose

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected one that torch sees, got {name!r} of {torch.cuda.device_count()}")
    choose(device, "fill_rectified")
    return device
