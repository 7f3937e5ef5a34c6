"""Predicted work of a rectified map on a GPU, ours and cuCIM's: `python -m benchmarks.work [T1 T2 ...]`.

Nothing here was measured on a GPU. Launches and bytes follow from the shapes. The operations of our column passes are
counted on the labels (`sweeps.py`); instructions are those of the binaries for sm_90 that `tests/test_work.py` checks.

The rates, and where they are from: NVIDIA H100 SXM5, 132 multiprocessors with 4 schedulers that issue one warp
instruction a clock each, 1.755 GHz boost and 3.35 TB/s (H100 data sheet and Hopper tuning guide). The guide to CUDA's
arithmetic throughput gives 64 lanes a clock for int32 additions, comparisons, minima and maxima: `pipe` is the time if
every instruction went there, `issue` if nothing but the schedulers held them up. Both leave out latency, and launches.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from benchmarks import sweeps
from benchmarks.inputs import Task, labels, map_tasks

PROCESSORS, SCHEDULERS, CLOCK, BANDWIDTH = 132, 4, 1.755e9, 3.35e12
INT_LANES = 64
ISSUE = PROCESSORS * SCHEDULERS * CLOCK  # warp instructions a second
PIPE = PROCESSORS * INT_LANES / 32 * CLOCK


@dataclass(frozen=True)
class Pieces:
    """Warp instructions of the parts of a column pass."""

    program: int  # what every program does once: its own rows, beginning and end
    look: float  # of the two sweeps on average
    group_look: int
    above: int
    below: int


PIECES = {64: Pieces(1003, 34.5, 150, 286, 356), 32: Pieces(689, 31.5, 120, 271, 302)}  # by lanes: int32, float32
ROW = {64: 103, 128: 112, 256: 103, 512: 117}  # of a thread of the row pass for each pixel, by the width of a row
MINIMA, RECTIFY = 299, 386  # of a warp for 8 x 64 pixels, and for 8 a thread


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


def ours(task: Task) -> Work:
    """The compact rectified map of this package."""
    axes, pixels = len(task.image_shape), task.pixels
    counts, _ = sweeps.count(labels(task), task.spacing)
    passes = {1: 1, 2: 1, 3: 2}[axes]
    low = 0.5  # bytes a pixel of the least values of blocks of 8
    # Row pass: labels in, field out. Column pass: field, minima and labels in, field out; it reads the labels twice to
    # find changes along the next axis. Minima: field in. Rectify: squares and labels in, map out.
    moved = (1 + 4 + low) + passes * (4 + low + 4) + (2 if passes == 2 else 0) + 1 + (passes - 1) * (4 + low) + 9
    instructions = pixels / 32 * (ROW.get(task.image_shape[-1], 117) + RECTIFY / 8)
    if passes == 2:
        instructions += pixels / 512 * MINIMA
    candidates = 0
    for count in counts:
        part = PIECES[count.lanes]
        instructions += count.programs * part.program + count.looks * part.look
        instructions += count.group_looks * part.group_look + count.above * part.above + count.below * part.below
        candidates += count.candidates
    return Work(3 + 2 * (passes - 1), int(moved * pixels), instructions, candidates)


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
