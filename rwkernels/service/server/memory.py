"""The service's side of memory that it shares with clients: slots, and the room that they take."""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress

import numpy as np

from rwkernels.service.wire.memory import Bytes, Place


class Slot:
    """Memory of the service, to be read by one client."""

    def __init__(self, size: int) -> None:
        import fcntl  # not everywhere

        name = f"rwkernels-{secrets.token_hex(16)}"
        self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size)
            fcntl.fcntl(
                self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            self.bytes: Bytes = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.place = Place(os.getpid(), self._descriptor, name)

    def close(self) -> None:
        """Lets nobody open it any more. It lasts as long as it is mapped."""
        os.close(self._descriptor)


class Room:
    """How many bytes the slots of all streams may take, and how many slots there may be."""

    def __init__(self, size: int) -> None:
        self.used, self.size = 0, size if hasattr(os, "memfd_create") else 0
        self._slots = 0

    def make(self, size: int) -> Slot | None:
        """A slot of `size` bytes; None if there is no room for it."""
        if not 0 < size <= self.size - self.used or not self._may_open():
            return None
        with suppress(OSError):  # no memory
            found = Slot(size)
            self.used += size
            self._slots += 1
            return found
        return None

    def free(self, slot: Slot) -> None:
        """Gives its room back."""
        self.used -= len(slot.bytes)
        self._slots -= 1
        slot.close()

    def _may_open(self) -> bool:
        """Half of the files that this process may open are for connections. A slot takes two: `mmap` has its own."""
        import resource  # not everywhere

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return most == resource.RLIM_INFINITY or 4 * (self._slots + 1) <= most


class Slots:
    """The slots of one stream. Memory is kept for the next answer: fresh pages cost more than building a map."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._slots: dict[int, Slot] = {}

    def take(self, number: int, size: int) -> Slot | None:
        """Slot `number` with at least `size` bytes; None if there is no room for it."""
        kept = self._slots.get(number)
        if kept is not None and len(kept.bytes) >= size:
            return kept
        if kept is not None:
            self._room.free(self._slots.pop(number))
        found = self._room.make(size)
        if found is not None:
            self._slots[number] = found
        return found

    def sent(self, number: int, size: int) -> memoryview | None:
        """What the client left in slot `number`; None if it has no such memory."""
        kept = self._slots.get(number)
        return kept.bytes.data[:size] if kept is not None and len(kept.bytes) >= size else None

    def close(self) -> None:
        """Gives all of them back."""
        for slot in self._slots.values():
            self._room.free(slot)
        self._slots.clear()
