"""How long a training step keeps the host busy apart from its arithmetic: on a GPU without one, and on a CPU.

    python -m benchmarks.host_time [--against CHECKOUT] [--section cuda cpu] [--parts] [--json FILE] [--tiny]

CUDA: Triton's own launcher over a driver that returns at once (`empty_driver`), on tensors of the CPU that nobody
touches. A step is what a user writes, from labels and logits to the gradient: in 2D, in 3D, and with five levels of
deep supervision. What a GPU adds on the host is missing: the driver's part of a launch, PyTorch's allocator for CUDA in
the place of that for the CPU, and the thread in which autograd runs a backward on CUDA.

CPU: a step so small that little of it is arithmetic, on one thread.

Beside both stand, in the same run and in turns, what PyTorch's own losses take: cross-entropy, and softmax times a map,
forward and backward, on tensors of one pixel. `--against` measures another checkout of this repository as well (its
core built, if it has to do with the CPU), in a process of its own, and takes turns with it.

`--parts` says where the time goes: clocks at the seams between the parts, each of which stops while an inner one runs,
less what the clocks take themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.host_parts import Parts, seams

SECTIONS = ("cuda", "cpu")
PIXEL = "cross-entropy of one pixel"
Step = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """So many turns, each the median of so many steps."""

    turns: int = 25
    steps: int = 60
    warm_up: int = 30


TINY = Effort(1, 2, 2)


# --- what is measured -----------------------------------------------------------------------------------------


def _yardsticks() -> dict[str, Step]:
    import torch
    from torch.nn import functional

    logits = torch.zeros(1, 4, 1, 1, requires_grad=True)
    labels, maps = torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 4, 1, 1)

    def cross_entropy() -> None:
        logits.grad = None
        functional.cross_entropy(logits, labels).backward()

    def eager() -> None:
        logits.grad = None
        (logits.softmax(1) * maps).mean().backward()

    return {PIXEL: cross_entropy, "(softmax * map).mean() of one pixel": eager}


def _step(loss_fn: Callable[..., Any], shapes: Sequence[Sequence[int]], classes: int) -> Step:
    """A step of one level, or of several; nobody reads or writes what the tensors hold."""
    import torch

    logits = [torch.empty(n, classes, *size, requires_grad=True) for n, *size in shapes]
    labels = [torch.empty(tuple(shape), dtype=torch.uint8) for shape in shapes]

    def step() -> None:
        for level in logits:
            level.grad = None
        loss = loss_fn(logits, labels) if len(shapes) > 1 else loss_fn(logits[0], labels[0])
        loss.backward()

    return step


def _levels(shape: Sequence[int], count: int) -> list[list[int]]:
    return [[shape[0], *(size >> level for size in shape[1:])] for level in range(count)]


def _cuda() -> dict[str, Step]:
    import rwkernels as rw

    def loss() -> Any:
        return rw.RegionWiseLoss(validate=False, backend="triton")

    supervised = rw.DeepSupervisionLoss(loss(), [0.5**level for level in range(5)])
    plane, volume = (16, 256, 256), (2, 128, 128, 128)
    return {
        "2D, 16 x 256^2": _step(loss(), [plane], 4),
        "3D, 2 x 128^3": _step(loss(), [volume], 4),
        "2D, five levels": _step(supervised, _levels(plane, 5), 4),
        "3D, five levels": _step(supervised, _levels(volume, 5), 4),
    }


def _cpu() -> dict[str, Step]:
    import torch
    from torch.nn import functional

    import rwkernels as rw

    torch.manual_seed(0)
    logits = torch.randn(1, 3, 32, 32, requires_grad=True)
    labels = torch.randint(3, (1, 32, 32))
    labels_u8 = labels.to(torch.uint8)
    maps, loss_fn = rw.rectified_map(labels_u8, 3), rw.RegionWiseLoss()

    def cross_entropy() -> None:
        logits.grad = None
        functional.cross_entropy(logits, labels).backward()

    def with_map() -> None:
        logits.grad = None
        rw.region_wise_loss(logits, maps).backward()

    def step() -> None:
        logits.grad = None
        loss_fn(logits, labels_u8).backward()

    size = "1 x 3 x 32 x 32"
    return {
        f"cross-entropy, {size}": cross_entropy,
        f"map, {size}": lambda: rw.rectified_map(labels_u8, 3),
        f"loss, forward, {size}": lambda: rw.region_wise_loss(logits, maps),
        f"loss, forward and backward, {size}": with_map,
        f"step, {size}": step,
    }


def rows(section: str) -> dict[str, Step]:
    """The steps of a section by name, yardsticks first."""
    return {**_yardsticks(), **(_cuda() if section == "cuda" else _cpu())}


# --- measuring ------------------------------------------------------------------------------------------------


def prepare(section: str) -> None:
    """Makes this process one that `section` can be measured in."""
    import torch

    torch.set_num_threads(1)
    if section == "cuda":
        from benchmarks import empty_driver

        _keep_memory()
        empty_driver.install()
        triton = importlib.import_module("rwkernels.backends.triton")
        triton.can_run = lambda device: None  # type: ignore[attr-defined]


def _keep_memory() -> None:
    """Has the C library keep what is freed: the system would take large tensors back, CUDA's allocator would not."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def measure(step: Step, times: int) -> float:
    """Median seconds of a step."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _serve(section: str, effort: Effort, with_parts: bool, requests: IO[str], answers: IO[str]) -> None:
    """Measures when it is asked: a line in, a line of JSON out."""
    prepare(section)
    steps = rows(section)
    for step in steps.values():
        for _ in range(effort.warm_up):
            step()
    gc.collect()
    gc.disable()
    for request in requests:
        found: dict[str, Any]
        if request.strip() == "parts":
            found = {}
            for name, step in steps.items():
                if with_parts and name not in _yardsticks():
                    parts = Parts()
                    with seams(parts):
                        step()
                        found[name] = parts.of(step, effort.steps * effort.turns)
        else:
            found = {name: measure(step, effort.steps) for name, step in steps.items()}
        gc.collect()
        answers.write(json.dumps(found) + "\n")
        answers.flush()


class Worker:
    """A process that measures the package of one checkout."""

    def __init__(self, checkout: Path, section: str, tiny: bool, with_parts: bool) -> None:
        here = Path(__file__).resolve().parents[1]
        # The benchmark is this one, the package that of the checkout.
        script = (
            f"import sys; sys.path[:0] = [{str(checkout)!r}]; import rwkernels; sys.path[0] = {str(here)!r}; "
            "from benchmarks import host_time; "
            f"host_time.serve({section!r}, {tiny!r}, {with_parts!r})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to a request. Raises `RuntimeError` if the process ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that measures ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(section: str, tiny: bool, with_parts: bool) -> None:
    """What a worker's process does."""
    _serve(section, TINY if tiny else Effort(), with_parts, sys.stdin, sys.stdout)


