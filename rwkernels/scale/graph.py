"""The stages as dask graphs: what waits for what. Dask runs them, on threads, processes or a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch

from rwkernels import checks
from rwkernels.scale import blocks
from rwkernels.scale.blocks import Job, Region
from rwkernels.scale.plan import chunks, regions
from rwkernels.scale.scratch import read_field

Finish = Callable[[Any, Any, Region], Any]


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _make(job: Job, name: str, dtype: Any, after: Any) -> None:
    job.scratch.create(name, job.plan.shape, job.plan.tile, dtype)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _all(results: list[Any]) -> None:
    """Done when every task of a stage is."""


def _tree(results: list[Any], together: Callable[[list[Any]], Any], width: int = 256) -> Any:
    """One result of many, a few hundred at a time."""
    while len(results) > width:
        results = [together(results[i : i + width]) for i in range(0, len(results), width)]
    return together(results)


def _keep_labels(block: Any, job: Job, made: Any, block_info: Any = None) -> Any:
    region = tuple(slice(*ends) for ends in block_info[0]["array-location"])
    if job.classes is not None:
        blocks.check_labels(block, region, job.classes, job.backend)
    job.scratch.open("labels")[region] = block.astype(job.label_dtype, copy=False)
    return np.zeros((1,) * block.ndim, np.uint8)


def _copied_labels(labels: da.Array, job: Job) -> Any:
    """Labels of a dask array into the scratch store, checked on the way."""
    made = _make(job, "labels", job.label_dtype, None)
    size = [
        _near(max(given), tile, n) for given, tile, n in zip(labels.chunks, job.plan.tile, labels.shape, strict=True)
    ]
    aligned = labels.rechunk(tuple(size))
    ones = tuple((1,) * n for n in aligned.numblocks)
    done = aligned.map_blocks(_keep_labels, job, made, dtype=np.uint8, chunks=ones, meta=np.empty(0, np.uint8))
    return _tree(list(done.to_delayed().ravel()), _all)


def _near(given: int, tile: int, n: int) -> int:
    """A whole number of tiles, as long as the blocks that labels come in."""
    return min(max(given // tile, 1) * tile, n)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _stage(job: Job, number: int, region: Region, check: bool, after: Any) -> None:
    _, block = blocks.run_stage(job, number, region, check)
    job.scratch.open(blocks.field_name(number))[region] = block


def _before_last(labels: da.Array | None, job: Job) -> Any:
    """All stages but the last one; `labels` is None where tasks read them from `job.source`."""
    after = None if labels is None else _copied_labels(labels, job)
    for number, stage in enumerate(job.plan.stages[:-1]):
        made = _make(job, blocks.field_name(number), np.float32, after)
        check = number == 0 and labels is None
        tasks = [_stage(job, number, region, check, made) for region in regions(job.plan.shape, stage.block)]
        after = _tree(tasks, _all)
    return after


def _last(job: Job, check: bool, finish: Finish, after: Any, block_info: Any = None) -> Any:
    region = tuple(slice(*ends) for ends in block_info[None]["array-location"])
    labels, block = blocks.run_stage(job, len(job.plan.stages) - 1, region, check)
    return finish(labels, block, region)


def field(labels: da.Array | None, job: Job, finish: Finish) -> da.Array:
    """The array of distances that the last stage makes, through `finish`; its blocks are those of the last stage."""
    after = _before_last(labels, job)
    check = len(job.plan.stages) == 1 and labels is None
    return da.map_blocks(
        _last,
        job,
        check,
        finish,
        after,
        dtype=np.float32,
        chunks=chunks(job.plan.shape, job.plan.stages[-1].block),
        meta=np.empty((0,) * len(job.plan.shape), np.float32),
    )


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _last_kept(job: Job, region: Region, check: bool, after: Any) -> Any:
    """The last stage, kept as squared distances; its result is the largest of every class and image in the block."""
    number = len(job.plan.stages) - 1
    labels, block = blocks.run_stage(job, number, region, check)
    job.scratch.open(blocks.field_name(number))[region] = block
    here = blocks.largest_of_classes(labels, block, job)
    return [(blocks.leading(region, job.spatial_dims), here)]


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _joined(found: list[list[tuple[Region, Any]]]) -> list[tuple[Region, Any]]:
    """The largest of the largest, image by image."""
    largest: dict[Any, tuple[Region, Any]] = {}
    for region, here in (pair for pairs in found for pair in pairs):
        key = tuple((part.start, part.stop) for part in region)
        known = largest.get(key)
        largest[key] = (region, here if known is None else np.maximum(known[1], here))
    return list(largest.values())


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _table(found: list[tuple[Region, Any]], shape: tuple[int, ...]) -> Any:
    table = np.zeros(shape, np.float32)
    for region, here in found:
        table[region] = here
    return table


def kept_field(labels: da.Array | None, job: Job) -> Any:
    """Squared distances in the scratch store; delayed, the largest of every class, float32 [leading axes..., K]."""
    assert job.classes is not None
    last = len(job.plan.stages) - 1
    after = _make(job, blocks.field_name(last), np.float32, _before_last(labels, job))
    check = last == 0 and labels is None
    tasks = [_last_kept(job, region, check, after) for region in regions(job.plan.shape, job.plan.stages[-1].block)]
    shape = (*job.plan.shape[: len(job.plan.shape) - job.spatial_dims], job.classes.num_classes)
    return _table(_tree(tasks, _joined), shape)


def _rectified(job: Job, squared_max: Any, block_info: Any = None) -> Any:
    region = tuple(slice(*ends) for ends in block_info[None]["array-location"])
    block = read_field(job.scratch.open(blocks.field_name(len(job.plan.stages) - 1)), region)
    own = squared_max[blocks.leading(region, job.spatial_dims)]
    return blocks.rectify(job.labels()[region], block, own, None, job)


def rectified(job: Job, squared_max: Any) -> da.Array:
    """The foreground of Eq. 4 from a kept field and the largest distances of all its classes."""
    return da.map_blocks(
        _rectified,
        job,
        squared_max,
        dtype=np.float32,
        chunks=chunks(job.plan.shape, job.plan.stages[-1].block),
        meta=np.empty((0,) * len(job.plan.shape), np.float32),
    )


def rectify_with(class_max: Any, job: Job, labels: Any, block: Any, region: Region) -> Any:
    """A `Finish`: Eq. 4 with distances that are given, [leading axes..., K]."""
    images = blocks.leading(region, job.spatial_dims)
    own = class_max[images]
    bad = np.argwhere((blocks.largest_of_classes(labels, block, job) > 0) & ~((own > 0) & np.isfinite(own)))
    if len(bad):
        place = [int(i) + part.start for i, part in zip(bad[0], (*images, slice(0, 0)), strict=True)]
        table = torch.from_numpy(class_max.reshape(-1, class_max.shape[-1]))
        checks.bad_maximum(table, int(np.ravel_multi_index(place, class_max.shape)))
    return blocks.rectify(labels, block, own, own, job)


def distance_with(spacing: float, squared: bool, labels: Any, block: Any, region: Region) -> Any:
    """A `Finish`: distances."""
    return blocks.finish_distance(block, spacing, squared)
