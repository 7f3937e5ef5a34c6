"""Tokens and certificates: who is let in, what is refused, and what is never shown."""

import json
import logging
import os
import threading

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra `service`")
trustme = pytest.importorskip("trustme", reason="makes the certificates")
from service_cases import TOKEN, assert_answers_right, served, some_labels  # noqa: E402

from rwkernels.service import RemoteMapBuilder  # noqa: E402
from rwkernels.service.server import logs  # noqa: E402
from rwkernels.service.wire import security  # noqa: E402

OTHER = "another-token-that-is-long-enough"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PEM files of an authority, of a service and of a client, and a file of tokens."""
    folder = tmp_path_factory.mktemp("pem")
    authority, stranger = trustme.CA(), trustme.CA()
    service, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name, found in (
        ("service", service),
        ("client", client),
        ("forged", stranger.issue_cert("client@example.org")),
    ):
        found.private_key_pem.write_to_path(folder / f"{name}.key")
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in found.cert_chain_pems))
    (folder / "tokens").write_text(f"{TOKEN}\n\n{OTHER}\n")
    (folder / "tokens").chmod(0o600)
    (folder / "token").write_text(OTHER + "\n")
    return folder


def test_tokens_of_a_file_are_asked_for_over_tls(files):
    arguments = [
        "--tls-cert",
        f"{files}/service.pem",
        "--tls-key",
        f"{files}/service.key",
        "--token-file",
        f"{files}/tokens",
    ]
    with served(*arguments, "--host", "0.0.0.0", scheme="grpc+tls") as server:
        roots = {"root_certificates": files / "ca.pem"}
        assert_answers_right(server.url, token=TOKEN, **roots)
        assert_answers_right(server.url, token_file=files / "token", **roots)
        labels = some_labels(1, 4, 4)
        for token in (None, "a-token-that-is-long-but-wrong", TOKEN + "x"):
            with pytest.raises(PermissionError, match="authorization: expected a token of this service") as refused:
                RemoteMapBuilder(server.url, 3, token=token, fallback=True, **roots).of_batch({}, labels)
            assert TOKEN not in str(refused.value)
        for wrong in ({}, {"root_certificates": files / "stranger.pem"}):
            with pytest.raises(ConnectionError):
                RemoteMapBuilder(server.url, 3, token=TOKEN, retries=0, timeout=5, **wrong).of_batch({}, labels)
        with pytest.raises((ConnectionError, TimeoutError)):
            RemoteMapBuilder(f"grpc://127.0.0.1:{server.port}", 3, retries=0, timeout=3).of_batch({}, labels)
        assert server.metric('rwkernels_streams_refused_total{reason="token"}') == 3
    told = "".join(server.lines)
    assert TOKEN not in told
    assert OTHER not in told


def test_a_token_of_the_environment_is_taken_on_both_sides(monkeypatch):
    with served(token=TOKEN) as server:
        monkeypatch.delenv("RWKERNELS_TOKEN", raising=False)
        with pytest.raises(PermissionError):
            assert_answers_right(server.url)
        monkeypatch.setenv("RWKERNELS_TOKEN", TOKEN)
        assert_answers_right(server.url)


def test_clients_may_have_to_show_a_certificate(files):
    arguments = [
        "--tls-cert",
        f"{files}/service.pem",
        "--tls-key",
        f"{files}/service.key",
        "--tls-client-ca",
        f"{files}/ca.pem",
    ]
    with served(*arguments, scheme="grpc+tls") as server:
        roots = {"root_certificates": files / "ca.pem"}
        own = {"client_certificate": files / "client.pem", "client_key": files / "client.key"}
        assert_answers_right(server.url, **roots, **own)
        forged = {"client_certificate": files / "forged.pem", "client_key": files / "forged.key"}
        for wrong in ({}, forged):
            with pytest.raises((ConnectionError, TimeoutError)):
                RemoteMapBuilder(server.url, 3, retries=0, timeout=5, **roots, **wrong).of_batch(
                    {}, some_labels(1, 4, 4)
                )
        assert_answers_right(server.url, **roots, **own)


def test_a_file_of_secrets_that_others_may_read_is_told(files):
    (files / "tokens").chmod(0o644)
    with served("--token-file", f"{files}/tokens") as server:
        assert any(event["event"] == "others may read a file of secrets" for event in server.events)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_needs_neither_token_nor_tls(host):
    security.refuse_exposed(host, encrypted=False, authenticated=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.example.org", ""])
def test_elsewhere_every_gap_has_to_be_forced(host):
    with pytest.raises(ValueError, match="without TLS"):
        security.refuse_exposed(host, encrypted=False, authenticated=True)
    with pytest.raises(ValueError, match="without a token"):
        security.refuse_exposed(host, encrypted=True, authenticated=False)
    with pytest.raises(ValueError, match="without a token"):
        security.refuse_exposed(host, encrypted=False, authenticated=False, forced=["plaintext"])
    security.refuse_exposed(host, encrypted=False, authenticated=False, forced=["plaintext", "anonymous"])
    security.refuse_exposed(host, encrypted=True, authenticated=True)


def test_a_token_counts_whole_and_as_a_bearers():
    tokens = security.Tokens([TOKEN, OTHER])
    assert tokens.allow(f"Bearer {TOKEN}")
    assert tokens.allow(f"bearer {OTHER}".encode())
    for wrong in (
        None,
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN} ",
        "Bearer",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \udcff",
    ):
        assert not tokens.allow(wrong)
    assert not security.Tokens([]).allow("Bearer ")


@pytest.mark.parametrize("text", ["", "short", "a token with blanks in it", "ein-schlüssel-der-lang-genug-wäre"])
def test_a_token_that_no_header_carries_or_anybody_guesses_is_refused(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(ValueError, match="token_file: expected") as refused:
        security.read_tokens(tmp_path / "token")
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("127.0.0.1:8815", {}),
        ("http://127.0.0.1:8815", {}),
        ("grpc://127.0.0.1", {}),
        ("grpc://127.0.0.1:99999", {}),
        ("grpc://user@127.0.0.1:8815", {}),
        (None, {}),
        ("grpc://example.org:8815", {}),
        ("grpc://127.0.0.1:8815", {"root_certificates": "x"}),
    ],
)
def test_a_client_refuses_an_address_that_makes_no_sense_or_shows_its_token(url, options):
    with pytest.raises(ValueError, match="url: expected grpc"):
        RemoteMapBuilder(url, 3, **options)
    if url == "grpc://example.org:8815":
        RemoteMapBuilder(url, 3, insecure=True)


def test_a_log_line_is_one_json_object_whatever_is_in_it():
    record = logging.LogRecord("x", logging.INFO, "", 0, 'two\nlines "quoted"', (), None)
    record.fields = {"peer": "ipv4:1.2.3.4\n{}", "shape": torch.Size([1, 2])}
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line


def test_lines_that_cannot_be_written_are_dropped_and_counted():
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as stream:
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                os.write(write, b"\n" * 512)
        os.set_blocking(write, True)
        writer = logs.Writer(stream, longest=5)
        logs.logger().addHandler(writer)
        records = [logging.LogRecord("x", logging.INFO, "", 0, str(number), (), None) for number in range(100)]
        logging_all = threading.Thread(target=lambda: [writer.handle(record) for record in records], daemon=True)
        logging_all.start()
        logging_all.join(10)
        assert not logging_all.is_alive()
        events = []
        while not events or "lines" not in events[-1]:
            line = reader.readline()
            events += [json.loads(line)] if line != b"\n" else []
        logs.logger().removeHandler(writer)
        writer.close()
    *written, lost = events
    assert [event["event"] for event in written] == [str(number) for number in range(len(written))]
    assert 5 <= len(written) <= 6
    assert (lost["event"], lost["level"]) == ("lines of the log were lost", "warning")
    assert lost["lines"] == 100 - len(written)
