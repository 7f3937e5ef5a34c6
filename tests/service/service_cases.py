"""A real service in a process of its own, and labels to send to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import rwkernels as rw
from rwkernels.service import RemoteMapBuilder

TOKEN = "a-token-that-is-long-enough"


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch", "rwkernels.cli", "rwkernels.service.server.service", "rwkernels.service.server.command"]
)


def _command(arguments: list[str], token: str | None, log: str) -> None:
    """`rwkernels` with these arguments, in a process that has imported what it needs."""
    os.environ.pop("RWKERNELS_TOKEN", None)
    if token is not None:
        os.environ["RWKERNELS_TOKEN"] = token
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    from rwkernels import cli

    sys.exit(cli.main(arguments))


class Served:
    """`rwkernels serve` on loopback ports that are free, with what it logs.

    Its process is forked from one that has nothing but imported torch and the service, because that takes seconds;
    `test_service.py` starts the command itself.
    """

    def __init__(self, *arguments: str, token: str | None = None, scheme: str = "grpc") -> None:
        descriptor, self._log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        self._kept: list[str] | None = None
        command = ["serve", "--port", "0", "--monitor-port", "0", "--threads", "1", *arguments]
        self.process = _FORKS.Process(target=_command, args=(command, token, self._log), daemon=True)
        self.process.start()
        until(lambda: self.process.exitcode is not None or '"listening"' in "".join(self.lines), 60)
        found = [event for event in self.events if event["event"] == "listening"]
        if not found:
            self.stop()
            self.forget()
            raise AssertionError(f"the service does not listen: {self.lines}")
        self.port, self.monitor = found[0]["port"], found[0]["monitor"]
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[str]:
        """What it wrote to stderr."""
        if self._kept is not None:
            return self._kept
        with open(self._log, errors="replace") as file:
            return file.readlines()

    def forget(self) -> None:
        """Removes the file of its log, once it has stopped."""
        self._kept = self.lines
        os.unlink(self._log)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [json.loads(line) for line in self.lines if line.startswith("{") and line.endswith("}\n")]

    def page(self, name: str) -> tuple[int, str]:
        """Status and text of a page of the monitor."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{name}", timeout=10) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The value of one metric, with its labels as Prometheus writes them."""
        for line in self.page("metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    def resident(self) -> int:
        """Bytes of memory that the service holds."""
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak(self) -> int:
        """The most bytes of memory that it held."""
        with open(f"/proc/{self.process.pid}/status") as status:
            (line,) = [line for line in status if line.startswith("VmHWM")]
        return int(line.split()[1]) << 10

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to stop; its exit code."""
        if self.process.exitcode is None:
            self.send_signal(number)
        self.process.join(30)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError("the service does not stop")
        return self.process.exitcode


@contextmanager
def served(*arguments: str, **options: Any) -> Iterator[Served]:
    """A service that is stopped in any case."""
    server = Served(*arguments, **options)
    try:
        yield server
    finally:
        server.stop()
        server.forget()


def until(condition: Any, seconds: float = 20.0) -> None:
    """Waits for `condition()`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def some_labels(*shape: int, classes: int = 3, seed: int = 0) -> Tensor:
    """Random blocks of labels, so that there are distances above one."""
    coarse = [shape[0], *(-(-size // 4) for size in shape[1:])]
    found = torch.randint(classes, coarse, generator=torch.Generator().manual_seed(seed))
    for axis in range(1, len(shape)):
        found = found.repeat_interleave(4, axis).narrow(axis, 0, shape[axis])
    return found


def assert_answers_right(url: str, seed: int = 0, **options: Any) -> None:
    """The service answers with the map of this process."""
    labels = some_labels(2, 13, 22, seed=seed)
    builder = RemoteMapBuilder(url, 3, **options)
    try:
        found = builder.of_batch({}, labels)
    finally:
        builder.close()
    assert torch.equal(found.foreground, rw.rectified_map(labels, 3).foreground)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
