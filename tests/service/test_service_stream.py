"""One stream from the side of the service, with a client that is played: times, goodbyes, ends, and what is kept."""

import asyncio
import gc
import threading
import time

import pytest

grpc = pytest.importorskip("grpc", reason="needs the extra `service`")
pytest.importorskip("prometheus_client", reason="needs the extra `service`")
import service_attacks as attacks  # noqa: E402
from service_played import Played, played  # noqa: E402

from rwkernels.service.server import batching, logs, stream  # noqa: E402
from rwkernels.service.server.admission import Admission  # noqa: E402
from rwkernels.service.server.batching import Job  # noqa: E402
from rwkernels.service.server.memory import Slot  # noqa: E402
from rwkernels.service.wire import messages  # noqa: E402

REFUSED = attacks.header(shape=[1, 1 << 21, 1])


def test_a_request_that_waits_for_room_is_no_silence():
    async def story():
        admission = Admission(1, 1 << 30)
        await admission.acquire(1)
        own = Played(admission, idle_time=0.1, admission_time=5)
        own.context.put()
        await asyncio.sleep(0.4)
        assert not own.task.done()
        admission.release(1)
        await own.has_sent(1)
        assert await own.reason() == "idle"
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize("times", [1, 3])
def test_silence_ends_a_stream_after_its_last_answer(times):
    async def story():
        own = Played(idle_time=0.3)
        start = asyncio.get_running_loop().time()
        for index in range(times):
            await asyncio.sleep(0.2)
            own.context.put()
            await own.has_sent(index + 1)
        assert await own.reason() == "idle"
        assert 0.3 <= asyncio.get_running_loop().time() - start - 0.2 * times < 0.55
        await own.leaves_nothing()

    played(story)


def test_a_map_that_takes_long_is_no_silence_and_silence_begins_with_its_answer():
    async def story():
        own = Played(idle_time=0.5)
        for launcher in own.launchers:
            run = launcher.run
            launcher.run = lambda asked, run=run: (time.sleep(0.75), run(asked))[1]
        own.context.put()
        await own.has_sent(1)
        start = time.monotonic()
        assert own.context.kinds == ["map"]
        assert await own.reason() == "idle"
        assert time.monotonic() - start > 0.4
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize("limits", [{}, {"stream_time": 0.2}], ids=["", "beyond its time"])
@pytest.mark.parametrize("header", [None, REFUSED], ids=["maps", "errors"])
def test_answers_that_are_not_read_end_a_stream_although_its_end_waits_behind_them(limits, header):
    async def story():
        own = Played(idle_time=0.4, window=2, **limits)
        own.context.open.clear()
        for _ in range(30):
            own.context.put(header)
        assert await own.reason() == "unread"
        assert own.stream.messages <= 4  # the others are not even read
        await own.leaves_nothing()

    played(story)


def test_refused_requests_are_all_answered_in_their_turn():
    async def story():
        own = Played(window=2)
        for number in range(30):
            own.context.put(None if number % 5 == 0 else REFUSED)
        own.context.end()
        assert await own.reason() is None
        assert own.context.kinds == (["map"] + ["ValueError"] * 4) * 6
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize(
    ("peer", "is_here"),
    [
        ("ipv4:127.0.0.1:5", True),
        ("ipv6:%5B::1%5D:5", True),
        ("ipv4:10.0.0.7:5", False),
        ("ipv6:%5Bfe80::1%5D:5", False),
    ],
)
def test_memory_is_shared_with_clients_of_this_machine_alone(peer, is_here):
    async def story():
        own = Played(peer=peer)
        own.context.put(attacks.header(slot=0))
        await own.has_sent(1)
        assert (own.context.sent[0]["memory"] is not None) == is_here
        own.context.end()
        assert await own.reason() is None
        await own.leaves_nothing()

    played(story)


