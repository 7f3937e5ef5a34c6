"""Zarr in, Zarr out: whole or not at all, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask.base import get_scheduler

from rwkernels import __version__, checks
from rwkernels.scale import graph
from rwkernels.scale.large_map import LargeMap
from rwkernels.scale.scratch import Scratch, compressors
from rwkernels.scale.volumes import MEMORY, as_class_max, as_classes, class_distances, make_job

PathLike = str | os.PathLike[str]
# Reading a chunk of labels more often than this costs more than copying all of them into chunks that fit.
MOST_READS = 2


def distance_transform_zarr(
    source: Any,
    target: Any,
    *,
    spacing: float | Sequence[float] | None = None,
    squared: bool = False,
    black_border: bool = False,
    spatial_dims: int | None = None,
    chunks: Sequence[int] | None = None,
    overwrite: bool = False,
    memory: int | str = MEMORY,
    workers: int = 1,
    scratch: PathLike | None = None,
    backend: str | None = None,
) -> Any:
    """`distance_transform` from a Zarr array to a Zarr array, in bounded memory.

    Args:
        source: Labels: path of a Zarr array, a `zarr.Array`, or a dask array.
        target: Path of the result, which appears when it is complete, or a float32 `zarr.Array` of the same shape to
            write into: block by block, so what an error leaves there is undefined.
        spacing: Size of a pixel, one number or one per spatial axis.
        squared: Write squared distances.
        black_border: Count the outside of the volume as another label.
        spatial_dims: Number of spatial axes; see `distance_transform`.
        chunks: Chunks of the result at a path; those of the labels by default, where they go with `memory`.
        overwrite: Replace what is at the path `target`.
        memory: Bytes that one task may hold.
        workers: Tasks at a time in this process. With a `distributed.Client`, or a scheduler that you have chosen, dask
            decides.
        scratch: Folder for the temporary store; by default the one that the path `target` is in.
        backend: Name of the backend to use instead of the default one. It has to run on the CPU.

    Returns:
        The result, a `zarr.Array`.

    Raises:
        FileExistsError: There is something at the path `target`, and `overwrite` is not set.
        FileNotFoundError: There is no array at the path `source`.
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value.

    Examples:
        >>> import tempfile, numpy as np, zarr
        >>> from rwkernels import scale
        >>> folder = tempfile.mkdtemp()
        >>> labels = zarr.create_array(f"{folder}/labels.zarr", data=np.array([[0, 0, 0, 7]], np.uint8))
        >>> scale.distance_transform_zarr(labels, f"{folder}/distances.zarr")[:]
        array([[3., 2., 1., 1.]], dtype=float32)
    """
    flag = checks.flag("squared", squared)
    with _opened(source, target, overwrite, scratch) as run:
        run.prepare(
            chunks,
            spacing=spacing,
            black_border=black_border,
            spatial_dims=spatial_dims,
            memory=memory,
            backend=backend,
        )
        finish = partial(graph.distance_with, run.job.spacing, flag)
        run.write(graph.field(run.lazy, run.job, finish), workers)
        run.describe({"map": "distance", "squared": flag})
        return run.finished()


def rectified_map_zarr(
    source: Any,
    target: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    class_max: Any = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    chunks: Sequence[int] | None = None,
    overwrite: bool = False,
    memory: int | str = MEMORY,
    workers: int = 1,
    scratch: PathLike | None = None,
    backend: str | None = None,
) -> LargeMap:
    """`rectified_map` from a Zarr array of labels to a Zarr array of the foreground, in bounded memory.

    The largest distance of every class goes into the attributes of the result, so that `open_map` finds all of the map.

    Args:
        source: Labels in `[0, num_classes)`: path of a Zarr array, a `zarr.Array`, or a dask array.
        target: Path of the foreground, or a float32 `zarr.Array`; see `distance_transform_zarr`.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis.
        class_max: Largest distance of every class to divide by; see `rectified_map`.
        ignore_index: Label, possibly negative, of pixels that do not count.
        black_border: Count the outside of the volume as another label.
        spatial_dims: Number of spatial axes; see `distance_transform`.
        chunks: Chunks of the result; see `distance_transform_zarr`.
        overwrite: Replace what is at the path `target`.
        memory: Bytes that one task may hold.
        workers: Tasks at a time in this process.
        scratch: Folder for the temporary store.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The map over the labels and the result.

    Raises:
        FileExistsError: There is something at the path `target`, and `overwrite` is not set.
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range (it is named with its place), or an argument has a wrong value.

    Examples:
        >>> import tempfile, numpy as np, zarr
        >>> from rwkernels import scale
        >>> folder = tempfile.mkdtemp()
        >>> labels = zarr.create_array(f"{folder}/labels.zarr", data=np.array([[0, 0, 1, 1]], np.uint8))
        >>> maps = scale.rectified_map_zarr(labels, f"{folder}/map.zarr", num_classes=2)
        >>> maps.patch((0, 1), (1, 2)).foreground
        tensor([[[-0.5000, -0.5000]]])
    """
    classes = as_classes(num_classes, ignore_index)
    with _opened(source, target, overwrite, scratch) as run:
        run.prepare(
            chunks,
            spacing=spacing,
            black_border=black_border,
            spatial_dims=spatial_dims,
            memory=memory,
            classes=classes,
            backend=backend,
        )
        shape = (*run.labels.shape[: run.labels.ndim - run.job.spatial_dims], classes.num_classes)
        if class_max is None:
            (squared_max,) = run.compute([graph.kept_field(run.lazy, run.job)], workers)
            largest = class_distances(squared_max, run.job.spacing)
            run.write(graph.rectified(run.job, squared_max), workers)
        else:
            largest = as_class_max(class_max, shape)
            run.write(graph.field(run.lazy, run.job, partial(graph.rectify_with, largest, run.job)), workers)
        kept = {"num_classes": classes.num_classes, "ignore_index": classes.ignore_index, "class_max": largest.tolist()}
        run.describe({"map": "rectified", **kept})
        return LargeMap(run.labels, run.finished(), largest, classes.num_classes, classes.ignore_index)


def open_map(labels: Any, foreground: Any) -> LargeMap:
    """The map that `rectified_map_zarr` wrote.

    Args:
        labels: The labels it was made of: a path, a `zarr.Array` or a dask array.
        foreground: The path it was written to, or that array.

    Raises:
        ValueError: `foreground` is no map of `rectified_map_zarr`, or the labels have another shape.

    Examples:
        >>> import tempfile, numpy as np, zarr
        >>> from rwkernels import scale
        >>> folder = tempfile.mkdtemp()
        >>> labels = zarr.create_array(f"{folder}/labels.zarr", data=np.array([[0, 0, 1, 1]], np.uint8))
        >>> _ = scale.rectified_map_zarr(labels, f"{folder}/map.zarr", num_classes=2)
        >>> scale.open_map(f"{folder}/labels.zarr", f"{folder}/map.zarr").class_max
        array([2., 2.], dtype=float32)
    """
    given, array = _array("labels", labels), _array("foreground", foreground)
    kept = array.attrs.get("rwkernels", {}) if isinstance(array, zarr.Array) else {}
    if kept.get("map") != "rectified":
        raise ValueError(f"foreground: expected a map of rectified_map_zarr, got {foreground!r}")
    if given.shape != array.shape:
        raise ValueError(f"labels: expected shape {list(array.shape)} (the map's), got {list(given.shape)}")
    largest = np.array(kept["class_max"], np.float32)
    return LargeMap(given, array, largest, kept["num_classes"], kept["ignore_index"])


def _array(name: str, given: Any) -> Any:
    """A Zarr or dask array; paths are opened."""
    if isinstance(given, (zarr.Array, da.Array)):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, a zarr.Array or a dask array, got {checks.describe(given)}")
    found = zarr.open(store=os.fspath(given), mode="r")
    if not isinstance(found, zarr.Array):
        raise ValueError(f"{name}: expected the path of an array, got a group of {sorted(found)}: {os.fspath(given)!r}")
    return found


@dataclass
class _Run:
    """One call: what is read, where it goes, what lies in between."""

    labels: Any
    array: Any  # a zarr.Array of the caller's to write into, or None
    path: Path | None
    overwrite: bool
    scratch: Scratch
    beside: Scratch  # where a result at a path grows: on the file system of the path
    lazy: Any = None  # the labels as a dask array, unless tasks read them where they are
    job: Any = None
    options: Any = None

    def prepare(self, chunks: Sequence[int] | None, **options: Any) -> None:
        """Checks, plans, and makes the array for the result; `options` are those of `make_job`."""
        labels = self.labels
        stored = isinstance(labels, zarr.Array)
        grain = labels.chunks if stored else None
        result = None if chunks is None else _checked_chunks(chunks, labels.shape)
        if self.array is not None:
            result = self.array.shards or self.array.chunks
        self.job = make_job(labels, scratch=self.scratch, grain=grain, result_chunks=result, **options)
        spacing = options["spacing"]
        self.options = {
            "spacing": spacing if spacing is None else np.asarray(spacing).tolist(),
            "black_border": options["black_border"],
        }
        if self.array is None:
            self.array = self._create(chunks)
        if stored and all(_reads(labels, stage.block) <= MOST_READS for stage in self.job.plan.stages):
            self.job = replace(self.job, source=labels)
        else:
            self.lazy = da.from_array(labels, chunks=grain, name=False) if stored else labels

    def _create(self, chunks: Sequence[int] | None) -> Any:
        shape, block = self.labels.shape, self.job.plan.stages[-1].block
        if chunks is None:
            grain = self.labels.chunks if isinstance(self.labels, zarr.Array) else self.labels.chunksize
            chunks = [g if g <= b and (b % g == 0 or b == n) else min(b, t)
                      for g, b, t, n in zip(grain, block, self.job.plan.tile, shape, strict=True)]  # fmt: skip
        self.beside.folder.mkdir(exist_ok=True)
        names = getattr(getattr(self.labels, "metadata", None), "dimension_names", None)
        return zarr.create_array(
            store=str(self.beside.folder / "result"),
            shape=shape,
            chunks=tuple(max(size, 1) for size in chunks),
            dtype=np.float32,
            compressors=compressors(np.float32),
            fill_value=np.nan,
            dimension_names=names,
        )

    def write(self, result: da.Array, workers: int) -> None:
        """Computes `result` into the array."""
        if result.size:
            self.compute([da.store(result, self.array, lock=False, compute=False)], workers)

    def compute(self, tasks: list[Any], workers: int) -> Any:
        """Runs `tasks` on the scheduler of the caller's choice, else on `workers` threads."""
        count = checks.integer("workers", workers, lowest=1)
        if get_scheduler() is not None:
            return dask.compute(*tasks)
        with ThreadPoolExecutor(count) as pool:  # after an error it waits for the tasks that are still writing
            return dask.compute(*tasks, scheduler="threads", pool=pool)

    def describe(self, of_map: dict[str, Any]) -> None:
        """Says in the attributes what the array holds."""
        self.array.attrs["rwkernels"] = {"version": __version__, **of_map, **self.options}

    def finished(self) -> Any:
        """Moves a result into its place."""
        if self.path is None:
            return self.array
        made, old = self.beside.folder / "result", self.beside.folder / "replaced"
        for part in made.rglob("*.partial"):  # what workers that were killed had begun to write
            part.unlink()
        if self.overwrite and os.path.lexists(self.path):
            os.replace(self.path, old)
        elif os.path.lexists(self.path):
            raise _exists(self.path)  # since the start
        try:
            os.rename(made, self.path)
        except OSError:
            with suppress(OSError):
                os.replace(old, self.path)
            raise
        return zarr.open_array(store=str(self.path), mode="r")


