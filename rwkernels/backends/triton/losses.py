"""The loss of the GPU backend (kernels in `kernels/loss.py`), and the signs of its gradient (`kernels/signs.py`)."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels.backends.problem import LossProblem, refuse_bad_label
from rwkernels.backends.triton.launch import blocks_of, launch

_FINISH = 4096  # partial sums that `finish_loss` reads at once
_SIGNS = 1024  # classes times pixels of a program that counts signs
_STREAM = 4096  # elements of a program of the kernels that only stream


@cache
def _kernels() -> Any:
    return importlib.import_module("rwkernels.backends.triton.kernels.loss")


class Shape(NamedTuple):
    """How a program holds its pixels: `parts` tiles of `rows` classes times `pixels` pixels, in `threads` threads."""

    parts: int
    rows: int
    pixels: int
    threads: int


def program_shape(num_classes: int, *, rectified: bool, width: int, classes_last: bool) -> Shape:
    """The shape of a program, so that what a pixel keeps in registers leaves room for enough programs side by side.

    A thread keeps every logit of its pixels, and every value of a map unless that is `rectified`: two a pixel. `width`
    is the size of a logit in bytes; float64 takes two registers.
    """
    rows = 1 << (num_classes - 1).bit_length()
    wide = 2 if width == 8 else 1
    if classes_last:  # one tile, so that all classes of a pixel are read together; rows beyond the classes cost masks
        each = 2 if width == 8 else 8 if num_classes == rows or rows > 32 else 4
        values = max(128 * each, rows)
        return Shape(1, rows, values // rows, min(max(values // 16, 128), 512))
    if num_classes <= 32:  # a tile of one row for every class: all of a pixel in one thread, and no sum leaves it
        kept = num_classes * (1 if rectified else 2) * wide
        # Of sm_90's registers at most 64 up to 6 classes and 96 up to 16, whatever the options, so that at least 32 KiB
        # of loads are under way on each of its multiprocessors.
        each = 4 if kept <= 8 else 2 if kept <= 32 else 1
        return Shape(num_classes, 1, 128 * each, 128)
    # Tiles over more threads the higher they are, a row of classes over 8: 16 bytes a thread of float32 or float64.
    rows = max(rows // 8, 16) // (2 if rectified else 1)
    threads = min(8 * rows, 512)
    return Shape(-(-num_classes // rows), rows, max(4 * threads // rows // wide, 1), threads)


class _Layout(NamedTuple):
    """Strides of a [B, K, *S] tensor whose pixels follow each other evenly: every 1, or every K (`last`)."""

    image: int
    channel: int
    last: bool


def _layout(tensor: Tensor) -> _Layout | None:
    """The layout of `tensor`; None if its pixels do not follow each other evenly."""
    sizes, strides = tensor.shape, tensor.stride()
    for last in (False, True):
        step = sizes[1] if last else 1
        even = not last or strides[1] == 1
        for size, stride in zip(reversed(sizes[2:]), reversed(strides[2:]), strict=True):
            even = even and (size == 1 or stride == step)
            step = step * size
        if even:
            return _Layout(strides[0] if sizes[0] > 1 else 0, strides[1] if sizes[1] > 1 and not last else 0, last)
    return None


def _even(tensor: Tensor) -> Tensor:
    """`tensor`, or a contiguous copy of one whose pixels do not follow each other evenly."""
    return tensor.contiguous() if _layout(tensor) is None else tensor


def _unit(*values: int) -> int:
    """The largest power of two up to 16 that divides all `values`."""
    for unit in (16, 8, 4, 2):
        if all(value % unit == 0 for value in values):
            return unit
    return 1


def _launch(name: str, programs: int, threads: int, *arguments: Any, **constants: Any) -> None:
    launch(getattr(_kernels(), name), programs, threads, *arguments, **constants)


class _Mean(NamedTuple):
    """What divides a mean: N * K of a run; or K, with the pixels that count of every image."""

    divisor: int
    counted: Tensor | None


def _mean(problem: LossProblem) -> _Mean:
    logits, count = problem.logits, problem.image_count
    if problem.ignore_index is None:
        return _Mean(max(logits[:, 0].numel() // problem.runs * problem.channels, 1), None)
    return _Mean(problem.channels, _count(problem) if count is None else count.contiguous())


def _count(problem: LossProblem) -> Tensor:
    """How many pixels of every image count, int64 [B]."""
    labels = problem.labels
    assert labels is not None
    labels = labels.contiguous()
    pixels = labels[:1].numel()
    unit, blocks = _unit(pixels), blocks_of(pixels, _STREAM)
    count = torch.zeros(labels.shape[0], dtype=torch.int64, device=labels.device)
    arguments = (labels, count, pixels // unit, blocks, problem.ignore_index)
    _launch("count_pixels", labels.shape[0] * blocks, 128, *arguments, BLOCK=_STREAM, UNIT=unit)
    return count


def loss(
    problem: LossProblem,
    *,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
    validate: bool,
) -> Tensor:
    """See `Backend`."""
    if validate:
        assert problem.labels is not None
        refuse_bad_label(problem.labels, problem.logits.shape[1], problem.ignore_index)
    per_pixel = problem.reduction == "none"
    if problem.logits.numel() == 0:
        shape = (problem.logits.shape[0], *problem.logits.shape[2:]) if per_pixel else (problem.runs,)
        return problem.logits.new_zeros(shape, dtype=problem.loss_dtype)
    mean = _mean(problem) if problem.reduction == "mean" else None
    written = _pass(problem, mean, with_loss, grad, upstream, divide)
    if not with_loss or per_pixel:
        return written
    result = torch.empty(problem.runs, dtype=problem.loss_dtype, device=written.device)
    divisor, counted = mean or (1, None)
    images = problem.logits.shape[0] // problem.runs
    arguments = (written, result, counted, divisor, written.numel() // problem.runs, images)
    _launch("finish_loss", problem.runs, 256, *arguments, MEAN=mean is not None, BLOCK=_FINISH)
    return result


def _pass(
    problem: LossProblem,
    mean: _Mean | None,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
) -> Tensor:
    """The one pass over logits and map: fills `grad`, and returns the loss of every pixel or of every program."""
    logits, written = _laid_out_alike(problem.logits, grad)
    maps = problem.maps.contiguous() if problem.compact else _even(problem.maps)
    batch, num_classes = logits.shape[:2]
    pixels = logits[:1, :1].numel()
    per_pixel = problem.reduction == "none"
    of_logits, of_grad = _layout(logits), _layout(logits if written is None else written)
    of_maps = _Layout(0, 0, False) if problem.compact else _layout(maps)
    assert of_logits is not None
    assert of_maps is not None
    assert of_grad is not None
    strides = (*of_logits[:2], *of_maps[:2], *of_grad[:2])
    unit = _unit(pixels, *strides)
    scale = _contiguous(problem.class_scale)
    shape = program_shape(
        num_classes,
        rectified=problem.compact and scale is None and problem.include_background,
        width=logits.element_size(),
        classes_last=of_logits.last,
    )
    blocks = blocks_of(pixels, shape.pixels)
    loss = None
    if with_loss:
        sizes = (batch, *logits.shape[2:]) if per_pixel else (batch * blocks,)
        loss = torch.empty(sizes, dtype=problem.loss_dtype, device=logits.device)
    _launch(
        "region_wise",
        batch * blocks,
        shape.threads,
        logits,
        maps,
        _contiguous(problem.labels),
        _background(problem),
        scale,
        _contiguous(upstream) if per_pixel else None,
        None if per_pixel or upstream is None else upstream.reshape(-1).contiguous(),
        None if mean is None else mean.counted,
        written,
        loss,
        *(stride // unit for stride in strides),
        num_classes if scale is not None and scale.dim() == 2 else 0,
        pixels // unit,
        blocks,
        batch // problem.runs,
        1 if mean is None else mean.divisor,
        0 if problem.ignore_index is None else problem.ignore_index,
        problem.background_value,
        None,
        None,
        K=num_classes,
        PARTS=shape.parts,
        ROWS=shape.rows,
        BLOCK=shape.pixels,
        UNIT=unit,
        COMPACT=problem.compact,
        IGNORE=problem.ignore_index is not None,
        FIRST=0 if problem.include_background else 1,
        MEAN=mean is not None and divide,
        PER_PIXEL=per_pixel,
        LOGITS_LAST=of_logits.last,
        MAPS_LAST=of_maps.last,
        WIDE=pixels * num_classes >= 2**31,
    )
    if grad is not None and written is not None and written is not grad:
        grad.copy_(written)
    return logits.new_empty(0) if loss is None else loss


def _laid_out_alike(logits: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The logits, and where to write the gradient: both even, with classes last in both or in neither.

    That is a copy of the logits, or a tensor beside `grad`, where they are not so by themselves.
    """
    logits = _even(logits)
    if grad is None:
        return logits, None
    here, there = _layout(logits), _layout(grad)
    if here is not None and there is not None and here.last == there.last:
        return logits, grad
    logits = logits.contiguous()
    return logits, torch.empty_like(logits)


