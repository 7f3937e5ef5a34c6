"""The other families of maps of volumes larger than memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from rwkernels import checks
from rwkernels.scale.blocks import Classes, check_labels
from rwkernels.scale.large_map import LargeMap
from rwkernels.scale.volumes import MEMORY, as_classes, as_dask, checked, distance_transform


def boundary_map(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    absent: float = 0.0,
    inside_offset: float = 0.0,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    memory: int | str = MEMORY,
    scratch: str | os.PathLike[str] | None = None,
    backend: str | None = None,
) -> Any:
    """Boundary map, Eq. 3, of volumes larger than memory: the numbers of `rwkernels.boundary_map`.

    It takes a transform of the labels and one of every class, and each has a temporary store of its own. Compute one
    channel at a time (`maps[k].to_zarr(...)`) where disk is short.

    Args:
        labels: Dask array of integers in `[0, num_classes)`; see `distance_transform`.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        absent: Value of the channel of a class that an image lacks.
        inside_offset: Subtracted from the distances inside a class, in units of `spacing`.
        ignore_index: Label of pixels that do not count; their map is 0.
        black_border: Count the outside of the volume as another label for the distances inside a class.
        spatial_dims: Number of spatial axes; see `distance_transform`.
        memory: Bytes that one task may hold.
        scratch: Folder for the temporary stores; see `distance_transform`.
        backend: Name of the backend to use instead of the default one.

    Returns:
        Dask array of float32 `[..., K, *S]`: the channel axis comes before the spatial ones.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; on computing, a label is out of range.

    References:
        Valverde & Tohka, Eq. 3.

    Examples:
        >>> import dask.array as da, numpy as np
        >>> from rwkernels import scale
        >>> scale.boundary_map(da.from_array(np.array([[0, 0, 1]]), chunks=(1, 2)), num_classes=2).compute()
        array([[[-2., -1.,  1.]],
        <BLANKLINE>
               [[ 2.,  1., -1.]]], dtype=float32)
    """
    labels = as_dask(labels)
    classes = as_classes(num_classes, ignore_index)
    axes, sizes = checked(labels, spatial_dims, spacing)
    number, offset = checks.number("absent", absent), checks.number("inside_offset", inside_offset)
    options: dict[str, Any] = {
        "spacing": sizes, "spatial_dims": axes, "memory": memory, "scratch": scratch, "backend": backend
    }  # fmt: skip
    inside = distance_transform(labels, black_border=black_border, **options)
    channels = []
    for k in range(classes.num_classes):
        # The distance to class k is that of a two-label image; inside of k it is that of the labels themselves.
        is_class = labels == k if k != classes.ignore_index else da.zeros_like(labels, dtype=bool)
        outside = distance_transform(is_class, **options)
        aligned = [part.rechunk(outside.chunks) for part in (labels, inside)]
        block = partial(_boundary_block, k, classes, np.float32(number), np.float32(offset), backend)
        channels.append(da.map_blocks(block, *aligned, outside, dtype=np.float32, meta=outside._meta))
    return da.stack(channels, axis=labels.ndim - axes)


def _boundary_block(
    k: int,
    classes: Classes,
    absent: Any,
    offset: Any,
    backend: str | None,
    labels: Any,
    inside: Any,
    outside: Any,
    block_info: Any = None,
) -> Any:
    _check(labels, classes, backend, block_info)
    own = np.where(np.isinf(inside), np.float32(0), offset - inside)
    channel = np.where(labels == k, own, np.where(np.isinf(outside), absent, outside))
    return channel if classes.ignore_index is None else np.where(labels == classes.ignore_index, np.float32(0), channel)


def _check(labels: Any, classes: Classes, backend: str | None, block_info: Any) -> None:
    region = tuple(slice(*ends) for ends in block_info[0]["array-location"])
    check_labels(labels, region, classes, backend)


def _constant_block(value: Any, classes: Classes, labels: Any, block_info: Any = None) -> Any:
    _check(labels, classes, None, block_info)
    return np.full(labels.shape, value, np.float32)


def _constant(
    labels: Any, num_classes: int, foreground: float, background: float, ignore_index: int | None
) -> LargeMap:
    labels = as_dask(labels)
    checked(labels, None, None)
    classes = as_classes(num_classes, ignore_index)
    block = partial(_constant_block, foreground, classes)
    values = labels.map_blocks(block, dtype=np.float32, meta=np.empty((0,) * labels.ndim, np.float32))
    return LargeMap(labels, values, None, classes.num_classes, classes.ignore_index, background)


def active_contour_map(labels: Any, num_classes: int, *, ignore_index: int | None = None) -> LargeMap:
    """Active contour map of volumes larger than memory, block by block: 0 at the true class, 1 at every other.

    Args:
        labels: Dask array of integers in `[0, num_classes)`.
        num_classes: Number of classes K.
        ignore_index: Label of pixels that do not count.

    Returns:
        The map, lazily.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; on computing, a label is out of range.

    References:
        Valverde & Tohka, section 3.1.

    Examples:
        >>> import dask.array as da, numpy as np
        >>> from rwkernels import scale
        >>> maps = scale.active_contour_map(da.from_array(np.array([[0, 1]]), chunks=(1, 1)), num_classes=2)
        >>> maps.foreground.compute(), maps.background
        (array([[0., 0.]], dtype=float32), 1.0)
    """
    return _constant(labels, num_classes, 0.0, 1.0, ignore_index)


def constant_map(
    labels: Any, num_classes: int, *, alpha: float = 1.0, beta: float = 1.0, ignore_index: int | None = None
) -> LargeMap:
    """Constant map of volumes larger than memory, block by block: `-beta` at the true class, `alpha` at every other.

    Args:
        labels: Dask array of integers in `[0, num_classes)`.
        num_classes: Number of classes K.
        alpha: Value at the wrong classes.
        beta: Minus the value at the true class.
        ignore_index: Label of pixels that do not count.

    Returns:
        The map, lazily.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; on computing, a label is out of range.

    References:
        Cao et al. 2020, as a region-wise map in Valverde & Tohka, section 3.1.

    Examples:
        >>> import dask.array as da, numpy as np
        >>> from rwkernels import scale
        >>> labels = da.from_array(np.array([[0, 1]]), chunks=(1, 1))
        >>> scale.constant_map(labels, num_classes=2, alpha=2.0, beta=3.0).foreground.compute()
        array([[-3., -3.]], dtype=float32)
    """
    foreground, background = -checks.number("beta", beta), checks.number("alpha", alpha)
    return _constant(labels, num_classes, foreground, background, ignore_index)
