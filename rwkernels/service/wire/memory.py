"""Answers in memory that service and client share, where both are on one machine (Linux alone).

With a request of a stream, a client may name a slot. The service then writes the answer into the memory of that slot, a
`memfd`, and says where it is: `/proc/PROCESS/fd/DESCRIPTOR`, under a name that nobody else can have. The client maps it
once, and names the slot again when the answer is no longer in use; it may then leave the labels there. Where it cannot
map it (another container, another user), it asks again without a slot.

Nothing appears in a file system, so that nothing is left behind, whoever dies. The kernel lets processes of the same
user open the memory and nobody else; its size is sealed, so that no process can pull it away under another.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
SLOTS = 64
"""Of one stream, at most."""
_NAME = re.compile(r"rwkernels-[0-9a-f]{32}")


class OutOfReachError(Exception):
    """The memory cannot be opened from this process."""


@dataclass(frozen=True)
class Place:
    """Where the memory of a slot is."""

    process: int
    descriptor: int
    name: str

    @classmethod
    def read(cls, header: Any) -> Place | None:
        """The place that a header tells, or None if it tells none."""
        if not isinstance(header, Mapping) or header.keys() != {"process", "descriptor", "name"}:
            return None
        process, descriptor, name = header["process"], header["descriptor"], header["name"]
        whole = all(type(number) is int and 0 <= number < 2**31 for number in (process, descriptor))
        return cls(process, descriptor, name) if whole and isinstance(name, str) and _NAME.fullmatch(name) else None

    def header(self) -> dict[str, Any]:
        """The fields as they are sent."""
        return {"process": self.process, "descriptor": self.descriptor, "name": self.name}

    def map(self) -> mmap.mmap:
        """Its memory.

        Raises:
            OutOfReachError: It is not there, or not for this process.
        """
        link = f"/proc/{self.process}/fd/{self.descriptor}"
        descriptor = -1
        try:
            if self._is(link):  # nothing else is opened
                descriptor = os.open(link, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
                if self._is(f"/proc/self/fd/{descriptor}"):
                    return mmap.mmap(descriptor, 0)
        except (OSError, ValueError) as error:
            raise OutOfReachError(link) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        raise OutOfReachError(link)

    def _is(self, link: str) -> bool:
        return os.readlink(link) == f"/memfd:{self.name} (deleted)"


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


class SharedMemory:
    """The client's side: which slots of a stream are free, and what the service wrote into the others."""

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