def _background(problem: LossProblem) -> Tensor | None:
    """The background of every pixel; None for a number, which reaches a kernel as float32."""
    background = problem.background
    if background is None and problem.compact and problem.logits.dtype == torch.float64:
        return torch.full_like(problem.maps, problem.background_value, dtype=torch.float64).contiguous()
    return _contiguous(background)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def scale_gradient(problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool) -> Tensor:
    """See `Backend`. A factor of 1 is seen on the device, where it costs a launch that touches nothing."""
    out = grad if in_place else torch.empty_like(grad)
    elements = grad.numel() // problem.runs
    if elements == 0:
        return out
    mean = _mean(problem) if divide else None
    unit, blocks = _unit(elements), blocks_of(elements, _STREAM)
    _launch(
        "scale_gradient",
        problem.runs * blocks,
        128,
        grad,
        None if in_place else out,
        upstream.reshape(-1).contiguous(),
        None if mean is None else mean.counted,
        elements // unit,
        blocks,
        grad.shape[0] // problem.runs,
        1 if mean is None else mean.divisor,
        None,
        None,
        BLOCK=_STREAM,
        UNIT=unit,
        MEAN=divide,
    )
    return out


def fill_negatives(out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool) -> None:
    """See `Backend`."""
    values, maps = _even(problem.logits), problem.maps.contiguous() if problem.compact else _even(problem.maps)
    batch, num_classes = values.shape[:2]
    if validate:
        assert problem.labels is not None
        refuse_bad_label(problem.labels, num_classes, problem.ignore_index)
    if out.numel() == 0:
        return
    of_values, of_maps = _layout(values), _Layout(0, 0, False) if problem.compact else _layout(maps)
    assert of_values is not None
    assert of_maps is not None
    pixels = values[:1, :1].numel()
    strides = (*of_values[:2], *of_maps[:2])
    unit = _unit(pixels, *strides)
    scale = _contiguous(problem.class_scale)
    rows = 1 << (num_classes - 1).bit_length()
    each = max(_SIGNS // rows, 1)
    blocks = blocks_of(pixels, each)
    launch(
        importlib.import_module("rwkernels.backends.triton.kernels.signs").count_negatives,
        batch * blocks,
        128,
        values,
        maps,
        _contiguous(problem.labels),
        _background(problem),
        scale,
        out,
        *(stride // unit for stride in strides),
        num_classes if scale is not None and scale.dim() == 2 else 0,
        pixels // unit,
        blocks,
        batch // problem.runs,
        0 if problem.ignore_index is None else problem.ignore_index,
        problem.background_value,
        K=num_classes,
        ROWS=rows,
        BLOCK=each,
        UNIT=unit,
        COMPACT=problem.compact,
        IGNORE=problem.ignore_index is not None,
        FIRST=0 if problem.include_background else 1,
        VALUES_LAST=of_values.last,
        MAPS_LAST=of_maps.last,
        PROBABILITIES=probabilities,
        WRONG=wrong,
        TINY=torch.finfo(problem.loss_dtype).tiny,
        WIDE=pixels * num_classes >= 2**31,
    )
