"""Steps that compute registers from registers, each thread for itself."""

from __future__ import annotations

import numpy as np

from ptx import alu, convert
from ptx.builder import PRED, Builder, Frame, Step
from ptx.faults import Unsupported
from ptx.parse import Instruction, Vector
from ptx.values import Type, type_of


def arithmetic_step(builder: Builder, instruction: Instruction) -> Step:
    base, *rest = instruction.parts
    types = [kind for kind in map(type_of, rest) if kind is not None]
    mods = [mod for mod in rest if type_of(mod) is None]
    if not types:
        raise Unsupported("unknown instruction")
    if base in ("mov", "cvta"):
        return _move(builder, instruction, types[0])
    if base == "createpolicy":
        return _computed(builder, instruction, alu.Operation(lambda one: one, types[0], (types[0],)))
    if base in ("setp", "set"):
        return _compare(builder, instruction, mods, types)
    if base == "cvt":
        make = convert.packed_conversion if types[0].count == 2 else convert.conversion
        return _computed(builder, instruction, make(mods, types[0], types[1]))
    return _computed(builder, instruction, alu.build(base, mods, types, len(instruction.operands) - 1))


def _computed(builder: Builder, instruction: Instruction, operation: alu.Operation) -> Step:
    destination, *sources = instruction.operands
    reads = [builder.read(each, kind) for each, kind in zip(sources, operation.sources, strict=True)]
    write = builder.write(destination, operation.result, builder.guard(instruction))
    compute = operation.compute
    if len(reads) == 1:
        (first,) = reads
        return lambda frame: write(frame, compute(first(frame.registers)))
    if len(reads) == 2:
        first, second = reads
        return lambda frame: write(frame, compute(first(frame.registers), second(frame.registers)))
    return lambda frame: write(frame, compute(*(read(frame.registers) for read in reads)))


def _move(builder: Builder, instruction: Instruction, kind: Type) -> Step:
    destination, source = instruction.operands
    guard = builder.guard(instruction)
    if isinstance(source, Vector):
        part = Type("b", kind.bits // len(source.parts))
        reads = [builder.raw(each, part) for each in source.parts]
        write = builder.write(destination, Type("b", kind.bits), guard)
        held = Type("b", kind.bits).raw
        return lambda frame: write(frame, convert.join([read(frame.registers) for read in reads], held))
    read = builder.raw(source, kind)
    if isinstance(destination, Vector):
        count = len(destination.parts)
        writes = [builder.write(each, Type("b", kind.bits // count), guard) for each in destination.parts]

        def unpack(frame: Frame) -> None:
            for write, value in zip(writes, convert.split(read(frame.registers), count), strict=True):
                write(frame, value)

        return unpack
    write = builder.write(destination, Type("b", kind.bits) if kind.kind != "pred" else kind, guard)
    return lambda frame: write(frame, read(frame.registers))


def _compare(builder: Builder, instruction: Instruction, mods: list[str], types: list[Type]) -> Step:
    """`setp.lt.and.f32 p|q, a, b, c` and `set.lt.u32.f32 d, a, b`."""
    kind = types[-1]
    destination, a, b, *also = instruction.operands
    condition = convert.comparison([mod for mod in mods if mod not in convert.COMBINE], kind)
    first, second = builder.read(a, kind), builder.read(b, kind)
    guard = builder.guard(instruction)
    if instruction.parts[0] == "set":
        return _computed(builder, instruction, _set(condition, types[0], kind))
    names = str(destination).split("|")
    write = builder.write(names[0], PRED, guard)
    if not also and len(names) == 1:
        return lambda frame: write(frame, condition(first(frame.registers), second(frame.registers)))
    combine = next((convert.COMBINE[mod] for mod in mods if mod in convert.COMBINE), lambda outcome, _: outcome)
    other = builder.read(also[0], PRED) if also else first
    opposite = builder.write(names[1] if len(names) == 2 else "_", PRED, guard)

    def both(frame: Frame) -> None:
        outcome = condition(first(frame.registers), second(frame.registers))
        third = other(frame.registers)
        write(frame, combine(outcome, third))
        opposite(frame, combine(~outcome, third))

    return both


def _set(condition: alu.Compute, target: Type, source: Type) -> alu.Operation:
    true = target.number.type(1 if target.is_float else -1 if target.kind == "s" else 2**target.bits - 1)
    zero = target.number.type(0)
    return alu.Operation(lambda a, b: np.where(condition(a, b), true, zero), target, (source, source))
