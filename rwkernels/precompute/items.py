"""One source, from its file to its item in the store: what every worker does, here or on a cluster."""

from __future__ import annotations

import errno
import math
import threading
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
from rwkernels.backends.threads import limited_to
from rwkernels.data.store import Store, damage, finish, record
from rwkernels.formats import Opened, files, open_labels, whole_labels, write_nifti
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.quantised import encode, rectified_codes
from rwkernels.precompute import shards
from rwkernels.precompute.settings import Settings

# What a file system that is shared says now and then, and may not say again.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENFILE, errno.EMFILE}
_memory = threading.local()


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
        return files.path_of(self.root, self.source)

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


@dataclass(frozen=True)
class Made:
    """The map of a source: `foreground` as codes or float32 `[*S]`, `dense` `[K, *S]`, what a NIfTI file would show.

    `class_max` holds the largest distance of every class, if the map measures any.
    """

    foreground: npt.NDArray[Any] | None = None
    dense: npt.NDArray[np.float32] | None = None
    shown: npt.NDArray[np.float32] | None = None
    class_max: list[float] | None = None
    background: float | None = None


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
    if kept["settings"] != job.settings.as_json():
        return "its settings changed"
    return damage(job.item, kept, contents=True) or "kept"


def _look(job: Job) -> Outcome:
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    found = state(job, files.checksum(job.path)[0])
    status = found if found == "kept" else "build"
    return Outcome(job.source, status, "" if status == "kept" else found, _size(opened.shape, job.settings))


def _largest_label(job: Job) -> Outcome:
    checksum = files.checksum(job.path)[0]
    kept = None if job.rebuild else record(job.item)
    settings = {} if kept is None else kept["settings"]
    same = all(settings.get(name) == getattr(job.settings, name) for name in ("key", "ignore_index"))
    if kept is not None and same and kept["source"]["sha256"] == checksum:
        return Outcome(job.source, "good", largest_label=kept["largest_label"])
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    labels = whole_labels(opened.load())
    return Outcome(job.source, "good", largest_label=_largest(labels, job.settings.ignore_index))


def _build(job: Job) -> Outcome:
    before = files.stamp(job.path)
    checksum, size = files.checksum(job.path)
    if state(job, checksum) == "kept":
        return Outcome(job.source, "kept")
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    needed = _size(opened.shape, job.settings) + math.prod(opened.shape) * (opened.dtype.itemsize + 4)
    if needed > job.max_bytes:
        raise ValueError(f"labels and map: expected at most {job.max_bytes} bytes (--max-bytes), got {needed}")
    labels = whole_labels(opened.load())
    if files.stamp(job.path) != before:
        raise ValueError("the file changed while it was read")
    made = make(labels, opened.spacing or (), job.settings, job.threads, job.device)
    facts = {
        "version": rwkernels.__version__,
        "source": {"path": job.source, "sha256": checksum, "bytes": size},
        "settings": job.settings.as_json(),
        "shape": list(opened.shape),
        "spacing": list(opened.spacing or ()),
        "affine": opened.affine,
        "axes": opened.axes,
        "class_max": made.class_max,
        "background": made.background,
        "largest_label": _largest(labels, job.settings.ignore_index),
    }
    with job.store.writing(job.store.item_name(job.source)) as item:
        _write(item, labels, made, opened, job)
        finish(item, facts)
    return Outcome(job.source, "built", size=_size(opened.shape, job.settings))


def make(labels: npt.NDArray[Any], spacing: tuple[float, ...], settings: Settings, threads: int, device: str) -> Made:
    """The map of the labels of one source, as it is stored."""
    there = torch.from_numpy(labels).to(device)
    class_max = None
    if settings.maps == "rectified":
        codes, class_max = _codes(there, spacing, settings, threads)
        if settings.bits != 32 and not (settings.dense or settings.nifti):
            return Made(codes, class_max=class_max, background=1.0)
    map_ = settings.builder(labels.ndim, threads).of_sample({"spacing": list(spacing)}, there)
    if not isinstance(map_, RectifiedMap):
        dense = map_.cpu().numpy()
        return Made(dense=dense, shown=dense)
    map_ = map_.to("cpu")
    assert not isinstance(map_.background, Tensor)  # of no family that is named
    values = map_.foreground.numpy()
    stored = values if settings.bits == 32 else encode(values, settings.bits)
    if not settings.dense:
        return Made(stored, None, values, class_max, map_.background)
    dense = map_[None].dense()[0].numpy()
    return Made(stored, dense, dense, class_max, map_.background)


def _codes(
    labels: Tensor, spacing: tuple[float, ...], settings: Settings, threads: int
) -> tuple[npt.NDArray[Any], list[float]]:
    """The codes of a rectified map, and the largest distance of every class."""
    with limited_to(threads):
        codes, class_max, _ = rectified_codes(
            labels[None],
            settings.num_classes,
            8 if settings.bits == 8 else 16,
            spacing=spacing,
            ignore_index=settings.ignore_index,
            black_border=settings.black_border,
            spatial_dims=labels.dim(),
            work=_field(labels.numel()) if labels.device.type == "cpu" else None,
        )
    return codes[0].cpu().numpy(), class_max[0].tolist()


def _field(size: int) -> Tensor:
    """Working memory of this thread for a field of distances, kept for the next volume."""
    kept: Tensor | None = getattr(_memory, "field", None)
    if kept is None or kept.numel() < size:
        kept = _memory.field = torch.empty(size)
    return kept


def _write(item: Path, labels: npt.NDArray[Any], made: Made, opened: Opened, job: Job) -> None:
    """Writes the arrays of an item, and NIfTI where it was asked for."""
    settings = job.settings
    item.mkdir()
    side = settings.chunk if labels.ndim > 2 else settings.chunk * 8
    chunks = tuple(min(side, length) for length in labels.shape)
    shards.write(item / "labels", labels, chunks)
    if made.foreground is not None:
        meaning = "" if settings.bits == 32 else f"-code / {(1 << settings.bits) - 1}"
        shards.write(item / "foreground", made.foreground, chunks, meaning)
    if made.dense is not None:
        shards.write(item / "dense", made.dense, (1, *chunks))
    if settings.nifti and made.shown is not None:
        write_nifti(item / "map.nii", made.shown, opened)


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
