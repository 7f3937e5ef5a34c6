"""Distances and maps by the C++ core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rwkernels.backends import reference
from rwkernels.backends.native.compiled import FLOAT_CODES, address, code, core, grid, refuse, written
from rwkernels.backends.problem import CompactProblem, MapProblem, is_label, is_no_class
from rwkernels.backends.threads import threads


def first_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
    """See `Backend`."""
    bad: int = core().first_bad_label(
        labels.data_ptr(), code(labels), labels.numel(), num_classes, ignore_index, threads()
    )
    return bad


def fill_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    sizes, axes, steps = grid(problem.labels, problem.spacing)
    core().distance(
        problem.labels.data_ptr(),
        code(problem.labels),
        written(out),
        sizes,
        axes,
        steps,
        squared,
        problem.black_border,
        threads(),
    )


def pass_axis(field: Tensor, labels: Tensor, axis: int, unit: float, first: bool, black_border: bool) -> None:
    """See `Backend`."""
    core().axis_pass(
        labels=labels.data_ptr(),
        code=code(labels),
        field=field.data_ptr(),
        outer=math.prod(labels.shape[:axis]),
        n=labels.shape[axis],
        inner=math.prod(labels.shape[axis + 1 :]),
        unit=unit,
        first=first,
        bounded=black_border,
        threads=threads(),
    )


def largest_of_classes(field: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See `Backend`."""
    largest = field.new_empty(num_classes)
    sizes = (1, 1, 1, labels.numel())
    core().class_max(
        labels.data_ptr(), code(labels), field.data_ptr(), largest.data_ptr(), sizes, num_classes, threads()
    )
    return largest


def rectify(
    field: Tensor,
    labels: Tensor,
    num_classes: int,
    squared_max: Tensor,
    class_max: Tensor | None,
    spacing: float,
    ignore_index: int | None,
) -> None:
    """See `Backend`."""
    core().rectify(
        labels=labels.data_ptr(),
        code=code(labels),
        field=field.data_ptr(),
        n=labels.numel(),
        num_classes=num_classes,
        squared_max=squared_max.data_ptr(),
        class_max=address(class_max),
        spacing=spacing,
        ignore=ignore_index,
        threads=threads(),
    )


def fill_class_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    sizes, axes, steps = grid(problem.labels, problem.spacing)
    refuse(
        core().class_distance(
            problem.labels.data_ptr(),
            code(problem.labels),
            written(out),
            sizes,
            axes,
            steps,
            problem.num_classes,
            squared,
            problem.ignore_index,
            problem.validate,
            threads(),
        )
    )


def fill_rectified(out: Tensor, count: Tensor, problem: MapProblem) -> None:
    """See `Backend`."""
    sizes, axes, steps = grid(problem.labels, problem.spacing)
    refuse(
        core().rectified(
            problem.labels.data_ptr(),
            code(problem.labels),
            written(out),
            count.data_ptr(),
            sizes,
            axes,
            steps,
            problem.num_classes,
            address(problem.class_max),
            problem.ignore_index,
            problem.black_border,
            problem.validate,
            threads(),
        )
    )


def fill_boundary(out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
    """See `Backend`."""
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
    sizes, axes, steps = grid(labels, problem.spacing)
    bad = core().boundary(
        labels.data_ptr(),
        code(labels),
        written(out),
        sizes,
        axes,
        steps,
        num_classes,
        ignore_index,
        absent,
        inside_offset,
        problem.black_border,
        problem.validate,
        threads(),
    )
    refuse(bad)
    if not problem.validate and first_bad_label(labels, num_classes, ignore_index) >= 0:
        wrong = is_no_class(labels, num_classes)
        if ignore_index is not None:
            wrong &= ~is_label(labels, ignore_index)
        out.masked_fill_(wrong.unsqueeze(1), torch.nan)


def fill_dense(out: Tensor, problem: CompactProblem) -> None:
    """See `Backend`."""
    if problem.foreground.dtype == torch.float64:  # the core reads float32 only
        reference.fill_dense(out, problem)
        return
    sizes, _, _ = grid(problem.labels, [])
    foreground = problem.foreground.to(torch.float32)
    background = None if problem.background is None else problem.background.to(torch.float32)
    scale = None if problem.class_scale is None else problem.class_scale.to(torch.float32).contiguous()
    core().dense(
        problem.labels.data_ptr(),
        code(problem.labels),
        foreground.data_ptr(),
        address(background),
        problem.background_value,
        address(scale),
        written(out),
        FLOAT_CODES[out.dtype],
        sizes,
        problem.num_classes,
        problem.ignore_index,
        threads(),
    )
