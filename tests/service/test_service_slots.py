"""Clients that misuse the memory a service shares with them, and processes that die or fork while they use it."""

import multiprocessing
import os
import resource
import sys
import threading

import numpy as np
import pytest
import torch

grpc = pytest.importorskip("grpc", reason="needs the extra `service`")
msgspec = pytest.importorskip("msgspec", reason="needs the extra `service`")
if sys.platform != "linux":
    pytest.skip("memory is shared on Linux alone", allow_module_level=True)
import service_attacks as attacks  # noqa: E402
from service_cases import Served, assert_answers_right, served, some_labels, until  # noqa: E402

import rwkernels as rw  # noqa: E402
from rwkernels.maps.quantised import encode  # noqa: E402
from rwkernels.service import RemoteMapBuilder  # noqa: E402
from rwkernels.service.wire.memory import OutOfReachError, Place  # noqa: E402

SHAPE = (1, 200, 171)
PIXELS = 200 * 171


@pytest.fixture(scope="module")
def server():
    with served() as found:
        yield found


@pytest.fixture
def talk(server):
    """One stream; at its end the service answers others correctly, and holds nothing."""
    found = attacks.Talk(server.port)
    yield found
    found.end()
    client = attacks.Client(server.port, token=None)
    assert attacks.good_answer(client)
    client.close()
    assert_answers_right(server.url)
    until(lambda: server.metric("rwkernels_shared_bytes") == server.metric("rwkernels_admitted_bytes") == 0)
    assert not [event for event in server.events if event["level"] == "error"]


def header(**changes):
    return attacks.header(**{"shape": list(SHAPE), **changes})


def labels_of(seed):
    return some_labels(*SHAPE, seed=seed).to(torch.uint8).numpy()


def codes_of(labels):
    return encode(rw.rectified_map(torch.from_numpy(labels), 3).foreground, 8).numpy().tobytes()


def mapped(answer):
    return msgspec.convert(answer["memory"], Place).map()


@pytest.mark.parametrize(
    ("slot", "says"),
    [
        (-1, "int >= 0"),
        (64, "int <= 63"),
        (2**40, "int <= 63"),
        ("0", "int | null, got str"),
        (0.0, "int | null, got float"),
        (True, "int | null, got bool"),
        ([0], "int | null, got array"),
    ],
)
def test_a_slot_that_is_none_ends_the_stream(talk, slot, says):
    talk.send(header(slot=slot), bytes(PIXELS))
    code, text = talk.end()
    assert code is attacks.INVALID
    assert text == f"slot: expected {says}"


@pytest.mark.parametrize(
    ("changes", "payload", "says"),
    [
        ({"in_slot": True}, 0, "in_slot: expected false without a slot"),
        ({"in_slot": True, "slot": 1}, 0, "in_slot: expected a slot that has room for the labels"),
        ({"in_slot": True, "slot": 0, "shape": [1, 2000, 171]}, 0, "in_slot: expected a slot that has room"),
        ({"in_slot": True, "slot": 0}, PIXELS, "payload: expected 0 bytes"),
        ({"in_slot": 1, "slot": 0}, 0, "in_slot: expected bool, got int"),
        ({"slot": 0}, 0, f"payload: expected {PIXELS} bytes"),
    ],
)
def test_labels_that_are_not_where_they_are_said_to_be_end_the_stream(talk, changes, payload, says):
    assert talk.ask(header(slot=0), bytes(PIXELS))[0]["memory"] is not None
    talk.send(header(**changes), bytes(payload))
    code, text = talk.end()
    assert code is attacks.INVALID
    assert text.startswith(says)


