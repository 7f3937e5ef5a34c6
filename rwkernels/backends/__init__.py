"""Which backend runs for tensors on a device, and why another cannot.

A backend is a module with `NAME`, `can_run` and the other functions of `Backend` that it offers; the rest is left to
the next one. `note`, if there, says what it runs with. It imports nothing of the package above this folder. What it is
handed stands in `problem`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from rwkernels.backends.joint import JointProblem
from rwkernels.backends.problem import CompactProblem, LossProblem, MapProblem, StepProblem, StepResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENVIRONMENT_VARIABLE = "RWKERNELS_BACKEND"
# The first one that can run is taken.
NAMES = ("native", "triton", "cucim", "reference")


class Backend(Protocol):
    """What a backend offers. Every `fill_*` writes into its first argument, contiguous; labels come contiguous.

    What takes a problem raises `BadInputError` for the first bad label or maximum, if it is to validate.
    """

    NAME: str

    def can_run(self, device: torch.device) -> str | None:
        """Why the backend cannot run on `device`; None if it can."""

    def first_bad_label(self, labels: Tensor, num_classes: int, ignore_index: int | None) -> int:
        """Flat index of the first label outside [0, num_classes) that is not ignored; -1 if there is none."""

    def fill_distance(self, out: Tensor, problem: MapProblem, *, squared: bool) -> None:
        """Distance to the nearest pixel of another label, float32 [B, *S]."""

    def fill_class_distance(self, out: Tensor, problem: MapProblem, *, squared: bool) -> None:
        """Distance to every class, float32 [B, K, *S]."""

    def fill_rectified(self, out: Tensor, count: Tensor, problem: MapProblem) -> None:
        """Foreground of Eq. 4, float32 [B, *S], and the pixels that count, int64 [B]."""

    def fill_rectified_codes(
        self, codes: Tensor, largest: Tensor, count: Tensor, problem: MapProblem, *, work: Tensor
    ) -> None:
        """`fill_rectified` with its foreground as codes [B, *S], and the images' largest distances, float32 [B, K].

        `work` has room for as many float32 as there are labels. No code stands for NaN: labels ought to be checked.
        """

    def fill_boundary(self, out: Tensor, problem: MapProblem, *, absent: float, inside_offset: float) -> None:
        """Eq. 3, float32 [B, K, *S]."""

    def fill_dense(self, out: Tensor, problem: CompactProblem) -> None:
        """The dense map [B, K, *S] of a compact one, in the dtype of `out`."""

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

    def loss(
        self,
        problem: LossProblem,
        *,
        with_loss: bool,
        grad: Tensor | None,
        upstream: Tensor | None,
        divide: bool,
        validate: bool,
    ) -> Tensor:
        """Loss and, if `grad` is given, its gradient (Eq. 2), in one pass.

        The loss is reduced as the problem says: [runs] or [B, *S], in its `loss_dtype`; empty unless `with_loss`.
        The gradient is that of the sum, times the incoming one (`upstream`, in the shape of the loss), and over N * K
        if `divide` and the reduction is "mean".
        """

    def plan_loss(self, problem: LossProblem, *, with_grad: bool) -> Plan | None:
        """A plan for the loss of a problem with one run, reduced; None if the backend has none for it."""

    def plan_step(self, problem: StepProblem) -> Plan | None:
        """A plan for a step; None if the backend has none for it."""

    def fill_negatives(
        self, out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool
    ) -> None:
        """How many entries of every pixel's gradient are negative, int32 [B, *S]; with `wrong`, how many have a sign
        that is not the label's: one below zero of a wrong class, or one above zero of the true class.

        Entry k has the sign of `-sum_l y_l (z_l - z_k)`, which is summed as it stands, so that what is zero or of one
        sign by its terms is found so. A probability below the smallest normal number of the precision of the loss
        (of logits: relative to the largest one) is 0, and so is its entry. -1 where there is no gradient: a pixel that
        is ignored or has a label that is no class, or where the sum is NaN. `problem.logits` holds probabilities if
        `probabilities`.
        """

    def scale_gradient(
        self, problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool
    ) -> Tensor:
        """A gradient that was kept times the incoming one, [runs], and over N * K if `divide`. A new tensor unless
        `in_place`.
        """

    def joint(self, problem: JointProblem, *, with_grad: bool, validate: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """A weighted sum of losses: the loss, a scalar in its `loss_dtype`; the sums that it is a function of, float64
        [B, 3 K + 3] (see `joint.Sums`); and, if `with_grad`, its gradient, laid out as `torch.empty_like` of the logits
        does.

        `with_grad` comes without Dice alone, so that one pass can do it.
        """

    def joint_gradient(self, problem: JointProblem, sums: Tensor, upstream: Tensor | None, grad: Tensor) -> None:
        """The gradient times the incoming one, a scalar, into `grad`, from the logits and the sums of the batch."""

    def scale_joint(self, grad: Tensor, upstream: Tensor, *, in_place: bool) -> Tensor:
        """A gradient that `joint` gave times the incoming one, a scalar. A new tensor unless `in_place`."""

    def encode_values(self, codes: Tensor, values: Tensor) -> bool:
        """`round(-value * (2 ** bits - 1))` of float32 values in [-1, 0], both contiguous; whether all values were."""

    def decode_values(self, values: Tensor, codes: NDArray[Any]) -> None:
        """The float32 values of codes on the CPU, both contiguous."""

    def pack_labels(self, labels: Tensor, num_classes: int, ignore_index: int | None, bits: int) -> Tensor | None:
        """Contiguous labels on the CPU as codes of 1, 2, 4 or 8 bits each, uint8; None if one is no class.

        The code of an ignored label is `num_classes`. Byte j of m holds codes j, m + j, 2 m + j, ..., the first in its
        lowest bits.
        """

    def unpack_labels(self, packed: NDArray[Any], bits: int, labels: NDArray[Any]) -> None:
        """What `pack_labels` took, as flat uint8."""

    def reverse_axes(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Copies bytes [X, Y, Z], the first axis fastest in memory, into an array whose last axis is the fastest."""

    def advise_huge_pages(self, tensor: Tensor) -> None:
        """Asks for huge pages under a tensor on the CPU whose memory is fresh, where they pay."""


class Plan(Protocol):
    """A loss whose tensors come anew, in the shapes, strides, dtypes, device and alignment that it was made for.

    What follows from those is worked out once. It holds no tensor of a problem, and several threads may call it.
    """

    def __call__(self, logits: Sequence[Tensor], others: Sequence[Tensor | None]) -> StepResult:
        """The loss of the logits of all levels and their labels; or of one level and the tensors that follow the
        logits in its `LossProblem`.
        """

    def scale(
        self, upstream: Tensor, grads: Sequence[Tensor], counts: Sequence[Tensor | None], *, in_place: bool
    ) -> Sequence[Tensor]:
        """The gradients that a call gave times the incoming one, finished; in new tensors unless `in_place`.

        `counts` are the pixels of every image that count, one tensor a level or none.
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
    return default(device, operation)


def default(device: torch.device, operation: str) -> Backend:
    """The first backend that does `operation` on `device`, whatever the environment asks for."""
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


def instruction_sets() -> tuple[str, list[str]]:
    """The instruction set in use by the C++ core, and all that can run here; empty if the core is missing."""
    found: tuple[str, list[str]] = importlib.import_module("rwkernels.backends.native").instruction_sets()
    return found
