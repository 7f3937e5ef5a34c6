"""Labels on their way to a service: in few bits, and unchanged where they are no classes."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkernels.backends import native
from rwkernels.service.wire.labels import BITS, pack, travelling, unpack, unpacked_dtype

DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.fixture(params=["core", "numpy"])
def way(request, monkeypatch):
    """With the core, and on a machine without it."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "can_run", lambda device: "it is not there")
    elif native.can_run(torch.device("cpu")) is not None:
        pytest.skip("needs the compiled core")


def arrived(dtype, sent, count):
    """The labels as the service has them."""
    if BITS[dtype] >= 8:
        return sent.view(dtype)
    found = np.full(count, 99, np.uint8)
    unpack(sent, BITS[dtype], found)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 70) | st.integers(4090, 4100).map(lambda count: 8 * count),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_packed_labels_come_back_whatever_their_number_and_type(way, bits, count, dtype, ignore, seed):
    num_classes = min((1 << bits) - ignore, 100)
    plain = np.random.default_rng(seed).integers(0, num_classes + ignore, count)
    labels = torch.from_numpy(np.where(plain == num_classes, 101, plain)).to(dtype)
    packed = pack(labels, num_classes, 101 if ignore else None, bits)
    assert packed.nbytes == -(-count * bits // 8)
    assert np.array_equal(arrived(f"uint{bits}", packed, count), plain)


def test_byte_j_of_m_holds_labels_j_m_plus_j_and_so_on_from_its_low_bits(way):
    packed = pack(torch.tensor([3, 1, 2, 0, 1, 3, 2]), 4, None, 2)
    assert [f"{byte:08b}" for byte in packed] == ["10011011", "00110001"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("wrong", "at"), [(3, 0), (3, 4999), (120, 77), (-1, 4998)])
def test_a_label_of_no_class_is_found_wherever_it_is(way, dtype, wrong, at):
    if wrong < 0 and not dtype.is_signed:
        pytest.skip("unsigned")
    labels = torch.zeros(5000, dtype=dtype)
    labels[at] = wrong
    assert pack(labels, 3, 2, 2) is None
    assert pack(labels, 3, wrong, 2) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "expected"),
    [(2, None, "uint1"), (2, 1, "uint1"), (2, 100, "uint2"), (4, None, "uint2"), (4, 100, "uint4"), (16, 3, "uint4")],
)
def test_classes_travel_in_as_few_bits_as_they_take(way, dtype, num_classes, ignore_index, expected):
    labels = torch.arange(60).remainder(num_classes).to(dtype).view(1, 6, 10)
    if ignore_index is not None:
        labels[0, 2:4, 5:] = ignore_index
    found_dtype, sent, ignored = travelling(labels, num_classes, ignore_index)
    assert (found_dtype, unpacked_dtype(found_dtype)) == (expected, "uint8")
    found = arrived(found_dtype, sent, 60)
    if ignore_index == 100:
        assert ignored == num_classes
        assert np.array_equal(found == ignored, labels.flatten().numpy() == 100)
        labels[labels == 100] = num_classes
    else:
        assert ignored == ignore_index
    assert np.array_equal(found, labels.flatten().numpy())


@pytest.mark.parametrize(
    ("values", "num_classes", "ignore_index", "dtype"),
    [
        ([0, 1, 2, 3], 3, None, "uint8"),  # a label of no class
        ([0, 1, 2, 3], 3, 255, "uint8"),  # it may not pass as the ignored one, which would be 3
        ([0, 1, -1], 3, None, "int8"),
        ([0, 1, 256], 3, None, "int16"),  # and not for what its lowest byte says
        ([0, 1, 256, -100], 3, -100, "int16"),
        ([0, 2**40], 3, None, "int64"),
        ([0, 300], 400, None, "int16"),
        ([0, -100], 300, -100, "int8"),
        ([0, 255], 256, None, "uint8"),
        ([0, 254], 255, None, "uint8"),
    ],
)
def test_labels_that_are_no_classes_travel_unchanged(way, values, num_classes, ignore_index, dtype):
    found_dtype, sent, ignored = travelling(torch.tensor([values]), num_classes, ignore_index)
    assert (found_dtype, ignored) == (dtype, ignore_index)
    assert sent.view(dtype).tolist() == values


def test_labels_of_the_caller_stay_as_they_are(way):
    labels = torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8)
    for num_classes in (3, 200):
        _, sent, _ = travelling(labels, num_classes, 255)
        assert not np.may_share_memory(sent, labels.numpy())
        assert labels.tolist() == [[0, 1, 255, 2]]


def test_no_labels_travel_as_none():
    dtype, sent, _ = travelling(torch.empty((2, 0, 4), dtype=torch.int64), 4, None)
    assert (dtype, sent.size) == ("uint2", 0)
