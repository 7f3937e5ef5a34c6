"""The compiled core in `csrc/`, and how tensors are handed to it: as addresses, sizes and codes of dtypes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkernels.backends.problem import BadInputError, MapProblem
from rwkernels.backends.threads import threads

ISA_VARIABLE = "RWKERNELS_ISA"
FLOAT_CODES = {torch.float32: "f4", torch.float64: "f8", torch.bfloat16: "bf", torch.float16: "f2"}
LABEL_CODES = {torch.uint8: "u1", torch.int8: "i1", torch.int16: "i2", torch.int32: "i4", torch.int64: "i8"}
# Results of so many bytes are backed by huge pages. Above, as many free ones are not to be counted on: making them
# (compaction, or a virtual machine's host that has taken the memory back) costs more than small pages do.
_HUGE_PAGES = range(4 << 20, 256 << 20)


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


def described(problem: MapProblem, *, shape: Sequence[int] | None = None) -> Any:
    """The core's `MapProblem`, of labels as [B, *S] or as another `shape` of as many.

    It holds addresses alone: the tensors have to live as long.
    """
    labels = problem.labels
    return core().MapProblem(
        labels=labels.data_ptr(),
        label_dtype=LABEL_CODES[labels.dtype],
        shape=tuple(labels.shape if shape is None else shape),
        spacing=problem.spacing,
        black_border=problem.black_border,
        num_classes=problem.num_classes,
        class_max=address(problem.class_max),
        ignore=problem.ignore_index,
        validate=problem.validate,
        threads=threads(),
    )


def flat(
    labels: Tensor,
    num_classes: int = 0,
    ignore_index: int | None = None,
    *,
    shape: Sequence[int] | None = None,
    black_border: bool = False,
) -> Any:
    """The core's `MapProblem` of labels without a spacing, as one row or as a `shape` of as many."""
    problem = MapProblem(labels, num_classes, (), None, black_border, ignore_index, False, None)
    return described(problem, shape=(1, labels.numel()) if shape is None else shape)


def checked(call: Callable[..., Any], *given: Any, **arguments: Any) -> Any:
    """Calls a function of the core. Raises `BadInputError` for a value that it finds to be bad."""
    try:
        return call(*given, **arguments)
    except core().BadValue as bad:
        found = BadInputError(bad.argument, bad.index)
    raise found  # out here, so that it carries no exception of the core, which no other process could read


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
    if gets_huge_pages(tensor) and can_run(tensor.device) is None:
        core().advise_huge_pages(address=tensor.data_ptr(), bytes=tensor.numel() * tensor.element_size())


def gets_huge_pages(tensor: Tensor) -> bool:
    """Whether fresh memory of this size is better backed by huge pages."""
    return tensor.numel() * tensor.element_size() in _HUGE_PAGES