def test_a_slot_is_used_again_for_labels_and_answer_and_grows(talk):
    first, second, larger = labels_of(1), labels_of(2), some_labels(2, 300, 257, seed=3).to(torch.uint8).numpy()
    answer, payload = talk.ask(header(slot=63), first.tobytes())
    memory = mapped(answer)
    assert (len(payload), memory[:]) == (0, codes_of(first))
    memory[:] = second.tobytes()
    again, _ = talk.ask(header(slot=63, in_slot=True))
    assert again["memory"] == answer["memory"]
    assert memory[:] == codes_of(second)
    other, _ = talk.ask(attacks.header(shape=list(larger.shape), slot=63), larger.tobytes())
    assert other["memory"] != answer["memory"]
    assert mapped(other)[:] == codes_of(larger)
    assert memory[:] == codes_of(second)  # as long as it is mapped
    with pytest.raises(OutOfReachError):
        mapped(answer)


def test_labels_in_a_slot_that_are_no_classes_are_named_and_the_stream_goes_on(talk):
    labels = labels_of(4)
    memory = mapped(talk.ask(header(slot=5), labels.tobytes())[0])
    wrong = labels.copy()
    wrong[0, 17, 40] = 3
    memory[:] = wrong.tobytes()
    answer, payload = talk.ask(header(slot=5, in_slot=True))
    assert answer["error"] == ["ValueError", "labels: expected integers in [0, 3), got 3 at (0, 17, 40)"]
    assert len(payload) == 0
    memory[:] = labels.tobytes()
    assert talk.ask(header(slot=5, in_slot=True))[0]["memory"] is not None
    assert memory[:] == codes_of(labels)


def test_largest_distances_may_lie_behind_the_labels(talk):
    labels, largest = labels_of(6), np.full((1, 3), 7, np.float32)
    whole = labels.tobytes() + largest.tobytes()
    asked = header(slot=2, class_max=True, answer="float32")
    memory = mapped(talk.ask(asked, whole)[0])
    expected = rw.rectified_map(torch.from_numpy(labels), 3, class_max=torch.from_numpy(largest)).foreground
    assert memory[:] == expected.numpy().tobytes()
    memory[: len(whole)] = whole
    assert talk.ask({**asked, "in_slot": True})[0]["memory"] is not None
    assert memory[:] == expected.numpy().tobytes()


def test_labels_that_are_written_over_while_the_map_is_built_harm_nobody(talk):
    """The service checks a copy: one of labels that change after the check would index anything."""
    size = [4, 256, 256]
    good = bytes(4 << 16)
    memory = mapped(talk.ask(attacks.header(shape=size, slot=0, answer="float32"), good)[0])
    over = threading.Event()

    def scribble():
        view = np.frombuffer(memory, np.uint8)[: 4 << 16]
        while not over.is_set():
            view[:] = 255
            view[:] = 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(60):
            memory[: 4 << 16] = good
            answer, _ = talk.ask(attacks.header(shape=size, slot=0, in_slot=True, answer="float32"))
            assert answer["error"] or answer["memory"]
    finally:
        over.set()
        thread.join()


def test_one_slot_for_many_requests_at_a_time_harms_nobody_else(talk):
    labels = labels_of(7)
    for _ in range(40):
        talk.send(header(slot=1), labels.tobytes())
    talk.send(header(slot=2), labels.tobytes())
    answers = [talk.hear()[0] for _ in range(41)]
    assert mapped(answers[40])[:] == codes_of(labels)


def test_the_size_of_the_memory_is_nobodys_to_change(talk):
    labels = labels_of(8)
    place = talk.ask(header(slot=0), labels.tobytes())[0]["memory"]
    for size in (0, 100, 1 << 20):
        with (
            pytest.raises(PermissionError),
            open(f"/proc/{place['process']}/fd/{place['descriptor']}", "r+b") as file,
        ):
            os.ftruncate(file.fileno(), size)
    assert talk.ask(header(slot=0), labels.tobytes())[0]["memory"] == place


def test_clients_that_vanish_in_the_middle_leave_nothing_behind(server):
    labels = labels_of(9)
    for answers in range(12):
        other = attacks.Talk(server.port)
        for slot in range(10):
            other.send(header(slot=slot % 7, answer="float32"), labels.tobytes())
        for _ in range(answers % 4):
            other.hear()
        other.call.cancel()
        other.end()
    until(lambda: server.metric("rwkernels_streams") == 0)
    until(lambda: server.metric("rwkernels_shared_bytes") == server.metric("rwkernels_admitted_bytes") == 0)
    assert not [event for event in server.events if event["level"] == "error"]
    assert_answers_right(server.url)


