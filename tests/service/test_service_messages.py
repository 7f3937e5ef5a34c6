"""Whatever bytes come, the parsers of envelope, header and request end with a message or with their own errors."""

import contextlib
import json
import struct

import pytest

pytest.importorskip("msgspec", reason="needs the extra `service`")
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkernels.maps.families import FAMILIES
from rwkernels.service.wire import labels, messages
from rwkernels.service.wire.limits import HEADER_BYTES, Limits
from rwkernels.service.wire.messages import Answer, MalformedError, RefusedError, Request

LIMITS = Limits(request_bytes=1 << 12, answer_bytes=1 << 14, images=8, classes=50, axis=100)
GOOD = Request(7, "rectified", (1, 3, 4), "uint8", 3, "uint8")
quick = settings(max_examples=300, deadline=None)

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["uint8", "boundary"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def read(data):
    """The request in a message."""
    header, payload = messages.split(memoryview(data))
    return messages.request(header, payload, LIMITS)


def in_bounds(request):
    assert request.payload_bytes <= LIMITS.request_bytes
    assert request.answer_bytes <= request.built_bytes <= LIMITS.answer_bytes
    assert request.shape[0] <= LIMITS.images
    assert request.num_classes <= LIMITS.classes
    assert max(request.shape[1:]) <= LIMITS.axis


@quick
@given(st.binary(max_size=200))
def test_random_bytes_are_no_message(data):
    for message in (data, struct.pack("<4sI", b"RWK1", len(data)) + data):
        with contextlib.suppress(MalformedError):
            read(message)


@quick
@given(st.data())
def test_a_good_message_with_bytes_changed_is_refused_or_within_the_limits(data):
    good = messages.packed(GOOD) + bytes(12)
    found = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        found[data.draw(st.integers(0, len(found) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(found)) | st.just(len(found)))
    with contextlib.suppress(MalformedError, RefusedError):
        in_bounds(read(bytes(found[:cut])))


@quick
@given(st.sampled_from(Request.__struct_fields__), any_json)
def test_any_value_in_a_header_is_refused_or_within_the_limits(name, value):
    text = json.dumps({**msgspec.to_builtins(GOOD), name: value}).encode()
    with contextlib.suppress(MalformedError, RefusedError):
        in_bounds(read(struct.pack("<4sI", b"RWK1", len(text)) + text + bytes(12)))


@st.composite
def requests(draw):
    """Requests that are right, of every family."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    shape = (draw(st.integers(1, 3)), *draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    steps = st.tuples(*[st.floats(1e-3, 1e3) for _ in shape[1:]])
    spacing = draw(st.none() | st.tuples(steps) | st.tuples(*[steps] * shape[0])) if FAMILIES[family].measured else None
    return Request(
        draw(st.integers(0, 2**53 - 1)),
        family,
        shape,
        draw(st.sampled_from(sorted(labels.BITS))),
        draw(st.integers(1, 9)),
        draw(st.sampled_from(messages.answers_of(family))),
        spacing,
        draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        draw(st.booleans()) and FAMILIES[family].measured,
        {"alpha": 2.0} if family == "constant" else {},
        draw(st.booleans()) and family == "rectified",
    )


@quick
@given(requests(), st.integers(0, 3))
def test_a_request_arrives_as_it_was_sent_with_its_payload_in_place(request, more):
    message = messages.packed(request)
    assert len(message) % 16 == 0  # so that codes in memory are where a processor likes them
    payload = bytes(range(256))[:11] * request.payload_bytes
    payload = payload[: request.payload_bytes]
    header, found = messages.split(memoryview(message + payload))
    assert bytes(found) == payload
    assert messages.request(header, found, Limits()) == request
    if more:
        with pytest.raises(MalformedError, match="payload: expected"):
            messages.request(header, memoryview(payload + bytes(more)), Limits())


@quick
@given(st.sampled_from(Answer.__struct_fields__), any_json)
def test_any_value_in_an_answer_is_refused_or_an_answer(name, value):
    header = {**msgspec.to_builtins(Answer(7, (1, 3, 4), "uint8", 0.0, (12,))), name: value}
    try:
        found = messages.answer(header, memoryview(bytes(12)), GOOD)
    except MalformedError:
        return
    assert found.shape == (1, 3, 4)
    assert found.image_count is None or 0 <= found.image_count[0] <= 12


def test_classes_count_for_every_image_of_a_request():
    """One pixel an image, but a number for each class of each: joined, they would be more than all labels."""
    many = Request(0, "rectified", (4096, 1, 1), "uint8", 4096, "uint8")
    assert many.built_bytes == 4 * 4096 * 4097
    with pytest.raises(RefusedError, match="map: expected at most"):
        messages.request(msgspec.to_builtins(many), memoryview(bytes(4096)), Limits(answer_bytes=32 << 20))


def test_packed_labels_count_as_what_they_unpack_to():
    many = Request(0, "rectified", (1, 1024, 1024), "uint1", 2, "uint8")
    assert many.payload_bytes == 1 << 17
    messages.request(msgspec.to_builtins(many), memoryview(bytes(1 << 17)), Limits(request_bytes=1 << 20))
    with pytest.raises(RefusedError, match="labels: expected at most 1048575 bytes"):
        messages.request(msgspec.to_builtins(many), memoryview(bytes(1 << 17)), Limits(request_bytes=(1 << 20) - 1))


def test_a_header_has_a_largest_length():
    with pytest.raises(ValueError, match=f"header: expected at most {HEADER_BYTES} bytes"):
        messages.packed(msgspec.structs.replace(GOOD, spacing=((1.0, 1.0),) * 10_000))
    split = struct.pack("<4sI", b"RWK1", HEADER_BYTES + 1) + b" " * (HEADER_BYTES + 1)
    with pytest.raises(MalformedError, match="header: expected at most"):
        messages.split(memoryview(split))


def test_an_answer_to_another_request_is_refused_and_a_goodbye_is_for_whoever_waits():
    other = Answer(GOOD.id + 1, error=("ValueError", "of another"))
    with pytest.raises(MalformedError, match="id: expected 7, got 8"):
        messages.answer(msgspec.to_builtins(other), memoryview(b""), GOOD)
    goodbye = Answer(0, error=(messages.CLOSING, "that was all"))
    assert messages.answer(msgspec.to_builtins(goodbye), memoryview(b""), GOOD).error == (
        messages.CLOSING,
        "that was all",
    )