def test_labels_in_memory_count_as_bytes_of_the_stream():
    async def story():
        own = Played(stream_bytes=20_000)
        own.context.put(attacks.header(slot=0, shape=[1, 30, 40]), bytes(1200))
        for _ in range(30):
            own.context.put(attacks.header(slot=0, shape=[1, 30, 40], in_slot=True), b"")
        assert await own.reason() == "stream_bytes"
        assert 8 < own.stream.messages < 15
        await own.leaves_nothing()

    played(story)


def test_a_stream_ends_when_its_time_is_over():
    async def story():
        own = Played(stream_time=0.2)
        own.context.put()
        await own.has_sent(1)
        assert await own.reason() == "stream_time"
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize("says_it_is_over", [True, False])
def test_a_goodbye_comes_after_the_last_answer_and_the_stream_ends_when_the_client_does(says_it_is_over, monkeypatch):
    monkeypatch.setattr(stream, "_LEAVES", 0.3)

    async def story():
        own = Played()
        for _ in range(3):
            own.context.put()
        await own.has_sent(3)
        start = asyncio.get_running_loop().time()
        own.draining.set()
        await own.has_sent(4)
        assert own.stream.left
        for _ in range(3):
            own.context.put()
        if says_it_is_over:
            own.context.end()
        assert await own.reason() == "shutdown"
        assert (asyncio.get_running_loop().time() - start < 0.2) == says_it_is_over
        assert own.context.kinds == ["map"] * 3 + [messages.CLOSING]
        assert own.stream.messages == 3
        await own.leaves_nothing()

    played(story)


def test_a_client_that_never_pauses_hears_the_goodbye_at_once():
    async def story():
        own = Played(window=2)
        for _ in range(400):
            own.context.put()
        await own.has_sent(20)
        before = len(own.context.sent)  # 20, or some more by the time that this task runs again
        own.draining.set()
        own.context.end()
        assert await own.reason() == "shutdown"
        assert own.context.kinds[-1] == messages.CLOSING
        assert own.context.kinds.count("map") == len(own.context.sent) - 1 == own.stream.messages <= before + 10
        await own.leaves_nothing()

    played(story)


def test_a_request_that_waits_for_room_at_a_goodbye_is_answered_before_it():
    async def story():
        admission = Admission(1, 1 << 30)
        await admission.acquire(1)
        own = Played(admission, admission_time=5)
        own.context.put()
        await asyncio.sleep(0.05)
        own.draining.set()
        await asyncio.sleep(0.05)
        assert own.context.sent == []
        admission.release(1)
        await own.has_sent(2)
        own.context.end()
        assert await own.reason() == "shutdown"
        assert own.context.kinds == ["map", messages.CLOSING]
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize("what", ["EOF", "nonsense", "an error of gRPC", "cancelled"])
@pytest.mark.parametrize("draining", [False, True])
def test_a_stream_that_ends_leaves_no_task_no_room_and_no_memory(what, draining, monkeypatch):
    monkeypatch.setattr(stream, "_LEAVES", 0.1)
    monkeypatch.setattr(logs, "event", lambda *given, **fields: None)

    async def story():
        own = Played()
        own.context.put(attacks.header(slot=0))
        await own.has_sent(1)
        for slot in range(3):
            own.context.put(attacks.header(slot=slot))
        if draining:
            own.draining.set()
        if what == "EOF":
            own.context.end()
        elif what == "nonsense":
            own.context.given.put_nowait(b"nonsense")
        elif what == "an error of gRPC":
            own.context.read = None
            own.context.put()
        else:
            await asyncio.sleep(0)
            own.task.cancel()
        reason = None
        try:
            reason = await own.reason()
        except asyncio.CancelledError:
            reason = "cancelled"
        usual = {"EOF": None, "nonsense": "malformed", "an error of gRPC": "internal", "cancelled": "cancelled"}[what]
        assert reason in ((usual, "shutdown") if draining else (usual,))
        await own.leaves_nothing()

    played(story)


