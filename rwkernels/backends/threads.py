"""How many threads a backend may use on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_limit: ContextVar[int | None] = ContextVar("threads of a backend", default=None)


def threads() -> int:
    """How many threads may be used: what `limited_to` says here, else as many as torch uses."""
    return _limit.get() or torch.get_num_threads()


@contextmanager
def limited_to(count: int) -> Iterator[None]:
    """`count` threads in this thread alone; `torch.set_num_threads` would reach threads yet to start."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)
