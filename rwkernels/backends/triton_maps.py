"""The maps of the GPU backend: lays out the passes of the distance transform.

The kernels are in `triton_edt.py`, and in `triton_map_kernels.py` those that make maps of distances. How many launches
depends on the number of axes alone, and nothing waits for the device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels.backends import reference
from rwkernels.backends.triton_launch import blocks_of, launch

_ROWS = 8  # of a program of a column pass, and of a block whose least value is known
_TILE = 256  # pixels that a program of the row pass holds at once, if a row is not longer: a warp, and no barrier
_GROUP = 8  # blocks that are looked at together, in lines of more than `_DEEP` blocks
_DEEP = 64
_STREAM = 1024  # pixels of a program of the kernels that only stream
_WIDEST = 1 << 16  # pixels of a row that one program can hold
_LARGEST = 1 << 28  # pixels of a slice, so that int32 counts those of eight
_INT32_SQUARES = 1 << 29  # squared distances below this, and their sums, are counted in int32

first_bad_label = reference.first_bad_label  # asked for only where the caller waits for the device


@cache
def _kernels() -> dict[str, Any]:
    edt = importlib.import_module("rwkernels.backends.triton_edt")
    maps = importlib.import_module("rwkernels.backends.triton_map_kernels")
    return {**vars(edt), **vars(maps)}


def _launch(name: str, programs: int, threads: int, *arguments: Any, **constants: Any) -> None:
    launch(_kernels()[name], programs, threads, *arguments, **constants)


class _Task(NamedTuple):
    """What is transformed: distances to another label or, of every image, to each of `classes` classes."""

    labels: Tensor  # [B, *S], contiguous
    steps: tuple[float, ...]  # spacing along (z, y, x)
    dtype: torch.dtype  # of squared distances
    classes: int
    per_class: bool
    border: bool
    ignore_index: int | None

    @property
    def axes(self) -> int:
        """How many spatial axes there are."""
        return self.labels.dim() - 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(z, y, x), with 1 for axes that are not there."""
        z, y, x = (*[1] * (3 - self.axes), *self.labels.shape[1:])
        return z, y, x

    @property
    def images(self) -> int:
        """How many images come out."""
        return len(self.labels) * (self.classes if self.per_class else 1)

    def settings(self, kind: str, real_axis: bool) -> dict[str, Any]:
        """The constants of a pass that gives `kind`, along an axis that is there or not."""
        used = self.per_class or kind == "rectified"
        ignores = self.ignore_index is not None and used
        return {"CLASSES": self.per_class, "BORDER": self.border and real_axis, "IGNORE": ignores}


def _task(
    labels: Tensor,
    spacing: Sequence[float],
    *,
    classes: int = 1,
    per_class: bool = False,
    border: bool = False,
    ignore_index: int | None = None,
) -> _Task:
    steps = (*[float(spacing[-1])] * (3 - len(spacing)), *map(float, spacing))
    if len(set(spacing)) > 1:
        dtype = torch.float32
    else:  # squares and their sums, exact
        dtype = torch.int32 if sum(size**2 for size in labels.shape[1:]) < _INT32_SQUARES else torch.float64
    return _Task(labels, steps, dtype, classes, per_class, border, ignore_index)


class _Result(NamedTuple):
    """What the last pass gives, and what it needs for that."""

    kind: str
    out: Tensor
    maxima: Tensor | None = None
    counted: Tensor | None = None
    inside: Tensor | None = None
    absent: float = 0.0
    inside_offset: float = 0.0


