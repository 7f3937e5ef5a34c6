"""The GPU backend: where it can run. Its loss is in `losses.py`, its maps in `maps.py`, what repeats in `plans.py`.

Nothing here waits for the device or asks it for a value, and nothing is tuned at run time. Under `torch.compile` the
same functions run on fake tensors, so that the compiler sees every allocation and every kernel.
"""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch

from rwkernels.backends.problem import first_bad_label
from rwkernels.backends.triton import losses
from rwkernels.backends.triton.losses import fill_negatives, loss, scale_gradient
from rwkernels.backends.triton.maps import (
    fill_boundary,
    fill_class_distance,
    fill_dense,
    fill_distance,
    fill_rectified,
)
from rwkernels.backends.triton.plans import plan_loss, plan_step

__all__ = [
    "NAME",
    "can_run",
    "fill_boundary",
    "fill_class_distance",
    "fill_dense",
    "fill_distance",
    "fill_negatives",
    "fill_rectified",
    "first_bad_label",
    "loss",
    "plan_loss",
    "plan_step",
    "scale_gradient",
]

NAME = "triton"
OLDEST = (8, 0)  # the compute capability from which the kernels were checked
_OLDEST_TRITON = (3, 3)  # earlier ones have no tuples


@cache
def _why_not(index: int | None) -> str | None:
    try:
        found = importlib.import_module("triton").__version__
        if tuple(map(int, found.split(".")[:2])) < _OLDEST_TRITON:
            return "it needs triton {}.{} or later, found {}".format(*_OLDEST_TRITON, found)
        losses._kernels()
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if torch.version.hip is None and index is not None:
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST:
            return "it needs compute capability {}.{} or later, the device has {}.{}".format(*OLDEST, *capability)
    return None


def can_run(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type == "cuda":
        return _why_not(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":  # Triton then interprets its kernels
        return _why_not(None)
    return "it computes on GPUs only"
