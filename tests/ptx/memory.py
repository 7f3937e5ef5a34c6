"""Global and shared memory, with a check of every access.

A kernel never sees the real address of a tensor: each pointer argument gets a range of virtual addresses of its own,
far from the others, so an address tells which argument it was derived from, and running out of one tensor into its
neighbour is caught too. The bounds are those of the tensor, not of the storage that it may be a view of.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ptx.faults import Misaligned, OutOfBounds, Uninitialised
from ptx.values import UNSIGNED, Array

RANGE_BITS = 40  # of virtual addresses, for each argument
PRESERVED = 256  # a virtual address equals the real one modulo this
WIDEST = 32  # bytes that one access can have
SHARED_BASE = 1024  # not 0, so that an address that was never set is caught


@dataclass
class Counts:
    """What the threads of a launch did. An access is that of one thread, whatever its width in bytes."""

    loads: Counter[int] = field(default_factory=Counter)  # accesses by width
    stores: Counter[int] = field(default_factory=Counter)
    atomics: Counter[int] = field(default_factory=Counter)
    loaded: Counter[str] = field(default_factory=Counter)  # bytes by argument
    stored: Counter[str] = field(default_factory=Counter)
    instructions: int = 0  # each counted once for each warp that executes it

    @property
    def loaded_bytes(self) -> int:
        return sum(self.loaded.values())

    @property
    def stored_bytes(self) -> int:
        return sum(self.stored.values())


def _extent(tensor: torch.Tensor) -> int:
    """The bytes from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class Allocation:
    """One pointer argument: the bytes of a tensor, seen from a virtual base address."""

    def __init__(self, name: str, index: int, tensor: torch.Tensor) -> None:
        self.name = name
        self.size = _extent(tensor)
        self.described = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        real = tensor.data_ptr()
        middle = (2 * index + 3) << (RANGE_BITS - 1)  # so that an address before the tensor is in its range too
        self.base = middle + real % PRESERVED
        self.lead = real % WIDEST
        self.keep_alive = tensor
        length = -(-(self.lead + self.size) // WIDEST) * WIDEST
        # Whole words at both ends, so that any dtype can view it; the checks below keep accesses within the tensor.
        whole = (ctypes.c_uint8 * length).from_address(real - self.lead) if self.size else (ctypes.c_uint8 * 0)()
        memory = np.frombuffer(whole, np.uint8)
        self.words = {bits // 8: memory.view(dtype) for bits, dtype in UNSIGNED.items()}

    def describe(self, address: int, width: int) -> str:
        offset = address - self.base
        return f"{width} bytes at byte {offset} of {self.name!r}, a tensor {self.described} of {self.size} bytes"


class GlobalMemory:
    """The allocations of one launch. Its methods take the active threads only: their addresses and their indices."""

    def __init__(self, allocations: list[Allocation | None], counts: Counts) -> None:
        self.allocations = allocations
        self.counts = counts

    def find(self, addresses: Array, lanes: Array, width: int) -> Allocation:
        """The allocation that all these addresses are in, of the first of them."""
        index = int(addresses[0] >> np.uint64(RANGE_BITS)) - 1
        known = 0 <= index < len(self.allocations)
        allocation = self.allocations[index] if known else None
        if allocation is not None:
            offsets = addresses - np.uint64(allocation.base)  # wraps around below the base
            if allocation.size >= width and int(offsets.max()) <= allocation.size - width:
                self._check_alignment(addresses, lanes, width, allocation)
                return allocation
        raise self._explained(addresses, lanes, width)

    def _check_alignment(self, addresses: Array, lanes: Array, width: int, allocation: Allocation) -> None:
        if int(np.bitwise_or.reduce(addresses)) & (width - 1):
            first = int(np.flatnonzero(addresses & np.uint64(width - 1))[0])
            at = allocation.describe(int(addresses[first]), width)
            raise Misaligned(f"{at}: the address is no multiple of {width}", int(lanes[first]))

    def _explained(self, addresses: Array, lanes: Array, width: int) -> OutOfBounds:
        """What is wrong with the first address that is out of bounds."""
        for lane, address in zip(lanes.tolist(), addresses.tolist(), strict=True):
            index = (address >> RANGE_BITS) - 1
            allocation = self.allocations[index] if 0 <= index < len(self.allocations) else None
            if allocation is None:
                return OutOfBounds(f"{width} bytes at address {address:#x}, which belongs to no argument", lane)
            if not 0 <= address - allocation.base <= allocation.size - width:
                return OutOfBounds(f"out of bounds: {allocation.describe(address, width)}", lane)
        raise AssertionError("these addresses are all in bounds")

    def _places(self, addresses: Array, lanes: Array, item: int, count: int) -> Iterator[tuple[Allocation, Any, Array]]:
        """The allocations, the threads that access each, and the indices of their words there [count, threads]."""
        ranges = addresses >> np.uint64(RANGE_BITS)
        alike = bool((ranges == ranges[0]).all())
        for those in [slice(None)] if alike else [np.flatnonzero(ranges == each) for each in np.unique(ranges)]:
            allocation = self.find(addresses[those], lanes[those], item * count)
            offsets = addresses[those] - np.uint64(allocation.base - allocation.lead)
            first = (offsets // np.uint64(item)).astype(np.int64)
            yield allocation, those, first + np.arange(count)[:, None]

    def load(self, addresses: Array, lanes: Array, item: int, count: int) -> Array:
        """`count` words of `item` bytes for each thread, [count, threads]."""
        words = np.empty((count, len(addresses)), UNSIGNED[item * 8])
        for allocation, those, places in self._places(addresses, lanes, item, count):
            self.counts.loaded[allocation.name] += item * places.size
            words[:, those] = allocation.words[item][places]
        self.counts.loads[item * count] += len(addresses)
        return words

    def store(self, addresses: Array, lanes: Array, values: Array) -> None:
        """Stores values [count, threads] of the words' dtype."""
        count, item = len(values), values.dtype.itemsize
        for allocation, those, places in self._places(addresses, lanes, item, count):
            self.counts.stored[allocation.name] += item * places.size
            allocation.words[item][places] = values[:, those]
        self.counts.stores[item * count] += len(addresses)

    def exchange(self, addresses: Array, lanes: Array, item: int, update: list) -> Array:
        """Atomics in the order of the threads: each word becomes `update[thread](word)`; gives the words before."""
        self.counts.atomics[item] += len(addresses)
        before = np.empty(len(addresses), UNSIGNED[item * 8])
        for allocation, those, places in self._places(addresses, lanes, item, 1):
            words = allocation.words[item]
            for lane, place in zip(np.arange(len(addresses))[those].tolist(), places[0].tolist(), strict=True):
                before[lane] = words[place]
                words[place] = update[lane](words[place : place + 1])[0]
        return before


class SharedMemory:
    """The shared memory of CTAs that run together, [CTA, bytes]; knows which bytes were written."""

    def __init__(self, ctas: int, size: int, lane_cta: Array) -> None:
        self.size = size
        self.pitch = -(-size // WIDEST) * WIDEST
        self.start = lane_cta.astype(np.int64) * self.pitch
        self.memory = np.zeros(ctas * self.pitch, np.uint8)
        self.written = np.zeros(ctas * self.pitch, np.uint8)

    def _places(self, addresses: Array, lanes: Array, item: int, count: int) -> Array:
        width = item * count
        offsets = addresses.astype(np.int64) - SHARED_BASE
        if offsets.min() < 0 or offsets.max() > self.size - width:
            first = int(np.flatnonzero((offsets < 0) | (offsets > self.size - width))[0])
            where = f"{width} bytes at byte {offsets[first]} of {self.size} bytes of shared memory"
            raise OutOfBounds(f"out of bounds: {where}", int(lanes[first]))
        if int(np.bitwise_or.reduce(offsets)) & (width - 1):
            first = int(np.flatnonzero(offsets & (width - 1))[0])
            raise Misaligned(f"byte {offsets[first]} of shared memory is no multiple of {width}", int(lanes[first]))
        return (self.start[lanes] + offsets) // item + np.arange(count)[:, None]

    def load(self, addresses: Array, lanes: Array, item: int, count: int) -> Array:
        places = self._places(addresses, lanes, item, count)
        dtype = UNSIGNED[item * 8]
        known = self.written.view(dtype)[places] == dtype.type((1 << item * 8) - 1)
        if not known.all():
            first = int(np.flatnonzero(~known.all(axis=0))[0])
            where = f"{item * count} bytes at byte {int(addresses[first]) - SHARED_BASE} of shared memory"
            raise Uninitialised(f"{where} were never written", int(lanes[first]))
        return self.memory.view(dtype)[places]

    def store(self, addresses: Array, lanes: Array, values: Array) -> None:
        places = self._places(addresses, lanes, values.dtype.itemsize, len(values))
        self.memory.view(values.dtype)[places] = values
        self.written.view(values.dtype)[places] = values.dtype.type((1 << values.dtype.itemsize * 8) - 1)
