"""Where memory is that service and client share, if both are on one machine (Linux alone).

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
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

Bytes = npt.NDArray[np.uint8]
SLOTS = 64
"""Of one stream, at most."""
_Number = Annotated[int, Meta(ge=0, lt=2**31)]


class OutOfReachError(Exception):
    """The memory cannot be opened from this process."""


class Place(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the memory of a slot is."""

    process: _Number
    descriptor: _Number
    name: Annotated[str, Meta(pattern=r"^rwkernels-[0-9a-f]{32}\Z")]

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
