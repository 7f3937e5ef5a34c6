"""Maps made in worker processes: every start method, after the parent used its threads, on one core each."""

import multiprocessing
import os
import pickle

import pytest
import torch
from data_cases import CLASSES, Images, Sample, assert_is_map_of, use_three_threads, width_map
from torch.utils.data import DataLoader, get_worker_info

import rwkernels as rw
from rwkernels.backends import native
from rwkernels.data import AddMap, MapCollate, MapLoader

START_METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module", autouse=True)
def quick_start():
    multiprocessing.set_forkserver_preload(["rwkernels.data", "data_cases"])


def use_the_pool_of_the_parent() -> None:
    torch.set_num_threads(max(2, torch.get_num_threads()))
    labels = torch.randint(CLASSES, (9, 128, 128))
    logits = torch.zeros(9, CLASSES, 128, 128, requires_grad=True)
    rw.RegionWiseLoss()(logits, labels).backward()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("num_workers", range(5))
@pytest.mark.parametrize("start_method", START_METHODS)
def test_workers_of_every_kind_make_maps_after_the_parent_used_its_threads(start_method, num_workers, restore_threads):
    if num_workers == 0 and start_method != "fork":
        pytest.skip("without workers there is no start method")
    use_the_pool_of_the_parent()
    data = Images(size=5, transform=AddMap(CLASSES, spacing=(2.0, 1.0)))
    loader = DataLoader(
        data,
        batch_size=2,
        num_workers=num_workers,
        collate_fn=MapCollate(CLASSES, maps="boundary", spacing=(2.0, 1.0)),
        multiprocessing_context=start_method if num_workers else None,
        timeout=60 if num_workers else 0,
    )
    found = list(loader)
    assert len(found) == 3
    for index, (images, labels, own, dense) in enumerate(found):
        expected = Images().labels(2 * index, min(2 * index + 2, 5))
        assert images[:, 0, 0, 0].tolist() == list(range(2 * index, min(2 * index + 2, 5)))
        assert_is_map_of(own, expected, spacing=(2.0, 1.0))
        assert torch.equal(labels, expected)
        torch.testing.assert_close(dense, rw.boundary_map(expected, CLASSES, spacing=(2.0, 1.0), backend="reference"))
    use_the_pool_of_the_parent()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc to count the threads of a process")
@pytest.mark.parametrize(
    ("start_method", "init", "options", "expected"),
    [
        ("fork", None, {}, [1, 0]),
        ("fork", None, {"threads": 3}, [3, 2]),
        ("forkserver", use_three_threads, {}, [1, 0]),  # not forked: there OpenMP, and so torch with threads, hangs
    ],
    ids=["as-pytorch-starts-it", "unless-it-is-told-to", "whatever-torch-uses"],
)
def test_a_worker_uses_one_thread(start_method, init, options, expected, restore_threads):
    reason = native.can_run(torch.device("cpu"))
    if reason is not None:
        pytest.skip(f"the threads are those of the native backend: {reason}")
    use_the_pool_of_the_parent()
    loader = DataLoader(
        Images(size=4),
        batch_size=2,
        num_workers=2,
        collate_fn=MapCollate(CLASSES, maps=width_map, **options),
        multiprocessing_context=start_method,
        worker_init_fn=init,
        timeout=60,
    )
    assert [batch[2].tolist() for batch in loader] == [[expected], [expected]]


def test_threads_can_be_asked_for(restore_threads):
    torch.set_num_threads(3)
    samples = [Images()[0]]
    assert MapCollate(CLASSES, maps=width_map, threads=2)(samples)[2][0, 0] == 2
    assert MapCollate(CLASSES, maps=width_map, threads=None)(samples)[2][0, 0] == 3


@pytest.mark.parametrize("kind", ["tuple", "dict", "namedtuple"])
def test_samples_of_every_kind_get_their_map_and_travel(kind):
    loader = DataLoader(
        Images(size=4, kind=kind, transform=AddMap(CLASSES)),
        batch_size=4,
        num_workers=1,
        multiprocessing_context="fork",
    )
    (batch,) = loader
    found = batch["map"] if kind == "dict" else batch[2]
    assert_is_map_of(found, Images().labels(0, 4))
    if kind == "namedtuple":
        assert batch._fields == (*Sample._fields, "map")


