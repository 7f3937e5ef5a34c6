"""Peak memory of one run beyond its inputs, measured in processes that do nothing else.

A server process without threads builds the inputs of a case and forks a child for every contender: what the child needs
at its peak, beyond what is resident before the run, is the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch

from rwkernels.bench.harness import Contender

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PATIENCE = 120.0
"""Seconds that a contender may take; whoever has not answered by then has no peak."""
# Threads of the compiler's workers would not survive a fork.
_SINGLE = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}


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


def _answer(contender: Contender, threads: int, pipe: Connection) -> None:
    """In a forked process: sends the peak, unless the run fails."""
    torch.set_num_threads(threads)
    pipe.send((contender.name, peak(contender)))


def _serve(scale: str, pipe: Connection) -> None:
    """Answers questions: for each contender that is named (name, peak), if it has one, and None in the end."""
    from rwkernels.bench.registry import cases

    for stream in (1, 2):  # what libraries say is not for the terminal of whoever asks
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    known = {case.id: case for case in cases(scale)}
    with contextlib.suppress(EOFError):
        while True:
            case, names, threads = pipe.recv()
            makers = known[case].makers()
            for name in names:
                child = fork.Process(target=_answer, args=(makers[name](name), threads, pipe))
                child.start()
                child.join()
            pipe.send(None)


class Server:
    """The process that is asked; started at the first question, and again after one that it did not survive."""

    def __init__(self, scale: str) -> None:
        self.scale = scale
        self._process: multiprocessing.process.BaseProcess | None = None

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(self.scale, theirs))
        with mock.patch.dict(os.environ, _SINGLE):
            self._process.start()
        theirs.close()  # so that its end is seen here

    def ask(self, case: str, names: Sequence[str], threads: int) -> dict[str, int]:
        """Peak bytes of those of `names`, contenders of a case, that could be measured."""
        if self._process is None or not self._process.is_alive():
            self._start()
        found: dict[str, int] = {}
        with contextlib.suppress(EOFError, ConnectionError):
            self._pipe.send((case, list(names), threads))
            while self._pipe.poll(_PATIENCE):
                answer = self._pipe.recv()
                if answer is None:
                    return found
                found |= dict([answer])
        self.close()
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
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
