"""The CPU backend: the C++ core in `csrc/`, called with addresses and sizes that were checked here."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkernels.backends import LossProblem, reference

NAME = "native"
ISA_VARIABLE = "RWKERNELS_ISA"
# Results of so many bytes are backed by huge pages. Above, as many free ones are not to be counted on: making them
# (compaction, or a virtual machine's host that has taken the memory back) costs more than small pages do.
_HUGE_PAGES = range(4 << 20, 256 << 20)

_limit: ContextVar[int | None] = ContextVar("threads of the core", default=None)

_LABEL_CODES = {torch.uint8: "u1", torch.int8: "i1", torch.int16: "i2", torch.int32: "i4", torch.int64: "i8"}
_FLOAT_CODES = {torch.float32: "f4", torch.float64: "f8", torch.bfloat16: "bf", torch.float16: "f2"}


def threads() -> int:
    """How many threads the core may use: what `limited_to` says here, else as many as torch."""
    return _limit.get() or torch.get_num_threads()


@contextmanager
def limited_to(count: int) -> Iterator[None]:
    """`count` threads for the core in this thread alone; `torch.set_num_threads` would reach threads yet to start."""
    token = _limit.set(count)
    try:
        yield
    finally:
        _limit.reset(token)


@cache
def core() -> Any:
    """The compiled module, with the instruction set that the environment asks for."""
    module = importlib.import_module("rwkernels._native")
    module.force_isa(os.environ.get(ISA_VARIABLE, ""))
    return module


def can_run(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type != "cpu":
        return "it computes on the CPU only"
    try:
        core()
    except ImportError as error:
        return f"the compiled module is missing ({error})"
    return None


def grid(labels: Tensor, spacing: Sequence[float]) -> tuple[tuple[int, ...], int, tuple[float, ...]]:
    """Sizes [B, Z, Y, X] with leading axes of 1 put in, the number of real axes, and (z, y, x) spacing."""
    axes = labels.dim() - 1
    sizes = (labels.shape[0], *[1] * (3 - axes), *labels.shape[1:])
    return sizes, axes, (*[1.0] * (3 - axes), *spacing)


def code(labels: Tensor) -> str:
    return _LABEL_CODES[labels.dtype]


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def written(tensor: Tensor | None) -> int:
    """The address of a tensor about to be written, backed by huge pages where that pays and its memory is fresh.

    Faulting a fresh gradient in by 4 KiB pages takes longer than computing it.
    """
    if tensor is None:
        return 0
    advise_huge_pages(tensor)
    return tensor.data_ptr()


def advise_huge_pages(tensor: Tensor) -> None:
    """Asks for huge pages under a tensor whose memory is fresh, where they pay."""
    size = tensor.numel() * tensor.element_size()
    if size in _HUGE_PAGES and can_run(tensor.device) is None:
        core().advise_huge_pages(address=tensor.data_ptr(), bytes=size)


def first_bad_label(labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
    """See `Backend`."""
    bad: int = core().first_bad_label(
        labels.data_ptr(), code(labels), labels.numel(), num_classes, ignore_index, threads()
    )
    return bad


def fill_distance(out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool) -> None:
    """See `Backend`."""
    sizes, axes, steps = grid(labels, spacing)
    core().distance(
        labels.data_ptr(),
        code(labels),
        written(out),
        sizes,
        axes,
        steps,
        squared,
        black_border,
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
    sizes, axes, steps = grid(labels, spacing)
    bad: int = core().class_distance(
        labels.data_ptr(),
        code(labels),
        written(out),
        sizes,
        axes,
        steps,
        num_classes,
        squared,
        ignore_index,
        validate,
        threads(),
    )
    return bad


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
    sizes, axes, steps = grid(labels, spacing)
    bad: int = core().rectified(
        labels.data_ptr(),
        code(labels),
        written(out),
        count.data_ptr(),
        sizes,
        axes,
        steps,
        num_classes,
        address(class_max),
        ignore_index,
        black_border,
        validate,
        threads(),
    )
    return (-1, -2 - bad) if bad <= -2 else (bad, -1)


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
    sizes, axes, steps = grid(labels, spacing)
    bad: int = core().boundary(
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
        black_border,
        validate,
        threads(),
    )
    if not validate and first_bad_label(labels, num_classes, ignore_index) >= 0:
        wrong = reference.is_no_class(labels, num_classes)
        if ignore_index is not None:
            wrong &= ~reference.is_label(labels, ignore_index)
        out.masked_fill_(wrong.unsqueeze(1), torch.nan)
    return bad


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
    if foreground.dtype == torch.float64:  # the core reads float32 only
        reference.fill_dense(out, labels, foreground, background, num_classes, class_scale, ignore_index)
        return
    sizes, _, _ = grid(labels, [])
    foreground = foreground.to(torch.float32)
    per_pixel = background.to(torch.float32) if isinstance(background, Tensor) else None
    scale = None if class_scale is None else class_scale.to(torch.float32).contiguous()
    core().dense(
        labels.data_ptr(),
        code(labels),
        foreground.data_ptr(),
        address(per_pixel),
        0.0 if isinstance(background, Tensor) else background,
        address(scale),
        written(out),
        _FLOAT_CODES[out.dtype],
        sizes,
        num_classes,
        ignore_index,
        threads(),
    )


def _five(values: Sequence[int]) -> tuple[int, ...]:
    """Sizes or strides [B, K, *S] with leading spatial axes of 1 put in."""
    return (*values[:2], *[1] * (5 - len(values)), *values[2:])


def _holds_unchecked_bad_label(problem: LossProblem) -> bool:
    """Whether a dense map comes with a label that has to give NaN: the core uses its labels to ignore pixels alone."""
    if problem.compact or problem.validate or problem.labels is None:
        return False
    return first_bad_label(problem.labels.contiguous(), problem.logits.shape[1], problem.ignore_index) >= 0


def loss(
    problem: LossProblem,
    *,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
    validate: bool,
) -> tuple[Tensor, int]:
    """See `Backend`."""
    logits, maps = problem.logits, problem.maps
    if _holds_unchecked_bad_label(problem):
        return reference.loss(
            problem, with_loss=with_loss, grad=grad, upstream=upstream, divide=divide, validate=validate
        )
    labels = None if problem.labels is None else problem.labels.contiguous()
    if problem.compact:
        maps = (maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)).contiguous()
    background = None if problem.background is None else problem.background.to(maps.dtype).contiguous()
    scale = reference.all_class_scales(problem)
    if scale is not None:
        scale = scale.to(torch.float64).reshape(-1, logits.shape[1]).contiguous()
    image_scale = pixel_scale = None
    if grad is not None:
        image_scale, pixel_scale = reference.gradient_scale(problem, upstream, divide)
    image_sums = pixel_loss = None
    if with_loss and problem.reduction == "none":
        pixel_loss = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=problem.loss_dtype)
    elif with_loss:
        image_sums = logits.new_empty(len(logits), dtype=torch.float64)
    bad = core().region_wise(
        logits=logits.data_ptr(),
        dtype=_FLOAT_CODES[logits.dtype],
        sizes=_five(logits.shape),
        strides=_five(logits.stride()),
        map=maps.data_ptr(),
        map_dtype=_FLOAT_CODES[maps.dtype],
        map_strides=(0,) * 5 if problem.compact else _five(maps.stride()),
        compact=problem.compact,
        labels=address(labels),
        label_code="u1" if labels is None else code(labels),
        ignore=problem.ignore_index if labels is not None else None,
        background=address(background),
        background_value=problem.background_value,
        class_scale=address(scale),
        scale_groups=1 if scale is None else len(scale),
        image_scale=address(image_scale),
        pixel_scale=address(pixel_scale),
        grad=written(grad),
        grad_strides=(0,) * 5 if grad is None else _five(grad.stride()),
        image_sums=address(image_sums),
        pixel_loss=address(pixel_loss),
        validate=validate,
        threads=threads(),
    )
    if image_sums is not None:
        return reference.reduced(image_sums, problem), bad
    return logits.new_empty(0) if pixel_loss is None else pixel_loss, bad


def scale_gradient(problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool) -> Tensor:
    """See `Backend`. The factor is on the host already: one of 1 costs nothing."""
    if problem.runs > 1:
        return reference.scale_gradient(problem, grad, upstream, divide=divide, in_place=in_place)
    factor = float(upstream)
    if divide:
        factor /= float(reference.mean_divisor(problem))
    if factor == 1.0:
        return grad if in_place else grad.clone()
    return grad.mul_(factor) if in_place else grad * factor


def fill_negatives(out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool) -> int:
    """See `Backend`."""
    values, maps = problem.logits, problem.maps
    labels = None if problem.labels is None else problem.labels.contiguous()
    if problem.compact:
        maps = (maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)).contiguous()
    background = None if problem.background is None else problem.background.to(maps.dtype).contiguous()
    scale = reference.all_class_scales(problem)
    if scale is not None:
        scale = scale.to(torch.float64).reshape(-1, values.shape[1]).contiguous()
    bad: int = core().negatives(
        values=values.data_ptr(),
        dtype=_FLOAT_CODES[values.dtype],
        sizes=_five(values.shape),
        strides=_five(values.stride()),
        map=maps.data_ptr(),
        map_dtype=_FLOAT_CODES[maps.dtype],
        map_strides=(0,) * 5 if problem.compact else _five(maps.stride()),
        compact=problem.compact,
        labels=address(labels),
        label_code="u1" if labels is None else code(labels),
        ignore=problem.ignore_index if labels is not None else None,
        background=address(background),
        background_value=problem.background_value,
        class_scale=address(scale),
        scale_groups=1 if scale is None else len(scale),
        probabilities=probabilities,
        wrong=wrong,
        out=written(out),
        validate=validate,
        threads=threads(),
    )
    return bad
