"""What the makers of steps share: the state that steps work on, and the way from operands to arrays.

Registers live in a list of arrays, each with one entry for each thread. An array in it is never changed in place, so a
move is an alias. A step is a function of the frame that runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ptx.faults import Unsupported
from ptx.memory import SHARED_BASE, GlobalMemory, SharedMemory
from ptx.parse import Instruction, Kernel, Operand
from ptx.values import Array, Type, decoder, encoder, literal, type_of

SPECIAL = ("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid")
SHARED_SYMBOL = "global_smem"  # Triton's one array of shared memory
PARAMETER = 4096  # bytes from the address of a parameter to that of the next
U32, PRED = Type("u", 32), Type("pred", 8)


def value_of(parameter: str) -> str:
    """The name of the slot that holds what a parameter was given."""
    return f"value of {parameter}"


@dataclass
class Frame:
    """The state of the CTAs that run together. `active` says which threads execute the current step."""

    registers: list[Array]
    active: Array
    full: bool
    memory: GlobalMemory
    shared: SharedMemory


Read = Callable[[list[Array]], Array]
Step = Callable[[Frame], None]


class Builder:
    """Names to slots, operands to readers, results to writers."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.slots: dict[str, int] = {}
        self.kinds: list[Type] = []
        self.constants: dict[int, np.generic] = {}
        for name, kind in kernel.registers.items():
            self.add(name, self.declared(kind))
        for name, kind in kernel.parameters.items():
            self.add(value_of(name), self.declared(kind))
        self.addresses = {name: (1 + index) * PARAMETER for index, name in enumerate(kernel.parameters)}

    @staticmethod
    def declared(kind: str) -> Type:
        found = type_of(kind)
        if found is None:
            raise Unsupported(f"a register of type .{kind}")
        return found

    def add(self, name: str, kind: Type) -> int:
        if name not in self.slots:
            self.slots[name] = len(self.kinds)
            self.kinds.append(kind)
        return self.slots[name]

    def held(self, slot: int) -> np.dtype:
        return self.kinds[slot].raw

    def slot(self, text: str, kind: Type) -> int:
        """The slot of a register, of a parameter's address, or of an immediate operand of that type."""
        if text in self.slots:
            return self.slots[text]
        if text.split(".")[0] in SPECIAL:
            return self.add(text, U32)
        if text == SHARED_SYMBOL:
            text = str(SHARED_BASE)
        if text in self.addresses:
            text = str(self.addresses[text])
        try:
            value = literal(text, kind)
        except ValueError:
            raise Unsupported(f"unknown operand {text}") from None
        slot = self.add(f"{text} as {kind}", Type("b", value.dtype.itemsize * 8) if kind.kind != "pred" else PRED)
        self.constants[slot] = value
        return slot

    def constant(self, operand: Operand) -> int | None:
        """The value of an immediate integer operand."""
        if isinstance(operand, str) and operand not in self.slots and operand.lstrip("-")[:1].isdigit():
            return int(operand, 0)
        return None

    def read(self, operand: Operand, kind: Type) -> Read:
        """A function from the registers to the operand's numbers."""
        if not isinstance(operand, str):
            raise Unsupported(f"unexpected operand {operand}")
        if operand.startswith("!"):
            inner = self.read(operand[1:], kind)
            return lambda registers: ~inner(registers)
        slot = self.slot(operand, kind)
        if kind.kind == "pred" or (not kind.is_float and kind.number == self.held(slot)):
            return lambda registers: registers[slot]
        if kind.kind != "bf" and kind.raw == self.held(slot):
            number = kind.number
            return lambda registers: registers[slot].view(number)
        decode = decoder(kind, self.held(slot))
        return lambda registers: decode(registers[slot])

    def raw(self, operand: Operand, kind: Type) -> Read:
        """A function from the registers to the operand's bits, as many as the type has."""
        return self.read(operand, Type("u", kind.bits * kind.count) if kind.kind != "pred" else kind)

    def write(self, operand: Operand, kind: Type, guard: Read | None) -> Callable[[Frame, Array], None]:
        """A function that puts numbers of that type into a register of the active threads."""
        if not isinstance(operand, str):
            raise Unsupported(f"unexpected operand {operand}")
        if operand == "_":
            return lambda frame, numbers: None
        if operand not in self.slots:
            raise Unsupported(f"unknown register {operand}")
        slot = self.slots[operand]
        encode = encoder(kind, self.held(slot))

        def put(frame: Frame, numbers: Array) -> None:
            value, registers = encode(numbers), frame.registers
            if frame.full and guard is None:
                registers[slot] = value
            else:
                chosen = frame.active if guard is None else frame.active & guard(registers)
                registers[slot] = np.where(chosen, value, registers[slot])

        return put

    def guard(self, instruction: Instruction) -> Read | None:
        if instruction.guard is None:
            return None
        return self.read(("!" if instruction.negated else "") + instruction.guard, PRED)
