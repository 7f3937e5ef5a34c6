"""MapLoader on a GPU: labels are moved and maps built on a side stream, one batch ahead, and handed over in order.

Without a GPU a stand-in writes down what torch.cuda is asked to do; with one, the same is seen happen.
"""

import contextlib
import gc

import pytest
import torch
from data_cases import CLASSES, Images, assert_is_map_of
from torch.utils.data import DataLoader

import rwkernels as rw
from rwkernels.data import MapLoader, ahead

NAMES = ("labels", "foreground", "image_count")


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def record_event(self):
        self.log.append(f"{self.name} records")
        return "event"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Fake(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True
    log: list

    def record_stream(self, stream):
        self.log.append((self.data_ptr(), stream.name))


@pytest.fixture
def log(monkeypatch):
    """What torch.cuda was asked to do, by a stand-in for it."""
    calls: list = []
    Fake.log = calls
    current = [Stream(calls, "current")]

    @contextlib.contextmanager
    def stream(chosen):
        before, current[0] = current[0], chosen
        yield
        current[0] = before

    made: list[str] = []

    def new_stream(device):
        made.append(str(device))
        return Stream(calls, "side" if len(made) == 1 else f"side {len(made)} on {device}")

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    ahead._stream_beside.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "stream", stream)

    def to(self, device, non_blocking=False):
        calls.append(f"labels to {device} on {current[0].name}{' without waiting' if non_blocking else ''}")
        return self.clone().as_subclass(Fake)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        "rwkernels.data.building.MapBuilder.of_batch",
        lambda self, batch, labels: calls.append(f"map built on {current[0].name}") or fake_map(labels),
    )
    yield calls
    ahead._stream_beside.cache_clear()


def fake_map(labels):
    plain = labels.as_subclass(torch.Tensor)
    parts = {"foreground": torch.zeros(plain.shape), "image_count": torch.zeros(len(plain))}
    return rw.RectifiedMap(
        labels, num_classes=CLASSES, ignore_index=-1, **{name: part.as_subclass(Fake) for name, part in parts.items()}
    )


LAUNCH = ["labels to cuda on side without waiting", "map built on side", "side records"]


def test_maps_are_launched_one_batch_ahead_and_handed_over_by_event_and_record_stream(log):
    batches = [(torch.zeros(2, 1), torch.zeros(2, 5, 7).long()) for _ in range(3)]
    iterator = iter(MapLoader(batches, CLASSES, device="cuda"))
    for index in range(3):
        before = len(log)
        batch = next(iterator)
        launched = {0: 2 * LAUNCH, 1: LAUNCH, 2: []}[index]
        assert log[before : before + len(launched) + 1] == [*launched, "current waits for event"]
        crossed = log[before + len(launched) + 1 :]
        tensors = [getattr(batch[2], name) for name in NAMES]
        # The labels of the batch are those of the map.
        assert {address for address, _ in crossed} == {tensor.data_ptr() for tensor in tensors}
        assert {name for _, name in crossed} == {"current"}
        assert batch[1].data_ptr() == batch[2].labels.data_ptr()
    with pytest.raises(StopIteration):
        next(iterator)


def test_all_passes_of_a_process_share_one_stream_for_each_device(log):
    batches = [(None, torch.zeros(2, 5, 7).long())]
    for device in ("cuda", "cuda:0", "cuda", "cuda:1", "cuda:1"):
        list(MapLoader(batches, CLASSES, device=device))
    built = [line for line in log if isinstance(line, str) and line.startswith("map built")]
    assert built == 3 * ["map built on side"] + 2 * ["map built on side 2 on cuda:1"]


def test_what_goes_to_the_cpu_is_waited_for(log):
    labels = torch.zeros(2, 5, 7).long().as_subclass(Fake)
    list(MapLoader([(None, labels)], CLASSES, device="cpu"))
    assert "labels to cpu on current" in log


