"""What the column passes of the GPU backend do on given labels, counted without a GPU.

`count` follows the two sweeps of `rwkernels/backends/triton/kernels/columns.py` for all programs at once, in plain
PyTorch, and counts what they look at and enter. `tests/backends/triton/test_work.py` compares it with the loads of the
emulated kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, LANES, GROUP = 8, 128, 4
NEAR = 166**2  # squared distances below this are found in 16 bits
FAR = 1 << 30


@dataclass
class Counts:
    """Of one search of a pass over a field [outer, n, inner]: how often programs did what."""

    kind: str  # of the numbers: "uint16", "int32" or "float32"
    programs: int = 0
    bounds: int = 0  # looks of the first sweep, at `GROUP` blocks each way
    groups: int = 0  # of the second sweep
    looks: int = 0  # at a block above and one below
    above: int = 0  # blocks entered
    below: int = 0
    field: int = 0  # numbers read of the field
    minima: int = 0  # and of the least values of blocks

    @property
    def candidates(self) -> int:
        """Results times rows that were compared."""
        return (self.programs + self.above + self.below) * ROWS * ROWS * LANES


def row_distances(labels: Tensor, spacing: float) -> Tensor:
    """Squared distance to the nearest other label within the rows of labels [..., n, width]."""
    width = labels.shape[-1]
    x = torch.arange(width)
    change = labels[..., 1:] != labels[..., :-1]
    starts = torch.cat([torch.zeros_like(labels[..., :1], dtype=torch.bool), change], -1)
    ends = torch.cat([change, torch.zeros_like(labels[..., :1], dtype=torch.bool)], -1)
    never = 1 << 20
    before = torch.where(starts, x, -never).cummax(-1).values
    after = torch.where(ends, x, never).flip(-1).cummin(-1).values.flip(-1)
    steps = torch.minimum(x - before, after - x) + 1
    squared = (steps * spacing).square()
    return torch.where(steps <= width, squared, squared.new_tensor(FAR))


class _Pass:
    """All programs of one pass: tensors [program, rows, lanes] of what they hold."""

    def __init__(self, field: Tensor, changes: Tensor, spacing: float) -> None:
        outer, n, inner = field.shape
        self.blocks, self.strips = math.ceil(n / ROWS), math.ceil(inner / LANES)
        self.spacing = spacing
        down, up = field.clone(), field.clone()  # what a row holds for those below it, and above it
        down[:, :-1][changes] = 0
        up[:, 1:][changes] = 0
        lowest = torch.minimum(down, up)
        self.own, self.down, self.up = (self._tiled(each) for each in (field, down, up))
        beyond = self.blocks * ROWS - n
        if beyond:  # the last row, read again, does not differ from itself
            self.up[:, -1, -beyond:] = self.own[:, -1, -beyond:]
        self.low = self._tiled(lowest).amin(2)  # [outer * strips, blocks, lanes]
        self.line = torch.arange(outer * self.strips).repeat_interleave(self.blocks)
        self.block = torch.arange(self.blocks).repeat(outer * self.strips)
        beside = self.strips * LANES - inner
        self.used = torch.full((self.strips,), LANES)
        self.used[-1] -= beside
        self.used = self.used.repeat(outer).repeat_interleave(self.blocks)  # lanes of a program that are there
        self.shape = (outer, n, inner)

    def _tiled(self, field: Tensor) -> Tensor:
        """[outer * strips, blocks, rows, lanes]; beyond the last row as that one, beside the lanes 0."""
        outer, n, inner = field.shape
        field = torch.cat([field, field[:, -1:].expand(-1, self.blocks * ROWS - n, -1)], 1)
        field = torch.nn.functional.pad(field, (0, self.strips * LANES - inner))
        return field.view(outer, self.blocks, ROWS, self.strips, LANES).movedim(3, 1).flatten(0, 1)

    def square(self, steps: Tensor | int) -> Tensor:
        return (torch.as_tensor(steps) * self.spacing).square()

    def search(self, kind: str, programs: Tensor, far: float) -> Counts:
        """What `programs` find below `far`, into `best`; the others keep what they have."""
        self.counts = Counts(kind, len(programs))
        self.counts.field = int(((ROWS + (self.block[programs] > 0)) * self.used[programs]).sum())
        t = torch.arange(ROWS)
        best = self.own.flatten(0, 1)[programs].clamp(max=far)
        down, up = self.down.flatten(0, 1)[programs], self.up.flatten(0, 1)[programs]
        for s in range(ROWS):
            value = torch.where((t > s)[:, None], down[:, s, None], up[:, s, None])
            value = torch.where((t == s)[:, None], far, value)
            best = torch.minimum(best, value + self.square(t - s)[:, None])
        self.best[programs] = best
        self.worst[programs] = best.amax(1)
        self._bound(programs)
        self._enter(programs)
        return self.counts

    def start(self) -> Tensor:
        """All programs, with nothing found."""
        self.best = torch.zeros_like(self.own.flatten(0, 1))
        self.worst = torch.zeros_like(self.best[:, 0])
        return torch.arange(len(self.block))

    def result(self) -> Tensor:
        outer, n, inner = self.shape
        found = self.best.view(outer, self.strips, self.blocks, ROWS, LANES).movedim(1, 3)
        return found.reshape(outer, self.blocks * ROWS, self.strips * LANES)[:, :n, :inner]

    def _left(self, programs: Tensor, step: int) -> Tensor:
        """Which of `programs` go on, `step` blocks out."""
        block = self.block[programs]
        inside = (block - step >= 0) | (block + step < self.blocks)
        return programs[inside & (self.square(1 + (step - 1) * ROWS) < self.worst[programs].amax(1))]

    def _lowest(self, programs: Tensor, step: int) -> Tensor:
        """Of a group of blocks each way."""
        line, block = self.line[programs], self.block[programs]
        low = self.low[line, (block - step).clamp(min=0)]
        for each in range(step, step + GROUP):
            low = torch.minimum(low, self.low[line, (block - each).clamp(min=0)])
            low = torch.minimum(low, self.low[line, (block + each).clamp(max=self.blocks - 1)])
        self.counts.minima += 2 * GROUP * int(self.used[programs].sum())
        return low

    def _bound(self, programs: Tensor) -> None:
        step = 1
        while len(programs := self._left(programs, step)):
            low = self._lowest(programs, step) + self.square((step + GROUP) * ROWS)
            self.worst[programs] = torch.minimum(self.worst[programs], low)
            self.counts.bounds += len(programs)
            step += GROUP

    def _enter(self, programs: Tensor) -> None:
        step = 1
        while len(programs := self._left(programs, step)):
            hopeful = programs
            if step > 1:
                low = self._lowest(programs, step) + self.square(1 + (step - 1) * ROWS)
                hopeful = programs[(low < self.worst[programs]).any(1)]
                self.counts.groups += len(programs)
            for each in range(step, step + GROUP):
                hopeful = self._left(hopeful, each)
                self.counts.looks += len(hopeful)
                self.counts.minima += 2 * int(self.used[hopeful].sum())
                self._enter_block(hopeful, each, -1)
                self._enter_block(hopeful, each, 1)
            step += GROUP

    def _enter_block(self, programs: Tensor, step: int, side: int) -> None:
        block, gap = self.block[programs] + side * step, 1 + (step - 1) * ROWS
        there = (block >= 0) & (block < self.blocks)
        programs, block = programs[there], block[there]
        line = self.line[programs]
        lower = (self.low[line, block] + self.square(gap) < self.worst[programs]).any(1)
        programs, block, line = programs[lower], block[lower], line[lower]
        used = int(self.used[programs].sum())
        if side < 0:
            self.counts.above += len(programs)
            self.counts.field += ROWS * used
            values, away = self.down[line, block].flip(1), torch.arange(ROWS)
        else:
            self.counts.below += len(programs)
            self.counts.field += (ROWS + 1) * used  # and the row before the block
            values, away = self.up[line, block], torch.arange(ROWS).flip(0)
        best = self.best[programs]
        for s in range(ROWS):
            best = torch.minimum(best, values[:, s, None] + self.square(gap + s + away)[:, None])
        self.best[programs] = best
        self.worst[programs] = torch.minimum(self.worst[programs], best.amax(1))


def _searched(field: Tensor, changes: Tensor, spacing: float) -> tuple[list[Counts], Tensor]:
    """The searches of one pass, and its squared distances."""
    integers = not field.is_floating_point()
    sweep = _Pass(field, changes, spacing)
    programs = sweep.start()
    if not integers:
        return [sweep.search("float32", programs, float("inf"))], sweep.result()
    found = [sweep.search("uint16", programs, NEAR)]
    again = programs[sweep.best.flatten(1).amax(1) >= NEAR]
    found.append(sweep.search("int32", again, FAR))
    return found, sweep.result()


def count(labels: Tensor, spacing: tuple[float, ...] | None = None) -> tuple[list[list[Counts]], Tensor]:
    """What the searches of every column pass over labels [B, *S] count, and the squared distances.

    Those are in pixels if `spacing` is the same for all axes.
    """
    axes = labels.dim() - 1
    steps = (1.0,) * axes if spacing is None else spacing
    z, y, x = (*[1] * (3 - axes), *labels.shape[1:])
    along_y = steps[-2] if axes > 1 else steps[-1]
    planes = labels.reshape(-1, y, x)
    field = row_distances(planes, 1)
    if along_y == steps[-1]:
        counts, field = _searched(field, planes[:, 1:] != planes[:, :-1], 1)
    else:
        counts, field = _searched(_in_units(field, steps[-1]), planes[:, 1:] != planes[:, :-1], along_y)
    found = [counts]
    if axes == 3:
        volume = labels.reshape(-1, z, y * x)
        field, along_z = field.reshape(volume.shape), steps[0]
        if len(set(steps)) == 1:
            along_z = 1
        elif not field.is_floating_point():
            field = _in_units(field, steps[-1])
        counts, field = _searched(field, volume[:, 1:] != volume[:, :-1], along_z)
        found.append(counts)
    return found, field.reshape(labels.shape)


def _in_units(field: Tensor, spacing: float) -> Tensor:
    return torch.where(field >= FAR, torch.inf, field.float() * spacing**2)
