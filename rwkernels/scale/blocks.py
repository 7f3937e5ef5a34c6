"""What one task does with the block it holds: passes, checks, the finish. Nothing here knows dask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends import Backend, choose
from rwkernels.scale.plan import Plan, Stage, Step
from rwkernels.scale.scratch import Scratch, read_field

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Classes:
    """Which labels are right; None for `num_classes` where only equality counts."""

    num_classes: int
    ignore_index: int | None


@dataclass(frozen=True)
class Job:
    """All that a task of a transform has to know, small enough to be sent along with every one."""

    plan: Plan
    scratch: Scratch
    spacing: float  # of the axis that is passed last
    black_border: bool
    spatial_dims: int
    label_dtype: str
    classes: Classes | None = None
    # Labels that are read where they are; None: a copy of them in the scratch store.
    source: Any = field(default=None, compare=False)
    backend: str | None = None

    def __dask_tokenize__(self) -> str:
        return str(self.scratch.folder)

    def labels(self) -> Any:
        """The Zarr array of labels that stages read."""
        return self.scratch.open("labels") if self.source is None else self.source


def backend_of(name: str | None) -> Backend:
    """The backend whose passes run: they are on the CPU, wherever maps of a batch are built."""
    return choose(torch.device("cpu"), "pass_axis", name)


def as_equal_tensor(labels: Any) -> Tensor:
    """A tensor over labels of which only equality counts: the bits are looked at, not the sign."""
    labels = np.require(labels, labels.dtype.newbyteorder("="), ("C", "W"))
    return torch.from_numpy(labels.view(f"i{labels.dtype.itemsize}"))


def as_class_tensor(labels: Any) -> Tensor:
    """A tensor of the same numbers, in a dtype that the kernels read. Of uint64, those from 2^63 on are negative."""
    labels = np.require(labels, labels.dtype.newbyteorder("="), ("C", "W"))
    if labels.dtype.kind == "b":
        labels = labels.view(np.uint8)
    elif labels.dtype == np.uint64:
        labels = labels.view(np.int64)
    return checks.label_dtype("labels", torch.from_numpy(labels))


def check_labels(labels: Any, region: Region, classes: Classes, backend: str | None) -> None:
    """Refuses a label of no class, and says where in the volume it lies."""
    found = as_class_tensor(labels)
    bad = backend_of(backend).first_bad_label(found, classes.num_classes, classes.ignore_index)
    if bad >= 0:
        _refuse(labels, np.unravel_index(bad, labels.shape), region, classes)


def _refuse(labels: Any, at: Sequence[Any], region: Region, classes: Classes) -> NoReturn:
    place = [part.start + int(index) for part, index in zip(region, at, strict=True)]
    checks.refuse_label(int(labels[tuple(at)]), place, classes.num_classes, classes.ignore_index)


def passes(labels: Any, block: Any, steps: Sequence[Step], black_border: bool, backend: str | None) -> None:
    """Takes `steps` over a block, in place."""
    chosen = backend_of(backend)
    tensor, found = torch.from_numpy(block), as_equal_tensor(labels)
    for step in steps:
        chosen.pass_axis(tensor, found, step.axis, step.unit, step.first, black_border)


def run_stage(job: Job, number: int, region: Region, check: bool) -> tuple[Any, Any]:
    """Labels and squared distances of a block after a stage."""
    stage: Stage = job.plan.stages[number]
    labels = job.labels()[region]
    if check and job.classes is not None:
        check_labels(labels, region, job.classes, job.backend)
    if number == 0:
        block = np.empty(labels.shape, np.float32)
    else:
        block = read_field(job.scratch.open(field_name(number - 1)), region)
    passes(labels, block, stage.steps, job.black_border, job.backend)
    return labels, block


def field_name(number: int) -> str:
    """Of the array that holds the distances after a stage. One each: a stage that is run again finds what it read."""
    return f"field{number}"


def finish_distance(block: Any, spacing: float, squared: bool) -> Any:
    """From squared pixels of the last axis to distances, in place; one rounding each, as in csrc/columns.hpp."""
    if not squared:
        np.sqrt(block, out=block)
    return np.multiply(block, np.float32(spacing * spacing if squared else spacing), out=block)


def largest_of_classes(labels: Any, block: Any, job: Job) -> Any:
    """Largest squared distance of every class in a block, float32 [leading axes..., K]; 0 for what is ignored."""
    assert job.classes is not None
    images = labels.shape[: labels.ndim - job.spatial_dims]
    largest = np.zeros((*images, job.classes.num_classes), np.float32)
    for image in np.ndindex(*images):
        found = backend_of(job.backend).largest_of_classes(
            torch.from_numpy(block[image]), as_class_tensor(labels[image]), job.classes.num_classes
        )
        largest[image] = found.numpy()
    if job.classes.ignore_index is not None and 0 <= job.classes.ignore_index < job.classes.num_classes:
        largest[..., job.classes.ignore_index] = 0
    return largest


def rectify(labels: Any, block: Any, squared_max: Any, class_max: Any, job: Job) -> Any:
    """Eq. 4 in place. `squared_max` and `class_max` are [leading axes..., K] of the block's images."""
    assert job.classes is not None
    for image in np.ndindex(*labels.shape[: labels.ndim - job.spatial_dims]):
        backend_of(job.backend).rectify(
            torch.from_numpy(block[image]),
            as_class_tensor(labels[image]),
            job.classes.num_classes,
            torch.from_numpy(np.ascontiguousarray(squared_max[image])),
            None if class_max is None else torch.from_numpy(np.ascontiguousarray(class_max[image])),
            job.spacing,
            job.classes.ignore_index,
        )
    return block


def leading(region: Region, spatial_dims: int) -> Region:
    """The part of a region that says which images it is of."""
    return region[: len(region) - spatial_dims]
