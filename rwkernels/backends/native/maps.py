"""Distances and maps by the C++ core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rwkernels.backends import reference
from rwkernels.backends.native.compiled import FLOAT_CODES, address, checked, core, described, flat, written
from rwkernels.backends.problem import CompactProblem, MapProblem, is_label, is_no_class


def first_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
    """See `Backend`."""
    bad: int = core().first_bad_label(flat(labels, num_classes, ignore_index))
    return bad


def fill_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    core().distance(described(problem), out=written(out), squared=squared)


def pass_axis(field: Tensor, labels: Tensor, axis: int, unit: float, first: bool, black_border: bool) -> None:
    """See `Backend`."""
    lines = [math.prod(labels.shape[:axis]), labels.shape[axis], math.prod(labels.shape[axis + 1 :])]
    problem = flat(labels, shape=lines if lines[2] != 1 else lines[:2], black_border=black_border)
    core().axis_pass(problem, field=field.data_ptr(), unit=unit, first=first)


def largest_of_classes(field: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See `Backend`."""
    largest = field.new_empty(num_classes)
    core().class_max(flat(labels, num_classes), distance=field.data_ptr(), out=largest.data_ptr())
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
    problem = MapProblem(labels, num_classes, (spacing,), class_max, False, ignore_index, False, None)
    row = described(problem, shape=(1, labels.numel()))
    core().rectify(row, field=field.data_ptr(), squared_max=squared_max.data_ptr())


def fill_class_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    checked(core().class_distance, described(problem), out=written(out), squared=squared)


def fill_rectified(out: Tensor, count: Tensor, problem: MapProblem) -> None:
    """See `Backend`."""
    checked(core().rectified, described(problem), field=written(out), count=count.data_ptr())


def fill_boundary(out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
    """See `Backend`."""
    given = described(problem)
    checked(core().boundary, given, out=written(out), absent=absent, inside_offset=inside_offset)
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
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
    labels = problem.labels
    foreground = problem.foreground.to(torch.float32)
    background = None if problem.background is None else problem.background.to(torch.float32)
    scale = None if problem.class_scale is None else problem.class_scale.to(torch.float32).contiguous()
    core().dense(
        flat(labels, problem.num_classes, problem.ignore_index, shape=(len(labels), math.prod(labels.shape[1:]))),
        foreground=foreground.data_ptr(),
        background=address(background),
        background_value=problem.background_value,
        class_scale=address(scale),
        out=written(out),
        out_dtype=FLOAT_CODES[out.dtype],
    )
