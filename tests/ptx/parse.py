"""Reads the text of a PTX module into instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*([^{]*)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+|\.global\s+|\.shared\s+|\.align\s+\d+\s+)*([\w$]+)")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
NUMBERED = re.compile(r"(.*)<(\d+)>")
LABEL = re.compile(r"([\w$]+):\s*(.*)", re.DOTALL)
GUARDED = re.compile(r"@(!?)([%\w$]+)\s+(.*)", re.DOTALL)
LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]*)"', re.MULTILINE)
REQUIRED_THREADS = re.compile(r"\.reqntid\s+(\d+)")


@dataclass(frozen=True)
class Address:
    """`[base + offset]`, where the base is a register, a symbol or nothing."""

    base: str | None
    offset: int


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`, or one operand where an instruction takes either."""

    parts: tuple[str, ...]


Operand = str | Address | Vector


@dataclass
class Instruction:
    """One statement, with its line in the PTX and the line of the kernel that it came from."""

    line: int
    text: str
    source: str
    opcode: str
    operands: list[Operand]
    guard: str | None = None
    negated: bool = False

    @cached_property
    def parts(self) -> list[str]:
        """The dotted parts of the opcode, without hints to the caches, which change no value."""
        pieces = re.split(r"\.(?!:)", self.opcode)
        return [piece for piece in pieces if not re.match(r"L[12]::|cache_hint", piece)]


@dataclass
class Kernel:
    """An entry point. `labels` gives the index of the instruction that follows each label."""

    name: str
    parameters: dict[str, str]
    threads: int
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def _split_operands(text: str) -> list[str]:
    """Splits at the commas that are in no bracket."""
    pieces, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if piece.strip()]


def _address(text: str) -> Address:
    base, offset = None, 0
    for piece in re.findall(r"[+-]?\s*[%\w$]+", text):
        piece = piece.replace(" ", "")
        if re.fullmatch(r"[+-]?(0x[0-9a-fA-F]+|\d+)", piece):
            offset += int(piece, 0)
        elif base is None:
            base = piece.lstrip("+")
        else:
            raise ValueError(f"two registers in the address [{text}]")
    return Address(base, offset)


class _Body:
    """Collects the statements of one kernel; blocks of inline assembly may declare registers of their own."""

    def __init__(self, kernel: Kernel, files: dict[str, str]) -> None:
        self.kernel = kernel
        self.files = files
        self.source = ""
        self.scopes: list[dict[str, str]] = [{}]
        self.blocks = 0

    def operand(self, text: str) -> Operand:
        if text.startswith("["):
            address = _address(text[1:-1])
            return Address(self.name(address.base), address.offset) if address.base else address
        if text.startswith("{"):
            return Vector(tuple(self.name(part) for part in _split_operands(text[1:-1])))
        return self.name(text)

    def name(self, text: str) -> str:
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        return text

    def declare(self, kind: str, names: str) -> None:
        for name in _split_operands(names):
            numbered = NUMBERED.fullmatch(name)
            expanded = [f"{numbered[1]}{i}" for i in range(int(numbered[2]))] if numbered else [name]
            for each in expanded:
                unique = each if len(self.scopes) == 1 else f"{each}@{self.blocks}"
                self.scopes[-1][each] = unique
                self.kernel.registers[unique] = kind

    def statement(self, line: int, text: str) -> None:
        if declared := REGISTERS.match(text):
            self.declare(declared[1], declared[2])
        elif not text.startswith("."):
            self.kernel.instructions.append(self.instruction(line, text))

    def instruction(self, line: int, text: str) -> Instruction:
        guard, negated, rest = None, False, text
        if guarded := GUARDED.match(text):
            negated, guard, rest = bool(guarded[1]), self.name(guarded[2]), guarded[3]
        opcode, *operands = rest.split(None, 1)
        parsed = [self.operand(piece) for piece in _split_operands(operands[0])] if operands else []
        return Instruction(line, " ".join(text.split()), self.source, opcode, parsed, guard, negated)

    def read(self, lines: list[str], first: int) -> None:
        """Reads lines up to the brace that ends the kernel; a statement may go over several."""
        pending, start = "", first
        for number, raw in enumerate(lines, first):
            text = re.sub(r"/\*.*?\*/", "", raw.split("//")[0]).strip()
            if location := LOCATION.match(text):
                self.source = f"{self.files.get(location[1], '?')}:{location[2]}"
                continue
            while text:
                if not pending:
                    start, text = number, self._between_statements(text)
                    if not self.scopes:
                        return
                statement, semicolon, text = text.partition(";")
                pending, text = f"{pending} {statement}".strip(), text.strip()
                if semicolon:
                    self.statement(start, pending)
                    pending = ""

    def _between_statements(self, text: str) -> str:
        """Takes the labels and the braces of blocks that `text` begins with, and returns the rest."""
        while text and self.scopes:
            label = LABEL.match(text)
            if text[0] == "{":
                self.blocks += 1
                self.scopes.append({})
                text = text[1:].strip()
            elif text[0] == "}":
                self.scopes.pop()
                text = text[1:].strip()
            elif label is not None:
                self.kernel.labels[label[1]] = len(self.kernel.instructions)
                text = label[2]
            else:
                break
        return text


@lru_cache(maxsize=256)
def parse(text: str) -> Kernel:
    """The entry point of a module that has one."""
    entry = ENTRY.search(text)
    if entry is None:
        raise ValueError("the PTX has no .entry")
    parameters = {name: kind for kind, name in PARAMETER.findall(entry[2])}
    threads = REQUIRED_THREADS.search(entry[3])
    if threads is None:
        raise ValueError("the PTX does not say .reqntid")
    kernel = Kernel(entry[1], parameters, int(threads[1]))
    body = _Body(kernel, dict(FILE.findall(text)))
    body.read(text[entry.end() :].split("\n"), text.count("\n", 0, entry.end()) + 1)
    return kernel