def test_slots_take_no_more_than_half_of_the_open_files_that_the_service_may_have():
    with served("--streams", "64", "--idle-time", "20") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (200, 200))
        talks = [attacks.Talk(server.port) for _ in range(4)]
        in_memory = 0
        for talk in talks:
            for slot in range(64):
                answer, payload = talk.ask(attacks.header(slot=slot), bytes(12))
                in_memory += answer["memory"] is not None
                assert len(payload) == (12 if answer["memory"] is None else 0)
        assert 20 <= in_memory <= 60
        assert_answers_right(server.url)  # over a connection of its own
        assert server.page("live")[0] == 200
        for talk in talks:
            talk.end()
        assert_answers_right(server.url)


def killed_after(number, maps, server):
    """All of `maps`; the service is killed when so many came."""
    for index, found in enumerate(maps):
        if index == number:
            server.process.kill()
            server.process.join()
        yield found


def test_a_service_that_is_killed_takes_no_map_with_it():
    batches = [some_labels(1, 300, 257, seed=seed) for seed in range(30)]
    expected = [rw.rectified_map(labels, 3).foreground for labels in batches]
    before = set(os.listdir("/dev/shm"))
    server = Served()
    try:
        builder = RemoteMapBuilder(server.url, 3, retries=0, fallback=True)
        with pytest.warns(RuntimeWarning, match="maps are built here"):
            found = list(killed_after(5, builder.maps_of(batches, window=6), server))
        assert len(found) == 30
        for maps, own in zip(found, expected, strict=True):
            assert torch.equal(maps.foreground, own)
            maps.foreground.neg_()
            assert torch.equal(maps.foreground, -own)
    finally:
        server.stop()
        server.forget()
    until(lambda: set(os.listdir("/dev/shm")) <= before)  # what tests beside this one hold there goes by itself


def told(held, ready, found):
    """In a child: the maps that its parent held, once the parent has dropped them and used others."""
    ready.wait(30)
    found.put([maps.foreground.numpy().tobytes() for maps in held])


def test_maps_of_a_forked_process_stay_although_the_parent_drops_its_own(server):
    batches = [some_labels(1, 300, 257, seed=seed) for seed in range(40)]
    expected = [rw.rectified_map(labels, 3).foreground for labels in batches]
    fork = multiprocessing.get_context("fork")
    stream = RemoteMapBuilder(server.url, 3).maps_of(batches, window=4)
    held = [next(stream) for _ in range(4)]
    ready, found = fork.Event(), fork.Queue()
    child = fork.Process(daemon=True, target=told, args=(held, ready, found))
    child.start()
    held.clear()
    child._args = ()
    for index, maps in enumerate(stream):
        assert torch.equal(maps.foreground, expected[4 + index])
    ready.set()
    assert found.get(timeout=30) == [own.numpy().tobytes() for own in expected[:4]]
    child.join(20)
    assert child.exitcode == 0


def test_a_child_that_holds_maps_may_fork_and_ask_on_its_own(server):
    labels = some_labels(1, 300, 257)
    expected = rw.rectified_map(labels, 3).foreground.numpy().tobytes()
    fork = multiprocessing.get_context("fork")
    held = list(RemoteMapBuilder(server.url, 3).maps_of([labels] * 4))

    def asks(found, generations):
        if generations:
            child = fork.Process(target=asks, args=(found, generations - 1))
            child.start()
            child.join(20)
        (own,) = RemoteMapBuilder(server.url, 3).maps_of([labels])
        found.put([maps.foreground.numpy().tobytes() == expected for maps in (own, *held)])  # torch may hang

    found = fork.Queue()
    child = fork.Process(target=asks, args=(found, 1))
    child.start()
    assert [found.get(timeout=20) for _ in range(2)] == [[True] * 5] * 2
    child.join(20)
    assert child.exitcode == 0
