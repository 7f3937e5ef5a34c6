"""Foreground values in one or two bytes: exact rounding, exact ends, the documented error, what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from samples import scene

import rwkernels as rw
from rwkernels.backends import native
from rwkernels.maps.quantised import decode, encode, largest_error

STEPS = {8: 255, 16: 65535}
both = pytest.mark.parametrize("bits", [8, 16])


def near_ties(bits: int) -> torch.Tensor:
    """float32 values on both sides of the middle between two codes, where a product rounded to float32 goes astray."""
    middles = (np.arange(0, STEPS[bits], 1 if bits == 8 else 37) + 0.5) / STEPS[bits]
    nearest = middles.astype(np.float32)
    sides = [nearest, np.nextafter(nearest, np.float32(0)), np.nextafter(nearest, np.float32(1))]
    return torch.from_numpy(-np.concatenate(sides))


@both
def test_codes_are_rounded_exactly_next_to_every_middle(bits):
    values = torch.cat([near_ties(bits), torch.tensor([0.0, -0.0, -1.0, -1e-30, -1e-45])])
    exact = [round(-Fraction(value) * STEPS[bits]) for value in values.tolist()]
    assert encode(values, bits).tolist() == exact
    rounded = (values * -STEPS[bits]).round().long()
    assert bits == 8 or rounded.tolist() != exact  # the obvious product in float32 is not good enough here


@both
def test_every_code_comes_back_and_the_ends_exactly(bits):
    codes = torch.arange(STEPS[bits] + 1).to(torch.uint8 if bits == 8 else torch.uint16)
    values = decode(codes)
    assert values.dtype == torch.float32
    exact = [-code / STEPS[bits] for code in range(STEPS[bits] + 1)]
    assert torch.equal(values, torch.tensor(exact, dtype=torch.float64).float())
    assert float(values[0]) == 0
    assert not values[0].signbit()
    assert float(values[-1]) == -1
    assert torch.equal(encode(values, bits).long(), codes.long())


@both
def test_a_map_is_off_by_no_more_than_is_documented(bits):
    labels = scene("blobs", (19, 33, 27), num_classes=4)
    foreground = rw.rectified_map(labels, 4, spacing=(3.0, 1.0, 0.7)).foreground
    found = decode(encode(foreground, bits))
    assert float((found.double() - foreground.double()).abs().max()) <= largest_error(bits)
    worst = decode(encode(near_ties(bits), bits)).double() - near_ties(bits).double()
    assert 0.99 * largest_error(bits) < float(worst.abs().max()) <= largest_error(bits)


@pytest.mark.parametrize("size", [0, 1, 32767, 32768, 32769, 100_003])
def test_any_number_of_values_is_coded_to_the_last(size):
    values = -torch.rand(size, generator=torch.Generator().manual_seed(size))
    expected = (values.double() * -65535).round().long()
    assert torch.equal(encode(values).long(), expected)
    assert torch.equal(decode(encode(values)), (expected.double() / -65535).float())


def test_strides_dtypes_and_arrays_are_taken_as_they_are():
    values = -torch.rand(6, 5, 8, generator=torch.Generator().manual_seed(0))
    codes = encode(values).long()
    assert torch.equal(encode(values.movedim(0, 2)).long(), codes.movedim(0, 2))
    assert torch.equal(decode(encode(values).movedim(0, 2)), decode(encode(values)).movedim(0, 2))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(encode(values.to(dtype)).long(), encode(values.to(dtype).float()).long())
    array = encode(values.numpy())
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint16
    assert (array == encode(values).numpy()).all()
    assert isinstance(decode(array), np.ndarray)
    assert encode(torch.tensor(-0.5)).shape == ()


def test_a_buffer_is_written_into_and_a_wrong_one_refused():
    codes = encode(-torch.rand(3, 4), bits=8)
    buffer = torch.empty(3, 4)
    assert decode(codes, out=buffer).data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, decode(codes))
    for wrong in (torch.empty(4, 3), torch.empty(3, 4, dtype=torch.float64), torch.empty(4, 3).T):
        with pytest.raises(ValueError, match="out: expected"):
            decode(codes, out=wrong)


@pytest.mark.parametrize("bad", [-1.0000001, 1e-7, torch.nan, torch.inf, -torch.inf, 1.0])
def test_a_value_outside_is_named_with_its_place(bad):
    values = torch.zeros(3, 20_000)
    values[2, 17_000] = bad
    with pytest.raises(ValueError, match=r"foreground: expected values in \[-1, 0\], got .* at \(2, 17000\)"):
        encode(values)


def test_what_is_no_foreground_and_no_code_is_refused():
    with pytest.raises(TypeError, match="foreground: expected float32, bfloat16 or float16, got a float64 tensor"):
        encode(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"foreground: expected a torch\.Tensor, got list"):
        encode([0.0])
    with pytest.raises(ValueError, match="bits: expected 8 or 16, got 12"):
        encode(torch.zeros(2), bits=12)
    with pytest.raises(TypeError, match="codes: expected uint8 or uint16, got a int64 tensor"):
        decode(torch.zeros(2, dtype=torch.int64))


@pytest.mark.gpu
def test_codes_on_a_gpu_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for bits in (8, 16):
        values = near_ties(bits)
        codes = encode(values.cuda(), bits)
        assert codes.is_cuda
        assert torch.equal(codes.cpu().long(), encode(values, bits).long())
        assert torch.equal(decode(codes).cpu(), decode(encode(values, bits)))
        with pytest.raises(ValueError, match="foreground: expected values"):
            encode(torch.ones(3, device="cuda"), bits)


@both
def test_every_instruction_set_and_numpy_have_the_same_codes_and_values(bits, isa, monkeypatch):
    values = torch.cat([near_ties(bits), torch.tensor([0.0, -0.0, -1.0, -1e-45]), -torch.rand(200_003)])
    codes = encode(values, bits)
    back = decode(codes)
    for wrong in (float("nan"), 1e-45, -1.0000001, float("inf")):
        bad = values.clone()
        bad[len(bad) - 2] = wrong
        with pytest.raises(ValueError, match="foreground: expected values in"):
            encode(bad, bits)
    monkeypatch.setattr(native, "can_run", lambda device: "not here")
    assert torch.equal(encode(values, bits).long(), codes.long())
    assert torch.equal(decode(codes), back)
    assert torch.equal(decode(codes).signbit(), back.signbit())
