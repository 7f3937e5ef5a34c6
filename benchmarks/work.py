"""Predicted work of a rectified map on a GPU, ours and cuCIM's: `python -m benchmarks.work [T1 T2 ...]`.

Where there is a GPU, measured times stand beside the predicted ones; without one nothing here is measured. Launches and
bytes follow from the shapes. The operations of our column passes are counted on the labels (`sweeps.py`); instructions
are those of the binaries for sm_90 that `tests/backends/triton/test_work.py` checks.

The rates, and where they are from: NVIDIA H100 SXM5, 132 multiprocessors with 4 schedulers that issue one warp
instruction a clock each, 1.755 GHz boost and 3.35 TB/s (H100 data sheet and Hopper tuning guide). The guide to CUDA's
arithmetic throughput gives 64 lanes a clock for int32 additions, comparisons, minima and maxima: `pipe` is the time if
every instruction went there, `issue` if nothing but the schedulers held them up. Both leave out latency, and launches.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import rwkernels as rw
from benchmarks import sweeps
from rwkernels.backends import load
from rwkernels.bench import clock
from rwkernels.bench.inputs import Task, labels, map_tasks

PROCESSORS, SCHEDULERS, CLOCK, BANDWIDTH = 132, 4, 1.755e9, 3.35e12
INT_LANES = 64
ISSUE = PROCESSORS * SCHEDULERS * CLOCK  # warp instructions a second
PIPE = PROCESSORS * INT_LANES / 32 * CLOCK


@dataclass(frozen=True)
class Pieces:
    """Warp instructions of the parts of a search, for a program of 8 x 128 results."""

    start: int  # its own rows
    bound: int  # looks at groups of blocks, of the first sweep
    group: int  # and of the second
    look: int  # at a block above and one below
    above: int  # a block that is entered
    below: int


# By the type of the numbers and of the field that they come from. A pass in integers starts in 16 bits.
PIECES = {
    ("uint16", "int16"): Pieces(439, 83, 125, 99, 310, 335),
    ("int32", "int16"): Pieces(1179, 114, 137, 126, 855, 896),
    ("uint16", "int32"): Pieces(579, 103, 141, 106, 369, 424),
    ("int32", "int32"): Pieces(772, 100, 121, 72, 594, 665),
    ("float32", "float32"): Pieces(863, 117, 141, 93, 682, 737),
    ("float32", "int32"): Pieces(1094, 125, 149, 125, 789, 861),
}
END = {"field": 377, "rectified": 596}  # of a program, by what it gives
ROW = {64: 42, 128: 35, 256: 37, 512: 41}  # of a thread of the row pass for each pixel, by the width of a row
MINIMA = 192  # of a warp for 8 x 128 pixels
RECTIFY = {"int32": 383, "float32": 518}  # for 16 a thread


@dataclass
class Work:
    """Of one call. Bytes are what kernels read and write, as if no cache kept anything from one to the next."""

    launches: int
    moved: int
    instructions: float = math.nan  # of warps
    candidates: int = 0

    @property
    def memory(self) -> float:
        return self.moved / BANDWIDTH

    @property
    def issue(self) -> float:
        return self.instructions / ISSUE

    @property
    def pipe(self) -> float:
        return self.instructions / PIPE


def _searches(passes: list[list[sweeps.Counts]]) -> Iterator[tuple[sweeps.Counts, Pieces]]:
    """Every search with what its parts cost."""
    held = "int16" if passes[0][0].kind == "uint16" else "float32"  # by the field that comes in
    for searches in passes:
        for counts in searches:
            yield counts, PIECES[counts.kind, held]
        held = searches[-1].kind


def ours(task: Task) -> Work:
    """The compact rectified map of this package."""
    volume, pixels = len(task.image_shape) == 3, task.pixels
    passes, _ = sweeps.count(labels(task), task.spacing)
    first = 2 if passes[0][0].kind == "uint16" else 4  # bytes a pixel of the field of the row pass
    low = 9 / 8  # a field with the least values of blocks of 8
    # Row pass: labels in, field out. Column pass: field and labels in, squares out. Rectify: squares and labels in, map
    # out. In volumes one more column pass, which reads labels twice to find changes along the next axis, and a kernel
    # that reads its field for the least values.
    moved = 1 + first * low + first * low + 1 + 4 + 9
    if volume:
        moved += 1 + 4 * low + 4 * low + 4
    instructions = pixels / 32 * ROW.get(task.image_shape[-1], max(ROW.values()))
    instructions += pixels / 512 * RECTIFY["int32" if passes[-1][0].kind == "uint16" else "float32"]
    if volume:
        instructions += pixels / 1024 * (MINIMA + END["field"])
    instructions += passes[-1][0].programs * END["rectified"]
    candidates = 0
    for counts, part in _searches(passes):
        instructions += counts.programs * part.start + counts.bounds * part.bound + counts.groups * part.group
        instructions += counts.looks * part.look + counts.above * part.above + counts.below * part.below
        candidates += counts.candidates
    return Work(5 if volume else 3, int(moved * pixels), instructions, candidates)


def cucim(task: Task) -> Work:
    """One `distance_transform_edt` an image and class, as in cuCIM 26.10: launches and bytes of its own kernels.

    Added to each is the one that makes the mask `labels == k`. Not counted: how the distances of classes come together,
    and in 2D the merging of bands, whose reads depend on the data.
    """
    images, sides = task.shape[0] * task.num_classes, task.image_shape
    image = math.prod(sides)
    size = max(sides)
    if len(sides) == 2:
        size = -(-size // 32) * 32
        bands = min(size // 32, 32)
        merges = int(math.log2(bands))
        padding = 2 if size**2 != image else 0  # allocate and fill, copy
        # pack, zeros; flood down, flood up, between bands, update; near points, pointers, merges, list, colour; zeros
        # of the result, distance
        launches = 1 + padding + 2 + 4 + 2 + merges + 2 + 2
        padded = 5 + 4 + 8 + 8 + 8 + 8 + 8 + 12 + 8
        tail = 2 + 4 + 8
    else:
        size = -(-size // 32) * 32
        padding = 2 if size**3 != image else 0
        # encode, zeros; flood, (stack, colour) twice; zeros of the result, decode
        launches = 1 + padding + 2 + 1 + 4 + 2
        padded = 5 + 4 + 16 + 2 * (8 + 8)
        tail = 2 + 4 + 8
    total = size ** len(sides)
    moved = images * (total * (padded + (2 if padding else 0)) + image * tail)
    return Work(images * launches, moved)


def measured(task: Task, backend: str, device: torch.device, runs: int = 20) -> str:
    """The median time of a compact map on a GPU, or why that backend cannot make one."""
    reason = load(backend).can_run(device)
    if reason is not None:
        return f"not measured ({reason})"
    image, watch = labels(task).to(device), clock.of(device)

    def run() -> rw.RectifiedMap:
        return rw.rectified_map(image, task.num_classes, spacing=task.spacing, validate=False, backend=backend)

    times = [watch.measure(run, lambda: None)[0] for _ in range(watch.warm_ups + runs)][watch.warm_ups :]
    return f"{1e6 * statistics.median(times):.1f}"


def _measurements(task: Task) -> list[str]:
    if not torch.cuda.is_available():
        return []
    device = torch.device("cuda")
    mine, theirs = (measured(task, backend, device) for backend in ("triton", "cucim"))
    return [f"  measured us     {mine}; cuCIM {theirs} ({torch.cuda.get_device_name(device)})"]


def report(task: Task) -> str:
    """The lines of one task."""
    mine, theirs = ours(task), cucim(task)
    floor = 5 * task.pixels / BANDWIDTH
    slower = [max(mine.memory, time) / floor for time in (mine.issue, mine.pipe)]
    return "\n".join(
        [
            f"{task.title}",
            f"  launches        {mine.launches:6}  cuCIM {theirs.launches:6}",
            f"  bytes a pixel   {mine.moved / task.pixels:6.1f}  cuCIM {theirs.moved / task.pixels:8.1f}",
            f"  candidates      {mine.candidates / task.pixels:6.1f} a pixel, "
            f"{32 * mine.instructions / task.pixels:.0f} instructions a pixel in all",
            f"  predicted us    issue {1e6 * mine.issue:.1f}, pipe {1e6 * mine.pipe:.1f}, "
            f"memory {1e6 * mine.memory:.1f}; cuCIM memory {1e6 * theirs.memory:.1f}",
            f"  floor us        {1e6 * floor:.1f} (labels in, map out): {slower[0]:.1f} to {slower[1]:.1f} times it",
            *_measurements(task),
        ]
    )


def main(arguments: list[str]) -> None:
    scale = "full"
    if arguments and arguments[0] in ("full", "quick", "tiny"):
        scale = arguments.pop(0)
    for task in map_tasks(scale):
        if not arguments or task.name in arguments:
            print(report(task), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
