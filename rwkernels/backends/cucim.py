"""Distances and maps on NVIDIA GPUs by cuCIM's Euclidean transform, or by CuPy's twin of it where cuCIM is missing.

Both transform one binary image a call, padded to a square or a cube of its longest side, so that a map takes a call
for every image and class. `triton` needs neither and comes first; this backend checks it, and serves the devices that
it refuses. CuPy works on torch's device and stream and takes its memory from torch's allocator; arrays cross as
DLPack, without a copy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels.backends import reference
from rwkernels.backends.problem import MapProblem, count_valid, is_label, is_no_class, refuse_bad_values

NAME = "cucim"


class _Tools(NamedTuple):
    cupy: Any
    transform: Callable[..., Any]  # SciPy's signature
    allocator: Any
    note: str


def _free(pointer: int, device: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)


@cache
def _tools() -> _Tools:
    cupy = importlib.import_module("cupy")
    try:
        found = importlib.import_module("cucim.core.operations.morphology")
        note = f"with cuCIM {importlib.import_module('cucim').__version__}"
    except Exception as error:  # not only when it is missing: it imports much that can be missing or broken
        found = importlib.import_module("cupyx.scipy.ndimage")
        note = f"with CuPy {cupy.__version__}, as cuCIM cannot be imported ({error})"
    allocator = cupy.cuda.PythonFunctionAllocator(torch.cuda.caching_allocator_alloc, _free)
    return _Tools(cupy, found.distance_transform_edt, allocator, note)


@cache
def _why_not() -> str | None:
    try:
        available = _tools().cupy.cuda.is_available()
    except Exception as error:  # CuPy raises more than ImportError where its libraries do not fit
        return f"cupy cannot be imported ({error})"
    return None if available else "cupy finds no CUDA device that it can use"


def can_run(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it computes on NVIDIA GPUs only"
    reason = _why_not()
    if reason is None and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured, and cuCIM loads its kernels and waits for the device in between"
    return reason


def note() -> str:
    """Whose transform runs here."""
    return _tools().note


@contextmanager
def _torch_in_charge(device: torch.device) -> Iterator[None]:
    """CuPy on torch's device, stream and memory: kept in its own pool, a cube would stay there out of torch's reach."""
    tools = _tools()
    cuda = tools.cupy.cuda
    with torch.cuda.device(device), cuda.Device(device.index), cuda.using_allocator(tools.allocator.malloc):
        stream = torch.cuda.current_stream(device)
        if hasattr(cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
            shared = cuda.Stream.from_external(stream)
        else:  # before CuPy 14
            shared = cuda.ExternalStream(stream.cuda_stream, device.index)
        with shared:
            yield


class _Metric(NamedTuple):
    """How distances are measured."""

    spacing: Sequence[float]
    squared: bool = False
    black_border: bool = False

    @property
    def even(self) -> bool:
        """Whether all axes have the same spacing."""
        return len(set(self.spacing)) == 1


def _to_zero(mask: Tensor, metric: _Metric) -> Tensor:
    """Distance [*S] to the nearest pixel where `mask` [*S] is False; inf if there is none."""
    image = mask.view(torch.uint8)
    if metric.black_border:
        image = torch.nn.functional.pad(image, [1] * (2 * mask.dim()))
    found = _transform(image if image.dim() > 1 else image.unsqueeze(0), metric).view(image.shape)
    if metric.black_border:
        found = found[(slice(1, -1),) * mask.dim()]
    if metric.squared:
        found = found.square()
        found = found.round() if metric.even else found  # whole numbers, up to float32's precision
    if metric.even:
        step = metric.spacing[0]
        found = found * (step**2 if metric.squared else step)
    # Without a zero the transform gives numbers that mean nothing. Whether there is one stays on the device.
    return torch.where((image == 0).any(), found, torch.inf)


def _transform(image: Tensor, metric: _Metric) -> Tensor:
    """The transform of one image. `sampling` costs a wait for the device, so only uneven spacing is handed over."""
    tools = _tools()
    sampling = None if metric.even else list(metric.spacing)
    found = tools.transform(tools.cupy.from_dlpack(image), sampling=sampling, float64_distances=False)
    result: Tensor = torch.utils.dlpack.from_dlpack(found)
    return result


def _parts(labels: Tensor, num_classes: int) -> Iterator[Tensor]:
    """Masks whose complements, over the masks that hold a pixel, are together all pixels of another label.

    That makes its distance to another label the least of its distances in those masks. One mask a class does; with
    many classes, so do two for every bit of the class: 14 masks instead of 118. Labels out of range are as one class.
    """
    bits = num_classes.bit_length()
    if num_classes <= 2 * bits:
        yield from (is_label(labels, k) for k in range(num_classes))
        return
    codes = labels.long()
    codes = torch.where((codes < 0) | (codes > num_classes), num_classes, codes)
    for bit in range(bits):
        yield from (((codes >> bit) & 1) == value for value in (0, 1))


def _to_other_label(out: Tensor, labels: Tensor, num_classes: int, metric: _Metric) -> None:
    """Distance to another label, for pixels of the classes; not defined at other pixels."""
    out.fill_(torch.inf)
    for distance, image in zip(out, labels, strict=True):
        for mask in _parts(image, num_classes):
            found = _to_zero(mask, metric)
            torch.minimum(distance, found.masked_fill_(~mask, torch.inf), out=distance)


def fill_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`. Waits for the device once, to learn which labels there are."""
    labels = problem.labels
    if labels.numel() == 0:
        return
    with _torch_in_charge(labels.device):
        present, classes = torch.unique(labels, return_inverse=True)
        _to_other_label(out, classes, len(present), _Metric(problem.spacing, squared, problem.black_border))


