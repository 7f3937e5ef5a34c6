"""Runs the text of a PTX module on tensors of the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ptx.cta import BUDGET, Grid, Launch
from ptx.memory import Allocation, Counts, GlobalMemory
from ptx.program import compile_ptx

Argument = tuple[str, torch.Tensor | int]


def run_ptx(
    text: str,
    arguments: Sequence[Argument],
    grid: Grid = (1, 1, 1),
    shared_bytes: int = 0,
    budget: int = BUDGET,
    start: int = 0,
) -> Counts:
    """Runs every CTA of the grid from `start` on. `arguments` pairs names with tensors, or with the bits of scalars.

    Parameters that the PTX declares beyond these get zero: Triton's pointers to scratch memory, unused by most kernels.
    """
    allocations: list[Allocation | None] = []
    words: list[int] = []
    for name, value in arguments:
        if isinstance(value, torch.Tensor):
            allocations.append(Allocation(name, len(allocations), value))
            words.append(allocations[-1].base)
        else:
            words.append(value)
    program = compile_ptx(text)
    words += [0] * (len(program.kernel.parameters) - len(words))
    counts = Counts()
    Launch(program, grid, words, GlobalMemory(allocations, counts), shared_bytes, counts, budget, start).run()
    return counts
