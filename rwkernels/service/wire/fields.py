"""The fields of a header, which anybody may have written: every one is checked, and named where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class MalformedError(ValueError):
    """A message that is none of this protocol; its stream is not read further."""


class RefusedError(ValueError):
    """A well-formed request that this service does not take."""


def keys(header: Mapping[str, Any], expected: frozenset[str]) -> None:
    """No key is missing, and none is there that nobody knows."""
    if header.keys() != expected:
        raise MalformedError(f"header: expected the keys {', '.join(sorted(expected))}")


def integer(header: Mapping[str, Any], name: str, lowest: int, beyond: int) -> int:
    """An integer in `[lowest, beyond)`."""
    value = header.get(name)
    if type(value) is not int or not lowest <= value < beyond:
        raise MalformedError(f"{name}: expected an integer in [{lowest}, {beyond})")
    return value


def flag(header: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    value = header[name]
    if not isinstance(value, bool):
        raise MalformedError(f"{name}: expected true or false")
    return value


def choice(header: Mapping[str, Any], name: str, options: Sequence[str]) -> str:
    """One of a few texts."""
    value = header[name]
    if not isinstance(value, str) or value not in options:
        raise MalformedError(f"{name}: expected one of {', '.join(options)}")
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that is none by mistake."""
    return type(value) in (int, float) and abs(value) < 1e300


def at_most(name: str, value: int, limit: int, what: str) -> None:
    """Refuses what is more than a limit."""
    if value > limit:
        raise RefusedError(f"{name}: expected at most {limit} {what} (a limit of the service), got {value}")
