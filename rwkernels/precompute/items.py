"""One source, from its file to its item in the store: what every worker does, here or on a cluster."""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import rwkernels
from rwkernels.compact import RectifiedMap
from rwkernels.formats import Opened, open_labels, scans, whole_labels
from rwkernels.precompute import shards, sources
from rwkernels.precompute.settings import Settings
from rwkernels.precompute.store import Store, damage, finish, record
from rwkernels.quantised import encode

# What a file system that is shared says now and then, and may not say again.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENFILE, errno.EMFILE}


@dataclass(frozen=True)
class Job:
    """What a worker has to know; everything else it reads from the two folders itself."""

    source: str
    root: Path
    store: Store
    settings: Settings
    max_bytes: int
    threads: int = 1
    device: str = "cpu"
    rebuild: bool = False
    raise_passing: bool = False  # errors that may pass are raised, for somebody who tries again
    version: str = rwkernels.__version__

    @property
    def path(self) -> Path:
        """The file of the source."""
        return sources.path_of(self.root, self.source)

    @property
    def item(self) -> Path:
        """The folder of the item."""
        return self.store.root / self.store.item_name(self.source)


@dataclass(frozen=True)
class Outcome:
    """What came of a source: `built`, `kept`, `missing` or `stale` (a dry run), `good` (verified) or `failed`."""

    source: str
    status: str
    reason: str = ""
    size: int = 0  # bytes
    largest_label: int = -1
    seconds: float = 0.0


def build(job: Job) -> Outcome:
    """Makes the item of a source, unless it is there and whole. Never raises for what is wrong with the source."""
    return guarded(job, _build)


def look(job: Job) -> Outcome:
    """What `build` would do, and how many bytes its item would have before they are compressed."""
    return guarded(job, _look)


def largest_label(job: Job) -> Outcome:
    """The largest label of a source: from its item if that is of this source, else from the labels."""
    return guarded(job, _largest_label)


def guarded(job: Job, function: Callable[[Job], Outcome]) -> Outcome:
    start = time.perf_counter()
    if job.version != rwkernels.__version__:
        reason = f"the worker has rwkernels {rwkernels.__version__}, the command {job.version}"
        return Outcome(job.source, "failed", reason)
    try:
        found = function(job)
    except MemoryError:
        return Outcome(job.source, "failed", "out of memory")
    except Exception as error:  # whatever a reader raises of a file that is no label map
        if job.raise_passing and isinstance(error, OSError) and error.errno in _PASSING:
            raise
        return Outcome(job.source, "failed", describe(error))
    return replace(found, seconds=time.perf_counter() - start)


