"""Runs a program: a few CTAs at a time, all their threads in lock step.

Threads that part at a branch go on in groups; the group at the lowest block runs first, so that groups meet again where
their paths join. A barrier holds a thread until every living thread of its CTA has come to the same instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptx.builder import PRED, Frame, value_of
from ptx.faults import Diverged, Endless, KernelFault, Unsupported
from ptx.memory import Counts, GlobalMemory, SharedMemory
from ptx.parse import Instruction
from ptx.program import Block, Program
from ptx.values import Array
from ptx.warp import WARP

LANES = 4096  # threads to run together where CTAs are smaller: a NumPy call costs much the same for 128 as for 4096
BUDGET = 1_000_000  # instructions before a group of CTAs counts as endless
POISON = 0xA5  # in the bytes of a register that was never written

Grid = tuple[int, int, int]


@dataclass
class Launch:
    """What all CTAs of a launch share."""

    program: Program
    grid: Grid
    arguments: Sequence[int]
    memory: GlobalMemory
    shared_bytes: int
    counts: Counts
    budget: int = BUDGET
    start: int = 0  # the first CTA to run

    def run(self) -> None:
        threads = self.program.kernel.threads
        together = max(1, LANES // threads)
        ctas = np.prod(self.grid, dtype=np.int64)
        with np.errstate(all="ignore"):
            for first in range(self.start, int(ctas), together):
                Gang(self, np.arange(first, min(first + together, ctas))).run()

    def coordinates(self, cta: Array) -> tuple[Array, Array, Array]:
        x, y, _ = self.grid
        return cta % x, cta // x % y, cta // (x * y)


class Gang:
    """CTAs that run together."""

    def __init__(self, launch: Launch, ctas: Array) -> None:
        self.launch = launch
        self.blocks: list[Block] = launch.program.blocks
        threads = launch.program.kernel.threads
        self.lane_cta = np.repeat(ctas, threads)
        self.thread = np.tile(np.arange(threads), len(ctas))
        self.alive = np.ones(len(self.thread), bool)
        self.runnable: dict[int, Array] = {0: self.alive.copy()}
        self.waiting: dict[int, tuple[Instruction, Array]] = {}
        self.executed = 0
        shared = SharedMemory(len(ctas), launch.shared_bytes, self.lane_cta - ctas[0])
        self.frame = Frame(self._registers(), self.alive, True, launch.memory, shared)

    def _registers(self) -> list[Array]:
        program, lanes = self.launch.program, len(self.thread)
        poison = np.full(8 * lanes, POISON, np.uint8)
        unwritten = {kind: poison.view(kind.raw)[:lanes] for kind in set(program.kinds) if kind.kind != "pred"}
        unwritten[PRED] = np.zeros(lanes, bool)
        registers = [unwritten[kind] for kind in program.kinds]
        for slot, value in program.constants.items():
            registers[slot] = np.full(lanes, value)
        for name, value in zip(program.kernel.parameters, self.launch.arguments, strict=True):
            slot = program.slots[value_of(name)]
            registers[slot] = np.full(lanes, value, program.kinds[slot].raw)
        for name, values in self._special().items():
            if name in program.slots:
                registers[program.slots[name]] = np.broadcast_to(values, (lanes,)).astype(np.uint32)
        return registers

    def _special(self) -> dict[str, Array | int]:
        special: dict[str, Array | int] = {"%laneid": self.thread % WARP, "%warpid": self.thread // WARP}
        position = self.launch.coordinates(self.lane_cta)
        for axis, place, size in zip("xyz", position, self.launch.grid, strict=True):
            first = axis == "x"
            special |= {f"%ctaid.{axis}": place, f"%nctaid.{axis}": size}
            special[f"%tid.{axis}"] = self.thread if first else 0
            special[f"%ntid.{axis}"] = self.launch.program.kernel.threads if first else 1
        return special

    def run(self) -> None:
        while self.runnable or self.waiting:
            if not self.runnable:
                self._release()
            index = min(self.runnable)
            active = self.runnable.pop(index)
            if index < len(self.blocks):
                self._execute(index, active)
            else:
                self.alive &= ~active

    def _execute(self, index: int, active: Array) -> None:
        block, frame = self.blocks[index], self.frame
        frame.active, frame.full = active, bool(active.all())
        instruction = None
        try:
            for instruction, step in block.steps:  # noqa: B007
                step(frame)
        except KernelFault as fault:
            raise self._explained(fault, instruction) from None
        except Exception as error:
            fault = Unsupported(f"the emulator failed with {type(error).__name__}: {error}")
            raise self._explained(fault, instruction) from error
        executed = len(block.steps) + (block.ending is not None)
        self.launch.counts.instructions += executed * int(active.reshape(-1, WARP).any(axis=1).sum())
        self.executed += executed
        if self.executed > self.launch.budget:
            last = block.ending or instruction
            raise self._explained(Endless(f"more than {self.launch.budget} instructions"), last)
        self._go_on(index, active)

    def _go_on(self, index: int, active: Array) -> None:
        """Sends the threads on that have executed the block `index`."""
        block = self.blocks[index]
        taken = active if block.guard is None else active & block.guard(self.frame.registers)
        kind = block.ending.parts[0] if block.ending else None
        if kind is None:
            taken = np.zeros_like(active)
        elif kind == "bra":
            self._send(block.target, taken)
        elif kind in ("ret", "exit"):
            self.alive &= ~taken
        else:
            self._wait(index, taken)
        self._send(index + 1, active & ~taken)

    def _send(self, index: int, group: Array) -> None:
        if group.any():
            self.runnable[index] = self.runnable[index] | group if index in self.runnable else group

    def _wait(self, index: int, group: Array) -> None:
        ending = self.blocks[index].ending
        if ending is None or len(ending.operands) != 1 or "red" in ending.parts:
            raise self._explained(KernelFault("a barrier for a part of the threads"), ending)
        before = self.waiting.get(index + 1)
        self.waiting[index + 1] = (ending, group if before is None else before[1] | group)

    def _release(self) -> None:
        """Every living thread waits: at one barrier, or the CTA is stuck."""
        for ending, group in self.waiting.values():
            if np.array_equal(group, self.alive):
                break
            ctas = np.unique(self.lane_cta[group])
            missing = np.isin(self.lane_cta, ctas) & self.alive & ~group
            if missing.any():
                fault = Diverged("not every living thread comes to the barrier", int(np.flatnonzero(missing)[0]))
                raise self._explained(fault, ending)
        for index, (_, group) in self.waiting.items():
            self._send(index, group)
        self.waiting.clear()

    def _explained(self, fault: KernelFault, instruction: Instruction | None) -> KernelFault:
        where = f"kernel {self.launch.program.kernel.name}"
        if instruction is not None:
            where += f", PTX line {instruction.line} ({instruction.source})"
        lane = fault.lane
        if lane is None and self.frame.active.any():
            lane = int(np.flatnonzero(self.frame.active)[0])
        if lane is not None:
            cta = tuple(int(each) for each in self.launch.coordinates(self.lane_cta[lane]))
            where += f", CTA {cta}, thread {self.thread[lane]}"
        text = f": {instruction.text}" if instruction is not None else ""
        return type(fault)(f"{where}: {fault}{text}", lane)
