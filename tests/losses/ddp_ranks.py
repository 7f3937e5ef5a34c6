"""What the two processes of test_ddp.py do; in a module of its own, which they import."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rwkernels as rw
from rwkernels.data import MapLoader

WORLD = 2
CLASSES = 3
IMAGES = 6
SHAPE = (9, 14)


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    return torch.randn(IMAGES, 1, *SHAPE, generator=g), torch.randint(CLASSES, (IMAGES, *SHAPE), generator=g)


@dataclass(frozen=True)
class Case:
    """One way to train: how labels are spoiled, where the batch is cut, which loss."""

    split: int = IMAGES // 2  # images of the first process
    ignored: str = "none"  # "some" of the second process's pixels, or "all" of them
    maps: str = "rectified"
    options: dict[str, Any] = field(default_factory=dict)
    cast: torch.dtype = torch.float32
    compiled: bool = False
    beside: type[nn.Module] | None = None  # of losses that are summed up with it in one operator
    beside_options: dict[str, Any] = field(default_factory=dict)

    def labels(self) -> Tensor:
        labels = batch()[1]
        if self.ignored == "some":
            labels[0, :2] = -1
            labels[self.split :, 3:] = -1
        elif self.ignored == "all":
            labels[self.split :] = -1
        return labels

    def loss(self, group: Any) -> Callable[[Tensor, Tensor], Tensor]:
        ignore_index = None if self.ignored == "none" else -1
        loss_fn = rw.RegionWiseLoss(self.maps, ignore_index=ignore_index, process_group=group, **self.options)
        call: Callable[..., Tensor] = loss_fn
        if self.beside is not None:
            options = {"ignore_index": ignore_index, "process_group": group, **self.options, **self.beside_options}
            call = rw.CombinedLoss(self.beside(**options), loss_fn)
            assert call.fused
        if self.compiled:
            call = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
        return lambda logits, labels: call(logits.to(self.cast), labels)


CASES = {
    "equal parts": Case(),
    "unequal parts": Case(split=4),
    "some pixels ignored": Case(ignored="some"),
    "one process has nothing left": Case(ignored="all"),
    "unequal parts with some ignored": Case(split=5, ignored="some"),
    "dense maps": Case(maps="boundary", split=4, ignored="some"),
    "maps that count no pixels": Case(maps="constant", ignored="some"),
    "sum": Case(split=4, ignored="some", options={"reduction": "sum"}),
    "class weights without background": Case(
        ignored="some", options={"class_weight": [0.5, 2.0, 1.0], "include_background": False}
    ),
    "recomputed gradient": Case(ignored="some", options={"recompute": True}),
    "float16": Case(ignored="some", cast=torch.float16),
    "compiled": Case(ignored="some", compiled=True),
    "with Dice and cross-entropy": Case(
        split=4,
        ignored="some",
        beside=rw.DiceCELoss,
        beside_options={"batch": True, "weight": [0.5, 2.0, 1.0], "label_smoothing": 0.1},
    ),
    "with cross-entropy and nothing ignored": Case(split=4, beside=rw.CrossEntropyLoss),
    "with focal loss, summed": Case(split=5, ignored="some", options={"reduction": "sum"}, beside=rw.FocalLoss),
    "with Dice, one process having nothing": Case(
        ignored="all", beside=rw.TverskyLoss, beside_options={"batch": True, "alpha": 0.3}
    ),
}


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def one_step(case: Case, group: Any, rank: int) -> tuple[Tensor, list[Tensor]]:
    """Loss of this process and the gradients that DistributedDataParallel averaged."""
    part = slice(0, case.split) if rank == 0 else slice(case.split, IMAGES)
    network = DistributedDataParallel(model())
    loss = case.loss(group)(network(batch()[0][part]), case.labels()[part])
    loss.backward()
    return loss.detach(), gradients(network)


def accumulated(rank: int) -> list[Tensor]:
    """The gradients of three micro-batches a process: a sum, divided by the pixels of all in the end."""
    case = CASES["some pixels ignored"]
    images, labels = batch()[0], case.labels()
    own = range(rank * IMAGES // WORLD, (rank + 1) * IMAGES // WORLD)
    loss_fn = rw.RegionWiseLoss(ignore_index=-1, reduction="sum", process_group="world")
    network = DistributedDataParallel(model())
    pixels = torch.zeros((), dtype=torch.long)
    for index in own:
        part = slice(index, index + 1)
        with network.no_sync() if index != own[-1] else torch.enable_grad():
            loss_fn(network(images[part]), labels[part]).backward()
        pixels += (labels[part] != -1).sum()
    dist.all_reduce(pixels)
    return [gradient / (pixels * CLASSES) for gradient in gradients(network)]


def epochs(rank: int) -> tuple[list[Tensor], list[list[float]]]:
    """Parameters after two epochs over MapLoader and a DistributedSampler, and which images came when."""
    images, labels = batch()
    data = TensorDataset(images, labels, torch.arange(IMAGES))
    sampler = DistributedSampler(data, num_replicas=WORLD, rank=rank, seed=1)
    loader = MapLoader(DataLoader(data, batch_size=3, sampler=sampler), CLASSES)
    network = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for part, _, index, maps in loader:
            optimizer.zero_grad()
            rw.region_wise_loss(network(part), maps, process_group="world").backward()
            optimizer.step()
            seen.append(index.tolist())
    return [parameter.detach().clone() for parameter in network.parameters()], seen


def refusals() -> dict[str, str]:
    """What is said to those who misuse the argument, by the name of the misuse."""
    found = {}
    logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    maps = rw.rectified_map(labels, 2)
    only_first = dist.new_group([0])
    loss = lambda x: rw.region_wise_loss(x, maps, process_group="world")  # noqa: E731
    for name, call in {
        "transform": lambda: torch.func.grad(loss)(logits),
        "not a member": lambda: rw.region_wise_loss(logits, maps, process_group=only_first),
    }.items():
        try:
            found[name] = str(call())
        except (NotImplementedError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def run(rank: int, folder: str) -> None:
    """One of the two processes: everything above, kept in a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.path.join(folder, 'meet')}", rank=rank, world_size=WORLD)
    try:
        found: dict[str, Any] = {"joined": {}, "apart": {}}
        for name, case in CASES.items():
            found["joined"][name] = one_step(case, "world" if case.split != 4 else dist.group.WORLD, rank)
            if not case.compiled:
                found["apart"][name] = one_step(case, None, rank)
        found["accumulated"] = accumulated(rank)
        found["epochs"] = epochs(rank)
        found["refusals"] = refusals()
        torch.save(found, os.path.join(folder, f"rank{rank}.pt"))
        dist.barrier()  # without it, gloo now and then aborts at exit
    finally:
        dist.destroy_process_group()
