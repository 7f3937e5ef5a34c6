"""Dask arrays in, lazy dask arrays out: distances and maps of volumes that no memory holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np

from rwkernels import checks
from rwkernels.scale import blocks, graph
from rwkernels.scale.blocks import Classes, Job
from rwkernels.scale.large_map import LargeMap
from rwkernels.scale.plan import plan, steps
from rwkernels.scale.scratch import Scratch

MEMORY = 512 << 20


def checked(labels: Any, spatial_dims: int | None, spacing: Any) -> tuple[int, list[float]]:
    """The number of spatial axes and their spacing."""
    kind = getattr(labels, "dtype", np.dtype(object))
    if kind.kind not in "biu":
        raise TypeError(f"labels: expected integer labels, got {type(labels).__name__} of {kind}")
    if any(np.isnan(n) for n in labels.shape):
        raise ValueError(f"labels: expected known lengths (compute_chunk_sizes() finds them), got {labels.shape}")
    axes = min(labels.ndim, 3) if spatial_dims is None else checks.integer("spatial_dims", spatial_dims, lowest=1)
    if not 1 <= axes <= 3 or labels.ndim < axes:
        raise ValueError(f"spatial_dims: expected 1, 2 or 3 of the {labels.ndim} axes of the labels, got {axes}")
    return axes, checks.spacing(spacing, axes)


def bytes_of(memory: Any) -> int:
    """`memory` as a number of bytes; text such as "2 GiB" is read as dask reads it."""
    return checks.integer("memory", dask.utils.parse_bytes(memory) if isinstance(memory, str) else memory, lowest=1)


def make_job(
    labels: Any,
    *,
    spacing: Any,
    black_border: bool,
    spatial_dims: int | None,
    memory: Any,
    scratch: Scratch | None = None,
    classes: Classes | None = None,
    backend: str | None = None,
    grain: Sequence[int] | None = None,
    result_chunks: Sequence[int] | None = None,
) -> Job:
    """Arguments that were checked, and the plan that follows from them."""
    axes, sizes = checked(labels, spatial_dims, spacing)
    border = checks.flag("black_border", black_border)
    blocks.backend_of(checks.backend(backend))
    passes, last = steps(labels.shape, sizes, border)
    if grain is None:
        grain = [max(given, default=1) for given in labels.chunks]
    return Job(
        plan=plan(labels.shape, passes, labels.dtype.itemsize, bytes_of(memory), grain, result_chunks),
        scratch=scratch or Scratch.within(None),
        spacing=last,
        black_border=border,
        spatial_dims=axes,
        label_dtype=labels.dtype.newbyteorder("=").str,  # swapped once, not in every stage
        classes=classes,
        backend=backend,
    )


def as_classes(num_classes: int, ignore_index: int | None) -> Classes:
    """The labels that are right."""
    return Classes(checks.integer("num_classes", num_classes, lowest=1), checks.ignore_index(ignore_index))


def as_class_max(class_max: Any, shape: tuple[int, ...]) -> Any:
    """Distances to divide by, float32 [leading axes..., K]."""
    found = np.asarray(class_max)
    if found.dtype.kind not in "iuf" or found.shape != shape:
        raise ValueError(f"class_max: expected numbers of shape {list(shape)}, got {found.dtype} {list(found.shape)}")
    return found.astype(np.float32)


def as_dask(labels: Any) -> da.Array:
    """`labels`, which have to be a dask array."""
    if not isinstance(labels, da.Array):
        raise TypeError(
            f"labels: expected a dask array (dask.array.from_array makes one), got {checks.describe(labels)}"
        )
    return labels


def scratch_in(folder: str | os.PathLike[str] | None) -> Scratch:
    """A scratch store in `folder`."""
    return Scratch.within(folder if folder is not None else dask.config.get("temporary-directory", None))


def distance_transform(
    labels: Any,
    *,
    spacing: float | Sequence[float] | None = None,
    squared: bool = False,
    black_border: bool = False,
    spatial_dims: int | None = None,
    memory: int | str = MEMORY,
    scratch: str | os.PathLike[str] | None = None,
    backend: str | None = None,
) -> Any:
    """Exact Euclidean distance of every pixel to the nearest pixel of another label, of volumes larger than memory.

    The numbers are those of `rwkernels.distance_transform`. Nothing is approximated at block borders: every axis is
    passed over whole lines. Nothing runs before the result is computed.

    Args:
        labels: Dask array of integers of any values, with known chunks. All axes are spatial, up to three; of more,
            the last three.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        squared: Return squared distances.
        black_border: Count the outside of the volume as another label.
        spatial_dims: Number of spatial axes; those before count images, each transformed on its own. A batch
            `[B, Y, X]` of 2D images needs `spatial_dims=2`.
        memory: Bytes that one task may hold, a number or text such as `"1 GiB"`. Dask runs one task a thread.
        scratch: Folder for the temporary store, which takes up to 9 bytes a pixel before it is packed; on a cluster,
            one that all workers see. Default: dask's `temporary-directory`, or where temporary files go.
        backend: Name of the backend to use instead of the default one. It has to run on the CPU.

    Returns:
        Dask array of float32 in the shape of `labels`, in units of `spacing`; `inf` where an image has one label only.

    Raises:
        TypeError: `labels` are no dask array of integers, or another argument has the wrong type.
        ValueError: Chunks are unknown, `memory` is too little for whole lines, or an argument has a wrong value.

    References:
        The distance of Eq. 3 and 4 in Valverde & Tohka, doi 10.1016/j.patcog.2022.109208.

    Examples:
        >>> import dask.array as da, numpy as np
        >>> from rwkernels import scale
        >>> labels = da.from_array(np.array([[0, 0, 0, 7]]), chunks=(1, 2))
        >>> scale.distance_transform(labels).compute()
        array([[3., 2., 1., 1.]], dtype=float32)
    """
    labels = as_dask(labels)
    job = make_job(
        labels,
        spacing=spacing,
        black_border=black_border,
        spatial_dims=spatial_dims,
        memory=memory,
        scratch=scratch_in(scratch),
        backend=backend,
    )
    finish = partial(graph.distance_with, job.spacing, checks.flag("squared", squared))
    return _empty(labels) if labels.size == 0 else graph.field(labels, job, finish)


def _empty(labels: da.Array) -> da.Array:
    return da.zeros(labels.shape, dtype=np.float32, chunks=labels.chunks)


def rectified_map(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    class_max: Any = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    memory: int | str = MEMORY,
    scratch: str | os.PathLike[str] | None = None,
    backend: str | None = None,
) -> LargeMap:
    """Rectified region-wise (RRW) map, Eq. 4, of volumes larger than memory: the numbers of `rwkernels.rectified_map`.

    Args:
        labels: Dask array of integers in `[0, num_classes)`; see `distance_transform`.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        class_max: Largest distance of every class, `[K]`, or `[..., K]` with the axes that count images: divided by
            instead of the volume's own, which saves reading and writing the distances once more.
        ignore_index: Label, possibly negative, of pixels that do not count. They bound regions like any other label.
        black_border: Count the outside of the volume as another label.
        spatial_dims: Number of spatial axes; see `distance_transform`.
        memory: Bytes that one task may hold.
        scratch: Folder for the temporary store; see `distance_transform`.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The map, lazily: its parts are dask arrays, `class_max` too. A label out of range is found when they are
        computed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; on computing, a label is out of range, or `class_max` of a class that
            is present is not positive and finite.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 4.

    Examples:
        >>> import dask.array as da, numpy as np
        >>> from rwkernels import scale
        >>> maps = scale.rectified_map(da.from_array(np.array([[0, 0, 1, 1]]), chunks=(1, 2)), num_classes=2)
        >>> maps.foreground.compute()
        array([[-1. , -0.5, -0.5, -1. ]], dtype=float32)
        >>> maps.class_max.compute()
        array([2., 2.], dtype=float32)
    """
    labels = as_dask(labels)
    classes = as_classes(num_classes, ignore_index)
    job = make_job(
        labels,
        spacing=spacing,
        black_border=black_border,
        spatial_dims=spatial_dims,
        memory=memory,
        scratch=scratch_in(scratch),
        classes=classes,
        backend=backend,
    )
    shape = (*labels.shape[: labels.ndim - job.spatial_dims], classes.num_classes)
    given = None if class_max is None else as_class_max(class_max, shape)
    if labels.size == 0:
        found = da.zeros(shape, dtype=np.float32)
        return LargeMap(labels, _empty(labels), found, classes.num_classes, classes.ignore_index)
    if given is not None:
        foreground = graph.field(labels, job, partial(graph.rectify_with, given, job))
        return LargeMap(labels, foreground, da.from_array(given), classes.num_classes, classes.ignore_index)
    squared_max = graph.kept_field(labels, job)
    largest = dask.delayed(class_distances)(squared_max, job.spacing)
    found = da.from_delayed(largest, shape, dtype=np.float32)
    return LargeMap(labels, graph.rectified(job, squared_max), found, classes.num_classes, classes.ignore_index)


def class_distances(squared_max: Any, spacing: float) -> Any:
    """Largest distances as `rwkernels.data.class_max` gives them: 1 for a class that fills its image."""
    found = graph.distance_with(spacing, False, None, np.array(squared_max, np.float32), ())
    return np.where(np.isinf(found), np.float32(1), found)
