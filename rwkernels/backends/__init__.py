"""Which backend runs for tensors on a device, and why another cannot.

A backend is a module with the functions of `Backend`. It imports nothing of the package above this folder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "RWKERNELS_BACKEND"
# The first one that can run is taken.
NAMES = ("native", "reference")


@dataclass(frozen=True)
class LossProblem:
    """What the loss is computed from. Shapes as in `region_wise_loss`; everything lies on one device."""

    logits: Tensor  # [B, K, *S], any strides
    maps: Tensor  # dense [B, K, *S], any strides; or the foreground of a compact map [B, *S], contiguous
    labels: Tensor | None  # [B, *S], contiguous; always there for a compact map
    background: Tensor | float  # of a compact map: a number, or [B, *S] in the dtype of `maps`, contiguous
    class_scale: Tensor | None  # [K] or [groups, K]: multiplies the channels of the map
    ignore_index: int | None
    compact: bool


class Backend(Protocol):
    """What a backend offers. Every `fill_*` writes into `out`, contiguous; labels come contiguous."""

    NAME: str

    def can_run(self, device: torch.device) -> str | None:
        """Why the backend cannot run on `device`; None if it can."""

    def first_bad_label(self, labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
        """Flat index of the first label outside [0, num_classes) that is not ignored; -1 if there is none."""

    def fill_distance(
        self, out: Tensor, labels: Tensor, spacing: Sequence[float], squared: bool, black_border: bool
    ) -> None:
        """Distance to the nearest pixel of another label, float32 [B, *S]."""

    def fill_class_distance(
        self,
        out: Tensor,
        labels: Tensor,
        num_classes: int,
        spacing: Sequence[float],
        squared: bool,
        ignore_index: int | None,
        validate: bool,
    ) -> int:
        """Distance to every class, float32 [B, K, *S]. Returns the flat index of a bad label, or -1."""

    def fill_rectified(
        self,
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
        """Foreground of Eq. 4, float32 [B, *S], and the pixels that count, int64 [B].

        Returns the flat index of a bad label and of a bad entry of `class_max`, each -1 if there is none.
        """

    def fill_boundary(
        self,
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
        """Eq. 3, float32 [B, K, *S]. Returns the flat index of a bad label, or -1."""

    def fill_dense(
        self,
        out: Tensor,
        labels: Tensor,
        foreground: Tensor,
        background: Tensor | float,
        num_classes: int,
        class_scale: Tensor | None,
        ignore_index: int | None,
    ) -> None:
        """The dense map [B, K, *S] of a compact one, in the dtype of `out`."""

    def loss(
        self,
        problem: LossProblem,
        *,
        per_pixel: bool | None,
        grad: Tensor | None,
        image_scale: Tensor | None = None,
        pixel_scale: Tensor | None = None,
        validate: bool = False,
    ) -> tuple[Tensor, int]:
        """Loss and, if `grad` is given, its gradient in one pass.

        The loss is [B, *S] if `per_pixel`, else the sum of every image, float64 [B]; empty if `per_pixel` is
        None. The gradient of image b is multiplied by `image_scale[b]` (float64 [B]) and `pixel_scale`
        ([B, *S], in the dtype of the loss). The second result is the flat index of a bad label, or -1.
        """


@dataclass(frozen=True)
class BackendStatus:
    """One backend on one kind of device: `reason` says why it cannot run, None if it can."""

    name: str
    device: str
    reason: str | None

    @property
    def available(self) -> bool:
        """Whether the backend can run there."""
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.name} on {self.device}: {'can run' if self.available else self.reason}"


@cache
def load(name: str) -> Backend:
    """The backend called `name`."""
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return cast(Backend, importlib.import_module(f"rwkernels.backends.{name}"))


def choose(device: torch.device, override: str | None = None) -> Backend:
    """The backend for tensors on `device`: `override`, the environment's, or the first that can run."""
    wanted = override or os.environ.get(ENVIRONMENT_VARIABLE)
    if wanted:
        backend = load(wanted)
        reason = backend.can_run(device)
        if reason is not None:
            raise ValueError(f"backend: {wanted!r} cannot run on {device}: {reason}")
        return backend
    for name in NAMES:
        backend = load(name)
        if backend.can_run(device) is None:
            return backend
    raise ValueError(f"backend: none of {', '.join(NAMES)} can run on {device}")


def statuses() -> list[BackendStatus]:
    """Every backend on every kind of device of this machine."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    else:
        devices.append("cuda")
    found = []
    for name in NAMES:
        for device in devices:
            if device == "cuda":
                reason: str | None = "no CUDA device is visible to torch"
            else:
                reason = load(name).can_run(torch.device(device))
            found.append(BackendStatus(name, device, reason))
    return found
