"""The stages as dask graphs: what waits for what. Dask runs them, on threads, processes or a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.array.core import normalize_chunks, slices_from_chunks

from rwkernels import checks
from rwkernels.scale import blocks
from rwkernels.scale.blocks import Job, Region
from rwkernels.scale.scratch import read_field

Finish = Callable[[Any, Any, Region], Any]
_WIDTH = 256  # results that one task waits for


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _make(job: Job, name: str, dtype: Any, after: Any) -> None:
    job.scratch.create(name, job.plan.shape, job.plan.tile, dtype)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _all(results: list[Any]) -> None:
    """Done when every task of a stage is."""


def _tree(results: list[Any]) -> Any:
    """What is done when all results are there, a few hundred at a time."""
    while len(results) > _WIDTH:
        results = [_all(results[i : i + _WIDTH]) for i in range(0, len(results), _WIDTH)]
    return _all(results)


def _chunks(job: Job, number: int) -> tuple[tuple[int, ...], ...]:
    """The lengths of all blocks of a stage along every axis."""
    found: tuple[tuple[int, ...], ...] = normalize_chunks(job.plan.stages[number].block, job.plan.shape)
    return found


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
    return _tree(list(done.to_delayed().ravel()))


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
    for number in range(len(job.plan.stages) - 1):
        made = _make(job, blocks.field_name(number), np.float32, after)
        check = number == 0 and labels is None
        regions = slices_from_chunks(_chunks(job, number))
        after = _tree([_stage(job, number, region, check, made) for region in regions])
    return after


def _last(job: Job, check: bool, finish: Finish, after: Any, block_info: Any = None) -> Any:
    region = tuple(slice(*ends) for ends in block_info[None]["array-location"])
    labels, block = blocks.run_stage(job, len(job.plan.stages) - 1, region, check)
    return finish(labels, block, region)


def field(labels: da.Array | None, job: Job, finish: Finish) -> da.Array:
    """The array of distances that the last stage makes, through `finish`; its blocks are those of the last stage."""
    after = _before_last(labels, job)
    check = len(job.plan.stages) == 1 and labels is None
    return _mapped(_last, _chunks(job, -1), job, check, finish, after)


def _mapped(function: Callable[..., Any], lengths: tuple[tuple[int, ...], ...], *arguments: Any) -> da.Array:
    """An array of float32 whose blocks `function` makes."""
    meta = np.empty((0,) * len(lengths), np.float32)
    return da.map_blocks(function, *arguments, dtype=np.float32, chunks=lengths, meta=meta)


def _last_kept(job: Job, check: bool, after: Any, block_info: Any = None) -> Any:
    """The last stage, kept as squared distances; gives the largest of every class, with spatial axes of 1."""
    *place, _ = block_info[None]["chunk-location"]
    sizes = zip(place, job.plan.stages[-1].block, job.plan.shape, strict=True)
    region = tuple(slice(at * size, min((at + 1) * size, n)) for at, size, n in sizes)
    number = len(job.plan.stages) - 1
    labels, block = blocks.run_stage(job, number, region, check)
    job.scratch.open(blocks.field_name(number))[region] = block
    here = blocks.largest_of_classes(labels, block, job)
    return here.reshape(*here.shape[:-1], *[1] * job.spatial_dims, here.shape[-1])


def kept_field(labels: da.Array | None, job: Job) -> Any:
    """Squared distances in the scratch store; delayed, the largest of every class, float32 [leading axes..., K]."""
    assert job.classes is not None
    last, images = len(job.plan.stages) - 1, len(job.plan.shape) - job.spatial_dims
    if 0 in job.plan.shape:
        return dask.delayed(np.zeros)((*job.plan.shape[:images], job.classes.num_classes), np.float32)
    found = _chunks(job, last)
    lengths = (*found[:images], *((1,) * len(of_axis) for of_axis in found[images:]), (job.classes.num_classes,))
    made = _make(job, blocks.field_name(last), np.float32, _before_last(labels, job))
    largest = _mapped(_last_kept, lengths, job, last == 0 and labels is None, made)
    axes = tuple(range(images, len(job.plan.shape)))
    return largest.max(axis=axes, split_every=_WIDTH).rechunk(-1).to_delayed().item()


def _rectified(job: Job, squared_max: Any, block_info: Any = None) -> Any:
    region = tuple(slice(*ends) for ends in block_info[None]["array-location"])
    block = read_field(job.scratch.open(blocks.field_name(len(job.plan.stages) - 1)), region)
    own = squared_max[blocks.leading(region, job.spatial_dims)]
    return blocks.rectify(job.labels()[region], block, own, None, job)


def rectified(job: Job, squared_max: Any) -> da.Array:
    """The foreground of Eq. 4 from a kept field and the largest distances of all its classes."""
    return _mapped(_rectified, _chunks(job, -1), job, squared_max)


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
