"""A stand-in for `triton.language` that follows indices and masks and forgets values (see `kernel_traffic`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

_TYPE = re.compile(r"(bfloat|float|u?int)\d+")
_KINDS = {"fp": "float", "bf": "bfloat", "i": "int", "u": "uint"}  # of a kernel's signature
_TOUCH_MEMORY_OTHERWISE = ("atomic", "make_block_ptr", "tensor_descriptor", "inline_asm", "async")


class Index(np.ndarray):
    """An array of integers or truth values with the methods of a Triton tensor that change no value."""

    def to(self, _: Any = None, **__: Any) -> Index:
        return self

    def broadcast_to(self, *shape: Any) -> Index:
        return np.broadcast_to(self, shape if isinstance(shape[0], int) else shape[0]).view(Index)


class Unknown:
    """A value that depends on what was loaded: whatever is done with it gives an unknown value again."""

    __array_ufunc__ = None  # NumPy leaves operators with it to this class

    def __call__(self, *_: Any, **__: Any) -> Unknown:
        return self

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _: Any) -> Unknown:
        return self

    def __bool__(self) -> NoReturn:
        raise ValueError("the kernel branches on a value it loaded: its traffic depends on the data")


def _unknown(self: Unknown, *_: Any) -> Unknown:
    return self


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_OTHERS = ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "invert", "abs")
for _name in [*_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC), *_OTHERS]:
    setattr(Unknown, f"__{_name}__", _unknown)
Unknown.__hash__ = object.__hash__  # type: ignore[method-assign]


class Pointer:
    """A pointer argument of a kernel, of a kind like "*fp32", moved by some elements."""

    __array_ufunc__ = None

    def __init__(self, name: str, kind: str, offset: Any = 0) -> None:
        self.name, self.kind, self.offset = name, kind, offset
        found = re.fullmatch(r"\*(fp|bf|i|u)(\d+)", kind)
        if not found:
            raise ValueError(f"{name}: unknown element type {kind}")
        self.element_bytes = max(int(found[2]) // 8, 1)
        self.dtype = SimpleNamespace(element_ty=f"{_KINDS[found[1]]}{found[2]}")

    def __add__(self, offset: Any) -> Pointer:
        if isinstance(offset, Unknown):
            raise ValueError(f"{self.name}: an address depends on a value that was loaded")
        return Pointer(self.name, self.kind, self.offset + offset)

    __radd__ = __add__


class IndexLanguage:
    """What kernels see as `tl`. Types are their names."""

    def __init__(self) -> None:
        self._touched: dict[tuple[str, bool, int], NDArray[np.bool_]] = {}
        self._element_bytes: dict[str, int] = {}
        self._program: tuple[int, ...] = (0, 0, 0)
        self._pass = 0

    def start(self, program: tuple[int, ...]) -> None:
        """Starts a program of the grid."""
        self._program, self._pass = program, 0

    def bytes_touched(self) -> tuple[int, int]:
        """Bytes read and written so far, each element once in every pass."""
        totals = [0, 0]
        for (name, is_store, _), elements in self._touched.items():
            totals[is_store] += int(np.count_nonzero(elements)) * self._element_bytes[name]
        return totals[0], totals[1]

    def load(self, pointer: Pointer, mask: Any = None, *_: Any, **__: Any) -> Unknown:
        self._touch(pointer, mask, is_store=False)
        return Unknown()

    def store(self, pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> None:
        self._touch(pointer, mask, is_store=True)

    def _touch(self, pointer: Pointer, mask: Any, is_store: bool) -> None:
        offsets = np.asarray(pointer.offset)
        if mask is not None and not isinstance(mask, Unknown):  # where the data decide, every lane counts
            offsets, mask = np.broadcast_arrays(offsets, np.asarray(mask, bool))
            offsets = offsets[mask]
        if not offsets.size:
            return
        key = (pointer.name, is_store, self._pass)
        self._element_bytes[pointer.name] = pointer.element_bytes
        elements = self._touched.get(key, np.zeros(0, bool))
        beyond = int(offsets.max()) + 1 - elements.size
        if beyond > 0:
            elements = np.concatenate([elements, np.zeros(max(beyond, elements.size), bool)])
            self._touched[key] = elements
        if int(offsets.min()) < 0:
            raise ValueError(f"{pointer.name}: an address lies before the tensor")
        elements[offsets] = True

    def range(self, *bounds: Any, **_: Any) -> Iterator[int]:
        self._pass += 1
        yield from range(*map(int, bounds))
        self._pass += 1

    static_range = range

    def program_id(self, axis: int) -> int:
        return self._program[axis]

    def arange(self, start: int, end: int) -> Index:
        return np.arange(start, end, dtype=np.int64).view(Index)

    def full(self, shape: Any, value: Any, _: Any = None) -> Any:
        return Unknown() if isinstance(value, float) else np.full([int(size) for size in shape], value).view(Index)

    def cast(self, value: Any, _: Any) -> Any:
        return value

    def broadcast_to(self, value: Any, *shape: Any) -> Any:
        return value.broadcast_to(*shape) if isinstance(value, Index) else Unknown()

    def where(self, condition: Any, first: Any, second: Any) -> Any:
        return _known(np.where, condition, first, second)

    def minimum(self, first: Any, second: Any, *_: Any, **__: Any) -> Any:
        return _known(np.minimum, first, second)

    def maximum(self, first: Any, second: Any, *_: Any, **__: Any) -> Any:
        return _known(np.maximum, first, second)

    def cdiv(self, value: int, divisor: int) -> int:
        return -(-value // divisor)

    def __getattr__(self, name: str) -> Any:
        if _TYPE.fullmatch(name):
            return name
        if any(part in name for part in _TOUCH_MEMORY_OTHERWISE):
            raise NotImplementedError(f"tl.{name}: not counted")
        return Unknown()


def _known(function: Any, *values: Any) -> Any:
    if any(isinstance(value, Unknown) for value in values):
        return Unknown()
    return np.asarray(function(*values)).view(Index)
