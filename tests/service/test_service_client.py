"""The client when the service is away, slow or started again, and where its process forks."""

import contextlib
import multiprocessing
import socket
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra `service`")
from service_cases import free_port, served, some_labels, until
from torch.utils.data import DataLoader

import rwkernels as rw
from rwkernels.data import AddMap
from rwkernels.service import RemoteMapBuilder, UnavailableError
from rwkernels.service.client import connection
from rwkernels.service.client.pipeline import Asked, Pipeline
from rwkernels.service.wire.messages import Request


@pytest.fixture(scope="module")
def served_here():
    """A service for tests that leave it as it was."""
    with served("--log-level", "debug") as server:
        yield server


def test_a_loader_outlives_a_restart_of_the_service():
    port = free_port()
    labels = some_labels(2, 13, 22)
    expected = rw.rectified_map(labels, 3).foreground
    builder = RemoteMapBuilder(f"grpc://127.0.0.1:{port}", 3, retries=12)
    with served("--port", str(port)):
        assert torch.equal(builder.of_batch({}, labels).foreground, expected)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(builder.of_batch, {}, labels)
        time.sleep(0.3)
        assert not late.done()
        with served("--port", str(port)) as server:
            assert torch.equal(late.result(60).foreground, expected)
            server.process.kill()
            server.process.join()
        asked = pool.submit(lambda: list(builder.maps_of([labels] * 3)))
        with served("--port", str(port)):
            assert all(torch.equal(maps.foreground, expected) for maps in asked.result(60))
    builder.close()


def test_without_a_service_maps_are_built_here_if_told_to():
    url = f"grpc://127.0.0.1:{free_port()}"
    labels = some_labels(2, 13, 22)
    with pytest.raises(UnavailableError, match=url):
        RemoteMapBuilder(url, 3, retries=1).of_batch({}, labels)
    builder = RemoteMapBuilder(url, 3, retries=0, fallback=True, spacing=(2.0, 1.0))
    with pytest.warns(RuntimeWarning, match="maps are built here for the next 30 seconds"):
        found = builder.of_batch({}, labels)
    assert torch.equal(found.foreground, rw.rectified_map(labels, 3, spacing=(2.0, 1.0)).foreground)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(builder.of_batch({}, labels).foreground, found.foreground)
    builder = RemoteMapBuilder(url, 3, retries=0, fallback=True)
    with pytest.warns(RuntimeWarning, match="maps are built here"):
        many = list(builder.maps_of([labels] * 3))
    assert all(torch.equal(maps.foreground, rw.rectified_map(labels, 3).foreground) for maps in many)


def test_a_stream_that_finds_no_service_asks_no_more_for_every_batch(monkeypatch):
    labels = some_labels(2, 13, 22)
    builder = RemoteMapBuilder(f"grpc://127.0.0.1:{free_port()}", 3, retries=2, fallback=True)
    attempts = []
    ask = builder._connection.ask
    monkeypatch.setattr(builder._connection, "ask", lambda *given: attempts.append(1) or ask(*given))
    with pytest.warns(RuntimeWarning, match="maps are built here") as warned:
        assert len(list(builder.maps_of([labels] * 20))) == 20
    assert len(warned) == 1
    assert len(attempts) == 3


def test_a_stream_outlives_a_pause_of_its_reader_and_of_its_source(served_here):
    labels = some_labels(2, 13, 22)
    builder = RemoteMapBuilder(served_here.url, 3, timeout=0.4, retries=0)

    def source():
        for number in range(6):
            if number == 4:
                time.sleep(0.6)
            yield labels

    until(lambda: served_here.metric("rwkernels_streams") == 0)
    stream = builder.maps_of(source(), window=2)
    next(stream)
    streams = len([event for event in served_here.events if event["event"] == "stream"])
    time.sleep(0.6)
    assert len(list(stream)) == 5
    assert len([event for event in served_here.events if event["event"] == "stream"]) == streams


