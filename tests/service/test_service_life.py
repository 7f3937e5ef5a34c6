"""A service from start to end: health, metrics, logs, back-pressure, deadlines, restarts, and how it stops."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

grpc = pytest.importorskip("grpc", reason="needs the extra `service`")
import service_attacks as attacks  # noqa: E402
import service_cases  # noqa: E402
from service_cases import Served, assert_answers_right, served, some_labels, until  # noqa: E402

import rwkernels as rw  # noqa: E402
from rwkernels import cli  # noqa: E402
from rwkernels.service import Limits, RemoteMapBuilder, UnavailableError  # noqa: E402
from rwkernels.service.client.pipeline import Pipeline  # noqa: E402
from rwkernels.service.server import logs  # noqa: E402
from rwkernels.service.wire import messages  # noqa: E402

LONG = bool(os.environ.get("RWKERNELS_LONG_TESTS"))


@contextlib.contextmanager
def unread_answers(server, size=16):
    """A stream whose client asks for maps of megabytes and reads none."""
    big = attacks.header(shape=[size, 1024, 1024], answer="float32")
    first = attacks.packed(big, bytes(size << 20))
    client = attacks.Client(server.port, token=None)
    call = client._call(iter([first] * 21), timeout=60)
    until(lambda: server.metric("rwkernels_launches_total") >= 1)
    try:
        yield
    finally:
        call.cancel()
        client.close()


def test_health_and_metrics_tell_what_happened():
    with served("--log-level", "debug") as server:
        assert server.page("live") == (200, "live\n")
        assert server.page("ready") == (200, "ready\n")
        assert server.page("etc/passwd")[0] == 404
        labels = some_labels(2, 13, 22)
        builder = RemoteMapBuilder(server.url, 3)
        list(builder.maps_of([labels] * 5))
        with pytest.raises(ValueError, match="labels"):
            builder.of_batch({}, labels + 1)
        metrics = server.page("metrics")[1]
        assert server.metric('rwkernels_requests_total{outcome="answered"}') == 5
        assert server.metric('rwkernels_requests_total{outcome="ValueError"}') == 1
        assert server.metric("rwkernels_pixels_total") == 5 * labels.numel()
        assert 1 <= server.metric("rwkernels_launches_total") <= 6
        assert server.metric("rwkernels_request_seconds_count") == 6
        assert "# HELP rwkernels_streams Streams that are open" in metrics
        assert "python_info" not in metrics  # a registry of its own
        until(lambda: server.metric("rwkernels_streams") == 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.monitor}/metrics", timeout=10) as page:
            assert page.headers["Content-Type"].startswith("text/plain; version=")
        ended = [event for event in server.events if event["event"] == "stream ended"]
        assert [event["outcome"] for event in ended if event["answered"] == 5] == ["finished"]
        assert {"stream", "peer", "outcome", "messages", "answered", "bytes", "seconds", "time", "level"} <= set(
            ended[0]
        )
        requests = [event["request"] for event in server.events if event["event"] == "request"]
        assert len(set(requests)) == 6
        assert all(re.fullmatch(r"[0-9a-f]{12}-\d+", request) for request in requests)


def test_what_was_taken_is_finished_and_nothing_new_is_taken():
    labels = some_labels(8, 512, 512)
    expected = rw.rectified_map(labels, 3).foreground
    server = Served()
    try:
        builder = RemoteMapBuilder(server.url, 3, retries=0)
        taken = 0
        stopping = threading.Thread(target=server.stop)
        with pytest.raises(UnavailableError, match=r"shutting down|ended|connect|refused|closed|reset"):  # noqa: PT012
            for maps in builder.maps_of([labels] * 300, window=4):
                assert torch.equal(maps.foreground, expected)
                taken += 1
                if taken == 3:
                    stopping.start()
        stopping.join(60)
        assert server.process.exitcode == 0
        ends = [event for event in server.events if event["event"] == "stream ended"]
        assert {event["outcome"] for event in ends} == {"shutdown"}
        (end,) = [event for event in ends if event["messages"]]  # nothing is read of a stream that asks again
        assert 3 <= end["answered"] <= taken  # every answer that was sent came
        assert end["answered"] == end["messages"]
        assert server.events[-1]["event"] == "stopped"
        assert server.events[-1]["finished"] is True
    finally:
        server.stop()


def stopped_after(number, maps, server):
    """All of `maps`; the service is stopped when so many came."""
    for index, found in enumerate(maps):
        if index == number:
            threading.Thread(target=server.stop).start()
        yield found


def test_a_stream_that_is_told_to_end_sends_nothing_more_and_has_the_rest_built_here(monkeypatch):
    labels = some_labels(4, 256, 256)
    expected = rw.rectified_map(labels, 3).foreground
    left, leave = [], Pipeline.leave
    monkeypatch.setattr(Pipeline, "leave", lambda pipeline: left.append(pipeline) or leave(pipeline))
    server = Served()
    try:
        builder = RemoteMapBuilder(server.url, 3, retries=0, fallback=True)
        with pytest.warns(RuntimeWarning, match="maps are built here"):
            found = list(stopped_after(3, builder.maps_of([labels] * 60, window=4), server))
        assert len(found) == 60
        assert all(torch.equal(maps.foreground, expected) for maps in found)
        assert len(left) == 1
    finally:
        server.stop()
    (end,) = [event for event in server.events if event["event"] == "stream ended" and event["messages"]]
    assert end["outcome"] == "shutdown"
    assert server.events[-1]["finished"] is True


def slow_log_and_late_signal(found):
    """The command with a log that takes its time, and a signal that comes when it has returned."""
    put = logs._put
    logs._put = lambda stream, line: (time.sleep(0.2), put(stream, line))
    threading.Thread(target=lambda: (time.sleep(1), os.kill(os.getpid(), signal.SIGTERM))).start()
    with tempfile.TemporaryFile("w+") as file, contextlib.redirect_stderr(file):
        code = cli.main(["serve", "--port", "0", "--monitor-port", "-1", "--threads", "1"])
        os.kill(os.getpid(), signal.SIGTERM)
        file.seek(0)
        found.put((code, [json.loads(line)["event"] for line in file]))


def test_the_last_line_of_the_log_is_written_and_a_late_signal_kills_nobody():
    found = service_cases._FORKS.Queue()
    process = service_cases._FORKS.Process(target=slow_log_and_late_signal, args=(found,), daemon=True)
    process.start()
    assert found.get(timeout=30) == (0, ["listening", "stopping", "stopped"])
    process.join(20)
    assert process.exitcode == 0


def test_a_second_signal_does_not_wait_for_what_was_taken():
    with served("--idle-time", "60", "--grace", "60") as server, unread_answers(server):
        server.send_signal(signal.SIGINT)
        until(lambda: server.page("ready")[0] == 503)
        time.sleep(0.2)
        assert server.process.exitcode is None  # its answers are still to be read
        assert server.page("live")[0] == 200
        start = time.monotonic()
        assert server.stop() == 1
        assert time.monotonic() - start < 20
        assert server.events[-1]["event"] == "stopped"
        assert server.events[-1]["finished"] is False
        assert not [event for event in server.events if event["level"] == "error"]


def test_the_grace_ends_what_does_not_end():
    with served("--idle-time", "60", "--grace", "0.3") as server, unread_answers(server):
        assert server.stop() == 1
        assert server.events[-1]["finished"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "host: expected a loopback address without TLS"),
        (["--host", "0.0.0.0", "--insecure-plaintext"], "host: expected a loopback address without a token"),
        (["--host", "example.invalid"], "host: expected a loopback address"),
        (["--tls-cert", "x"], "tls_key: expected tls_cert and tls_key together"),
        (["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "tls_cert: cannot read '/nowhere'"),
        (["--token-file", "/nowhere"], "token_file: cannot read '/nowhere'"),
        (["--port", "70000"], "port: expected a number in [0, 65536)"),
        (["--device", "toaster"], "device: expected cpu, cuda or cuda:N"),
        (["--window", "0"], "window: expected an integer"),
        (["--idle-time", "-1"], "idle_time: expected a positive number"),
        (["--admitted-bytes", "5"], "admitted_bytes: expected room for one request"),
        (["--monitor-host", "0.0.0.0"], "monitor_host: expected a loopback address"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(arguments, says, capsys, monkeypatch):
    monkeypatch.delenv("RWKERNELS_TOKEN", raising=False)
    assert cli.main(["serve", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_port_in_use_is_a_usage_error():
    with served() as server, pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        Served("--port", str(server.port))


def test_streams_end_that_say_nothing_or_too_much():
    with served("--idle-time", "0.5", "--stream-messages", "3", "--streams", "2", "--window", "2") as server:
        client = attacks.Client(server.port, token=None)
        never = threading.Event()

        def slowly():
            yield attacks.GOOD
            never.wait(20)

        call = client._call(slowly(), timeout=30)
        answers = []
        with pytest.raises(grpc.RpcError):
            answers.extend(call)
        assert len(answers) == 1
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()
        code, answers = client.send([attacks.GOOD] * 10, token=False)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert len(answers) == 3
        client.close()
        assert_answers_right(server.url)


def test_streams_end_that_last_too_long_or_send_too_many_bytes():
    with served("--stream-time", "0.5", "--stream-bytes", str(3 * len(attacks.GOOD))) as server:
        client = attacks.Client(server.port, token=None)
        code, answers = client.send([attacks.GOOD] * 10, token=False)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert len(answers) == 3
        never = threading.Event()

        def slowly():
            yield attacks.GOOD
            never.wait(20)

        call = client._call(slowly(), timeout=30)
        with pytest.raises(grpc.RpcError, match="lasted too long"):
            list(call)
        never.set()
        client.close()


def test_a_client_that_reads_no_answers_is_ended_and_gives_back_its_room():
    with (
        served("--idle-time", "1", "--admitted-bytes", str(400 << 20), "--window", "2") as server,
        unread_answers(server),
    ):
        assert_answers_right(server.url)  # others are served meanwhile
        until(lambda: server.metric('rwkernels_streams_refused_total{reason="unread"}') == 1)
        until(lambda: server.metric("rwkernels_admitted_bytes") == 0)
        assert server.resident() < 1500 << 20


def test_who_finds_the_service_full_waits_or_comes_again():
    small = ["--request-bytes", "300000", "--answer-bytes", "1200000", "--admitted-bytes", "1500000"]
    with served(*small, "--admission-time", "0.2", "--streams", "16") as server:
        labels = [some_labels(1, 500, 500, seed=seed) for seed in range(4)]
        expected = [rw.rectified_map(found, 3).foreground for found in labels]
        builder = RemoteMapBuilder(server.url, 3, retries=50)

        def ask(index):
            return torch.equal(builder.of_batch({}, labels[index % 4]).foreground, expected[index % 4])

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(ask, range(120)))
        assert server.metric("rwkernels_admitted_requests") == 0


def client(url, seconds, seed, found):
    """Asks for maps of ever other labels, sizes and kinds; puts how many were right, and how many there were."""
    torch.set_num_threads(1)
    builders = [
        RemoteMapBuilder(url, 4, bits=bits, spacing=spacing) for bits in (None, 16) for spacing in (None, (2.0, 1.0))
    ]
    right = asked = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        labels = some_labels(1 + asked % 4, 20 + (asked * 7) % 90, 31 + seed, classes=4, seed=1000 * seed + asked)
        builder = builders[asked % 4]
        expected = rw.rectified_map(labels, 4, spacing=builder.spacing).foreground
        away = (builder.of_batch({}, labels).foreground - expected).abs().max()
        right += float(away) <= (0 if asked % 4 < 2 else 7.7e-6)
        asked += 1
    found.put((right, asked))


def test_eight_clients_get_right_answers_all_the_time():
    """For 60 seconds if RWKERNELS_LONG_TESTS is set, for 2 else."""
    seconds, clients = (60.0, 8) if LONG else (2.0, 8)
    spawn = multiprocessing.get_context("fork")
    with served() as server:
        found = spawn.Queue()
        processes = [spawn.Process(target=client, args=(server.url, seconds, seed, found)) for seed in range(clients)]
        for process in processes:
            process.start()
        counts = [found.get(timeout=seconds + 60) for _ in processes]
        for process in processes:
            process.join(20)
        assert all(right == asked for right, asked in counts)
        assert min(asked for _, asked in counts) > (10 if LONG else 3)
        assert server.metric('rwkernels_requests_total{outcome="answered"}') == sum(asked for _, asked in counts)
        print(f"{sum(asked for _, asked in counts)} answers, {server.metric('rwkernels_launches_total'):.0f} launches")


def test_memory_is_steady_over_many_requests():
    """Over 10,000 requests if RWKERNELS_LONG_TESTS is set, over 1,000 else, after as many as fill every cache."""
    count = 10_000 if LONG else 1000
    labels = some_labels(2, 128, 128)
    with served() as server:
        builder = RemoteMapBuilder(server.url, 3, bits=8)

        def ask(number):
            for _ in builder.maps_of(labels for _ in range(number)):
                pass

        ask(500)
        before = server.resident()
        ask(count)
        growth = server.resident() - before
        print(f"{before / 2**20:.1f} MiB, {growth / 2**20:+.2f} MiB over {count} requests")
        assert growth < 8 << 20


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="admitted_bytes: expected room for one request"):
        Limits(admitted_bytes=1000)
    with pytest.raises(ValueError, match="answer_bytes: expected less than 2 GiB"):
        Limits(answer_bytes=1 << 31)
    assert messages.VERSION == 3