def describe(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    named = isinstance(error, (ValueError, OSError)) and text
    return text if named else f"{type(error).__name__}: {text}".rstrip(": ")


def state(job: Job, checksum: str) -> str:
    """`kept` if the item of a source with this checksum is there, made as it should be, and whole.

    Else why it has to be built.
    """
    if job.rebuild:
        return "asked for"
    kept = record(job.item)
    if kept is None or job.item.is_symlink():
        return "missing" if not job.item.exists() else "its metadata are damaged"
    if kept["source"]["sha256"] != checksum:
        return "its source changed"
    if kept["settings"] != json.loads(json.dumps(job.settings.as_json())):
        return "its settings changed"
    return damage(job.item, kept, contents=True) or "kept"


def _look(job: Job) -> Outcome:
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    found = state(job, sources.checksum(job.path)[0])
    status = found if found == "kept" else "build"
    return Outcome(job.source, status, "" if status == "kept" else found, _size(opened.shape, job.settings))


def _largest_label(job: Job) -> Outcome:
    checksum = sources.checksum(job.path)[0]
    kept = None if job.rebuild else record(job.item)
    settings = {} if kept is None else kept["settings"]
    same = all(settings.get(name) == getattr(job.settings, name) for name in ("key", "ignore_index"))
    if kept is not None and same and kept["source"]["sha256"] == checksum:
        return Outcome(job.source, "good", largest_label=kept["largest_label"])
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    labels = whole_labels(opened.load())
    return Outcome(job.source, "good", largest_label=_largest(labels, job.settings.ignore_index))


def _build(job: Job) -> Outcome:
    before = sources.stamp(job.path)
    checksum, size = sources.checksum(job.path)
    if state(job, checksum) == "kept":
        return Outcome(job.source, "kept")
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    needed = _size(opened.shape, job.settings) + math.prod(opened.shape) * (opened.dtype.itemsize + 4)
    if needed > job.max_bytes:
        raise ValueError(f"labels and map: expected at most {job.max_bytes} bytes (--max-bytes), got {needed}")
    labels = whole_labels(opened.load())
    if sources.stamp(job.path) != before:
        raise ValueError("the file changed while it was read")
    map_, class_max = make(labels, opened.spacing or (), job.settings, job.threads, job.device)
    facts = {
        "version": rwkernels.__version__,
        "source": {"path": job.source, "sha256": checksum, "bytes": size},
        "settings": job.settings.as_json(),
        "shape": list(opened.shape),
        "spacing": list(opened.spacing or ()),
        "affine": opened.affine,
        "axes": opened.axes,
        "class_max": class_max,
        "background": map_.background if isinstance(map_, RectifiedMap) else None,
        "largest_label": _largest(labels, job.settings.ignore_index),
    }
    with job.store.writing(job.store.item_name(job.source)) as item:
        _write(item, labels, map_, opened, job)
        finish(item, facts)
    return Outcome(job.source, "built", size=_size(opened.shape, job.settings))


def make(
    labels: npt.NDArray[Any], spacing: tuple[float, ...], settings: Settings, threads: int, device: str
) -> tuple[RectifiedMap | Tensor, list[float] | None]:
    """The map of the labels of one source, and the largest distance of every class if it measures any."""
    builder = settings.builder(labels.ndim, threads)
    there = torch.from_numpy(labels).to(device)
    map_ = builder.of_sample({"spacing": list(spacing)}, there)
    map_ = map_.to("cpu") if isinstance(map_, RectifiedMap) else map_.cpu()
    class_max = None
    if isinstance(map_, RectifiedMap) and settings.maps == "rectified":
        class_max = _class_max(labels, map_.foreground.numpy(), settings, spacing)
    return map_, class_max


def _class_max(
    labels: npt.NDArray[Any], foreground: npt.NDArray[Any], settings: Settings, spacing: tuple[float, ...]
) -> list[float]:
    """What `data.class_max` gives, without a second transform: a class is farthest from others where its map is -1."""
    places = np.flatnonzero(foreground.reshape(-1) == -1)
    found = [0.0] * settings.num_classes
    classes, first = np.unique(labels.reshape(-1)[places], return_index=True)
    for label, at in zip(classes.tolist(), places[first].tolist(), strict=True):
        place = tuple(int(index) for index in np.unravel_index(at, labels.shape))
        away = distance_at(labels, place, spacing, settings.black_border)
        found[label] = 1.0 if math.isinf(away) else float(np.float32(away))
    return found


def distance_at(
    labels: npt.NDArray[Any], place: tuple[int, ...], spacing: tuple[float, ...], black_border: bool = False
) -> float:
    """Distance of one pixel to the nearest of another label: looked for in a box; inf if there is none.

    The box reaches as far as the nearest one on the lines along the axes; where these meet none, it grows.
    """
    border = math.inf
    if black_border:
        border = min(min(at + 1, side - at) * s for at, side, s in zip(place, labels.shape, spacing, strict=True))
    reach = min(border, *(_along(labels, place, axis) * step for axis, step in enumerate(spacing)))
    if math.isinf(reach):
        reach = 8 * min(spacing)
    while True:
        half = [int(reach / step) + 1 for step in spacing]
        low = [max(at - h, 0) for at, h in zip(place, half, strict=True)]
        high = [min(at + h + 1, side) for at, h, side in zip(place, half, labels.shape, strict=True)]
        box = labels[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))]
        others = np.nonzero(box != labels[place])
        squares = sum(
            ((index + start - at) * step) ** 2
            for index, start, at, step in zip(others, low, place, spacing, strict=True)
        )
        nearest = min(math.sqrt(np.min(squares)) if others[0].size else math.inf, border)
        if nearest <= reach or box.shape == labels.shape:  # nothing outside of the box is nearer than `reach`
            return nearest
        reach *= 2


def _along(labels: npt.NDArray[Any], place: tuple[int, ...], axis: int) -> float:
    """Pixels to the nearest of another label on the line through one along an axis; inf if there is none."""
    index: list[Any] = list(place)
    index[axis] = slice(None)
    line = labels[tuple(index)]
    others = np.flatnonzero(line != labels[place])
    return float(np.abs(others - place[axis]).min()) if others.size else math.inf


def _write(item: Path, labels: npt.NDArray[Any], map_: RectifiedMap | Tensor, opened: Opened, job: Job) -> None:
    """Writes the arrays of an item, and NIfTI where it was asked for."""
    settings = job.settings
    item.mkdir()
    side = settings.chunk if labels.ndim > 2 else settings.chunk * 8
    chunks = tuple(min(side, length) for length in labels.shape)
    shards.write(item / "labels", labels, chunks)
    if isinstance(map_, RectifiedMap):
        values, meaning = map_.foreground.numpy(), ""
        if settings.bits != 32:
            values, meaning = encode(values, settings.bits), f"-code / {(1 << settings.bits) - 1}"
        shards.write(item / "foreground", values, chunks, meaning)
    dense = _dense(map_) if settings.dense or not settings.compact else None
    if dense is not None:
        shards.write(item / "dense", dense, (1, *chunks))
    if settings.nifti:
        shown = map_.foreground.numpy() if dense is None and isinstance(map_, RectifiedMap) else dense
        assert shown is not None
        scans.write_nifti(item / "map.nii", shown, opened)


def _dense(map_: RectifiedMap | Tensor) -> npt.NDArray[np.float32]:
    values = map_[None].dense()[0] if isinstance(map_, RectifiedMap) else map_
    found: npt.NDArray[np.float32] = values.numpy()
    return found


def _size(shape: tuple[int, ...], settings: Settings) -> int:
    """Bytes of an item before they are compressed, with one byte a label."""
    values = settings.bits // 8 if settings.compact else 0
    if settings.dense or not settings.compact:
        values += 4 * settings.num_classes
    if settings.nifti:
        values += 4 * settings.num_classes if settings.dense or not settings.compact else 4
    return math.prod(shape) * (1 + values)


def _largest(labels: npt.NDArray[Any], ignore_index: int | None) -> int:
    counted = labels if ignore_index is None else labels[labels != ignore_index]
    return int(counted.max()) if counted.size else -1
