"""Instructions in which the threads of a warp read each other's registers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ptx.faults import Diverged, Unsupported
from ptx.values import Array

WARP = 32
REDUCE = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
}


def check_converged(active: Array, members: Array) -> None:
    """Every member of a warp must execute the instruction together."""
    warps, invited = active.reshape(-1, WARP), members.reshape(-1, WARP)
    absent = invited & ~warps & warps.any(axis=1, keepdims=True)
    if absent.any():
        raise Diverged("a thread of the warp is absent", int(np.flatnonzero(absent)[0]))


def members(mask: Array) -> Array:
    """The threads that a mask of members names."""
    lanes = np.arange(len(mask), dtype=np.uint32) % WARP
    return (mask >> lanes & np.uint32(1)).astype(bool)


def _partners(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether that is within its segment (PTX ISA, shfl.sync)."""
    segment = c >> 8 & 31
    lowest = lane & segment
    limit = lowest | (c & 31 & ~segment)
    b = b & 31
    wanted = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment)}[mode]
    valid = wanted >= limit if mode == "up" else wanted <= limit
    return np.where(valid, wanted, lane), valid


def shuffle_sources(mode: str, b: Array, c: Array) -> tuple[Array, Array]:
    """For each thread the index of the thread that it reads, and its predicate."""
    threads = np.arange(len(b))
    lane, valid = _partners(mode, threads % WARP, b.astype(np.int64), c.astype(np.int64))
    return threads - threads % WARP + lane, valid


@lru_cache(maxsize=1024)
def constant_shuffle(mode: str, b: int, c: int, threads: int) -> tuple[Array, Array]:
    return shuffle_sources(mode, np.full(threads, b), np.full(threads, c))


def reduce(mode: str, values: Array, invited: Array) -> Array:
    """redux.sync: each thread gets the reduction over the members of its warp."""
    if mode not in REDUCE:
        raise Unsupported("unknown reduction")
    result = np.empty_like(values).reshape(-1, WARP)
    for row, present, out in zip(values.reshape(-1, WARP), invited.reshape(-1, WARP), result, strict=True):
        out[:] = REDUCE[mode].reduce(row[present], dtype=values.dtype)
    return result.reshape(-1)


def vote(mode: str, predicate: Array, invited: Array) -> Array:
    """vote.sync: any, all, uni as predicates; ballot as bits."""
    yes, present = predicate.reshape(-1, WARP), invited.reshape(-1, WARP)
    if mode == "ballot":
        bits = ((yes & present) << np.arange(WARP, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
        return np.repeat(bits, WARP)
    some, every = (yes & present).any(axis=1), (yes | ~present).all(axis=1)
    outcome = {"any": some, "all": every, "uni": every | ~some}
    return np.repeat(outcome[mode], WARP)
