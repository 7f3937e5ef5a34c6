"""What the column passes of the GPU backend do on given labels, counted without a GPU.

`count` follows the two sweeps of `rwkernels/backends/triton_edt.py` for all programs at once, in plain PyTorch, and
counts what they look at and enter. `tests/test_work.py` compares it with the loads of the emulated kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, GROUP, DEEP = 8, 8, 64
FAR = 1 << 30


@dataclass
class Counts:
    """Of one pass over a field [outer, n, inner]."""

    programs: int = 0
    lanes: int = 64
    looks: int = 0  # at a block above and one below
    group_looks: int = 0  # at `GROUP` blocks above and as many below
    above: int = 0  # blocks entered
    below: int = 0

    @property
    def candidates(self) -> int:
        """Results times rows that were compared."""
        return (self.programs + self.above + self.below) * ROWS * ROWS * self.lanes


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

    def __init__(self, field: Tensor, changes: Tensor, spacing: float, lanes: int, deep: int) -> None:
        outer, n, inner = field.shape
        self.blocks, self.strips, self.spacing = math.ceil(n / ROWS), math.ceil(inner / lanes), spacing
        self.deep = self.blocks > deep
        self.counts = Counts(outer * self.blocks * self.strips, lanes)
        down, up = torch.zeros_like(field), field.clone()  # what a row holds for those above it, and below it
        down.copy_(field)
        down[:, 1:][changes] = 0
        up[:, :-1][changes] = 0
        lowest = torch.minimum(down, up)
        self.own = self._tiled(field)
        self.down, self.up = self._tiled(down), self._tiled(up)
        beyond = self.blocks * ROWS - n
        if beyond:  # the last row, read again, does not differ from itself
            self.down[:, -1, -beyond:] = self.own[:, -1, -beyond:]
        self.low = self._tiled(lowest).amin(2)  # [outer * strips, blocks, lanes]
        self.line = torch.arange(outer * self.strips).repeat_interleave(self.blocks)
        self.block = torch.arange(self.blocks).repeat(outer * self.strips)
        self.real = self._tiled(torch.ones_like(field, dtype=torch.bool), False).flatten(0, 1)
        self.shape = (outer, n, inner)

    def _tiled(self, field: Tensor, edge: bool = True) -> Tensor:
        """[outer * strips, blocks, rows, lanes]; what is outside is as what lies at the edge."""
        outer, n, inner = field.shape
        lanes = self.counts.lanes
        more = (self.blocks * ROWS - n, self.strips * lanes - inner)
        if edge:
            field = torch.cat([field, field[:, -1:].expand(-1, more[0], -1)], 1)
            field = torch.cat([field, field[:, :, -1:].expand(-1, -1, more[1])], 2)
        else:
            field = torch.nn.functional.pad(field, (0, more[1], 0, more[0]))
        return field.view(outer, self.blocks, ROWS, self.strips, lanes).movedim(3, 1).flatten(0, 1)

    def square(self, steps: Tensor | int) -> Tensor:
        return (torch.as_tensor(steps) * self.spacing).square()

    def run(self) -> Tensor:
        t = torch.arange(ROWS)
        best = self.own.flatten(0, 1).clone()
        down, up = self.down.flatten(0, 1), self.up.flatten(0, 1)
        for s in range(ROWS):
            value = torch.where((t > s)[:, None], up[:, s, None], down[:, s, None])
            value = torch.where((t == s)[:, None], self.own.flatten(0, 1)[:, s, None], value)
            best = torch.minimum(best, value + self.square(t - s)[:, None])
        self.best = torch.where(self.real, best, best.new_zeros(()))
        self.worst = self.best.amax(1)
        self._bound()
        self._enter()
        outer, n, inner = self.shape
        lanes = self.counts.lanes
        result = self.best.view(outer, self.strips, self.blocks, ROWS, lanes).movedim(1, 3)
        return result.reshape(outer, self.blocks * ROWS, self.strips * lanes)[:, :n, :inner]

    def _left(self, programs: Tensor, gap: Tensor, step: Tensor) -> Tensor:
        """Which of `programs` go on, `step` blocks out."""
        block = self.block[programs]
        inside = (block - step >= 0) | (block + step < self.blocks)
        return inside & (self.square(gap) < self.worst[programs].amax(1))

    def _lowest(self, programs: Tensor, step: Tensor | int, count: int) -> Tensor:
        line, block = self.line[programs], self.block[programs]
        low = None
        for each in range(count):
            up = self.low[line, (block - step - each).clamp(min=0)]
            down = self.low[line, (block + step + each).clamp(max=self.blocks - 1)]
            low = torch.minimum(up, down) if low is None else torch.minimum(low, torch.minimum(up, down))
        assert low is not None
        return low

    def _bound(self) -> None:
        programs, step = torch.arange(self.counts.programs), 1
        while True:
            gap = 1 + (step - 1) * ROWS
            wide = self.deep and gap >= GROUP * ROWS
            programs = programs[self._left(programs, torch.tensor(gap), torch.tensor(step))]
            if not len(programs):
                return
            count = GROUP if wide else 1
            low = self._lowest(programs, step, count) + self.square(gap + (count + 1) * ROWS - 1)
            self.worst[programs] = torch.minimum(self.worst[programs], low)
            if wide:
                self.counts.group_looks += len(programs)
            else:
                self.counts.looks += len(programs)
            step += count

    def _enter(self) -> None:
        programs, step = torch.arange(self.counts.programs), 1
        while True:
            gap = torch.tensor(1 + (step - 1) * ROWS)
            programs = programs[self._left(programs, gap, torch.tensor(step))]
            if not len(programs):
                return
            hopeful = programs
            if self.deep:
                low = self._lowest(programs, step, GROUP) + self.square(gap)
                hopeful = programs[(low < self.worst[programs]).any(1)]
                self.counts.group_looks += len(programs)
            for each in range(step, step + GROUP):
                gap = torch.tensor(1 + (each - 1) * ROWS)
                hopeful = hopeful[self._left(hopeful, gap, torch.tensor(each))]
                self.counts.looks += len(hopeful)
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
        if side < 0:
            self.counts.above += len(programs)
            values, away = self.up[line, block].flip(1), torch.arange(ROWS)
        else:
            self.counts.below += len(programs)
            values, away = self.down[line, block], torch.arange(ROWS).flip(0)
        best = self.best[programs]
        for s in range(ROWS):
            best = torch.minimum(best, values[:, s, None] + self.square(gap + s + away)[:, None])
        self.best[programs] = best
        self.worst[programs] = torch.minimum(self.worst[programs], best.amax(1))


def count(labels: Tensor, spacing: tuple[float, ...] | None = None, deep: int = DEEP) -> tuple[list[Counts], Tensor]:
    """What every column pass over labels [B, *S] counts, and the squared distances."""
    axes = labels.dim() - 1
    steps = (1.0,) * axes if spacing is None else spacing
    unit = len(set(steps)) == 1
    lanes = 64 if unit else 32
    if unit:
        steps = (1,) * axes  # so that squares stay integers
    z, y, x = (*[1] * (3 - axes), *labels.shape[1:])
    planes = labels.reshape(-1, y, x)
    field = row_distances(planes, steps[-1]).to(torch.int32 if unit else torch.float32)
    found = []
    sweep = _Pass(field, planes[:, 1:] != planes[:, :-1], steps[-2] if axes > 1 else steps[-1], lanes, deep)
    field = sweep.run()
    found.append(sweep.counts)
    if axes == 3:
        volume = labels.reshape(-1, z, y * x)
        sweep = _Pass(field.reshape(volume.shape), volume[:, 1:] != volume[:, :-1], steps[0], lanes, deep)
        field = sweep.run()
        found.append(sweep.counts)
    return found, field.reshape(labels.shape)
