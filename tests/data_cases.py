"""Data sets and batches for the tests of rwkernels.data; importable by worker processes of any start method."""

from __future__ import annotations

import os
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import rwkernels as rw
from rwkernels.backends.threads import threads
from rwkernels.data import MapLoader

CLASSES = 3
Sample = namedtuple("Sample", ["image", "label"])
SampleWithMap = namedtuple("SampleWithMap", ["image", "label", "map"])


@dataclass
class Batch:
    image: Tensor
    label: Tensor
    map: Any = None


@dataclass(frozen=True)
class FrozenBatch:
    image: Tensor
    label: Tensor
    map: Any = field(default=None)


@dataclass
class BatchWithoutField:
    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class FrozenBatchWithoutField:
    image: Tensor
    label: Tensor


class Images(Dataset):
    """Random images and labels of an odd, oblong size; item i is the same in every process."""

    def __init__(self, size: int = 8, kind: str = "tuple", transform: Any = None, shape: tuple[int, ...] = (13, 22)):
        self.size, self.kind, self.transform, self.shape = size, kind, transform, shape

    def __len__(self) -> int:
        return self.size

    def label(self, index: int) -> Tensor:
        return torch.randint(CLASSES, self.shape, generator=torch.Generator().manual_seed(index))

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        sample: Any = (torch.full((1, *self.shape), float(index)), self.label(index))
        if self.kind == "dict":
            sample = {"image": sample[0], "label": sample[1]}
        elif self.kind == "namedtuple":
            sample = Sample(*sample)
        return sample if self.transform is None else self.transform(sample)

    def labels(self, start: int, stop: int) -> Tensor:
        return torch.stack([self.label(index) for index in range(start, stop)])


def use_three_threads(_: int) -> None:
    torch.set_num_threads(3)


def width_map(labels: Tensor) -> Tensor:
    """The threads that the core may use here, and those that the process has more than when it was asked before."""
    labels = labels.repeat(10, 6, 8)  # more than are worth waking a thread for
    tasks = len(os.listdir("/proc/self/task"))
    rw.rectified_map(labels, CLASSES)
    return torch.tensor([[threads(), len(os.listdir("/proc/self/task")) - tasks]])


def assert_is_map_of(maps: Any, labels: Tensor, **options: Any) -> None:
    """Compares a rectified map with the reference's."""
    expected = rw.rectified_map(labels, CLASSES, backend="reference", **options)
    assert isinstance(maps, rw.RectifiedMap)
    torch.testing.assert_close(maps.labels.long(), labels.long())
    torch.testing.assert_close(maps.foreground, expected.foreground, rtol=1e-6, atol=1e-6)
    assert maps.num_classes == CLASSES
    assert maps.ignore_index == expected.ignore_index


DATA = Images(size=8)
IMAGE, LABELS = torch.zeros(4, 1, 13, 22), DATA.labels(0, 4)


def map_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rwkernels-maps")]


def wait_for_no_thread() -> None:
    deadline = time.monotonic() + 10
    while map_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not map_threads()


def only(batches: list, **options):
    """The one batch that comes out for the one that goes in."""
    (found,) = MapLoader(batches, CLASSES, **options)
    return found
