"""Bytes of global memory that a computation reads and writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes read and bytes written; a fraction where they are given per pixel."""

    read: float = 0
    written: float = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.read + other.read, self.written + other.written)

    def __truediv__(self, count: float) -> Traffic:
        return Traffic(self.read / count, self.written / count)

    @property
    def total(self) -> float:
        return self.read + self.written


@dataclass(frozen=True)
class Moved:
    """Traffic of a forward and of the backward that follows."""

    forward: Traffic
    backward: Traffic

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total

    def __truediv__(self, count: float) -> Moved:
        return Moved(self.forward / count, self.backward / count)
