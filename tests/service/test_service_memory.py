"""Maps and labels in memory that a service shares with its clients: right, apart from each other, and given back."""

import contextlib
import gc
import importlib.util
import mmap
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra `service`")
pytest.importorskip("msgspec", reason="needs the extra `service`")
if sys.platform != "linux":
    pytest.skip("memory is shared on Linux alone", allow_module_level=True)
import msgspec
from service_cases import served, some_labels, until

import rwkernels as rw
from rwkernels.maps.quantised import decode, encode, largest_error
from rwkernels.service import RemoteMapBuilder
from rwkernels.service.client import pipeline
from rwkernels.service.client.memory import SharedMemory
from rwkernels.service.server import memory
from rwkernels.service.server.memory import Room, Slots
from rwkernels.service.wire.memory import OutOfReachError, Place


@pytest.fixture(scope="module")
def server():
    with served("--threads", "2") as found:
        yield found


def is_shared(values):
    """Whether a tensor lies in memory of the service."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, beyond = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= values.data_ptr() < beyond:
                return "memfd:rwkernels-" in line
    raise AssertionError("it lies nowhere")


def some_batches(count, classes=3):
    """Batches whose sizes grow, shrink, and fall below what is worth a slot."""
    sizes = [(1, 40, 33), (2, 150, 131), (1, 300, 257), (3, 64, 500), (2, 210, 190), (1, 130, 127)]
    order = (0, 5, 2, 4, 1, 3, 5, 0, 3, 1, 2, 4)
    return [some_labels(*sizes[order[seed % 12]], classes=classes, seed=seed) for seed in range(count)]


def descriptors(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@contextlib.contextmanager
def nothing_left(server):
    """At the end the service has given back what its streams took."""
    until(lambda: server.metric("rwkernels_streams") == 0)
    until(lambda: server.metric("rwkernels_shared_bytes") == 0)
    before = descriptors(server)
    yield
    until(lambda: server.metric("rwkernels_shared_bytes") == 0)
    until(lambda: descriptors(server) <= before + 1)  # a connection of a client, or of this page


@pytest.mark.parametrize("bits", [None, 16, 8])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_maps_that_are_held_stay_those_of_their_own_labels(server, bits, window):
    batches = some_batches(30)
    found = list(RemoteMapBuilder(server.url, 3, bits=bits).maps_of(batches, window=window))
    for labels, maps in zip(batches, found, strict=True):
        expected = rw.rectified_map(labels, 3).foreground
        assert torch.equal(maps.foreground, expected if bits is None else decode(encode(expected, bits)))
        assert (maps.foreground - expected).abs().max() <= (0 if bits is None else largest_error(bits))
    assert sum(is_shared(maps.foreground) for maps in found) == (window if bits is None else 0)


@pytest.mark.parametrize("bits", [None, 16])
def test_dense_maps_that_are_held_stay_those_of_their_own_labels(server, bits):
    batches = some_batches(16, classes=5)
    found = list(RemoteMapBuilder(server.url, 5, maps="boundary", bits=bits).maps_of(batches, window=4))
    for labels, maps in zip(batches, found, strict=True):
        expected = rw.boundary_map(labels, 5)
        assert torch.equal(maps, expected if bits is None else expected.half().float())
    assert sum(map(is_shared, found)) == (4 if bits is None else 0)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("ignore_index", [None, 1, 255])
def test_labels_that_are_left_in_memory_arrive_in_whatever_form_they_travel(server, ignore_index, bits, monkeypatch):
    left = []
    leave = SharedMemory.leave
    monkeypatch.setattr(SharedMemory, "leave", lambda *given: left.append(leave(*given)) or left[-1])
    for classes in (2, 3, 16, 100, 300):
        batches = [some_labels(2, 200, 171, classes=classes, seed=seed) for seed in range(12)]
        for labels in batches[::2]:
            labels[0, 3:50, 7:90] = 1 if ignore_index is None else ignore_index
        found = RemoteMapBuilder(server.url, classes, ignore_index=ignore_index, bits=bits).maps_of(batches, window=2)
        for labels, maps in zip(batches, found, strict=True):
            expected = rw.rectified_map(labels, classes, ignore_index=ignore_index)
            whole = expected.foreground
            assert torch.equal(maps.foreground, whole if bits is None else decode(encode(whole, bits)))
            if ignore_index is not None:
                assert torch.equal(maps.image_count, expected.image_count)
    assert sum(left) >= (5 if bits is None else 4) * 8  # beside 8 bits of each pixel, 16 for each label find no room


def test_a_map_that_is_dropped_gives_its_slot_to_the_next_one(server):
    batches = [some_labels(1, 300, 257, seed=seed) for seed in range(4)]
    expected = [rw.rectified_map(labels, 3).foreground for labels in batches]
    addresses = set()
    for index, maps in enumerate(RemoteMapBuilder(server.url, 3).maps_of((batches * 10), window=2)):
        assert is_shared(maps.foreground)
        assert torch.equal(maps.foreground, expected[index % 4])
        addresses.add(maps.foreground.data_ptr())
    assert len(addresses) <= 4


VIEWS = {
    "a row": lambda maps: maps.foreground[0, 7],
    "every other pixel": lambda maps: maps.foreground.flatten()[1::2],
    "numpy": lambda maps: maps.foreground.numpy(),
    "a part of numpy's view": lambda maps: maps.foreground.numpy().reshape(-1).view("u1")[4096:].view("f4")[::3],
    "a crop of the map": lambda maps: maps[:, 3:90, 5:70].foreground,
    "dlpack": lambda maps: torch.from_dlpack(maps.foreground)[0],
    "a buffer": lambda maps: torch.frombuffer(memoryview(maps.foreground.numpy()).cast("B"), dtype=torch.float32),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_what_is_kept_of_a_map_stays_although_the_map_itself_is_dropped(server, view):
    batches = [some_labels(1, 200, 171, seed=seed) for seed in range(40)]
    kept = [view(maps) for maps in RemoteMapBuilder(server.url, 3).maps_of(batches, window=2)]
    gc.collect()
    for labels, found in zip(batches, kept, strict=True):
        expected = torch.as_tensor(view(rw.rectified_map(labels, 3)))
        assert torch.equal(torch.as_tensor(found), expected)


def test_writing_into_a_map_changes_no_other_and_no_later_one(server):
    batches = [some_labels(1, 200, 171, seed=seed) for seed in range(30)]
    held = []
    for index, (labels, maps) in enumerate(
        zip(batches, RemoteMapBuilder(server.url, 3).maps_of(batches, window=3), strict=True)
    ):
        assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)
        maps.foreground.fill_(float(index))
        if index % 3:
            held.append((index, maps))
    for index, maps in held:
        assert bool((maps.foreground == index).all())


def test_two_streams_at_once_do_not_see_each_others_slots(server):
    builder = RemoteMapBuilder(server.url, 3)
    ones = [some_labels(1, 300, 257, seed=seed) for seed in range(24)]
    others = [some_labels(1, 300, 257, seed=100 + seed) for seed in range(24)]

    def held(batches):
        return list(builder.maps_of(batches, window=4))

    with nothing_left(server), ThreadPoolExecutor(2) as pool:
        for batches, found in zip((ones, others), pool.map(held, (ones, others)), strict=True):
            for labels, maps in zip(batches, found, strict=True):
                assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)
        found = zip(builder.maps_of(ones, window=2), builder.maps_of(others, window=2), strict=True)
        for (one, other), here, there in zip(found, ones, others, strict=True):
            assert torch.equal(one.foreground, rw.rectified_map(here, 3).foreground)
            assert torch.equal(other.foreground, rw.rectified_map(there, 3).foreground)


def test_what_a_stream_took_is_given_back_when_it_ends(server):
    batches = [some_labels(1, 300, 257, seed=seed) for seed in range(12)]
    with nothing_left(server):
        stream = RemoteMapBuilder(server.url, 3).maps_of(batches, window=4)
        held = [next(stream) for _ in range(6)]
        assert 300 * 257 * 4 <= server.metric("rwkernels_shared_bytes") <= 8 * 300 * 257 * 4
        stream.close()
        until(lambda: server.metric("rwkernels_shared_bytes") == 0)
        for labels, maps in zip(batches, held, strict=False):
            assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)


@pytest.mark.parametrize("room", [0, 100_000, 700_000])
def test_where_there_is_no_room_answers_are_sent(room):
    batches = some_batches(18)
    with served("--shared-bytes", str(room)) as server:
        shared, most = 0, 0.0
        for labels, maps in zip(batches, RemoteMapBuilder(server.url, 3).maps_of(batches, window=4), strict=True):
            assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)
            shared += is_shared(maps.foreground)
            most = max(most, server.metric("rwkernels_shared_bytes"))
        assert most <= room
        assert (shared > 0) == (room > 0)
        until(lambda: server.metric("rwkernels_shared_bytes") == 0)


def another_name(monkeypatch):
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: re.sub(r"[0-9a-f]{32}", "0" * 32, readlink(path)))


def not_there(monkeypatch):
    def fails(place):
        raise OutOfReachError("not here")

    monkeypatch.setattr(Place, "map", fails)


def no_memory(monkeypatch):
    monkeypatch.setattr(mmap, "mmap", lambda *given: (_ for _ in ()).throw(OSError("no memory")))


@pytest.mark.parametrize("fails", [another_name, not_there, no_memory])
def test_memory_that_is_out_of_reach_is_not_asked_for_again(server, monkeypatch, fails):
    fails(monkeypatch)
    asked = []
    message = pipeline.Asked.message
    monkeypatch.setattr(pipeline.Asked, "message", lambda own: asked.append(own.request.slot) or message(own))
    batches = [some_labels(1, 200, 171, seed=seed) for seed in range(20)]
    for labels, maps in zip(batches, RemoteMapBuilder(server.url, 3).maps_of(batches, window=3), strict=True):
        assert torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground)
    named = [slot for slot in asked if slot is not None]
    assert 1 <= len(named) <= 4
    assert asked[-10:] == [None] * 10


def test_nothing_is_opened_but_memory_of_that_name(tmp_path):
    name = f"rwkernels-{'0' * 32}"
    path = tmp_path / f"memfd:{name} (deleted)"
    path.write_bytes(b"secret" * 1000)
    opened = []
    with pytest.MonkeyPatch.context() as patch, open(path, "rb") as file:
        patch.setattr(os, "open", lambda *given: opened.append(given))
        for process, descriptor in ((os.getpid(), file.fileno()), (1, 0), (2**31 - 1, 5), (os.getpid(), 999_999)):
            with pytest.raises(OutOfReachError):
                Place(process, descriptor, name).map()
    assert opened == []


@pytest.mark.parametrize(
    "changes",
    [
        {"process": -1}, {"process": 2**31}, {"process": "self"}, {"process": True}, {"process": None},
        {"process": 1.0}, {"descriptor": -1}, {"descriptor": 2**31}, {"descriptor": "../1"}, {"descriptor": False},
        {"name": None}, {"name": "rwkernels-"}, {"name": "rwkernels-" + "g" * 32}, {"name": "rwkernels-" + "0" * 33},
        {"name": "rwkernels-" + "0" * 32 + "\n"}, {"name": "x" + "rwkernels-" + "0" * 32}, {"path": "/etc/passwd"},
    ],
    ids=str,
)  # fmt: skip
def test_a_place_that_makes_no_sense_is_none(changes):
    good = {"process": 1, "descriptor": 5, "name": "rwkernels-" + "0" * 32}
    assert msgspec.convert(good, Place) == Place(1, 5, good["name"])
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **changes}, Place)


@pytest.mark.parametrize("header", [None, [], "rwkernels", {}, {"process": 1, "descriptor": 5}])
def test_a_header_without_its_keys_is_no_place(header):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(header, Place)


def test_what_is_opened_must_be_what_was_looked_at(monkeypatch):
    slots = Slots(Room(10_000))
    place = slots.take(0, 5000).place
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: "/etc/passwd" if "self" in path else readlink(path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OutOfReachError):
        place.map()
    assert len(os.listdir("/proc/self/fd")) == before
    slots.close()


def test_a_slot_is_given_to_one_request_until_it_is_free_again():
    slots, shared = Slots(Room(10_000)), SharedMemory(3)
    assert sorted(shared.take() for _ in range(3)) == [0, 1, 2]
    assert shared.take() is None
    shared.give_back(1)
    assert (shared.take(), shared.take(), shared.kept) == (1, None, 0)
    found = shared.payload(1, slots.take(1, 5000).place, 5000)
    view = found[7:]
    del found
    assert (shared.take(), shared.kept) == (None, 1)
    del view
    assert (shared.kept, shared.take(), shared.take()) == (0, 1, None)
    found = shared.payload(1, slots.take(1, 5000).place, 5000)
    shared.keep()
    del found
    assert (shared.kept, shared.take()) == (1, None)
    with pytest.raises(OutOfReachError):
        shared.payload(2, slots.take(2, 100).place, 101)
    slots.close()


def test_memory_that_has_grown_is_mapped_again():
    slots, shared = Slots(Room(20_000)), SharedMemory(1)
    for size in (5000, 9000, 7000):
        slot = slots.take(shared.take(), size)
        slot.bytes[:] = size % 251
        assert bytes(shared.payload(0, slot.place, size)) == bytes([size % 251]) * size
    slots.close()


def test_slots_take_no_more_than_their_room_and_give_all_back():
    room = Room(10_000)
    slots, others = Slots(room), Slots(room)
    first = slots.take(3, 4000)
    assert slots.take(3, 3000) is first
    assert slots.sent(3, 4000).nbytes == 4000
    assert slots.sent(3, 4001) is None
    assert slots.sent(2, 1) is None
    assert others.take(3, 4000) is not first
    assert others.take(4, 4000) is None
    assert room.used == 8000
    assert slots.take(3, 7000) is None  # what was too small is given back all the same
    assert slots.sent(3, 1) is None
    assert slots.take(3, 6000) is not None
    assert room.used == 10_000
    slots.close()
    assert room.used == 4000
    others.close()
    assert room.used == 0
    first.bytes[:] = 1  # whoever still writes into it harms nobody


def test_without_descriptors_answers_are_sent(monkeypatch):
    def fails(*given):
        raise OSError(24, "Too many open files")

    room = Room(10_000)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", fails)
        assert Slots(room).take(0, 100) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", fails)
        assert Slots(room).take(0, 100) is None
    assert room.used == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_the_system_has_no_such_memory_there_is_no_room(monkeypatch):
    """As on Windows and macOS: modules and functions are missing."""
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING", "register_at_fork", "O_CLOEXEC", "O_NONBLOCK"):
        monkeypatch.delattr(os, name)
    spec = importlib.util.spec_from_file_location("memory_elsewhere", memory.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, elsewhere)
    spec.loader.exec_module(elsewhere)
    room = elsewhere.Room(1 << 30)
    slots = elsewhere.Slots(room)
    assert (slots.take(0, 100), slots.sent(0, 100), room.used) == (None, None, 0)
    slots.close()


def test_the_size_of_a_slot_is_sealed():
    slots = Slots(Room(10_000))
    slot = slots.take(0, 5000)
    link = f"/proc/self/fd/{slot.place.descriptor}"
    for size in (0, 4096, 20_000):
        with pytest.raises(PermissionError), open(link, "r+b") as file:
            os.ftruncate(file.fileno(), size)
    mapped = slot.place.map()
    slot.bytes[:] = 7
    assert mapped[:] == bytes([7]) * 5000
    slots.close()
    assert mapped[:] == bytes([7]) * 5000
