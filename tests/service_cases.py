"""A real service in a process of its own, and labels to send to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
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


class Served:
    """`rwkernels serve` on loopback ports that are free, with what it logs."""

    def __init__(
        self, *arguments: str, token: str | None = None, scheme: str = "grpc", module: str = "rwkernels"
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "RWKERNELS_TOKEN"}
        if token is not None:
            environment["RWKERNELS_TOKEN"] = token
        command = [sys.executable, "-m", module, "serve", "--port", "0", "--monitor-port", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait(60)
        found = [event for event in self.events if event["event"] == "listening"]
        if not found:
            self.stop()
            raise AssertionError(f"the service does not listen: {self.lines}")
        self.port, self.monitor = found[0]["port"], found[0]["monitor"]
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self._listening.set()
        self._listening.set()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

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

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        return code


@contextmanager
def served(*arguments: str, **options: Any) -> Iterator[Served]:
    """A service that is stopped in any case."""
    server = Served(*arguments, **options)
    try:
        yield server
    finally:
        server.stop()


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
