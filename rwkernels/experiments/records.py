"""Finished runs on disk: one line of JSON each, appended whole, so that a kill costs no more than the run it hits."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from rwkernels.experiments.configuration import Run, read, tree
from rwkernels.experiments.training import Result

NAME = "runs.jsonl"
PACKED = f"{NAME}.gz"
FORMAT = 1


class RecordError(ValueError):
    """The file of finished runs cannot be used; the message says where and why."""


@dataclass(frozen=True)
class Record:
    """A finished run: its configuration, what it gave, and what it ran on (versions, threads, device)."""

    run: Run
    result: Result
    environment: dict[str, Any]


class _Line(msgspec.Struct):
    """What a line of the file holds."""

    format: int
    key: str
    run: Run
    environment: dict[str, Any]
    result: dict[str, Any]


def append(folder: Path, record: Record) -> None:
    """Adds a finished run: one write of one line, on disk when this returns."""
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _cut_torn_line(descriptor)
        os.write(descriptor, _line(record))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(folder: Path) -> dict[str, Record]:
    """Finished runs by key, of `runs.jsonl`, or of `runs.jsonl.gz` if that is what there is.

    A last line without an end, torn by a kill, is left out.

    Raises:
        RecordError: A line is not what `append` writes.
    """
    path, packed = folder / NAME, folder / PACKED
    if path.exists():
        content = path.read_bytes()
    elif packed.exists():
        path, content = packed, gzip.decompress(packed.read_bytes())
    else:
        return {}
    *lines, _torn = content.split(b"\n")
    found: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            kept = read(_Line, json.loads(line), "it")
            if kept.format != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {kept.format}")
            result = Result(**_numbers(kept.result))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path}, line {number}: expected a finished run, got {error}") from None
        found[kept.run.key] = Record(kept.run, result, kept.environment)
    return found


def packed(records: Iterable[Record]) -> bytes:
    """What `runs.jsonl.gz` holds: the same bytes for the same runs."""
    return gzip.compress(b"".join(_line(record) for record in records), mtime=0)


def _line(record: Record) -> bytes:
    told = _Line(FORMAT, record.run.key, record.run, record.environment, _plain(asdict(record.result)))
    return json.dumps(tree(told), allow_nan=False).encode() + b"\n"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder for one runner. Raises `RecordError` if another one has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f".{NAME}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecordError(f"{folder}: another `rwkernels experiment run` is writing into it") from None
    try:
        yield
    finally:
        lock.release()


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)


def _plain(value: Any) -> Any:
    """JSON knows neither nan nor infinity: null and the word."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


_ROWS = ("dice", "hausdorff", "diagonals", "dice_per_epoch", "loss_per_epoch")


def _numbers(given: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(each) for each in value]
        return math.nan if value is None else float(value)

    return {name: number(value) if name in _ROWS else value for name, value in given.items()}
