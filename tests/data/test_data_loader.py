"""MapLoader on the CPU: batches come with their maps one ahead, and the wrapped loader behaves as it did."""

import copy
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from data_cases import (
    CLASSES,
    DATA,
    IMAGE,
    LABELS,
    Images,
    assert_is_map_of,
    wait_for_no_thread,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

import rwkernels as rw
from rwkernels.data import MapLoader


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_batches_come_in_order_each_with_its_map(depth):
    found = list(MapLoader(DataLoader(DATA, batch_size=2), CLASSES, depth=depth))
    assert [batch[0][:, 0, 0, 0].tolist() for batch in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for index, batch in enumerate(found):
        assert_is_map_of(batch[2], DATA.labels(2 * index, 2 * index + 2))


@pytest.mark.parametrize("depth", [1, 3])
def test_only_depth_batches_are_taken_ahead_of_the_caller(depth):
    taken = []

    def source() -> Iterator[tuple]:
        for index in range(10):
            taken.append(index)
            yield IMAGE, LABELS

    for given, _ in enumerate(MapLoader(source(), CLASSES, depth=depth)):
        assert len(taken) == min(given + 1 + depth, 10)


def test_the_map_of_the_next_batch_is_built_while_the_caller_computes():
    built = []
    both = threading.Event()

    def maps(labels):
        built.append(threading.current_thread())
        if len(built) == 2:
            both.set()
        return rw.rectified_map(labels, CLASSES)

    iterator = iter(MapLoader([(IMAGE, LABELS)] * 3, CLASSES, maps=maps))
    next(iterator)
    assert both.wait(10)  # without asking for the second batch
    assert threading.main_thread() not in built


def test_length_sampler_data_set_and_other_attributes_are_those_of_the_loader():
    inner = DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 3, drop_last=False))
    loader = MapLoader(inner, CLASSES)
    assert len(loader) == 3
    assert loader.dataset is DATA
    assert loader.batch_sampler is inner.batch_sampler
    assert loader.num_workers == 0
    with pytest.raises(AttributeError, match="unknown"):
        _ = loader.unknown
    with pytest.raises(TypeError):
        len(MapLoader(iter([]), CLASSES))


@pytest.mark.parametrize("place", ["sampler", "inside-batch-sampler"])
def test_set_epoch_reaches_the_sampler(place):
    sampler = DistributedSampler(DATA, num_replicas=2, rank=0, seed=3)
    if place == "sampler":
        inner = DataLoader(DATA, batch_size=2, sampler=sampler)
    else:
        inner = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, drop_last=False))
    loader = MapLoader(inner, CLASSES)
    orders = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert sampler.epoch == epoch
        orders.append([int(x) for batch in loader for x in batch[0][:, 0, 0, 0]])
        assert orders[-1] == list(sampler)
    assert len({tuple(order) for order in orders}) == 3
    MapLoader([], CLASSES).set_epoch(1)  # nothing there that counts epochs


def test_random_numbers_are_drawn_as_without_it():
    def drawn(loader) -> list:
        torch.manual_seed(5)
        return [batch[0].mean().item() for batch in loader] + [torch.rand(()).item()]

    class Noisy(Images):
        def __getitem__(self, index):
            return torch.randn(1, 4, 4), self.label(index)

    inner = DataLoader(Noisy(), batch_size=2, shuffle=True)
    assert drawn(MapLoader(inner, CLASSES)) == drawn(inner)


def test_two_passes_at_once_do_not_disturb_each_other():
    loader = MapLoader(DataLoader(DATA, batch_size=4), CLASSES)
    pairs = [(a, b) for a in loader for b in loader]
    assert len(pairs) == 4
    for index, (a, b) in enumerate(pairs):
        assert_is_map_of(a[2], DATA.labels(4 * (index // 2), 4 * (index // 2) + 4))
        assert_is_map_of(b[2], DATA.labels(4 * (index % 2), 4 * (index % 2) + 4))
    wait_for_no_thread()


def test_nested_passes_with_forked_workers_end():
    inner = DataLoader(Images(size=4), batch_size=2, num_workers=1, multiprocessing_context="fork")
    loader = MapLoader(inner, CLASSES)
    assert sum(1 for _ in loader for _ in loader) == 4
    wait_for_no_thread()


def test_persistent_workers_serve_every_epoch():
    inner = DataLoader(Images(size=4), batch_size=2, num_workers=1, persistent_workers=True)
    loader = MapLoader(inner, CLASSES)
    for _ in range(3):
        assert [int(batch[0][0, 0, 0, 0]) for batch in loader] == [0, 2]
        workers = inner._iterator._workers
        assert all(worker.is_alive() for worker in workers)


def test_a_loader_of_any_kind_is_taken():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Images(size=4))

    assert len(list(MapLoader(DataLoader(Stream(), batch_size=2), CLASSES))) == 2

    class Endless:  # as nnU-Net's augmenters are: an iterator of dicts with float labels [B, 1, *S]
        def __iter__(self):
            return self

        def __next__(self):
            return {"data": IMAGE, "target": LABELS[:, None].float()}

    iterator = iter(MapLoader(Endless(), CLASSES, label_key="target"))
    for _ in range(3):
        assert_is_map_of(next(iterator)["map"], LABELS)


def test_monai_thread_loader_and_meta_tensors_are_taken():
    monai_data = pytest.importorskip("monai.data", reason="needs MONAI")
    items = [{"image": IMAGE[0], "label": monai_data.MetaTensor(LABELS[i][None])} for i in range(4)]
    inner = monai_data.ThreadDataLoader(monai_data.Dataset(items), batch_size=2, num_workers=0)
    found = list(MapLoader(inner, CLASSES))
    assert len(found) == 2
    assert type(found[0]["label"]) is monai_data.MetaTensor
    assert type(found[0]["map"].labels) is torch.Tensor
    assert_is_map_of(found[1]["map"], LABELS[2:])


def test_the_loader_can_be_pickled_and_copied():
    loader = MapLoader(DataLoader(DATA, batch_size=4), CLASSES, spacing=(2.0, 1.0))
    next(iter(loader))
    for again in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader), copy.copy(loader)):
        first = next(iter(again))
        assert_is_map_of(first[2], LABELS, spacing=(2.0, 1.0))
    assert "num_classes=3" in repr(loader)