def test_largest_distances_that_go_to_the_cpu_are_waited_for(monkeypatch):
    asked = []
    to = torch.Tensor.to

    def watched(self, *args, **options):
        if "non_blocking" in options:
            asked.append(options["non_blocking"])
        return to(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    batch = {"label": Images().labels(0, 2), "max": torch.ones(2, CLASSES)}
    list(MapLoader([batch], CLASSES, class_max_key="max"))
    assert asked
    assert not any(asked)


def test_labels_that_the_callers_stream_may_still_write_are_waited_for(log):
    labels = torch.zeros(2, 5, 7).long().as_subclass(Fake)
    finish = ahead.SideStream(torch.device("cuda")).start(lambda: log.append("work") or (labels,), [labels])
    address = labels.data_ptr()
    assert log == ["side waits for current", "work", "side records", (address, "side")]
    assert finish()[0] is labels
    assert log[4:] == ["current waits for event", (address, "current")]


def test_largest_distances_that_are_on_the_device_are_waited_for_too(log):
    class_max = torch.ones(2, CLASSES).as_subclass(Fake)
    batch = {"label": torch.zeros(2, 5, 7).long(), "max": class_max}
    next(iter(MapLoader([batch], CLASSES, device="cuda", class_max_key="max")))
    assert log[0] == "side waits for current"
    assert (class_max.data_ptr(), "side") in log


def test_an_error_of_a_launch_comes_with_its_batch_and_leaves_the_current_stream_alone(log, monkeypatch):
    good, bad = torch.zeros(2, 5, 7).long(), torch.ones(2, 5, 7).long()

    def build(self, batch, labels):
        if labels.as_subclass(torch.Tensor).any():
            raise ArithmeticError("no map")
        return fake_map(labels)

    monkeypatch.setattr("rwkernels.data.building.MapBuilder.of_batch", build)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    iterator = iter(MapLoader([(None, good), (None, bad), (None, good)], CLASSES, device="cuda"))
    next(iterator)
    with pytest.raises(ArithmeticError, match="no map"):
        next(iterator)
    assert next(iterator)[2].num_classes == CLASSES


gpu = pytest.mark.gpu


def batches_of(size, shape=(64, 48), batch=2):
    return DataLoader(Images(size=size, shape=shape), batch_size=batch, pin_memory=torch.cuda.is_available())


@gpu
@pytest.mark.parametrize("kind", ["rectified", "boundary"])
def test_on_a_gpu_every_batch_has_labels_and_map_there(kind):
    for index, (image, labels, maps) in enumerate(MapLoader(batches_of(8), CLASSES, maps=kind, device="cuda")):
        assert image.device.type == "cpu"
        assert labels.is_cuda
        expected = Images(shape=(64, 48)).labels(2 * index, 2 * index + 2)
        if kind == "rectified":
            assert_is_map_of(maps.to("cpu"), expected)
        else:
            torch.testing.assert_close(maps.cpu(), rw.boundary_map(expected, CLASSES), rtol=1e-5, atol=1e-5)


@gpu
def test_on_a_gpu_the_next_map_is_built_while_the_step_still_computes():
    side = []

    def maps(labels):
        side.append(torch.cuda.current_stream())
        found = rw.rectified_map(labels, CLASSES)
        done.append(torch.cuda.current_stream().record_event())
        return found

    done: list[torch.cuda.Event] = []
    iterator = iter(MapLoader(batches_of(16), CLASSES, maps=maps, device="cuda"))
    for _ in range(4):  # compiles the kernels and fills the allocator's pool of this stream
        next(iterator)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # the training step: about a second
    step = torch.cuda.current_stream().record_event()
    next(iterator)  # hands over the fifth map and launches the sixth
    assert len(done) == 6
    done[5].synchronize()
    assert not step.query()
    assert all(stream != torch.cuda.current_stream() for stream in side)
    torch.cuda.synchronize()


@gpu
def test_on_a_gpu_memory_is_not_handed_out_while_another_stream_still_reads_it():
    expected = []
    found = []
    loader = MapLoader(batches_of(40, (256, 256)), CLASSES, device="cuda")
    for index, (_, labels, maps) in enumerate(loader):
        torch.cuda._sleep(20_000_000)  # the step is late: maps of later batches must not land in this one's memory
        found.append(maps.foreground.double().sum() + labels.sum())
        del labels, maps
        own = Images(shape=(256, 256)).labels(2 * index, 2 * index + 2)
        expected.append(rw.rectified_map(own, CLASSES).foreground.double().sum() + own.sum())
    torch.testing.assert_close(torch.stack(found).cpu(), torch.stack(expected), rtol=1e-6, atol=1e-3)


@gpu
def test_on_a_gpu_a_step_after_the_loader_waits_for_the_map_and_not_the_host():
    host_waits = []
    loader = MapLoader(batches_of(8), CLASSES, device="cuda")
    for _ in loader:  # compiles
        pass
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _, labels, maps in loader:
            logits = torch.zeros(2, CLASSES, 64, 48, device="cuda", requires_grad=True)
            host_waits.append(rw.region_wise_loss(logits, maps).detach() + labels.sum())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(host_waits)).all()


@gpu
def test_on_a_gpu_labels_that_are_there_already_are_not_moved_and_memory_is_steady():
    labels = Images(shape=(64, 48)).labels(0, 4).cuda()
    logits = torch.zeros(4, CLASSES, 64, 48, device="cuda", requires_grad=True)
    before = 0
    for step, batch in enumerate(MapLoader([(None, labels)] * 2200, CLASSES)):
        assert batch[1] is labels
        rw.region_wise_loss(logits, batch[2]).backward()
        logits.grad = None
        del batch
        if step == 199:
            gc.collect()
            torch.cuda.synchronize()
            before = torch.cuda.memory_reserved()
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= 1.01 * before


@gpu
def test_on_a_gpu_memory_is_steady_over_several_passes():
    reserved = []
    loader = MapLoader(batches_of(8, (512, 512)), CLASSES, device="cuda")
    for _ in range(5):
        for batch in loader:
            del batch
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1:] == 4 * reserved[:1]
