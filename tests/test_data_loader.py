"""MapLoader on the CPU: every kind of batch gets its map, and the wrapped loader behaves as it did."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from data_cases import (
    CLASSES,
    Batch,
    BatchWithoutField,
    FrozenBatch,
    FrozenBatchWithoutField,
    Images,
    Sample,
    SampleWithMap,
    assert_is_map_of,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

import rwkernels as rw
from rwkernels.data import MapLoader

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


# --- batches ------------------------------------------------------------------------------------------------------


def test_a_dict_gets_the_map_under_its_key_and_is_not_changed_itself():
    batch = {"image": IMAGE, "label": LABELS, "id": ["a", "b", "c", "d"]}
    found = only([batch])
    assert list(found) == ["image", "label", "id", "map"]
    assert found["label"] is LABELS
    assert "map" not in batch
    assert_is_map_of(found["map"], LABELS)


def test_a_tuple_and_a_list_get_the_map_appended():
    for batch in [(IMAGE, LABELS), [IMAGE, LABELS]]:
        found = only([batch])
        assert type(found) is type(batch)
        assert len(batch) == 2
        assert found[0] is IMAGE
        assert_is_map_of(found[2], LABELS)


def test_labels_are_where_label_key_says():
    assert_is_map_of(only([(LABELS, IMAGE)], label_key=0)[2], LABELS)
    assert_is_map_of(only([(IMAGE, LABELS)], label_key=-1)[2], LABELS)
    found = only([{"seg": LABELS}], label_key="seg", map_key="rrw")
    assert_is_map_of(found["rrw"], LABELS)


def test_a_namedtuple_keeps_its_fields_and_gets_one_more_where_it_has_none_for_the_map():
    found = only([Sample(IMAGE, LABELS)])
    assert found._fields == ("image", "label", "map")
    assert type(found).__name__ == "Sample"
    assert_is_map_of(found.map, LABELS)
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is type(found)
    assert_is_map_of(again.map, LABELS)
    found = only([SampleWithMap(IMAGE, LABELS, None)])
    assert type(found) is SampleWithMap
    assert_is_map_of(found.map, LABELS)


@pytest.mark.parametrize("kind", [Batch, FrozenBatch, BatchWithoutField])
def test_a_dataclass_gets_the_map_as_an_attribute_and_is_not_changed_itself(kind):
    batch = kind(IMAGE, LABELS)
    found = only([batch])
    assert type(found) is kind
    assert getattr(batch, "map", None) is None
    assert_is_map_of(found.map, LABELS)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"image": IMAGE}, {}, r"label_key: expected a key of the batch \('image'\), got 'label'"),
        ((IMAGE,), {}, r"label_key: expected an index into the batch, got 1 for a tuple of 1"),
        (Batch(IMAGE, LABELS), {"label_key": "seg"}, "label_key: expected an entry or attribute of the batch"),
        ({"label": LABELS, "map": IMAGE}, {}, "map_key: expected a key that the batch lacks, got 'map'"),
        (FrozenBatchWithoutField(IMAGE, LABELS), {}, "map_key: expected a batch that takes an attribute 'map'"),
        ({"label": [LABELS]}, {}, "label_key: expected labels, a tensor or an array, got list"),
        ({"label": LABELS + 1}, {}, r"labels: expected integers in \[0, 3\), got 3 at"),
        ({"label": LABELS + 0.5}, {}, "labels: expected whole numbers, got"),
        ({"label": LABELS}, {"spacing": (1.0, 2.0, 3.0)}, "spacing: expected one number or 2"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_the_name_of_the_argument(batch, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        only([batch], **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: expected an integer >= 1"),
        ({"maps": "distance"}, ValueError, "maps: expected one of 'rectified', 'boundary'"),
        ({"maps": 3}, TypeError, "maps: expected a family or a function of labels"),
        ({"maps": rw.rectified_map, "ignore_index": 1}, ValueError, "ignore_index: expected no such option beside"),
        ({"spacing": -1.0}, ValueError, "spacing: expected positive numbers"),
        ({"spacing": 1.0, "spacing_key": "s"}, ValueError, "spacing_key: expected None beside spacing"),
        ({"maps": "boundary", "class_max_key": "m"}, ValueError, "class_max_key: expected None for maps='boundary'"),
        ({"map_options": {"alpha": 2.0}}, ValueError, "map_options: expected further options of rectified_map"),
        ({"depth": 0}, ValueError, "depth: expected an integer >= 1"),
        ({"threads": 0}, ValueError, "threads: expected an integer >= 1"),
        ({"label_key": 1.5}, TypeError, "label_key: expected a key"),
        ({"loader": 7}, TypeError, "loader: expected an iterable of batches, got int 7"),
    ],
)
def test_bad_options_are_refused_before_the_first_batch(options, error, message):
    options = {"loader": [], "num_classes": CLASSES} | options
    with pytest.raises(error, match=message):
        MapLoader(options.pop("loader"), options.pop("num_classes"), **options)


# --- maps ---------------------------------------------------------------------------------------------------------


def test_every_family_is_the_function_of_its_name():
    batch = {"label": LABELS}
    found = only([batch], maps="boundary", spacing=(2.0, 0.5), map_options={"absent": 7.0})["map"]
    torch.testing.assert_close(found, rw.boundary_map(LABELS, CLASSES, spacing=(2.0, 0.5), absent=7.0))
    found = only([batch], maps="constant", map_options={"alpha": 2.0, "beta": 3.0})["map"]
    torch.testing.assert_close(found.dense(), rw.constant_map(LABELS, CLASSES, alpha=2.0, beta=3.0).dense())
    found = only([batch], maps="active_contour")["map"]
    torch.testing.assert_close(found.dense(), rw.active_contour_map(LABELS, CLASSES).dense())


def test_a_function_of_labels_makes_any_map():
    def maps(labels, power):
        return rw.distance_transform(labels).pow(power).unsqueeze(1)

    found = only([{"label": LABELS}], maps=maps, map_options={"power": 2})["map"]
    torch.testing.assert_close(found, rw.distance_transform(LABELS, squared=True).unsqueeze(1))


def test_options_reach_the_map():
    labels = LABELS.clone()
    labels[:, :3] = -1
    found = only([{"label": labels}], ignore_index=-1, black_border=True, spacing=(3.0, 1.0), backend="reference")
    assert_is_map_of(found["map"], labels, ignore_index=-1, black_border=True, spacing=(3.0, 1.0))
    assert int(found["map"].count) == int((labels >= 0).sum())


@pytest.mark.parametrize(
    "spacing",
    [
        torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [0.5, 3.0]]),
        [torch.tensor([1.0, 2.0, 1.0, 0.5]), torch.tensor([2.0, 1.0, 2.0, 3.0])],  # what collation makes of tuples
    ],
    ids=["rows", "columns"],
)
def test_every_image_of_a_batch_has_its_own_spacing(spacing):
    labels = LABELS.clone()
    labels[2, 4:] = -1
    found = only([{"label": labels, "step": spacing}], spacing_key="step", ignore_index=-1)["map"]
    for image, row in enumerate([(1.0, 2.0), (2.0, 1.0), (1.0, 2.0), (0.5, 3.0)]):
        one = labels[image : image + 1]
        assert_is_map_of(found[image : image + 1], one, spacing=row, ignore_index=-1)
    assert int(found.count) == int((labels >= 0).sum())


def test_a_spacing_for_all_images_of_the_batch_is_taken_from_it():
    found = only([{"label": LABELS, "step": (2.0, 0.5)}], spacing_key="step")["map"]
    assert_is_map_of(found, LABELS, spacing=(2.0, 0.5))
    found = only([{"label": LABELS, "step": torch.full((4,), 2.0)}], spacing_key="step", maps="boundary")["map"]
    torch.testing.assert_close(found, rw.boundary_map(LABELS, CLASSES, spacing=2.0))
    with pytest.raises(ValueError, match="spacing: expected one row for each of 4 images"):
        only([{"label": LABELS, "step": torch.ones(3, 2)}], spacing_key="step")


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_array_of_spacings_is_of_images_whatever_the_size_of_the_batch(size, kind):
    labels, steps = LABELS[:size], kind([2.0, 0.5, 1.0, 3.0][:size])
    found = only([{"label": labels, "step": steps}], spacing_key="step", maps="boundary")["map"]
    for image in range(size):
        one = slice(image, image + 1)
        torch.testing.assert_close(found[one], rw.boundary_map(labels[one], CLASSES, spacing=float(steps[image])))
    found = only([{"label": labels, "step": kind([[2.0, 0.5]] * size)}], spacing_key="step")["map"]
    assert_is_map_of(found, labels, spacing=(2.0, 0.5))
    with pytest.raises(ValueError, match=rf"one row for each of {size} images, \[B\] or \[B, axes\], or a tuple"):
        only([{"label": labels, "step": kind([2.0] * (size + 1))}], spacing_key="step")


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_spacing_may_be_an_array(kind):
    assert_is_map_of(only([(IMAGE, LABELS)], spacing=kind([2.0, 0.5]))[2], LABELS, spacing=(2.0, 0.5))
    with pytest.raises(ValueError, match="spacing: expected positive numbers"):
        MapLoader([], CLASSES, spacing=kind([2.0, -0.5]))


def test_the_largest_distances_of_the_volume_divide_those_of_its_patches():
    class_max = torch.tensor([[9.0, 8.0, 7.0]]).expand(4, 3)
    spacing = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    batch = {"label": LABELS, "max": class_max, "step": spacing}
    found = only([batch], class_max_key="max", spacing_key="step")["map"]
    for image in range(4):
        one = slice(image, image + 1)
        options = {"class_max": class_max[one], "spacing": spacing[image].tolist()}
        assert_is_map_of(found[one], LABELS[one], **options)


def test_labels_with_a_channel_axis_floats_and_arrays_are_taken():
    assert_is_map_of(only([{"label": LABELS[:, None].float()}])["map"], LABELS)
    assert_is_map_of(only([{"label": LABELS.numpy()}])["map"], LABELS)
    volumes = Images(shape=(1, 7, 9)).labels(0, 2)
    assert_is_map_of(only([{"label": volumes}], spatial_dims=3)["map"], volumes)
    assert only([{"label": volumes}])["map"].shape == (2, 7, 9)
    rows = LABELS[:, 0]
    assert_is_map_of(only([{"label": rows[:, None]}], spatial_dims=1)["map"], rows, spatial_dims=1)


# --- the wrapped loader -------------------------------------------------------------------------------------------


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


# --- errors, breaks and the end -----------------------------------------------------------------------------------


def failing_source() -> Iterator[tuple]:
    yield IMAGE, LABELS
    yield IMAGE, LABELS
    raise OSError("the disc is gone")


def test_an_error_of_the_loader_comes_after_the_batches_before_it_with_its_traceback():
    found = []
    with pytest.raises(OSError, match="the disc is gone") as caught:
        found.extend(MapLoader(failing_source(), CLASSES, depth=5))
    assert len(found) == 2
    assert "failing_source" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    del caught
    wait_for_no_thread()


def test_an_error_of_a_worker_names_the_worker_and_the_line():
    def broken(sample):
        if sample[0].max() >= 2:
            raise KeyError("no such image")
        return sample

    inner = DataLoader(Images(size=4, transform=broken), batch_size=2, num_workers=1, multiprocessing_context="fork")
    found = []
    with pytest.raises(KeyError, match="Caught KeyError in DataLoader worker process 0") as caught:
        found.extend(MapLoader(inner, CLASSES))
    assert "in broken" in str(caught.value).replace("\\n", "\n")


def test_an_error_of_a_map_keeps_its_traceback_and_the_next_batch_still_comes():
    def broken(labels):
        if labels.float().mean() == 1:
            raise ArithmeticError("no map")
        return rw.rectified_map(labels, CLASSES)

    ones = torch.ones_like(LABELS)
    iterator = iter(MapLoader([(IMAGE, LABELS), (IMAGE, ones), (IMAGE, LABELS)], CLASSES, maps=broken))
    assert_is_map_of(next(iterator)[2], LABELS)
    with pytest.raises(ArithmeticError, match="no map") as caught:
        next(iterator)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert_is_map_of(next(iterator)[2], LABELS)
    with pytest.raises(StopIteration):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_no_thread_is_left_after_the_end_a_break_or_a_forgotten_iterator():
    gc.collect()
    wait_for_no_thread()  # those of other tests
    loader = MapLoader(DataLoader(DATA, batch_size=2), CLASSES)
    list(loader)
    wait_for_no_thread()
    for _ in loader:
        assert len(map_threads()) == 1
        break
    gc.collect()
    wait_for_no_thread()
    iterator = iter(loader)
    next(iterator)
    assert len(map_threads()) == 1
    del iterator
    gc.collect()
    wait_for_no_thread()


def test_a_break_drops_maps_that_were_not_begun():
    built = []
    go = threading.Event()

    def slow(labels):
        go.wait(10)
        built.append(len(labels))
        return labels

    iterator = iter(MapLoader([(IMAGE, LABELS[:n]) for n in (1, 2, 3, 4)], CLASSES, maps=slow, depth=3))
    iterator._fetch()
    iterator._fetch()
    iterator._fetch()
    del iterator
    gc.collect()
    go.set()
    wait_for_no_thread()
    assert built == [1]


def run_script(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_a_program_that_waits_for_a_map():
    child = run_script(
        """
        import signal, time, torch
        from rwkernels.data import MapLoader

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without

        def slow(labels):
            print("waiting", flush=True)
            while not stop:
                time.sleep(0.05)

        stop = []
        try:
            next(iter(MapLoader([(torch.zeros(1, 4, 4),)] * 9, 2, label_key=0, maps=slow)))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            stop.append(True)
            raise
        """
    )
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=20)
    assert output.startswith("interrupted")
    assert "KeyboardInterrupt" in errors
    assert child.returncode != 0


def test_a_program_ends_that_leaves_a_pass_half_way():
    child = run_script(
        """
        import torch
        from rwkernels.data import MapLoader
        iterator = iter(MapLoader([(torch.zeros(2, 9, 9), torch.ones(2, 9, 9).long())] * 9, 2))
        print(len(next(iterator)))
        """
    )
    output, errors = child.communicate(timeout=60)
    assert (output, errors, child.returncode) == ("3\n", "", 0)


# --- cores and memory ---------------------------------------------------------------------------------------------


def test_a_map_takes_one_thread_and_leaves_the_number_of_threads_of_torch_alone(restore_threads, monkeypatch):
    from rwkernels.backends import native

    torch.set_num_threads(3)
    widths = []

    def maps(labels):
        widths.append((native.threads(), torch.get_num_threads()))
        return labels

    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps))
    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps, threads=None))
    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps, threads=2))
    assert widths == [(1, 3), (3, 3), (2, 3)]
    assert native.threads() == torch.get_num_threads() == 3


def test_memory_does_not_grow_over_two_thousand_batches():
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to read the memory of the process")
    batch = {"image": torch.zeros(2, 1, 48, 48), "label": torch.randint(CLASSES, (2, 48, 48))}
    logits = torch.zeros(2, CLASSES, 48, 48, requires_grad=True)
    before = 0
    for step, found in enumerate(MapLoader([batch] * 2200, CLASSES)):
        rw.region_wise_loss(logits, found["map"]).backward()
        logits.grad = None
        if step == 199:
            gc.collect()
            before = resident()
    gc.collect()
    assert resident() < 1.01 * before