def _checked_chunks(chunks: Sequence[int], shape: Sequence[int]) -> list[int]:
    found = [checks.integer("chunks", size, lowest=1) for size in chunks]
    if len(found) != len(shape):
        raise ValueError(f"chunks: expected {len(shape)} numbers, one per axis, got {list(chunks)}")
    return [min(size, max(n, 1)) for size, n in zip(found, shape, strict=True)]


def _reads(labels: Any, block: Sequence[int]) -> float:
    """How often a chunk of labels is read by tasks that read `block` each."""
    stored = labels.shards or labels.chunks
    reads: float = math.prod(
        1 if size >= n or size % chunk == 0 else math.ceil(chunk / size) if chunk % size == 0 else chunk / size + 1
        for size, chunk, n in zip(block, stored, labels.shape, strict=True)
    )
    return reads


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"target: {str(path)!r} exists; overwrite=True replaces it")


@contextmanager
def _opened(source: Any, target: Any, overwrite: bool, scratch: PathLike | None) -> Iterator[_Run]:
    """Checks where things come from and go to; what lies in between is removed at the end, whatever the end is."""
    labels = _array("source", source)
    replaces = checks.flag("overwrite", overwrite)
    array, path = None, None
    if isinstance(target, zarr.Array):
        array = target
        if array.shape != labels.shape or array.dtype != np.float32 or array.read_only:
            raise ValueError(
                f"target: expected a writeable float32 array of shape {list(labels.shape)}, "
                f"got {array.dtype} {list(array.shape)}{', read-only' if array.read_only else ''}"
            )
    elif isinstance(target, (str, os.PathLike)):
        if "://" in os.fspath(target):
            raise ValueError(
                f"target: expected a local path (open a remote array with zarr and pass it), got {target!r}"
            )
        path = Path(os.path.abspath(target))
        if os.path.lexists(path) and not replaces:
            raise _exists(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"target: the folder {str(path.parent)!r} does not exist")
        if isinstance(labels, zarr.Array) and str(path) == str(getattr(labels.store, "root", "")):
            raise ValueError(f"target: expected another path than that of the labels, got {str(path)!r}")
    else:
        raise TypeError(f"target: expected a path or a zarr.Array, got {checks.describe(target)}")
    beside = Scratch.within(None if path is None else path.parent, "" if path is None else path.name)
    store = beside if scratch is None else Scratch.within(scratch, beside.folder.name.split(".")[1])
    try:
        yield _Run(labels, array, path, replaces, store, beside)
    finally:
        store.remove()
        beside.remove()
