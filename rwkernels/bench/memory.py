"""Peak memory of one run beyond its inputs, measured in processes that do nothing else.

A server process without threads builds the inputs of a case and forks a child for every contender: what the child needs
at its peak, beyond what is resident before the run, is the answer. `python -m rwkernels.bench.memory SCALE` reads a
question a line and answers a line for every contender.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rwkernels.bench.harness import Contender

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PATIENCE = 120.0
"""Seconds that a case may take; whoever has not answered by then has no peak."""


def can_run() -> str | None:
    """Why peaks cannot be measured here; None if they can."""
    if sys.platform != "linux" or not _CLEAR.exists() or not os.access(_CLEAR, os.W_OK):
        return "the peak of a process cannot be reset on this system"
    return None


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _forget() -> None:
    """Gives back what is free, and starts the peak anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")


def peak(contender: Contender) -> int:
    """Bytes at the peak of one run beyond what is resident before it; a run before that loads what has to be loaded."""
    for _ in range(2):
        contender.prepare()
        _forget()
        before = _status("VmRSS")
        result = contender.run()
        found = _status("VmHWM") - before
        del result
    return max(found, 1)


def _in_child(contender: Contender, threads: int) -> int | None:
    """`peak` in a forked process; None if it fails there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            torch.set_num_threads(threads)
            os.write(write, str(peak(contender)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text) or None if text else None


def _serve(scale: str) -> None:
    from rwkernels.bench.registry import cases

    torch.set_num_threads(1)
    known = {case.id: case for case in cases(scale)}
    for line in sys.stdin:
        asked = json.loads(line)
        makers = known[asked["case"]].makers()
        for name in asked["names"]:
            print(json.dumps({"name": name, "peak": _in_child(makers[name](name), asked["threads"])}), flush=True)
        print(json.dumps({"done": True}), flush=True)


class Server:
    """The process that is asked; started at the first question, and again after one that it did not survive."""

    def __init__(self, scale: str) -> None:
        self.scale = scale
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        # Threads of the compiler's workers would not survive a fork.
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "rwkernels.bench.memory", self.scale]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )

    def ask(self, case: str, names: Sequence[str], threads: int) -> dict[str, int]:
        """Peak bytes of those of `names`, contenders of a case, that could be measured."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"case": case, "names": list(names), "threads": threads}).encode() + b"\n")
        process.stdin.flush()
        found: dict[str, int] = {}
        while select.select([process.stdout], [], [], _PATIENCE)[0]:
            line = process.stdout.readline()
            if not line:
                break
            answer = json.loads(line)
            if "done" in answer:
                return found
            if answer["peak"]:
                found[answer["name"]] = answer["peak"]
        self.close()
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def server(scale: str) -> Iterator[Server | None]:
    """A server for the cases of a scale; None where peaks cannot be measured, or are not worth it."""
    found = None if scale == "tiny" or can_run() else Server(scale)
    try:
        yield found
    finally:
        if found is not None:
            found.close()


if __name__ == "__main__":
    _serve(sys.argv[1])
