"""Steps that load, store and update memory."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from ptx.builder import Builder, Frame, Read, Step, value_of
from ptx.faults import Unsupported
from ptx.parse import Address, Instruction, Vector
from ptx.values import Array, Type, type_of

U32, U64 = Type("u", 32), Type("u", 64)
SHARED = ("shared", "shared::cta")
MODIFIERS = {
    *("global", *SHARED, "param", "v2", "v4", "v8"),
    *("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys"),
    *("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"),
}
UPDATES: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min": np.minimum,
    "max": np.maximum,
    "exch": lambda old, new: new + 0 * old,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1),
}


def access_step(builder: Builder, instruction: Instruction) -> Step | None:
    base, *rest = instruction.parts
    if base in ("ld", "ldu", "st", "atom", "red"):
        unknown = {part for part in rest if type_of(part) is None} - MODIFIERS - {*UPDATES, "cas"}
        if unknown:
            raise Unsupported(f"unknown modifier {', '.join(sorted(unknown))}")
    if base == "ld" and "param" in rest:
        return _load_parameter(builder, instruction)
    if base in ("ld", "ldu"):
        return _load(builder, instruction)
    if base == "st":
        return _store(builder, instruction)
    if base in ("atom", "red"):
        return _update(builder, instruction, returns=base == "atom")
    if base == "cp":
        return _copy(builder, instruction)
    return None


def _type(instruction: Instruction) -> Type:
    return next(kind for kind in map(type_of, reversed(instruction.parts)) if kind is not None)


def _is_shared(instruction: Instruction) -> bool:
    parts = instruction.parts
    if "global" in parts:
        return False
    if any(part in SHARED for part in parts):
        return True
    raise Unsupported("an access to a state space other than .global and .shared")


def _count(instruction: Instruction) -> int:
    return next((int(part[1:]) for part in instruction.parts if part in ("v2", "v4", "v8")), 1)


def _parts(operand: object) -> tuple[str, ...]:
    return operand.parts if isinstance(operand, Vector) else (str(operand),)


def read_address(builder: Builder, address: object) -> Read:
    """A function from the registers to addresses of 64 bits."""
    if not isinstance(address, Address):
        raise Unsupported("an operand that is no address")
    if address.base is None:
        return builder.read(str(address.offset), U64)
    slot = builder.slot(address.base, U64)
    offset = np.uint64(address.offset & (2**64 - 1))
    if builder.held(slot) == U64.raw and not address.offset:
        return lambda registers: registers[slot]
    return lambda registers: registers[slot].astype(np.uint64, copy=False) + offset


def active_lanes(frame: Frame, guard: Read | None) -> Array:
    """The indices of the threads that execute an instruction under its guard."""
    chosen = frame.active if guard is None else frame.active & guard(frame.registers)
    return np.flatnonzero(chosen)


def _load_parameter(builder: Builder, instruction: Instruction) -> Step:
    destination, address = instruction.operands
    if not isinstance(address, Address) or address.offset or address.base is None:
        raise Unsupported("a parameter that is no scalar")
    kind = _type(instruction)
    signed = kind.kind == "s"  # extends its sign into a wider register
    held = kind if signed else Type("b", kind.bits)
    write = builder.write(_parts(destination)[0], held, builder.guard(instruction))

    def reader(name: str) -> Read:
        return builder.read(value_of(name), kind) if signed else builder.raw(value_of(name), kind)

    if address.base in builder.addresses:
        read = reader(address.base)
        return lambda frame: write(frame, read(frame.registers))
    readers = {at: reader(name) for name, at in builder.addresses.items()}
    where, guard = read_address(builder, address), builder.guard(instruction)

    def load(frame: Frame) -> None:
        """What the address of a parameter points to, which may be another one in every thread."""
        lanes = active_lanes(frame, guard)
        addresses = where(frame.registers)[lanes]
        found = np.zeros(len(frame.active), held.number)
        for at in np.unique(addresses).tolist():
            if at not in readers:
                raise Unsupported("a parameter that is no scalar")
            those = lanes[addresses == at]
            found[those] = readers[at](frame.registers)[those]
        write(frame, found)

    return load


def _fetch(frame: Frame, shared: bool, addresses: Array, lanes: Array, item: int, count: int) -> Array:
    return (frame.shared if shared else frame.memory).load(addresses, lanes, item, count)


def _load(builder: Builder, instruction: Instruction) -> Step:
    destination, address = instruction.operands[:2]
    kind, count, shared = _type(instruction), _count(instruction), _is_shared(instruction)
    parts = _parts(destination)
    if len(parts) != count:
        raise Unsupported(f"{len(parts)} registers for {count} words")
    number = kind.number if kind.kind == "s" else kind.raw  # only s8 and s16 extend their sign
    where, guard = read_address(builder, address), builder.guard(instruction)
    slots = [builder.slots[part] if part != "_" else -1 for part in parts]
    item = kind.raw.itemsize

    def load(frame: Frame) -> None:
        lanes = active_lanes(frame, guard)
        if not len(lanes):
            return
        registers = frame.registers
        words = _fetch(frame, shared, where(registers)[lanes], lanes, item, count).view(number)
        for slot, word in zip(slots, words, strict=True):
            if slot >= 0:
                registers[slot] = scatter(registers[slot], lanes, word)

    return load


def scatter(old: Array, lanes: Array, values: Array) -> Array:
    """The register `old` with new values in some threads."""
    if len(lanes) == len(old):
        return values.astype(old.dtype, copy=False)
    new = old.copy()
    new[lanes] = values.astype(old.dtype, copy=False)
    return new


def _store(builder: Builder, instruction: Instruction) -> Step:
    address, source = instruction.operands[:2]
    kind, shared = _type(instruction), _is_shared(instruction)
    parts = _parts(source)
    if len(parts) != _count(instruction):
        raise Unsupported(f"{len(parts)} registers for {_count(instruction)} words")
    where, guard = read_address(builder, address), builder.guard(instruction)
    reads = [builder.raw(part, kind) for part in parts]

    def store(frame: Frame) -> None:
        lanes = active_lanes(frame, guard)
        if not len(lanes):
            return
        addresses = where(frame.registers)[lanes]
        values = np.stack([read(frame.registers)[lanes] for read in reads])
        (frame.shared if shared else frame.memory).store(addresses, lanes, values)

    return store


def _update(builder: Builder, instruction: Instruction, returns: bool) -> Step:
    """atom and red, on global memory."""
    if _is_shared(instruction):
        raise Unsupported("an atomic on shared memory")
    operands = list(instruction.operands)
    destination = _parts(operands.pop(0))[0] if returns else "_"
    where, guard, kind = read_address(builder, operands[0]), builder.guard(instruction), _type(instruction)
    name = next((part for part in instruction.parts if part in (*UPDATES, "cas")), None)
    if name is None or kind.kind == "bf" or kind.count != 1:
        raise Unsupported("unknown atomic")
    sources = [builder.read(_parts(each)[0], kind) for each in operands[1:]]
    slot, number = builder.slots.get(destination, -1), kind.number

    def swapped(old: Array, expected: Array, new: Array) -> Array:
        return np.where(old == expected, new, old)

    function = swapped if name == "cas" else UPDATES[name]

    def applied(values: tuple[np.generic, ...]) -> Callable[[Array], Array]:
        return lambda word: function(word.view(number), *values).astype(number).view(kind.raw)

    def update(frame: Frame) -> None:
        lanes = active_lanes(frame, guard)
        if not len(lanes):
            return
        chosen = [read(frame.registers)[lanes] for read in sources]
        updates = [applied(values) for values in zip(*chosen, strict=True)]
        before = frame.memory.exchange(where(frame.registers)[lanes], lanes, kind.raw.itemsize, updates)
        if slot >= 0:
            frame.registers[slot] = scatter(frame.registers[slot], lanes, before)

    return update


def _copy(builder: Builder, instruction: Instruction) -> Step:
    """cp.async, at once: nothing here can see a copy that came too early. Bytes past the source's size are zero."""
    if "async" not in instruction.parts or "bulk" in instruction.parts:
        raise Unsupported("unknown copy")
    if "global" not in instruction.parts:
        return lambda frame: None  # commit_group, wait_group, wait_all
    to, source, width, *size = instruction.operands
    into, where, guard = read_address(builder, to), read_address(builder, source), builder.guard(instruction)
    total = builder.constant(width)
    limit = builder.read(size[0], U32) if size else builder.read(str(width), U32)

    def copy(frame: Frame) -> None:
        lanes = active_lanes(frame, guard)
        if not len(lanes):
            return
        targets, sources = into(frame.registers)[lanes], where(frame.registers)[lanes]
        words = np.zeros((total // 4, len(lanes)), np.uint32)
        wanted = limit(frame.registers)[lanes]
        if not np.isin(wanted, (0, total)).all():
            raise Unsupported("cp.async of a part of its width")
        some = wanted == total
        if some.any():
            words[:, some] = frame.memory.load(sources[some], lanes[some], 4, total // 4)
        frame.shared.store(targets, lanes, words)

    return copy
