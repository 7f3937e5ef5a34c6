"""The maps of the GPU backend: lays out the passes of the distance transform.

The kernels are in `kernels/columns.py`, and in `kernels/maps.py` those that make maps of distances. How many launches
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
from rwkernels.backends.problem import CompactProblem, MapProblem, refuse_bad_values
from rwkernels.backends.triton.launch import blocks_of, launch

_ROWS = 8  # of a program of a column pass, and of a block whose least value is known
_TILE = 4096  # pixels that a program of the row pass holds at once, if a row is not longer
_EACH = 8  # of them next to each other in a thread
_GROUP = 4  # blocks that are looked at together
_STREAM = 2048  # pixels of a program of the kernels that only stream
_CODED = 5000  # pixels of a row whose distances have a code of 16 bits
_SQUARED = 1 << 15  # and whose squares int32 holds
_WIDEST = 1 << 16  # pixels of a row that one program can hold
_LARGEST = 1 << 28  # pixels of a slice, so that int32 counts those of eight
_INT32_SQUARES = 1 << 29  # squared distances below this, and their sums, are counted in int32


@cache
def _kernels() -> dict[str, Any]:
    modules = ("rows", "columns", "maps")
    return {
        name: kernel
        for module in modules
        for name, kernel in vars(importlib.import_module(f"rwkernels.backends.triton.kernels.{module}")).items()
    }


def _launch(name: str, programs: int, threads: int, *arguments: Any, **constants: Any) -> None:
    launch(_kernels()[name], programs, threads, *arguments, **constants)


class _Task(NamedTuple):
    """What is transformed: distances to another label or, of every image, to each of `classes` classes."""

    labels: Tensor  # [B, *S], contiguous
    steps: tuple[float, ...]  # spacing along (z, y, x)
    classes: int
    per_class: bool
    border: bool
    ignore_index: int | None
    width: int = 0  # of rows, at least, as the kernel of the row pass is compiled for: other levels may be wider

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

    def squares(self, axis: int) -> torch.dtype:
        """Of squared distances after the pass along `axis` of (z, y, x): in pixels as long as axes are alike."""
        if len(set(self.steps[axis:])) > 1:
            return torch.float32
        return torch.int32 if sum(size**2 for size in self.sizes) < _INT32_SQUARES else torch.float64

    @property
    def rows(self) -> torch.dtype:
        """Of the field after the pass along x, which counts in pixels."""
        if self.squares(1) == torch.float32:
            return torch.float32
        x = self.sizes[2]
        return torch.int16 if x <= _CODED else torch.int32 if x < _SQUARED else torch.float64

    def unit(self, axis: int) -> float:
        """What squares before the pass along `axis` count in, if those after it do not count in pixels."""
        in_pixels = self.squares(axis) != torch.float32 or (axis == 0 and self.squares(1) == torch.float32)
        return 1.0 if in_pixels else self.steps[2] ** 2

    @property
    def last(self) -> torch.dtype:
        """Of the squared distances that come out."""
        return self.squares(3 - max(self.axes, 2))

    def settings(self, kind: str, real_axis: bool) -> dict[str, Any]:
        """The constants of a pass that gives `kind`, along an axis that is there or not."""
        used = self.per_class or kind == "rectified"
        ignores = self.ignore_index is not None and used
        return {"CLASSES": self.per_class, "BORDER": self.border and real_axis, "IGNORE": ignores}


def _task(problem: MapProblem, *, per_class: bool = False, width: int = 0) -> _Task:
    spacing = problem.spacing
    steps = (*[float(spacing[-1])] * (3 - len(spacing)), *map(float, spacing))
    border = problem.black_border and not per_class
    return _Task(problem.labels, steps, max(problem.num_classes, 1), per_class, border, problem.ignore_index, width)


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
    spare = _empty(result.out, result.out.shape, torch.float32) if spare is None else spare
    field = _as_field(spare if task.axes < 3 else result.out, task.rows)
    minima = _rows(task, field, result)
    if task.axes < 3:
        _columns(task, field, minima, result, (task.images, y, x), 1)
        return
    planes = _as_field(spare, task.squares(1))
    _columns(task, field, minima, _Result("field", planes), (task.images * z, y, x), 1)
    minima = _minima(planes, (task.images, z, y * x))
    _columns(task, planes, minima, result, (task.images, z, y * x), 0)


def _as_field(memory: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory of a result or a buffer, to hold a field meanwhile; or other memory, if a field takes more."""
    if dtype.itemsize > memory.element_size():
        return _empty(memory, memory.shape, dtype)
    return memory.view(-1).view(dtype)[: memory.numel()].view(memory.shape)


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=like.device)


def _power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _unit(size: int, most: int) -> int:
    """`most` if it divides a size, so that the kernels see what is aligned; else 1."""
    return most if size % most == 0 else 1


