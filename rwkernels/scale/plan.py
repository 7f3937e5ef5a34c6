"""How a volume is cut: which axes a task passes over, how large its blocks are, what lies in between on disk.

The transform is separable, so a task needs whole lines of the axes it passes over and nothing else. One tile shape is
chosen for a volume. A stage's block is the tile made whole along the axes of the stage, and the tile is the chunk of
what is kept between stages: every block of every stage is a whole number of chunks, so nothing is read or written
twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FIELD_BYTES = 4  # float32, as in memory: the same numbers, rounded the same way
# What a task holds beyond a block of labels and one of distances: chunks while they are packed and unpacked, and
# labels in a narrower type.
WORK_BYTES = 4
VECTOR = 32  # columns that the C++ core solves together
# What one chunk costs beyond its bytes, and one run of pixels that lie side by side in it, in bytes that could be moved
# meanwhile. Only the choice between plans depends on them.
CHUNK_COST, RUN_COST = 500_000, 32


@dataclass(frozen=True)
class Step:
    """The pass along one axis; arguments of `Backend.pass_axis`."""

    axis: int
    unit: float
    first: bool


@dataclass(frozen=True)
class Stage:
    """The steps that one task takes while it holds a block."""

    steps: tuple[Step, ...]
    block: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The stages of a volume, and the chunks of what is kept between them."""

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    stages: tuple[Stage, ...]
    task_bytes: int

    def traffic(self, label_bytes: int) -> int:
        """Bytes that are read and written, before they are packed: labels and field of every stage, result included."""
        between = 2 * FIELD_BYTES * (len(self.stages) - 1)
        return math.prod(self.shape) * (len(self.stages) * label_bytes + between + FIELD_BYTES)


def steps(shape: Sequence[int], spacing: Sequence[float], black_border: bool) -> tuple[tuple[Step, ...], float]:
    """The passes over a volume whose last `len(spacing)` axes are spatial, and the spacing of the last one.

    The order and the units are those of the in-memory transform (csrc/transform.hpp): from the last axis to the first,
    in squared pixels of the axis that was passed last. An axis of length 1 has nothing to pass unless it is bounded.
    """
    if max(spacing) / min(spacing) > 1e12:
        raise ValueError(f"spacing: expected a ratio of at most 1e12 between axes, got {list(spacing)}")
    leading = len(shape) - len(spacing)
    axes = [axis for axis in range(len(spacing)) if shape[leading + axis] > 1 or black_border] or [len(spacing) - 1]
    found = []
    before = axes[-1]
    for axis in reversed(axes):
        ratio = spacing[before] / spacing[axis]
        found.append(Step(leading + axis, ratio * ratio, first=axis == axes[-1]))
        before = axis
    return tuple(found), spacing[before]


def plan(
    shape: Sequence[int],
    steps: Sequence[Step],
    label_bytes: int,
    memory: int,
    grain: Sequence[int] | None = None,
    result_chunks: Sequence[int] | None = None,
) -> Plan:
    """The cheapest plan whose tasks hold at most `memory` bytes each.

    Args:
        shape: Of the volume; axes that no step passes over are cut down to 1.
        steps: All passes, in order.
        label_bytes: Bytes of a label.
        memory: Bytes that a task may hold.
        grain: Chunks of the labels, which tiles follow where they can.
        result_chunks: Chunks of an array that the last stage writes into. Its blocks are whole numbers of them.

    Raises:
        ValueError: `memory` is too little for the lines of any plan.
    """
    pixel_bytes = label_bytes + FIELD_BYTES + WORK_BYTES
    pixels = memory // pixel_bytes
    best: tuple[float, Plan] | None = None
    for groups in _groupings(tuple(steps)):
        tile = _fit_tile(shape, groups, pixels, grain or shape, result_chunks)
        if tile is None:
            continue
        stages = tuple(Stage(group, _block(shape, tile, group)) for group in groups)
        task_bytes = max(math.prod(stage.block) for stage in stages) * pixel_bytes
        found = Plan(tuple(shape), tile, stages, task_bytes)
        cut = CHUNK_COST * _chunk_count(shape, tile) + RUN_COST * math.prod(shape) / tile[-1]
        cost = found.traffic(label_bytes) + 3 * (len(stages) - 1) * cut
        if best is None or cost < best[0]:
            best = cost, found
    if best is None:
        raise ValueError(f"memory: expected at least {_least_memory(shape, steps, pixel_bytes, result_chunks)} bytes "
                         f"for tasks that hold whole lines of {list(shape)}, got {memory}")  # fmt: skip
    return best[1]


