"""The CPU backend: the C++ core in `csrc/`, called with addresses and sizes that were checked here."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkernels.backends import LossProblem, reference
from rwkernels.backends.errors import BadInput

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


def described(
    labels: Tensor,
    num_classes: int = 0,
    ignore_index: int | None = None,
    *,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] = (),
    black_border: bool = False,
    class_max: Tensor | None = None,
    validate: bool = False,
) -> Any:
    """The core's `MapProblem` of contiguous labels, as [B, *S] or as another `shape` of as many.

    It holds addresses alone: the tensors have to live as long.
    """
    return core().MapProblem(
        labels=labels.data_ptr(),
        label_dtype=_LABEL_CODES[labels.dtype],
        shape=tuple(labels.shape if shape is None else shape),
        spacing=spacing,
        black_border=black_border,
        num_classes=num_classes,
        class_max=address(class_max),
        ignore=ignore_index,
        validate=validate,
        threads=threads(),
    )


def refused(call: Callable[..., None], problem: Any, **arguments: Any) -> tuple[int, int]:
    """Calls a function of the core. Flat indices of a bad label and of a bad maximum, -1 for none: see `Backend`."""
    try:
        checked(call, problem, **arguments)
    except BadInput as bad:
        return (bad.index, -1) if bad.argument == "labels" else (-1, bad.index)
    return -1, -1


def checked(call: Callable[..., None], problem: Any, **arguments: Any) -> None:
    """Calls a function of the core. Raises `BadInput` for a value that it finds to be bad."""
    try:
        call(problem, **arguments)
    except core().BadValue as bad:
        raise BadInput(bad.argument, bad.index) from None


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
    problem = described(labels, num_classes, ignore_index, shape=(1, labels.numel()))
    bad: int = core().first_bad_label(problem)
    return bad


def fill_distance(out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool) -> None:
    """See `Backend`."""
    core().distance(described(labels, spacing=spacing, black_border=black_border), out=written(out), squared=squared)


def pass_axis(field: Tensor, labels: Tensor, axis: int, unit: float, first: bool, black_border: bool) -> None:
    """See `Backend`."""
    lines = [math.prod(labels.shape[:axis]), labels.shape[axis], math.prod(labels.shape[axis + 1 :])]
    problem = described(labels, shape=lines if lines[2] != 1 else lines[:2], black_border=black_border)
    core().axis_pass(problem, field=field.data_ptr(), unit=unit, first=first)


def largest_of_classes(field: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """See `Backend`."""
    largest = field.new_empty(num_classes)
    problem = described(labels, num_classes, shape=(1, labels.numel()))
    core().class_max(problem, distance=field.data_ptr(), out=largest.data_ptr())
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
    problem = described(
        labels, num_classes, ignore_index, shape=(1, labels.numel()), spacing=(spacing,), class_max=class_max
    )
    core().rectify(problem, field=field.data_ptr(), squared_max=squared_max.data_ptr())


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
    problem = described(labels, num_classes, ignore_index, spacing=spacing, validate=validate)
    bad, _ = refused(core().class_distance, problem, out=written(out), squared=squared)
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
    problem = described(
        labels,
        num_classes,
        ignore_index,
        spacing=spacing,
        black_border=black_border,
        class_max=class_max,
        validate=validate,
    )
    return refused(core().rectified, problem, field=written(out), count=count.data_ptr())


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
    problem = described(
        labels, num_classes, ignore_index, spacing=spacing, black_border=black_border, validate=validate
    )
    bad, _ = refused(core().boundary, problem, out=written(out), absent=absent, inside_offset=inside_offset)
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
    foreground = foreground.to(torch.float32)
    per_pixel = background.to(torch.float32) if isinstance(background, Tensor) else None
    scale = None if class_scale is None else class_scale.to(torch.float32).contiguous()
    core().dense(
        described(labels, num_classes, ignore_index, shape=(len(labels), math.prod(labels.shape[1:]))),
        foreground=foreground.data_ptr(),
        background=address(per_pixel),
        background_value=0.0 if isinstance(background, Tensor) else background,
        class_scale=address(scale),
        out=written(out),
        out_dtype=_FLOAT_CODES[out.dtype],
    )


def _holds_unchecked_bad_label(problem: LossProblem) -> bool:
    """Whether a dense map comes with a label that has to give NaN: the core uses its labels to ignore pixels alone."""
    if problem.compact or problem.validate or problem.labels is None:
        return False
    return first_bad_label(problem.labels.contiguous(), problem.logits.shape[1], problem.ignore_index) >= 0


def _described_loss(problem: LossProblem, validate: bool) -> tuple[Any, list[Tensor | None]]:
    """The core's `LossProblem`, which holds addresses alone, and tensors that have to live as long."""
    logits, maps = problem.logits, problem.maps
    labels = None if problem.labels is None else problem.labels.contiguous()
    if problem.compact:
        maps = (maps if maps.dtype in (torch.float32, torch.float64) else maps.to(torch.float32)).contiguous()
    background = None if problem.background is None else problem.background.to(maps.dtype).contiguous()
    scale = reference.all_class_scales(problem)
    if scale is not None:
        scale = scale.to(torch.float64).reshape(-1, logits.shape[1]).contiguous()
    found = core().LossProblem(
        logits=logits.data_ptr(),
        dtype=_FLOAT_CODES[logits.dtype],
        shape=tuple(logits.shape),
        strides=logits.stride(),
        map=maps.data_ptr(),
        map_dtype=_FLOAT_CODES[maps.dtype],
        map_strides=None if problem.compact else maps.stride(),
        labels=address(labels),
        label_dtype="u1" if labels is None else _LABEL_CODES[labels.dtype],
        ignore=problem.ignore_index if labels is not None else None,
        background=address(background),
        background_value=problem.background_value,
        class_scale=address(scale),
        scale_groups=1 if scale is None else len(scale),
        validate=validate,
        threads=threads(),
    )
    return found, [labels, maps, background, scale]


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
    logits = problem.logits
    if _holds_unchecked_bad_label(problem):
        return reference.loss(
            problem, with_loss=with_loss, grad=grad, upstream=upstream, divide=divide, validate=validate
        )
    image_scale = pixel_scale = None
    if grad is not None:
        image_scale, pixel_scale = reference.gradient_scale(problem, upstream, divide)
    image_sums = pixel_loss = None
    if with_loss and problem.reduction == "none":
        pixel_loss = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=problem.loss_dtype)
    elif with_loss:
        image_sums = logits.new_empty(len(logits), dtype=torch.float64)
    described_loss, _alive = _described_loss(problem, validate)
    bad, _ = refused(
        core().region_wise,
        described_loss,
        grad=written(grad),
        grad_strides=() if grad is None else grad.stride(),
        image_scale=address(image_scale),
        pixel_scale=address(pixel_scale),
        image_sums=address(image_sums),
        pixel_loss=address(pixel_loss),
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
    described_loss, _alive = _described_loss(problem, validate)
    bad, _ = refused(core().negatives, described_loss, probabilities=probabilities, wrong=wrong, out=written(out))
    return bad
