"""Reading from and adding to a batch or sample, whatever kind of container it is."""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple
from collections.abc import Hashable, Mapping, MutableMapping
from functools import cache
from typing import Any

from rwkernels import checks

Key = str | int


def default_label_key(batch: Any) -> Key:
    """Where labels are if nobody says: second in a tuple or list, under "label" elsewhere."""
    return 1 if isinstance(batch, (tuple, list)) and not is_namedtuple(batch) else "label"


def is_namedtuple(value: Any) -> bool:
    """Whether `value` is a tuple with named fields."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def read(batch: Any, key: Key, argument: str) -> Any:
    """The entry of `batch` at `key`: a mapping's key, a tuple's or list's index, or the name of an attribute.

    `argument` names the caller's argument that holds the key, for the error.
    """
    if isinstance(batch, Mapping):
        if key in batch:
            return batch[key]
        raise ValueError(f"{argument}: expected a key of the batch ({', '.join(map(repr, batch))}), got {key!r}")
    if isinstance(key, int):
        if isinstance(batch, (tuple, list)) and -len(batch) <= key < len(batch):
            return batch[key]
        raise ValueError(f"{argument}: expected an index into the batch, got {key} for {_kind(batch)}")
    if not hasattr(batch, key):
        raise ValueError(f"{argument}: expected an entry or attribute of the batch, got {key!r} for {_kind(batch)}")
    return getattr(batch, key)


def replaced(batch: Any, key: Key, value: Any) -> Any:
    """The batch with another entry at `key`, which it has; the batch itself stays as it is."""
    if isinstance(batch, Mapping):
        return _with_item(batch, key, value)
    if isinstance(key, int):
        entries = list(batch)
        entries[key] = value
        if is_namedtuple(batch):
            return type(batch)._make(entries)
        return entries if isinstance(batch, list) else tuple(entries)
    return _with_attribute(batch, key, value)


def added(batch: Any, key: str, value: Any) -> Any:
    """The batch with one entry more: under `key`, or last in a tuple or list; the batch itself stays as it is."""
    if isinstance(batch, Mapping):
        if batch.get(key) is not None:
            raise ValueError(f"map_key: expected a key that the batch lacks, got {key!r}")
        return _with_item(batch, key, value)
    if is_namedtuple(batch):
        if key in batch._fields:
            return batch._replace(**{key: value})
        kind: Any = type(batch)
        return extended_namedtuple(kind, key)._make((*batch, value))
    if isinstance(batch, tuple):
        return (*batch, value)
    if isinstance(batch, list):
        return [*batch, value]
    return _with_attribute(batch, key, value)


def _kind(batch: Any) -> str:
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    return f"a {type(batch).__name__}{size}"


def _with_item(batch: Mapping[Any, Any], key: Key, value: Any) -> Any:
    if not isinstance(batch, MutableMapping):
        return {**batch, key: value}
    changed = copy.copy(batch)
    changed[key] = value
    return changed


def _with_attribute(batch: Any, key: str, value: Any) -> Any:
    if is_namedtuple(batch):
        return batch._replace(**{key: value})
    if dataclasses.is_dataclass(batch) and any(field.name == key and field.init for field in dataclasses.fields(batch)):
        return dataclasses.replace(batch, **{key: value})  # type: ignore[type-var]
    changed = copy.copy(batch)
    try:
        setattr(changed, key, value)
    except AttributeError as error:  # a frozen dataclass, or one with slots
        raise TypeError(
            f"map_key: expected a batch that takes an attribute {key!r} (give the class such a field), "
            f"got {checks.describe(batch)}"
        ) from error
    return changed


@cache
def extended_namedtuple(base: Hashable, key: str) -> Any:
    """`base` with one field more. Its values can be pickled, although no module holds the class."""
    named: Any = base
    fields: Any = namedtuple(named.__name__, (*named._fields, key))  # type: ignore[misc]
    return type(named.__name__, (fields,), {"__slots__": (), "__reduce__": lambda self: (_extend, (base, key, *self))})


def _extend(base: Any, key: str, *values: Any) -> Any:
    return extended_namedtuple(base, key)._make(values)
