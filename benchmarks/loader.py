"""Who waits for maps: the share of a training step that goes by until the map of its batch is there.

`python -m benchmarks.loader` trains a small U-Net on batches of 16 x 256^2 and 4 classes with every way to come by
the map, in turns, and prints what the loop waited beyond one that needs no map. A second table does the same with a
step that another device takes while the loop sleeps: there nothing hides a slow map. `--memory` watches the memory of
the process over 2,000 batches instead, `--tiny` runs small.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psutil
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

import rwkernels as rw
from rwkernels.bench.inputs import Task, labels
from rwkernels.bench.losses import plain_loss
from rwkernels.bench.truth import paper_map
from rwkernels.data import AddMap, MapCollate, MapLoader
from rwkernels.pages import Table, markdown

CLASSES = 4
Loss = Callable[[Tensor, Any], Tensor]


class Hearts(Dataset):
    """Slices with a cavity inside a muscle and a second cavity beside it, about 4 % of the image, and their labels."""

    def __init__(self, size: int, side: int, transform: Callable[[Any], Any] | None = None) -> None:
        self.labels = labels(Task("", "hearts", (size, side, side), CLASSES))
        noise = torch.randn(size, 1, side, side, generator=torch.Generator().manual_seed(2022))
        self.images = self.labels[:, None] + noise / 2
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        sample = self.images[index], self.labels[index]
        return sample if self.transform is None else self.transform(sample)


def scipy_map(image: Tensor) -> Tensor:
    """The rectified map as the paper's code makes it: one transform for every image and class."""
    masks = np.stack([image.numpy() == k for k in range(CLASSES)], 1)
    return torch.from_numpy(paper_map(masks, None)[0])


@dataclass
class Contender:
    """A way to come by the map of a batch, and how long the loop waited for it."""

    name: str
    loader: Iterable[Any]
    map_of: Callable[[Any], Any]  # a batch -> what the loss takes
    loss: Loss = rw.region_wise_loss
    waited: list[float] = field(default_factory=list)
    stepped: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """Sizes of one run."""

    batch: int = 16
    side: int = 256
    images: int = 64
    workers: int = 1
    width: int = 8
    steps: int = 3  # timed in one turn of a contender, after one that is not
    turns: int = 3
    pretend: float = 0.04  # seconds of the step on another device


def contenders(setting: Setting) -> list[Contender]:
    """Every way; the first needs no map, for it has one of the right shape."""

    def loader(collate: Any = None, transform: Any = None) -> DataLoader[Any]:
        return DataLoader(
            Hearts(setting.images, setting.side, transform),
            setting.batch,
            shuffle=True,
            drop_last=True,
            num_workers=setting.workers,
            collate_fn=collate,
            persistent_workers=setting.workers > 0,
        )

    any_labels = Hearts(setting.batch, setting.side).labels
    any_map = rw.rectified_map(any_labels, CLASSES)
    return [
        Contender("no map", loader(), lambda batch: any_map),
        Contender("MapLoader", MapLoader(loader(), CLASSES), lambda batch: batch[2]),
        Contender("MapLoader, all threads", MapLoader(loader(), CLASSES, threads=None), lambda batch: batch[2]),
        Contender("map in the loss (RegionWiseLoss)", loader(), lambda batch: rw.rectified_map(batch[1], CLASSES)),
        Contender("AddMap in workers", loader(transform=AddMap(CLASSES)), lambda batch: batch[2]),
        Contender("MapCollate in workers", loader(collate=MapCollate(CLASSES)), lambda batch: batch[2]),
        Contender("the paper's way (SciPy in the loss)", loader(), lambda batch: scipy_map(batch[1]), plain_loss),
    ]


def check(racing: list[Contender]) -> None:
    """Every map is the one of SciPy, before anything is timed."""
    for contender in racing[1:]:
        batch = next(iter(contender.loader))
        maps = contender.map_of(batch)
        dense = maps.dense() if isinstance(maps, rw.RectifiedMap) else maps
        torch.testing.assert_close(dense, scipy_map(batch[1]), msg=lambda text, c=contender: f"{c.name}: {text}")


