"""A service that clients mistreat: every message is refused for its reason, costs nothing, and harms nobody else."""

import itertools
import json
import random
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

grpc = pytest.importorskip("grpc", reason="needs the extra `service`")
import service_attacks as attacks  # noqa: E402
import torch  # noqa: E402
from service_cases import TOKEN, assert_answers_right, served, some_labels, until  # noqa: E402

import rwkernels as rw  # noqa: E402
from rwkernels.service import RemoteMapBuilder  # noqa: E402
from rwkernels.service.wire import messages  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="module")
def server():
    limits = ["--request-bytes", str(4 * MIB), "--answer-bytes", str(16 * MIB), "--classes", "100", "--images", "64"]
    with served(*limits, "--axis", "4096", "--idle-time", "20", token=TOKEN) as found:
        yield found


@pytest.fixture
def client(server):
    found = attacks.Client(server.port)
    yield found
    found.close()


def error_of(answer):
    """Kind and text of the error in an answer; None if it has none."""
    header, payload = messages.split(memoryview(answer))
    assert header["error"] is None or len(payload) == 0
    return header["error"]


def outcome(code, answers):
    """How a request was refused; None if it was not."""
    if code is not grpc.StatusCode.OK:
        return code
    errors = [found for answer in answers if (found := error_of(answer)) is not None]
    return errors[0][0] if errors else None


@pytest.mark.parametrize(
    ("name", "header"), attacks.wrong_headers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_header_with_one_thing_wrong_is_refused(client, name, header):
    payload = bytes(16 if name == "dtype='int32'" else 12)
    code, answers = client.send([attacks.packed(header, payload)])
    assert outcome(code, answers) in (attacks.INVALID, "ValueError")
    assert attacks.good_answer(client)


@pytest.mark.parametrize(
    ("name", "requests"), attacks.envelopes() + attacks.payloads(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_message_that_is_no_request_is_refused(client, name, requests):
    assert outcome(*client.send(requests)) in (attacks.INVALID, "ValueError")
    assert attacks.good_answer(client)


def test_after_a_thousand_malformed_requests_the_service_answers_correctly(server, client):
    """Wrong dtypes, classes and shapes, cut and flipped messages, bad tokens, bytes that are no HTTP/2."""
    wrong = [[attacks.packed(header)] for _, header in attacks.wrong_headers()]
    wrong += [requests for _, requests in attacks.envelopes() + attacks.payloads()]
    wrong += [requests for _, requests in itertools.islice(attacks.truncated(), 350)]
    assert attacks.good_answer(client)
    before = server.resident()
    refused = 0
    for requests in wrong:
        refused += outcome(*client.send(requests)) is not None
    assert refused == len(wrong)
    for requests in itertools.islice((found for _, found in attacks.flipped()), 300):
        code, answers = client.send(requests)
        assert code in (grpc.StatusCode.OK, attacks.INVALID)
        refused += 1
    tokens = [False, "", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "Basic " + TOKEN, f"{TOKEN} {TOKEN}"]
    for token in itertools.islice(itertools.cycle(tokens), 120):
        code, answers = client.send([attacks.GOOD], token=token)
        assert (code, answers) == (attacks.UNKNOWN, [])
        refused += 1
    source = random.Random(3)
    for _ in range(100):
        start = source.choice([b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"])
        attacks.garbage(server.port, start + source.randbytes(source.randint(0, 400)))
        refused += 1
    assert refused >= 1000
    assert attacks.good_answer(client)
    assert_answers_right(server.url, token=TOKEN)
    assert server.resident() - before < 64 * MIB
    assert server.page("live")[0] == server.page("ready")[0] == 200
    assert not [event for event in server.events if event["level"] == "error"]
    until(lambda: server.metric("rwkernels_admitted_bytes") == 0)


def test_what_is_larger_than_the_limits_is_refused_before_memory_is_taken(server, client):
    before = server.peak()
    for shape, name in (([64, 4096, 4096], "labels"), ([65, 1, 1], "shape[0]"), ([1, 5000, 1], "shape")):
        code, (answer,) = client.send([attacks.packed(attacks.header(shape=shape))])
        assert code is grpc.StatusCode.OK
        assert error_of(answer)[1].startswith(f"{name}: expected at most ")
    wide = attacks.header(family="boundary", shape=[1, 1024, 1024], num_classes=100, answer="float32")
    _, (answer,) = client.send([attacks.packed(wide)])
    assert "map: expected at most 16777216 bytes" in error_of(answer)[1]
    assert client.send([bytes(40 * MIB)])[0] is attacks.TOO_LARGE
    assert server.peak() - before < 16 * MIB
    large = torch.zeros(1, 3000, 3000, dtype=torch.int64)
    with pytest.raises(ConnectionError, match="larger than max"):
        RemoteMapBuilder(server.url, 40, token=TOKEN).of_batch({}, large)
    with pytest.raises(ValueError, match="labels: expected at most 4194304 bytes"):  # packed, they fit in a message
        RemoteMapBuilder(server.url, 3, token=TOKEN).of_batch({}, large)
    assert_answers_right(server.url, token=TOKEN)


def test_nothing_is_inflated(server, client):
    """Many zeros in few bytes."""
    before = server.peak()
    zeros = bytes(128 * MIB)
    assert len(zlib.compress(zeros, 1)) < 4 * MIB
    code, _ = client.send([attacks.packed(attacks.header(), zeros)], compression=grpc.Compression.Gzip)
    assert code in (attacks.INVALID, attacks.TOO_LARGE)
    del zeros
    assert server.peak() - before < 32 * MIB
    assert attacks.good_answer(client)


def test_a_compressed_message_that_fits_is_refused_too(client):
    code, answers = client.send([attacks.GOOD], compression=grpc.Compression.Gzip)
    assert (code, answers) == (attacks.INVALID, [])


def test_one_clients_bad_labels_spoil_nobody_elses_map(server):
    builder = RemoteMapBuilder(server.url, 3, token=TOKEN)

    def ask(index):
        labels = some_labels(2, 33, 20, seed=index)
        if index % 3 == 0:
            labels[1, 5, 6] = 3
        try:
            return index, labels, builder.of_batch({}, labels)
        except ValueError as error:
            return index, labels, str(error)

    with ThreadPoolExecutor(12) as pool:
        for index, labels, found in pool.map(ask, range(120)):
            if index % 3 == 0:
                assert found == "labels: expected integers in [0, 3), got 3 at (1, 5, 6)"
            else:
                assert torch.equal(found.foreground, rw.rectified_map(labels, 3).foreground)


@pytest.mark.parametrize(
    "method",
    [
        "/rwkernels.v2.Maps/Exchange",
        f"{messages.METHOD}s",
        "/arrow.flight.protocol.FlightService/DoExchange",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_other_methods_are_not_there(server, method):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.stream_stream(method)(
            iter([attacks.GOOD]), metadata=[("authorization", f"Bearer {TOKEN}")], timeout=30
        )
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.UNIMPLEMENTED


def test_errors_tell_nothing_of_the_machine(server, client):
    told = []
    for _, header in attacks.wrong_headers():
        _, answers = client.send([attacks.packed(header)])
        told += [json.dumps(error) for answer in answers if (error := error_of(answer)) is not None]
    assert told
    for text in told:
        assert "/" not in text.replace("[B, *S]", "")
        assert "Traceback" not in text
    assert TOKEN not in "".join(server.lines)
