"""Turns parsed instructions into functions, once for each kernel, in blocks that end where threads may part or meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ptx.access import access_step
from ptx.arithmetic import arithmetic_step
from ptx.builder import Builder, Read, Step
from ptx.exchange import exchange_step
from ptx.faults import KernelFault, Unsupported
from ptx.parse import Instruction, Kernel, parse
from ptx.values import Type


@dataclass
class Block:
    """Steps that the same threads execute, and what ends them: an instruction of control flow, or nothing."""

    steps: list[tuple[Instruction, Step]] = field(default_factory=list)
    ending: Instruction | None = None
    guard: Read | None = None
    target: int = -1


@dataclass
class Program:
    """`slots` finds registers, parameters and special registers; `constants` are the slots of immediate operands."""

    kernel: Kernel
    slots: dict[str, int]
    kinds: list[Type]
    constants: dict[int, np.generic]
    blocks: list[Block]


def step_of(builder: Builder, instruction: Instruction) -> Step | None:
    """The function of an instruction; None where it has no effect here."""
    base = instruction.parts[0]
    if base in ("membar", "fence", "prefetch", "griddepcontrol", "nanosleep"):
        return None
    for make in (access_step, exchange_step, arithmetic_step):
        step = make(builder, instruction)
        if step is not None:
            return step
    raise Unsupported("unknown instruction")


CONTROL = ("bra", "ret", "exit", "bar", "barrier")


def _is_control(instruction: Instruction) -> bool:
    return instruction.parts[0] in CONTROL and "warp" not in instruction.parts


def _blocks(builder: Builder) -> list[Block]:
    """Splits at the targets of branches and after control flow; a branch's target is the index of a block."""
    instructions = builder.kernel.instructions
    targets = {str(each.operands[0]) for each in instructions if each.parts[0] == "bra"}
    labels = {name: place for name, place in builder.kernel.labels.items() if name in targets}
    ends = {place + 1 for place, each in enumerate(instructions) if _is_control(each)}
    starts = sorted({0, *labels.values(), *ends} - {len(instructions)})
    number = {start: index for index, start in enumerate(starts)}
    number[len(instructions)] = len(starts)
    targets_of = {name: number[place] for name, place in labels.items()}
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(instructions)], strict=True):
        block = Block()
        for instruction in instructions[start:stop]:
            _append(builder, block, instruction, targets_of)
        blocks.append(block)
    return blocks


def _append(builder: Builder, block: Block, instruction: Instruction, labels: dict[str, int]) -> None:
    try:
        if _is_control(instruction):
            block.ending, block.guard = instruction, builder.guard(instruction)
            if instruction.parts[0] == "bra":
                block.target = labels[str(instruction.operands[0])]
        elif (step := step_of(builder, instruction)) is not None:
            block.steps.append((instruction, step))
    except (KernelFault, KeyError, ValueError, IndexError) as error:
        where = f"kernel {builder.kernel.name}, PTX line {instruction.line} ({instruction.source})"
        raise Unsupported(f"{where}: {error}: {instruction.text}") from error


@lru_cache(maxsize=256)
def compile_ptx(text: str) -> Program:
    """The program of a PTX module with one entry point."""
    kernel = parse(text)
    builder = Builder(kernel)
    blocks = _blocks(builder)
    return Program(kernel, builder.slots, builder.kinds, builder.constants, blocks)