def _rows(task: _Task, field: Tensor, result: _Result) -> Tensor:
    """The pass along rows; returns the least values of the blocks of the next one."""
    z, y, x = task.sizes
    width, blocks, outer = max(_power_of_two(max(x, task.width)), _EACH), blocks_of(y, _ROWS), task.images * z
    tile = max(min(_TILE // width, _ROWS), 1)
    each = 32 if tile >= 4 else 8
    unit = _unit(x, _EACH)
    minima = _empty(field, (outer * blocks * x,), field.dtype)
    _launch(
        "row_pass",
        outer * blocks,
        min(max(width * tile // each, 32), 1024),
        task.labels,
        field,
        minima,
        result.maxima,
        result.counted,
        y,
        x // unit,
        blocks,
        len(task.labels),
        task.classes,
        z,
        0 if task.ignore_index is None else task.ignore_index,
        None,
        UNIT=unit,
        LANES=width // _EACH,
        EACH=_EACH,
        ROWS=_ROWS,
        TILE=tile,
        K_TILE=_power_of_two(task.classes),
        **task.settings(result.kind, True),
    )
    return minima


def _lanes(dtype: torch.dtype) -> int:
    """Columns of a program: four a thread, or one where a result takes two registers."""
    return 32 if dtype == torch.float64 else 128


def _minima(field: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """The least value of every block of rows of a field [outer, n, inner]."""
    outer, n, inner = sizes
    blocks, strips, unit = blocks_of(n, _ROWS), blocks_of(inner, 128), _unit(inner, 4)
    minima = _empty(field, (outer * blocks * inner,), field.dtype)
    arguments = (field, minima, n, inner // unit, blocks, strips, None)
    _launch("block_minima", outer * blocks * strips, 32, *arguments, UNIT=unit, ROWS=_ROWS, LANES=128)
    return minima


def _columns(
    task: _Task, field: Tensor, minima: Tensor, result: _Result, sizes: tuple[int, int, int], axis: int
) -> None:
    """The pass along `axis` of (z, y, x), which is the middle one of a field [outer, n, inner]."""
    outer, n, inner = sizes
    squares = task.squares(axis)
    lanes = _lanes(squares)
    blocks, strips, unit = blocks_of(n, _ROWS), blocks_of(inner, lanes), _unit(inner, lanes // 32)
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
        inner // unit,
        blocks,
        strips,
        task.classes,
        task.sizes[0],
        0 if task.ignore_index is None else task.ignore_index,
        task.unit(axis),
        task.steps[axis],
        result.absent,
        result.inside_offset,
        None,
        UNIT=unit,
        ROWS=_ROWS,
        LANES=lanes,
        GROUP=_GROUP,
        SQUARES=str(squares).removeprefix("torch."),
        GIVES=result.kind,
        WIDE=n * inner >= 1 << 31,
        **task.settings(result.kind, axis > 2 - task.axes),
    )


def too_large(labels: Tensor) -> bool:
    """Whether the reference does it: the kernels take no such labels."""
    return labels.shape[-1] > _WIDEST or math.prod(labels.shape[2:]) >= _LARGEST


def fill_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    if problem.labels.numel() == 0:
        return
    if too_large(problem.labels):
        reference.fill_distance(out, problem, squared=squared)
        return
    _transform(_task(problem), _Result("squared" if squared else "distance", out))


def fill_class_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    if problem.labels.numel() == 0 or too_large(problem.labels):
        reference.fill_class_distance(out, problem, squared=squared)
        return
    _transform(_task(problem, per_class=True), _Result("squared" if squared else "distance", out))
    if problem.validate:
        refuse_bad_values(problem)


def fill_rectified(out: Tensor, count: Tensor, problem: MapProblem, *, width: int = 0) -> None:
    """See `Backend`. The row pass is compiled for rows of at least `width` pixels."""
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
    if labels.numel() == 0 or too_large(labels):
        reference.fill_rectified(out, count, problem)
        return
    task = _task(problem, width=width)
    squared = _empty(labels, labels.shape, task.last)
    bits = torch.int64 if task.last == torch.float64 else torch.int32
    maxima = _empty(labels, (len(labels), num_classes), bits)
    _transform(task, _Result("rectified", squared, maxima, count), out)
    pixels = labels[:1].numel()
    blocks, unit = blocks_of(pixels, _STREAM), _unit(pixels, 4)
    _launch(
        "rectify",
        len(labels) * blocks,
        128,
        squared,
        labels,
        maxima,
        problem.class_max,
        out,
        pixels // unit,
        blocks,
        num_classes,
        0 if ignore_index is None else ignore_index,
        task.steps[2],
        None,
        UNIT=unit,
        BLOCK=_STREAM,
        IGNORE=ignore_index is not None,
    )
    if problem.validate:
        refuse_bad_values(problem)


def fill_boundary(out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
    """See `Backend`."""
    labels = problem.labels
    if labels.numel() == 0 or too_large(labels):
        reference.fill_boundary(out, problem, absent=absent, inside_offset=inside_offset)
        return
    inside = _empty(labels, labels.shape, torch.float32)
    fill_distance(inside, problem._replace(num_classes=0, ignore_index=None), squared=False)
    result = _Result("boundary", out, inside=inside, absent=absent, inside_offset=inside_offset)
    _transform(_task(problem, per_class=True), result)
    if problem.validate:
        refuse_bad_values(problem)


def fill_dense(out: Tensor, problem: CompactProblem) -> None:
    """See `Backend`."""
    labels, foreground, ignore_index = problem.labels, problem.foreground, problem.ignore_index
    if labels.numel() == 0:
        return
    if torch.float64 in (foreground.dtype, out.dtype):
        reference.fill_dense(out, problem)
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
        problem.background,
        problem.class_scale,
        pixels,
        blocks,
        problem.num_classes,
        0 if ignore_index is None else ignore_index,
        problem.background_value,
        BLOCK=_STREAM,
        IGNORE=ignore_index is not None,
    )