def test_the_map_of_a_sample_has_no_axis_for_images_and_is_that_of_the_batch():
    label = torch.randint(CLASSES, (5, 9, 11), generator=torch.Generator().manual_seed(1))
    label[0] = -1
    options = {"ignore_index": -1, "spacing": (3.0, 1.0, 0.5)}
    for given in (label, label[None], label.float()[None], label.numpy()):
        found = AddMap(CLASSES, **options)({"label": given})["map"]
        assert found.shape == label.shape
        assert_is_map_of(found._map(lambda tensor: tensor[None]), label[None], **options)
    dense = AddMap(CLASSES, maps="boundary")({"label": label.clamp(min=0)})["map"]
    torch.testing.assert_close(dense[None], rw.boundary_map(label.clamp(min=0)[None], CLASSES))


@pytest.mark.parametrize("spacing", [(3.0, 0.5), torch.tensor([3.0, 0.5]), [3.0, 0.5]])
def test_a_sample_brings_its_spacing_and_the_largest_distances_of_its_volume(spacing):
    label = Images().label(0)
    sample = {"label": label, "step": spacing, "max": torch.tensor([9.0, 8.0, 7.0])}
    found = AddMap(CLASSES, spacing_key="step", class_max_key="max")(sample)["map"]
    expected = {"spacing": (3.0, 0.5), "class_max": sample["max"][None]}
    assert_is_map_of(found._map(lambda tensor: tensor[None]), label[None], **expected)


def test_a_collated_batch_and_its_map_share_their_labels():
    batch = MapCollate(CLASSES)([Images()[0], Images()[1]])
    assert batch[2].labels.data_ptr() == batch[1].data_ptr()


def test_pinned_batches_bring_pinned_maps():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible to torch, and without one there is no page-locked memory")
    loader = DataLoader(Images(transform=AddMap(CLASSES)), batch_size=2, pin_memory=True)
    assert next(iter(loader))[2].foreground.is_pinned()


def test_transform_and_collation_can_be_pickled():
    sample = pickle.loads(pickle.dumps(AddMap(CLASSES, spacing=2.0)))(Images()[3])
    assert sample[2].shape == (13, 22)
    batch = pickle.loads(pickle.dumps(MapCollate(CLASSES)))([sample[:2]])
    assert_is_map_of(batch[2], Images().labels(3, 4))


def test_a_collation_that_is_none_is_refused():
    with pytest.raises(TypeError, match="collate: expected a function of a list of samples, got int 3"):
        MapCollate(CLASSES, collate=3)


class Nested(torch.utils.data.IterableDataset):
    """A data set that wraps its loader in the worker, where no CUDA may be."""

    def __init__(self, device):
        self.device = device

    def __iter__(self):
        assert get_worker_info() is not None
        for batch in MapLoader(DataLoader(Images(size=2), batch_size=2), CLASSES, device=self.device):
            yield batch[2].foreground


def test_cuda_in_a_worker_process_is_refused_by_name():
    def maps(device):
        return DataLoader(Nested(device), batch_size=None, num_workers=1, multiprocessing_context="fork")

    assert len(list(maps("cpu"))) == 1
    with pytest.raises(
        RuntimeError, match="device: expected a CPU device in a worker process of a DataLoader, got cuda"
    ):
        list(maps("cuda"))


class OnCuda(torch.Tensor):
    """Stands in for labels on a GPU where there is none."""

    is_cuda = True


class CudaSamples(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return AddMap(CLASSES)((image, label.as_subclass(OnCuda)))


def test_labels_on_cuda_in_a_worker_process_are_refused_by_name():
    loader = DataLoader(CudaSamples(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match="labels: expected labels on the CPU in a worker process"):
        next(iter(loader))