def _to_classes(out: Tensor, problem: MapProblem, squared: bool) -> None:
    for channels, image in zip(out, problem.labels, strict=True):
        for k in range(problem.num_classes):
            if k == problem.ignore_index:
                channels[k].fill_(torch.inf)
            else:
                channels[k].copy_(_to_zero(~is_label(image, k), _Metric(problem.spacing, squared)))


def fill_class_distance(out: Tensor, problem: MapProblem, *, squared: bool) -> None:
    """See `Backend`."""
    if problem.labels.numel() == 0:
        return
    with _torch_in_charge(problem.labels.device):
        _to_classes(out, problem, squared)
    if problem.validate:
        refuse_bad_values(problem)


def fill_rectified(out: Tensor, count: Tensor, problem: MapProblem) -> None:
    """See `Backend`."""
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
    count.copy_(count_valid(labels, ignore_index))
    if labels.numel() == 0:
        return
    with _torch_in_charge(labels.device):
        _to_other_label(out, labels, num_classes, _Metric(problem.spacing, black_border=problem.black_border))
    out.copy_(reference.rectified_distance(labels, out, num_classes, problem.class_max, ignore_index))
    if problem.validate:
        refuse_bad_values(problem)


def fill_boundary(out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
    """See `Backend`."""
    labels, num_classes, ignore_index = problem.labels, problem.num_classes, problem.ignore_index
    if labels.numel() == 0:
        return
    inside = torch.empty_like(labels, dtype=torch.float32)
    with _torch_in_charge(labels.device):
        _to_other_label(inside, labels, num_classes, _Metric(problem.spacing, black_border=problem.black_border))
        _to_classes(out, problem, False)
    inside = torch.where(torch.isinf(inside), 0.0, inside_offset - inside)
    for k in range(num_classes):
        channel = out[:, k]
        channel.masked_fill_(torch.isinf(channel), absent)
        channel.copy_(torch.where(is_label(labels, k), inside, channel))
    out.masked_fill_(is_no_class(labels, num_classes).unsqueeze(1), torch.nan)
    if ignore_index is not None:
        out.masked_fill_(is_label(labels, ignore_index).unsqueeze(1), 0.0)
    if problem.validate:
        refuse_bad_values(problem)