def trainer(setting: Setting) -> Callable[[Tensor, Any, Loss], None]:
    """One step of a small U-Net on these cores."""
    torch.manual_seed(0)
    width = setting.width
    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    network: nn.Module = BasicUNet(spatial_dims=2, in_channels=1, out_channels=CLASSES, features=features)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)

    def step(images: Tensor, maps: Any, loss: Loss) -> None:
        optimizer.zero_grad()
        loss(network(images), maps).backward()
        optimizer.step()

    return step


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def measure(racing: list[Contender], step: Callable[[Tensor, Any, Loss], None], setting: Setting) -> None:
    """Lets the contenders take turns, each of some steps, and keeps what every step took and waited."""
    sources = [endless(contender.loader) for contender in racing]
    for _ in range(setting.turns):
        for contender, source in zip(racing, sources, strict=True):
            for turn in range(setting.steps + 1):
                start = time.perf_counter()
                batch = next(source)
                maps = contender.map_of(batch)
                there = time.perf_counter()
                step(batch[0], maps, contender.loss)
                end = time.perf_counter()
                if turn > 0:  # the first finds caches and queues as another contender left them
                    contender.waited.append(there - start)
                    contender.stepped.append(end - start)


def table(racing: list[Contender]) -> str:
    """One line a contender: what it waited, beyond the first one too, and the share of its step that this is."""
    rows = []
    idle = statistics.median(racing[0].waited)
    for contender in racing:
        step, wait = statistics.median(contender.stepped), statistics.median(contender.waited)
        more = max(wait - idle, 0.0)
        beyond = ["", ""] if contender is racing[0] else [f"{more * 1e3:.2f}", f"{more / step:.2%}"]
        rows.append([contender.name, f"{step * 1e3:.1f}", f"{wait * 1e3:.2f}", *beyond])
    head = ["the map comes from", "step, ms", "wait, ms", "wait for the map, ms", "share of the step"]
    return markdown([Table(head, rows)])


def memory(setting: Setting, batches: int) -> str:
    """How the process grows over so many batches of MapLoader, with loss and gradient, after a warm-up of a quarter.

    Batches are loaded without workers: what they send comes and goes by hundreds of megabytes on its own.
    """
    data = Hearts(2 * setting.batch, setting.side)
    warm_up = batches // 4
    sampler = RandomSampler(data, replacement=True, num_samples=setting.batch * (warm_up + batches))
    logits = torch.zeros(setting.batch, CLASSES, setting.side, setting.side, requires_grad=True)
    sizes = []
    for index, (_, _, maps) in enumerate(MapLoader(DataLoader(data, setting.batch, sampler=sampler), CLASSES)):
        rw.region_wise_loss(logits, maps).backward()
        logits.grad = None
        if index >= warm_up:
            sizes.append(psutil.Process().memory_info().rss)
    tenth = max(batches // 10, 1)
    first, last = (statistics.median(part) for part in (sizes[:tenth], sizes[-tenth:]))
    shown = " ".join(f"{size / 2**20:.1f}" for size in sizes[::tenth])
    return f"MiB after every {tenth} batches: {shown}\ngrowth over {batches} batches: {last / first - 1:+.2%}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="sizes too small to mean anything: does it run?")
    parser.add_argument("--memory", action="store_true", help="watch the memory over 2,000 batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the training step")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of every loader")
    parser.add_argument("--step", nargs="+", choices=["unet", "device"], default=["unet", "device"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=int, default=8, help="channels of the first level of the U-Net")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(workers=options.workers, turns=options.turns, width=options.width)
    if options.memory:
        setting = replace(setting, batch=4, side=128, workers=0)
    if options.tiny:
        setting = Setting(2, 32, 8, options.workers, 4, steps=1, turns=1, pretend=0.001)
    shape = f"{setting.batch} x {setting.side}^2, K={CLASSES}"
    print(f"{shape}, torch {torch.__version__}, {options.threads} threads, {setting.workers} workers a loader\n")
    if options.memory:
        print(memory(setting, 20 if options.tiny else 2000))
        return
    if "unet" in options.step:
        racing = contenders(setting)
        check(racing)
        measure(racing, trainer(setting), setting)
        print(f"a U-Net of {setting.width} channels on the same cores\n\n{table(racing)}\n", flush=True)
    if "device" in options.step:
        racing = contenders(setting)
        check(racing)
        measure(
            racing, lambda images, maps, loss: time.sleep(setting.pretend), replace(setting, steps=5 * setting.steps)
        )
        print(f"a step of {setting.pretend * 1e3:.0f} ms on another device: the loop sleeps\n\n{table(racing)}")


if __name__ == "__main__":
    main()
