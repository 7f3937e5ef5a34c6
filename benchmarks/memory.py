"""Peak memory of forward and backward beyond its inputs, measured in a process that does nothing else.

python -m benchmarks.memory SCALE INDEX CONTENDER THREADS    # prints {"peak": bytes, "gradient": bytes}
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import contenders as c
from benchmarks.inputs import Task, loss_tasks

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def _resident() -> int:
    return _status("VmRSS") if _STATUS.exists() else _peak()


def _peak() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget() -> None:
    """Gives back what is free, and starts the peak anew where the system allows it."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_beyond_inputs(task: Task, contender: str) -> tuple[int, int]:
    """Bytes at the peak of one forward and backward beyond what its inputs take, and bytes of the gradient."""
    warm_up = Task("", "random", (1, 8, 8, 8), task.num_classes)
    c.losses(warm_up, [contender])[0].run()
    (step,) = c.losses(task, [contender])
    step.prepare()
    _forget()
    before = _resident()
    step.run()
    return _peak() - before, 4 * task.num_classes * task.pixels


def measure(scale: str, task: Task, contender: str, threads: int) -> dict[str, int]:
    """`peak_beyond_inputs` in a child process."""
    index = loss_tasks(scale).index(task)
    command = [sys.executable, "-m", "benchmarks.memory", scale, str(index), contender, str(threads)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    _, scale, index, contender, threads = sys.argv
    torch.set_num_threads(int(threads))
    peak, gradient = peak_beyond_inputs(loss_tasks(scale)[int(index)], contender)
    print(json.dumps({"peak": peak, "gradient": gradient}))
