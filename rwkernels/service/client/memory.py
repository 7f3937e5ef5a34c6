"""The client's side of memory that a service shares with it: which slots of a stream are free."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from rwkernels.service.wire.memory import SLOTS, Bytes, OutOfReachError, Place


class SharedMemory:
    """Which slots of a stream are free, and what the service wrote into the others."""

    def __init__(self, count: int) -> None:
        self._count = min(count, SLOTS)
        self._free = list(range(self._count))
        self._under_way: set[int] = set()
        self._mapped: dict[int, tuple[Place, mmap.mmap]] = {}
        self._taking = threading.Lock()
        _open.add(self)

    @property
    def kept(self) -> int:
        """How many slots hold maps in use."""
        return self._count - len(self._free) - len(self._under_way)

    def take(self) -> int | None:
        """A free slot, the one that was used last: it may still be in a cache. None if there is none."""
        with self._taking, suppress(IndexError):
            number = self._free.pop()
            self._under_way.add(number)
            return number
        return None

    def give_back(self, number: int) -> None:
        """Frees a slot that the service did not use, and may have no memory for any more."""
        self._mapped.pop(number, None)
        self._under_way.discard(number)
        self._free.append(number)

    def keep(self) -> None:
        """Never uses the slots again whose maps are in use: another process may come to use them too."""
        with self._taking:
            self._free = self._free.copy()  # slots come back to the list of when they were taken

    def leave(self, number: int, parts: Sequence[Bytes]) -> bool:
        """Writes a payload into a slot that was taken; whether there is room for it."""
        if number not in self._mapped:
            return False
        memory = self._mapped[number][1]
        if sum(map(len, parts)) > len(memory):
            return False
        memory.seek(0)
        for part in parts:
            memory.write(part.data)
        return True

    def payload(self, number: int, place: Place, size: int) -> Bytes:
        """The answer in a slot, which is free again when the array and all that use it are gone.

        Raises:
            OutOfReachError: It cannot be mapped into this process.
        """
        kept = self._mapped.get(number)
        if kept is None or kept[0] != place:
            kept = self._mapped[number] = place, place.map()
        if len(kept[1]) < size:
            raise OutOfReachError(f"{len(kept[1])} bytes, expected {size}")
        # Views of an array that has no array as its base keep it, and not what is below it.
        found: Bytes = np.frombuffer(kept[1], np.uint8, size)
        weakref.finalize(found, self._free.append, number).atexit = False
        self._under_way.discard(number)
        return found


_open: weakref.WeakSet[SharedMemory] = weakref.WeakSet()


def _before_fork() -> None:
    for memory in list(_open):
        memory.keep()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_open.clear)  # no stream goes on there
