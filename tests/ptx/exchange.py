"""Steps in which the threads of a warp exchange registers: shuffles, votes, reductions, matrices of 8 by 8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx import warp
from ptx.access import read_address, scatter
from ptx.builder import Builder, Frame, Step
from ptx.faults import Diverged, Unsupported
from ptx.parse import Instruction, Vector
from ptx.values import Array, Type, type_of

B32, U32, PRED = Type("b", 32), Type("u", 32), Type("pred", 8)
MATRIX_ROWS = 8


def exchange_step(builder: Builder, instruction: Instruction) -> Step | None:
    makers = {"shfl": _shuffle, "redux": _reduce, "vote": _vote, "ldmatrix": _load_matrix, "stmatrix": _store_matrix}
    base = instruction.parts[0]
    if base in makers:
        if instruction.guard is not None:
            raise Unsupported("a guard on an instruction of the whole warp")
        return makers[base](builder, instruction)
    if base == "bar" and "warp" in instruction.parts:
        return _meet(builder, instruction)
    return None


def _invited(builder: Builder, operand: object) -> Callable[[Frame], Array]:
    """The members that a mask names; checks that all of them are there."""
    if builder.constant(operand) in (-1, 0xFFFFFFFF):

        def everyone(frame: Frame) -> Array:
            every = np.ones(len(frame.active), bool)
            if not frame.full:
                warp.check_converged(frame.active, every)
            return every

        return everyone
    mask = builder.read(operand, U32)

    def some(frame: Frame) -> Array:
        invited = warp.members(mask(frame.registers))
        warp.check_converged(frame.active, invited)
        return invited

    return some


def _meet(builder: Builder, instruction: Instruction) -> Step:
    invited = _invited(builder, instruction.operands[0])

    def meet(frame: Frame) -> None:
        invited(frame)

    return meet


def _shuffle(builder: Builder, instruction: Instruction) -> Step:
    destination, a, b, c, mask = instruction.operands
    mode = instruction.parts[2]
    value, predicate, *_ = [*str(destination).split("|"), "_"]
    invited = _invited(builder, mask)
    read = builder.read(a, B32)
    write, tell = builder.write(value, B32, None), builder.write(predicate, PRED, None)
    fixed = builder.constant(b), builder.constant(c)
    lane, clamp = builder.read(b, U32), builder.read(c, U32)

    def shuffle(frame: Frame) -> None:
        invited(frame)
        registers = frame.registers
        if None in fixed:
            sources, valid = warp.shuffle_sources(mode, lane(registers), clamp(registers))
        else:
            sources, valid = warp.constant_shuffle(mode, *fixed, len(frame.active))
        write(frame, read(registers)[sources])
        tell(frame, valid)

    return shuffle


def _reduce(builder: Builder, instruction: Instruction) -> Step:
    destination, a, mask = instruction.operands
    kind = type_of(instruction.parts[-1])
    mode = instruction.parts[2]
    if kind is None or {"abs", "NaN"} & set(instruction.parts):
        raise Unsupported("unknown reduction")
    invited, read = _invited(builder, mask), builder.read(a, kind)
    write = builder.write(destination, kind, None)
    return lambda frame: write(frame, warp.reduce(mode, read(frame.registers), invited(frame)))


def _vote(builder: Builder, instruction: Instruction) -> Step:
    destination, a, mask = instruction.operands
    mode = instruction.parts[2]
    invited, read = _invited(builder, mask), builder.read(a, PRED)
    write = builder.write(destination, B32 if mode == "ballot" else PRED, None)
    return lambda frame: write(frame, warp.vote(mode, read(frame.registers), invited(frame)))


def _matrices(instruction: Instruction) -> int:
    parts = instruction.parts
    if "m8n8" not in parts or parts[-1] != "b16":
        raise Unsupported("a matrix of another shape")
    return next(int(part[1:]) for part in parts if part in ("x1", "x2", "x4"))


def _registers(builder: Builder, operand: object, count: int) -> list[int]:
    parts = operand.parts if isinstance(operand, Vector) else (str(operand),)
    if len(parts) != count:
        raise Unsupported(f"{len(parts)} registers for {count} matrices")
    return [builder.slots[part] for part in parts]


def _whole(frame: Frame) -> Array:
    """The active threads; whole warps, as these instructions ask."""
    warps = frame.active.reshape(-1, warp.WARP)
    if not frame.full and (warps.any(axis=1) != warps.all(axis=1)).any():
        raise Diverged("a thread of the warp is absent")
    return np.flatnonzero(frame.active)


def _rows(addresses: Array, place: int) -> Array:
    """The addresses of the rows of one matrix, which eight threads of each warp hold."""
    return addresses.reshape(-1, warp.WARP)[:, MATRIX_ROWS * place : MATRIX_ROWS * (place + 1)].reshape(-1)


def _load_matrix(builder: Builder, instruction: Instruction) -> Step:
    destination, address = instruction.operands
    count, transposed = _matrices(instruction), "trans" in instruction.parts
    slots, where = _registers(builder, destination, count), read_address(builder, address)

    def load(frame: Frame) -> None:
        lanes = _whole(frame)
        addresses = where(frame.registers)[lanes]
        holders = lanes.reshape(-1, warp.WARP)[:, :MATRIX_ROWS].reshape(-1)
        for place, slot in enumerate(slots):
            rows = frame.shared.load(_rows(addresses, place), holders, 4, 4)  # [4 words, warps * 8 rows]
            halves = np.ascontiguousarray(rows.T).view(np.uint16).reshape(-1, MATRIX_ROWS, MATRIX_ROWS)
            halves = halves.swapaxes(1, 2) if transposed else halves
            words = np.ascontiguousarray(halves).view(np.uint32).reshape(-1)  # thread 4 r + j has columns 2 j, 2 j + 1
            frame.registers[slot] = scatter(frame.registers[slot], lanes, words)

    return load


def _store_matrix(builder: Builder, instruction: Instruction) -> Step:
    address, source = instruction.operands
    count, transposed = _matrices(instruction), "trans" in instruction.parts
    slots, where = _registers(builder, source, count), read_address(builder, address)

    def store(frame: Frame) -> None:
        lanes = _whole(frame)
        addresses = where(frame.registers)[lanes]
        holders = lanes.reshape(-1, warp.WARP)[:, :MATRIX_ROWS].reshape(-1)
        for place, slot in enumerate(slots):
            words = frame.registers[slot][lanes]
            halves = words.view(np.uint16).reshape(-1, MATRIX_ROWS, MATRIX_ROWS)
            halves = halves.swapaxes(1, 2) if transposed else halves
            rows = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, 4).T
            frame.shared.store(_rows(addresses, place), holders, np.ascontiguousarray(rows))

    return store
