"""Which backend runs for tensors on a device, and why another cannot.

A backend is a module with `NAME`, `can_run` and the other functions of `Backend` that it offers; the rest is left to
the next one. `note`, if there, says what it runs with. It imports nothing of the package above this folder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "RWKERNELS_BACKEND"
# The first one that can run is taken.
NAMES = ("native", "triton", "cucim", "reference")


class LossProblem(NamedTuple):
    """What the loss is computed from: the arguments of its operators, in their order. Everything on one device."""

    logits: Tensor  # [B, K, *S], any strides
    maps: Tensor  # dense [B, K, *S], any strides; or the foreground [B, *S] of a compact map
    labels: Tensor | None  # [B, *S]; always there for a compact map
    background: Tensor | None  # [B, *S]; None: `background_value` everywhere
    class_scale: Tensor | None  # [K], or [groups, K]: multiplies the channels of the map
    image_count: Tensor | None  # int64 [B], pixels that count; None: to be counted if `ignore_index` is set
    background_value: float
    ignore_index: int | None
    include_background: bool  # False leaves channel 0 out of the sum
    reduction: str
    validate: bool
    backend: str | None
    # vmap folds its axis into the batch; the images then form so many equal runs, each reduced on its own.
    # 0 means one run and a scalar loss.
    groups: int

    @property
    def runs(self) -> int:
        """How many runs of images are reduced on their own."""
        return max(self.groups, 1)

    @property
    def channels(self) -> int:
        """How many channels the sum is over."""
        return self.logits.shape[1] - (0 if self.include_background else 1)

    @property
    def compact(self) -> bool:
        """Whether `maps` is the foreground of a compact map."""
        return self.maps.dim() == self.logits.dim() - 1

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for float64 logits, float32 for all others."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32


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

    def pass_axis(self, field: Tensor, labels: Tensor, axis: int, unit: float, first: bool, black_border: bool) -> None:
        """One axis of the separable transform, in place, over a block that holds whole lines of that axis.

        `field`, float32 in the shape of `labels`, holds the squared distance along the axes passed before, in squared
        pixels of the last of them; `unit` of this axis's squared pixels is one of those. It comes out in this axis's.
        On the `first` axis, the last one that is longer than 1, nothing is read from it.
        """

    def largest_of_classes(self, field: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """The largest of `field` over the pixels of every class, float32 [K]; 0 for a class that is absent."""

    def rectify(
        self,
        field: Tensor,
        labels: Tensor,
        num_classes: int,
        squared_max: Tensor,
        class_max: Tensor | None,
        spacing: float,
        ignore_index: int | None,
    ) -> None:
        """Eq. 4 in place: from squared distances, in pixels of size `spacing`, to the foreground of a rectified map.

        `squared_max`, float32 [K], holds the largest of the whole image; `class_max`, if given, what is divided by
        instead.
        """

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
        with_loss: bool,
        grad: Tensor | None,
        upstream: Tensor | None,
        divide: bool,
        validate: bool,
    ) -> tuple[Tensor, int]:
        """Loss and, if `grad` is given, its gradient (Eq. 2), in one pass.

        The loss is reduced as the problem says: [runs] or [B, *S], in its `loss_dtype`; empty unless `with_loss`.
        The gradient is that of the sum, times the incoming one (`upstream`, in the shape of the loss), and over N * K
        if `divide` and the reduction is "mean". The second result is the flat index of a bad label, or -1.
        """

    def fill_negatives(
        self, out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool
    ) -> int:
        """How many entries of every pixel's gradient are negative, int32 [B, *S]; with `wrong`, how many have a sign
        that is not the label's: one below zero of a wrong class, or one above zero of the true class.

        Entry k has the sign of `-sum_l y_l (z_l - z_k)`, which is summed as it stands, so that what is zero or of one
        sign by its terms is found so. A probability below the smallest normal number of the precision of the loss
        (of logits: relative to the largest one) is 0, and so is its entry. -1 where there is no gradient: a pixel that
        is ignored or has a label that is no class, or where the sum is NaN. `problem.logits` holds probabilities if
        `probabilities`. Returns the flat index of a bad label, or -1.
        """

    def scale_gradient(
        self, problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool
    ) -> Tensor:
        """A gradient that was kept times the incoming one, [runs], and over N * K if `divide`. A new tensor unless
        `in_place`.
        """


@dataclass(frozen=True)
class BackendStatus:
    """One backend on one kind of device: `reason` says why it cannot run, None if it can.

    `note` says what it runs with, where that is not given by its name.
    """

    name: str
    device: str
    reason: str | None
    note: str | None = None

    @property
    def available(self) -> bool:
        """Whether the backend can run there."""
        return self.reason is None

    def __str__(self) -> str:
        runs = "can run" if self.note is None else f"can run {self.note}"
        return f"{self.name} on {self.device}: {runs if self.available else self.reason}"


@cache
def load(name: str) -> Backend:
    """The backend called `name`."""
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return cast(Backend, importlib.import_module(f"rwkernels.backends.{name}"))


def choose(device: torch.device, operation: str, override: str | None = None) -> Backend:
    """The backend that does `operation` (a function of `Backend`) on `device`.

    `override`, or the environment's, where it offers the operation; else the first that does and can run.
    """
    wanted = override or os.environ.get(ENVIRONMENT_VARIABLE)
    if wanted:
        backend = load(wanted)
        reason = backend.can_run(device)
        if reason is not None:
            raise ValueError(f"backend: {wanted!r} cannot run on {device}: {reason}")
        if hasattr(backend, operation):
            return backend
    for name in NAMES:
        backend = load(name)
        if hasattr(backend, operation) and backend.can_run(device) is None:
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
            tells = getattr(load(name), "note", None) if reason is None else None
            found.append(BackendStatus(name, device, reason, tells and tells()))
    return found