@pytest.mark.parametrize("turns", range(6))
def test_room_that_comes_at_the_moment_of_a_cancellation_is_given_back(turns):
    """Before Python 3.12, `asyncio.wait_for` forgets a cancellation when its result comes at the same time."""

    async def story():
        admission = Admission(1, 100)
        await admission.acquire(10)
        waiting = asyncio.create_task(admission.acquire(10, 5.0))
        await asyncio.sleep(0.01)
        admission.release(10)
        for _ in range(turns):
            await asyncio.sleep(0)
        done = waiting.done()
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled() != done
        assert admission.requests == int(done)

    played(story)


def test_who_waits_in_vain_for_room_does_not_stop_those_behind_it():
    async def story():
        admission = Admission(9, 100)
        await admission.acquire(60)
        large = asyncio.create_task(admission.acquire(90, 0.05))
        small = asyncio.create_task(admission.acquire(30, 5.0))
        with pytest.raises(TimeoutError):
            await large
        await asyncio.wait_for(small, 1)
        assert (admission.requests, admission.size) == (2, 90)

    played(story)


def jobs_and_slots():
    gc.collect()
    return [found for found in gc.get_objects() if type(found) in (Job, Slot)]


def test_an_answer_that_was_sent_takes_no_memory_any_more():
    async def story():
        before = jobs_and_slots()
        own = Played()
        own.context.put(attacks.header(slot=0))
        own.context.put()
        await own.has_sent(2)
        await asyncio.sleep(0.05)
        own.stream._slots.close()
        assert len(jobs_and_slots()) == len(before)
        own.context.end()
        assert await own.reason() is None
        await own.leaves_nothing()

    played(story)


def test_what_waits_for_a_builder_keeps_no_memory_of_a_stream_that_is_over():
    async def story():
        before = len([found for found in jobs_and_slots() if isinstance(found, Slot)])
        own = Played()
        entered, opened = threading.Semaphore(0), threading.Event()
        for launcher in own.launchers:
            run = launcher.run
            launcher.run = lambda asked, run=run: (entered.release(), opened.wait(20), run(asked))[2]
        for slot in range(2):
            own.context.put(attacks.header(slot=slot))
            assert await asyncio.to_thread(entered.acquire, timeout=10)
        for slot in range(2, 6):
            own.context.put(attacks.header(slot=slot))
        await asyncio.sleep(0.1)
        own.task.cancel()
        await asyncio.wait((own.task,))
        await asyncio.sleep(0.05)
        assert len([found for found in jobs_and_slots() if isinstance(found, Slot)]) == before + 2  # being written to
        opened.set()
        await own.leaves_nothing()

    played(story)


def test_one_builder_works_while_another_is_stuck_and_both_end():
    async def story():
        own = Played()
        stuck, opened = threading.Event(), threading.Event()
        for launcher in own.launchers:
            run = launcher.run

            def slowly(asked, run=run):
                if asked[0].request.id == 0:
                    stuck.set()
                    assert opened.wait(20)
                return run(asked)

            launcher.run = slowly
        own.context.put(attacks.header(id=0))
        assert await asyncio.to_thread(stuck.wait, 10)
        for number in range(1, 6):
            own.context.put(attacks.header(id=number))
        end = asyncio.get_running_loop().time() + 10
        while own.metrics.launches._value.get() < 1:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.01)
        assert own.context.sent == []
        assert own.batcher.alive()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "_LONGEST_LAUNCH", 0.0)
            assert not own.batcher.alive()
        assert not await asyncio.to_thread(own.batcher.close, 0.1)
        opened.set()
        await own.has_sent(6)
        assert [answer["id"] for answer in own.context.sent] == list(range(6))  # in order all the same
        own.context.end()
        assert await own.reason() is None
        await own.leaves_nothing()
        assert not any(thread.is_alive() for thread in own.batcher._threads)

    played(story)
