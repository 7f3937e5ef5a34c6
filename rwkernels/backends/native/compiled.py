"""The compiled core in `csrc/`, and how tensors are handed to it: as addresses, sizes and codes of dtypes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rwkernels.backends.problem import BadInputError

ISA_VARIABLE = "RWKERNELS_ISA"
FLOAT_CODES = {torch.float32: "f4", torch.float64: "f8", torch.bfloat16: "bf", torch.float16: "f2"}
_LABEL_CODES = {torch.uint8: "u1", torch.int8: "i1", torch.int16: "i2", torch.int32: "i4", torch.int64: "i8"}
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


def refuse(found: int) -> None:
    """Raises for what the core found: -1 is nothing, from 0 on a label, from -2 on downwards a maximum."""
    if found >= 0:
        raise BadInputError("labels", found)
    if found <= -2:
        raise BadInputError("class_max", -2 - found)