def measured(checkouts: Sequence[Path], section: str, tiny: bool, with_parts: bool) -> list[dict[str, Any]]:
    """For every checkout the seconds of each turn of each row, in turns, and its parts."""
    workers = [Worker(checkout, section, tiny, with_parts) for checkout in checkouts]
    try:
        for worker in workers:  # compiles, and warms up
            worker.ask("turn")
        turns: list[list[dict[str, float]]] = [[] for _ in workers]
        for _ in range((TINY if tiny else Effort()).turns):
            for kept, worker in zip(turns, workers, strict=True):
                kept.append(worker.ask("turn"))
        parts = [worker.ask("parts") for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    return [
        {"seconds": {name: [turn[name] for turn in kept] for name in kept[0]}, "parts": found}
        for kept, found in zip(turns, parts, strict=True)
    ]


# --- the table ------------------------------------------------------------------------------------------------


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def report(section: str, found: Sequence[dict[str, Any]]) -> str:
    """The rows of a section as text: microseconds, and ratios turn by turn."""
    here, *others = [each["seconds"] for each in found]
    lines = [f"{section}: microseconds on the host, median of {len(here[PIXEL])} turns"]
    for name, seconds in here.items():
        text = f"  {name:<45}{1e6 * statistics.median(seconds):9.1f}"
        if name != PIXEL:
            text += f"{_ratio(seconds, here[PIXEL]):8.2f} times {PIXEL}"
        for other in others:
            if name in other:
                text += f"; the other checkout {1e6 * statistics.median(other[name]):.1f}, "
                text += f"{_ratio(other[name], seconds):.2f} times as long"
        lines.append(text)
    if section == "cuda":
        for kind, one in (("2D", "2D, 16 x 256^2"), ("3D", "3D, 2 x 128^3")):
            several = _ratio(here[f"{kind}, five levels"], here[one])
            lines.append(f"  {kind}: five levels take {several:.2f} times as long as one")
    for each, whose in zip(found, ("", " of the other checkout"), strict=False):
        for name, parts in each["parts"].items():
            lines.append(f"  parts of {name}{whose}, {1e6 * sum(parts.values()):.1f} in all:")
            for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
                lines.append(f"    {part:<43}{1e6 * seconds:9.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to take turns with")
    parser.add_argument("--parts", action="store_true", help="where the time of the steps on CUDA goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every turn")
    parser.add_argument("--tiny", action="store_true", help="one turn of two steps, to see that it works")
    args = parser.parse_args()
    checkouts = [Path(__file__).resolve().parents[1], *([args.against.resolve()] if args.against else [])]
    kept = {}
    for section in args.section:
        if section == "cuda":
            from benchmarks import empty_driver

            if (reason := empty_driver.why_not()) is not None:
                print(f"cuda: not measured, {reason}")
                continue
        try:
            found = measured(checkouts, section, args.tiny, args.parts and section == "cuda")
        except RuntimeError as error:
            print(f"{section}: {error}", file=sys.stderr)
            return 1
        kept[section] = dict(zip(("here", "against"), found, strict=False))
        print(report(section, found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