@contextlib.contextmanager
def silent():
    """A port that takes connections and says nothing."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen(8)
        yield found.getsockname()[1]


def test_a_service_that_does_not_answer_is_given_up_in_time():
    with silent() as port:
        builder = RemoteMapBuilder(f"grpc://127.0.0.1:{port}", 3, timeout=0.5, retries=0)
        start = time.monotonic()
        with pytest.raises((TimeoutError, ConnectionError)):
            builder.of_batch({}, some_labels(1, 4, 4))
        with pytest.raises((TimeoutError, ConnectionError)):
            next(builder.maps_of([some_labels(1, 4, 4)]))
        assert time.monotonic() - start < 20


def used_before_fork(builder, labels, found):
    found.put(builder.of_batch({}, labels).foreground.sum().item())


def test_a_forked_process_opens_its_own_connection_although_its_parent_has_one():
    labels = some_labels(2, 13, 22)
    with served() as server:
        builder = RemoteMapBuilder(server.url, 3)
        builder.of_batch({}, labels)
        fork = multiprocessing.get_context("fork")
        found = fork.Queue()
        children = [fork.Process(target=used_before_fork, args=(builder, labels, found)) for _ in range(3)]
        for child in children:
            child.start()
        expected = rw.rectified_map(labels, 3).foreground.sum().item()
        assert [found.get(timeout=30) for _ in children] == [expected] * 3
        for child in children:
            child.join(20)
            assert child.exitcode == 0
        assert torch.equal(builder.of_batch({}, labels).foreground, rw.rectified_map(labels, 3).foreground)
        data = [(torch.zeros(1), labels[index % 2]) for index in range(4)]
        loader = DataLoader([AddMap(builder=builder)(sample) for sample in data], batch_size=2)
        assert torch.equal(next(iter(loader))[2].foreground, rw.rectified_map(labels, 3).foreground)


def test_errors_that_are_kept_are_no_streams_in_use_for_a_fork(served_here):
    builder, labels = RemoteMapBuilder(served_here.url, 3), some_labels(2, 13, 22)
    with pytest.raises(ValueError, match="labels") as of_one:
        builder.of_batch({}, labels + 1)
    with pytest.raises(ValueError, match="labels") as of_many:
        list(builder.maps_of([labels, labels + 1]))
    with pytest.raises((TimeoutError, ConnectionError)) as of_none, socket.create_server(("127.0.0.1", 0)) as silent:
        RemoteMapBuilder(f"grpc://127.0.0.1:{silent.getsockname()[1]}", 3, retries=0, timeout=0.2).of_batch({}, labels)
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()
    child = fork.Process(target=used_before_fork, args=(builder, labels, found))
    child.start()
    assert found.get(timeout=20) == rw.rectified_map(labels, 3).foreground.sum().item()
    child.join(20)
    assert child.exitcode == 0
    assert None not in (of_one.tb, of_many.tb, of_none.tb)  # still there


def told_in_a_child(ask, found):
    try:
        ask()
    except Exception as error:
        found.put((type(error), str(error)))


def test_a_process_forked_in_the_middle_of_a_stream_is_told_instead_of_hanging():
    labels = some_labels(2, 13, 22)
    fork = multiprocessing.get_context("fork")
    with served() as server:
        builder, other = RemoteMapBuilder(server.url, 3), RemoteMapBuilder(server.url, 3, fallback=True)
        stream = builder.maps_of(labels for _ in range(100))
        next(stream)
        for ask in (lambda: builder.of_batch({}, labels), lambda: next(builder.maps_of([labels]))):
            found = fork.Queue()
            child = fork.Process(target=told_in_a_child, args=(ask, found))
            child.start()
            kind, text = found.get(timeout=20)
            assert kind is ConnectionError
            assert "this process was forked while its parent was asking a service" in text
            child.join(20)
            assert child.exitcode == 0
        found = fork.Queue()
        child = fork.Process(target=used_before_fork, args=(other, labels, found))
        child.start()
        assert found.get(timeout=20) == rw.rectified_map(labels, 3).foreground.sum().item()  # built there
        child.join(20)
        assert len(list(stream)) == 99  # the parent's goes on
        builder.close()


def test_a_process_forked_while_its_parent_was_connecting_is_told_instead_of_hanging(served_here):
    builder, labels = RemoteMapBuilder(served_here.url, 3), some_labels(1, 4, 4)
    fork = multiprocessing.get_context("fork")
    with silent() as port, ThreadPoolExecutor(1) as pool:
        other = RemoteMapBuilder(f"grpc://127.0.0.1:{port}", 3, timeout=3, retries=0)
        waiting = pool.submit(other.of_batch, {}, labels)
        until(lambda: connection._under_way)
        found = fork.Queue()
        child = fork.Process(target=told_in_a_child, args=(lambda: builder.of_batch({}, labels), found))
        child.start()
        kind, text = found.get(timeout=20)
        assert kind is ConnectionError
        assert "this process was forked while its parent was asking a service" in text
        child.join(20)
        assert child.exitcode == 0
        with pytest.raises((TimeoutError, ConnectionError)):
            waiting.result(20)


def test_where_grpc_was_not_told_of_forks_a_child_is_told_instead_of_hanging(served_here, monkeypatch):
    builder, labels = RemoteMapBuilder(served_here.url, 3), some_labels(1, 4, 4)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(connection, "_SURVIVES_FORK", False)
    builder.of_batch({}, labels)
    found = fork.Queue()
    child = fork.Process(target=told_in_a_child, args=(lambda: builder.of_batch({}, labels), found))
    child.start()
    kind, text = found.get(timeout=20)
    assert kind is ConnectionError
    assert "imported grpc without GRPC_ENABLE_FORK_SUPPORT=1" in text
    child.join(20)
    assert child.exitcode == 0


def test_after_a_goodbye_nothing_is_sent_but_that_nothing_follows():
    sent = []
    source = [Asked(None, Request(number, "rectified", (1, 2, 2), "uint8", 3, "uint8"), []) for number in range(6)]
    messages = [item.message() for item in source]
    assert len(set(messages)) == 6
    pipeline = Pipeline(iter(source), sent.append, window=2, shares_memory=False)
    requests = sent.pop()  # that gRPC iterates over
    asked = pipeline.asked()
    assert next(asked) is source[0]
    assert [next(requests), next(requests)] == messages[:2]
    pipeline.leave()
    assert pipeline.broken
    assert pipeline.receive() is None
    assert list(asked) == source[1:]  # for another stream
    assert list(requests) == []
