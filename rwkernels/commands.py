"""What the commands share: how they end, what they say is missing, the values of options, and how workers start."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells report it."""


def problem(command: str, text: object, status: int = 2) -> int:
    """Says what is wrong, and gives the exit status for it."""
    print(f"rwkernels {command}: {text}", file=sys.stderr)
    return status


def lacks(command: str, extra: str, packages: Sequence[str]) -> bool:
    """Whether some of the packages are not installed; says which, and the extra that has them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        problem(command, f'{", ".join(missing)} not installed; it needs the extra: pip install "rwkernels[{extra}]"')
    return bool(missing)


def positive(text: str) -> int:
    """An argument: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker(threads: int) -> None:
    """In a process of a pool: as many threads as it may use, and no life without the process that it works for."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that waits ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A process that is killed cannot end its workers: each ends itself.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