def _groupings(steps: tuple[Step, ...]) -> Iterator[tuple[tuple[Step, ...], ...]]:
    """All ways to cut the passes into stages."""
    for cuts in range(2 ** (len(steps) - 1)):
        ends = [i + 1 for i in range(len(steps) - 1) if cuts >> i & 1] + [len(steps)]
        yield tuple(steps[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _block(shape: Sequence[int], tile: Sequence[int], group: Sequence[Step]) -> tuple[int, ...]:
    whole = {step.axis for step in group}
    return tuple(n if axis in whole else size for axis, (n, size) in enumerate(zip(shape, tile, strict=True)))


def _chunk_count(shape: Sequence[int], tile: Sequence[int]) -> int:
    return math.prod(math.ceil(n / size) for n, size in zip(shape, tile, strict=True))


def _snap(size: int, n: int, grain: int, least: int) -> int:
    """A length of at most `size` (or `least`) that goes well with chunks of `grain` along an axis of n."""
    if size >= n:
        return n
    size = max(size, min(least, n))
    if size >= grain:
        return size // grain * grain
    divisor = max(d for d in range(1, size + 1) if grain % d == 0)
    return divisor if 2 * divisor > size else size


def _fit_tile(
    shape: Sequence[int],
    groups: Sequence[Sequence[Step]],
    pixels: int,
    grain: Sequence[int],
    result_chunks: Sequence[int] | None,
) -> tuple[int, ...] | None:
    """The largest tile, as even as can be, with which no block has more than `pixels`."""
    passed = {step.axis for group in groups for step in group}
    fixed = dict.fromkeys(range(len(shape)), 1)  # what a tile's length is a multiple of
    first = groups[0][0].axis
    last = {step.axis for step in groups[-1]}
    if result_chunks is not None:
        fixed = {axis: 1 if axis in last else size for axis, size in enumerate(result_chunks)}
    grains = [max(g, 1) for g in grain]
    if shape[first] > VECTOR and first not in last:  # lanes, and the tiles that the in-memory transform has
        fixed[first] = math.lcm(fixed[first], VECTOR)
    grains = [math.lcm(g, fixed[a]) if g % fixed[a] else g for a, g in enumerate(grains)]
    grains = [g if g <= shape[a] else fixed[a] for a, g in enumerate(grains)]
    size = [n if axis in passed else fixed[axis] for axis, n in enumerate(shape)]

    def snapped(axis: int) -> int:
        found = _snap(size[axis], shape[axis], grains[axis], fixed[axis])
        return found if found == shape[axis] else max(found // fixed[axis] * fixed[axis], fixed[axis])

    while True:
        tile = [min(snapped(axis), n) if n else 1 for axis, n in enumerate(shape)]
        over = [group for group in groups if math.prod(_block(shape, tile, group)) > pixels]
        if not over:
            return tuple(tile)
        whole = {step.axis for step in over[0]}
        free = [axis for axis in passed - whole if tile[axis] > min(fixed[axis], shape[axis])]
        if not free:
            return None
        widest = max(free, key=lambda axis: (tile[axis], -axis))
        size[widest] = max(tile[widest] - max(tile[widest] // 16, 1), 1)


def _least_memory(
    shape: Sequence[int], steps: Sequence[Step], pixel_bytes: int, result_chunks: Sequence[int] | None
) -> int:
    """Bytes of the largest block of the plan that holds the least at a time."""
    groups = [(step,) for step in steps]
    tile = [1] * len(shape)
    last = steps[-1].axis
    if result_chunks is not None:
        tile = [min(size, n) for size, n in zip(result_chunks, shape, strict=True)]
        tile[last] = 1
    if len(steps) > 1:
        first = steps[0].axis
        tile[first] = min(math.lcm(tile[first], VECTOR) if shape[first] > VECTOR else tile[first], shape[first])
    return max(math.prod(_block(shape, tile, group)) for group in groups) * pixel_bytes
