"""What a kernel can do wrong."""

from __future__ import annotations


class KernelFault(Exception):
    """A kernel did what a GPU would punish, now or some day. `lane` is the index of the first guilty thread."""

    def __init__(self, message: str, lane: int | None = None) -> None:
        super().__init__(message)
        self.lane = lane


class OutOfBounds(KernelFault):
    """An access outside the tensor that its address was derived from, or outside shared memory."""


class Misaligned(KernelFault):
    """An access whose address is no multiple of its width."""


class Uninitialised(KernelFault):
    """A load of shared memory that no thread has written."""


class Diverged(KernelFault):
    """Threads that must meet, at a barrier or in a shuffle, do not."""


class Endless(KernelFault):
    """More instructions than the budget allows."""


class Unsupported(KernelFault, NotImplementedError):
    """An instruction that the emulator does not know."""