def _transform(task: _Task, result: _Result, spare: Tensor | None = None) -> None:
    """All passes, from labels to `result`: along x, along y, and in volumes along z.

    Two buffers of the field take turns: the memory of the result, to which the last pass writes, and `spare`.
    """
    z, y, x = task.sizes
    out = _as_field(result.out, task.dtype)
    spare = _empty(out, out.shape, task.dtype) if spare is None else spare
    if task.axes < 3:
        minima = _rows(task, spare, result)
        _columns(task, spare, minima, result, (task.images, y, x), 1)
        return
    minima = _rows(task, out, result)
    _columns(task, out, minima, _Result("field", spare), (task.images * z, y, x), 1)
    minima = _minima(spare, (task.images, z, y * x))
    _columns(task, spare, minima, result, (task.images, z, y * x), 0)


def _as_field(out: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of a result, to hold a field meanwhile; or other memory, if a field takes more."""
    return out.view(dtype) if dtype.itemsize == out.element_size() else _empty(out, out.shape, dtype)


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=like.device)


def _power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _rows(task: _Task, field: Tensor, result: _Result) -> Tensor:
    """The pass along rows; returns the least values of the blocks of the next one."""
    z, y, x = task.sizes
    width, blocks, outer = _power_of_two(x), blocks_of(y, _ROWS), task.images * z
    tile = max(min(_TILE // width, _ROWS), 1)
    minima = _empty(field, (outer * blocks * x,), task.dtype)
    _launch(
        "row_pass",
        outer * blocks,
        min(max(width * tile // 8, 32), 1024),  # 8 pixels a thread
        task.labels,
        field,
        minima,
        result.maxima,
        result.counted,
        y,
        x,
        blocks,
        len(task.labels),
        task.classes,
        z,
        0 if task.ignore_index is None else task.ignore_index,
        task.steps[2],
        WIDTH=width,
        ROWS=_ROWS,
        TILE=tile,
        K_TILE=_power_of_two(task.classes),
        **task.settings(result.kind, True),
    )
    return minima


def _lanes(dtype: torch.dtype) -> int:
    """Columns of a program: two a thread, or one where a candidate takes more registers."""
    return 64 if dtype == torch.int32 else 32


def _minima(field: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """The least value of every block of rows of a field [outer, n, inner]."""
    outer, n, inner = sizes
    lanes = _lanes(field.dtype)
    blocks, strips = blocks_of(n, _ROWS), blocks_of(inner, lanes)
    minima = _empty(field, (outer * blocks * inner,), field.dtype)
    arguments = (field, minima, n, inner, blocks, strips)
    _launch("block_minima", outer * blocks * strips, 32, *arguments, ROWS=_ROWS, LANES=lanes)
    return minima


def _columns(
    task: _Task, field: Tensor, minima: Tensor, result: _Result, sizes: tuple[int, int, int], axis: int
) -> None:
    """The pass along `axis` of (z, y, x), which is the middle one of a field [outer, n, inner]."""
    outer, n, inner = sizes
    lanes = _lanes(field.dtype)
    blocks, strips = blocks_of(n, _ROWS), blocks_of(inner, lanes)
    needs_labels = result.kind in ("rectified", "boundary") or (result.kind == "field" and not task.per_class)
    _launch(
        "column_pass",
        outer * blocks * strips,
        32,
        field,
        minima,
        result.out,
        task.labels if needs_labels else None,
        result.inside,
        result.maxima,
        result.counted,
        n,
        inner,
        blocks,
        strips,
        task.classes,
        task.sizes[0],
        0 if task.ignore_index is None else task.ignore_index,
        task.steps[axis],
        result.absent,
        result.inside_offset,
        ROWS=_ROWS,
        LANES=lanes,
        GROUP=_GROUP,
        DEEP=blocks > _DEEP,
        GIVES=result.kind,
        **task.settings(result.kind, axis > 2 - task.axes),
    )


def _too_large(labels: Tensor) -> bool:
    return labels.shape[-1] > _WIDEST or math.prod(labels.shape[2:]) >= _LARGEST


def fill_distance(out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool) -> None:
    """See `Backend`."""
    if labels.numel() == 0:
        return
    if _too_large(labels):
        reference.fill_distance(out, labels, spacing, squared, black_border)
        return
    result = _Result("squared" if squared else "distance", out)
    _transform(_task(labels, spacing, border=black_border), result)


def fill_class_distance(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    squared: bool,
    ignore_index: int | None,
    validate: bool,
) -> int:
    """See `Backend`."""
    if labels.numel() == 0 or _too_large(labels):
        return reference.fill_class_distance(out, labels, num_classes, spacing, squared, ignore_index, validate)
    task = _task(labels, spacing, classes=num_classes, per_class=True, ignore_index=ignore_index)
    _transform(task, _Result("squared" if squared else "distance", out))
    return first_bad_label(labels, num_classes, ignore_index) if validate else -1


def fill_rectified(
    out: Tensor,
    count: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    class_max: Tensor | None,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> tuple[int, int]:
    """See `Backend`."""
    if labels.numel() == 0 or _too_large(labels):
        return reference.fill_rectified(
            out, count, labels, num_classes, spacing, class_max, black_border, ignore_index, validate
        )
    task = _task(labels, spacing, classes=num_classes, border=black_border, ignore_index=ignore_index)
    squared = _empty(labels, labels.shape, task.dtype)
    bits = torch.int64 if task.dtype == torch.float64 else torch.int32
    maxima = _empty(labels, (len(labels), num_classes), bits)
    _transform(task, _Result("rectified", squared, maxima, count), _as_field(out, task.dtype))
    pixels = labels[:1].numel()
    blocks = blocks_of(pixels, _STREAM)
    _launch(
        "rectify",
        len(labels) * blocks,
        128,
        squared,
        labels,
        maxima,
        class_max,
        out,
        pixels,
        blocks,
        num_classes,
        0 if ignore_index is None else ignore_index,
        task.steps[2],
        BLOCK=_STREAM,
        IGNORE=ignore_index is not None,
    )
    if not validate:
        return -1, -1
    bad_maximum = -1 if class_max is None else reference.first_bad_maximum(labels, class_max)
    return first_bad_label(labels, num_classes, ignore_index), bad_maximum


def fill_boundary(
    out: Tensor,
    labels: Tensor,
    num_classes: int,
    spacing: Sequence[float],
    absent: float,
    inside_offset: float,
    black_border: bool,
    ignore_index: int | None,
    validate: bool,
) -> int:
    """See `Backend`."""
    if labels.numel() == 0 or _too_large(labels):
        return reference.fill_boundary(
            out, labels, num_classes, spacing, absent, inside_offset, black_border, ignore_index, validate
        )
    inside = _empty(labels, labels.shape, torch.float32)
    fill_distance(inside, labels, spacing, False, black_border)
    result = _Result("boundary", out, inside=inside, absent=absent, inside_offset=inside_offset)
    _transform(_task(labels, spacing, classes=num_classes, per_class=True, ignore_index=ignore_index), result)
    return first_bad_label(labels, num_classes, ignore_index) if validate else -1


def fill_dense(
    out: Tensor,
    labels: Tensor,
    foreground: Tensor,
    background: Tensor | float,
    num_classes: int,
    class_scale: Tensor | None,
    ignore_index: int | None,
) -> None:
    """See `Backend`."""
    if labels.numel() == 0:
        return
    if torch.float64 in (foreground.dtype, out.dtype):
        reference.fill_dense(out, labels, foreground, background, num_classes, class_scale, ignore_index)
        return
    pixels = labels[:1].numel()
    blocks = blocks_of(pixels, _STREAM)
    _launch(
        "write_dense",
        len(labels) * blocks,
        128,
        out,
        labels,
        foreground,
        background if isinstance(background, Tensor) else None,
        class_scale,
        pixels,
        blocks,
        num_classes,
        0 if ignore_index is None else ignore_index,
        0.0 if isinstance(background, Tensor) else background,
        BLOCK=_STREAM,
        IGNORE=ignore_index is not None,
    )
