"""The emulator of PTX and the device that is not there: right results, and every planted mistake caught."""

from __future__ import annotations

import ptx
import pytest
import torch

if (reason := ptx.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

import triton
from ptx import sample_kernels as samples
from ptx.driver import emulated_device
from ptx.faults import Endless, Misaligned, OutOfBounds
from ptx.run import run_ptx

on_each_architecture = pytest.mark.parametrize("arch", [80, 90], ids=lambda arch: f"sm_{arch}")


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose address is a multiple of the element size and of no more."""
    shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


def softmax_unrolled(x: torch.Tensor, weight: torch.Tensor | None = None, **options: int) -> torch.Tensor:
    out = torch.full_like(x, float("nan"))
    grid = (triton.cdiv(x.shape[2], 256), x.shape[0])
    has_weight = weight is not None
    samples.softmax_unrolled[grid](
        x, weight, out, x.shape[2], K=x.shape[1], BLOCK=256, HAS_WEIGHT=has_weight, **options
    )
    return out


@on_each_architecture
@pytest.mark.parametrize("size", [1, 1000, 1024, 2049])
def test_a_masked_sum_of_vectors_is_exact_and_its_bytes_are_counted(arch, size):
    x, y, out = torch.randn(size), torch.randn(size), torch.zeros(size)
    with emulated_device("cuda", arch) as device:
        samples.add[(triton.cdiv(size, 1024),)](x, y, out, size, BLOCK=1024)
    assert torch.equal(out, x + y)
    counts = device.launches[0].counts
    assert counts.loaded == {"x": 4 * size, "y": 4 * size}
    assert counts.stored == {"out": 4 * size}


def test_accesses_are_counted_by_their_width():
    x, y, out = torch.randn(1024), torch.randn(1024), torch.zeros(1024)
    with emulated_device("cuda", 90) as device:
        samples.add[(1,)](x, y, out, 1024, BLOCK=1024)
        samples.add[(1,)](unaligned(x), y, out, 1024, BLOCK=1024)
    aligned, shifted = (launch.counts for launch in device.launches)
    assert aligned.loads == {16: 512}
    assert aligned.stores == {16: 256}
    assert shifted.loads == {16: 256, 4: 1024}


@on_each_architecture
@pytest.mark.parametrize("num_warps", [1, 2, 4, 8])
def test_a_tile_reduced_across_warps_gives_the_log_likelihood(arch, num_warps):
    size = 77 if num_warps < 4 else 96
    x = torch.randn(2, 19, size)
    labels = torch.randint(0, 19, (2, size), dtype=torch.int64 if num_warps % 4 else torch.uint8)
    partial = torch.full((2, triton.cdiv(size, 64)), float("nan"))
    with emulated_device("cuda", arch) as device:
        grid = (partial.shape[1], 2)
        samples.softmax_tile[grid](x, labels, partial, size, K=19, K_PAD=32, BLOCK=64, num_warps=num_warps)
    expected = x.log_softmax(1).gather(1, labels.long()[:, None]).sum()
    torch.testing.assert_close(partial.sum(), expected)
    assert device.launches[0].counts.loaded["x"] == x.numel() * 4
    assert device.launches[0].num_warps == num_warps


@on_each_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_softmax_over_unrolled_classes_gives_that_of_torch(arch, dtype):
    x = (4 * torch.randn(2, 3, 333)).to(dtype)
    with emulated_device("cuda", arch):
        out = softmax_unrolled(x)
    torch.testing.assert_close(out, x.float().softmax(1).to(dtype))


@on_each_architecture
def test_a_pointer_may_be_none(arch):
    x, weight = torch.randn(2, 3, 336), torch.tensor([1.0, 2.0, 3.0])
    with emulated_device("cuda", arch) as device:
        without, weighted = softmax_unrolled(x), softmax_unrolled(x, weight)
    torch.testing.assert_close(weighted, without * weight[:, None])
    assert device.launches[0].constants["weight"] is None
    assert "weight" not in device.launches[1].constants


@on_each_architecture
@pytest.mark.parametrize("size", [1, 1300])
def test_a_loop_sums_in_double_precision(arch, size):
    x, out = torch.randn(size).bfloat16(), torch.zeros(1, dtype=torch.float64)
    with emulated_device("cuda", arch):
        samples.sum_in_double[(1,)](x, out, size, BLOCK=512)
    torch.testing.assert_close(out[0], x.double().sum(), rtol=1e-14, atol=0)


@on_each_architecture
@pytest.mark.parametrize(
    ("labels_dtype", "counts_dtype"), [(torch.int64, torch.int64), (torch.uint8, torch.int32)], ids=str
)
def test_integer_atomics_count_labels_unless_a_flag_says_to_leave(arch, labels_dtype, counts_dtype):
    labels, counts = torch.randint(0, 3, (3001,), dtype=labels_dtype), torch.zeros(4, dtype=counts_dtype)
    with emulated_device("cuda", arch) as device:
        samples.count_labels[(6,)](labels, counts, 3001, K=3, BLOCK=512)
        assert torch.equal(counts[:3], labels.long().bincount(minlength=3).to(counts_dtype))
        counts[:] = torch.tensor([0, 0, 0, 1])
        samples.count_labels[(6,)](labels, counts, 3001, K=3, BLOCK=512)
    assert counts.tolist() == [0, 0, 0, 1]
    assert sum(device.launches[0].counts.atomics.values()) == 6 * 3
    assert device.launches[1].counts.loaded.keys() == {"counts"}


@on_each_architecture
def test_an_access_past_the_end_is_caught(arch):
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    with (
        emulated_device("cuda", arch),
        pytest.raises(OutOfBounds, match=r"kernel add_past_the_end, PTX line") as caught,
    ):
        samples.add_past_the_end[(1,)](x, y, out, 1000, BLOCK=1024)
    assert "CTA (0, 0, 0), thread 122" in str(caught.value)
    assert "4 bytes at byte 4000 of 'x', a tensor (1000,) float32 of 4000 bytes" in str(caught.value)


@on_each_architecture
def test_an_access_past_a_view_is_caught_though_its_storage_goes_on(arch):
    x, out = torch.randn(2000), torch.zeros(1001)
    with emulated_device("cuda", arch), pytest.raises(OutOfBounds, match="of 'x'"):
        samples.add_past_the_end[(1,)](x[:1000], x[:1001], out, 1000, BLOCK=1024)


@on_each_architecture
def test_a_false_hint_on_a_stride_is_caught(arch):
    x, out = torch.randn(3, 513), torch.zeros(3, 513)
    with emulated_device("cuda", arch):
        samples.add_one_to_rows[(3,)](x, out, 513, HINT=False, BLOCK=512)
        assert torch.equal(out[:, :512], x[:, :512] + 1)
        with pytest.raises(Misaligned, match=r"16 bytes at byte 2052 of 'x'.* no multiple of 16"):
            samples.add_one_to_rows[(3,)](x, out, 513, HINT=True, BLOCK=512)


@on_each_architecture
def test_a_binary_for_aligned_pointers_refuses_another(arch):
    x, y, out = torch.randn(1024), torch.randn(1024), torch.zeros(1024)
    with emulated_device("cuda", arch) as device:
        samples.add[(1,)](x, y, out, 1024, BLOCK=1024)
    binary = device.launches[0].ptx
    with pytest.raises(Misaligned, match="of 'y'"):
        run_ptx(binary, [("x", x), ("y", unaligned(y)), ("out", out), ("size", 1024)])


@on_each_architecture
def test_an_endless_loop_is_caught(arch):
    flag, out = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with emulated_device("cuda", arch, budget=1000), pytest.raises(Endless, match=r"never_ends.*1000 instructions"):
        samples.never_ends[(1,)](flag, out, num_warps=1)


@on_each_architecture
def test_an_offset_that_overflows_32_bits_is_caught(arch):
    stride = 2**30 + 16
    x, out = torch.empty(2 * stride + 128, dtype=torch.uint8), torch.zeros(3, 128, dtype=torch.uint8)  # few are touched
    for row in range(3):
        x[row * stride :][:128] = torch.arange(128) + row
    with emulated_device("cuda", arch):
        samples.copy_rows[(3,)](x, out, stride, WIDE=True, BLOCK=128)
        assert torch.equal(out, (torch.arange(128) + torch.arange(3)[:, None]).byte())
        with pytest.raises(OutOfBounds, match=r"CTA \(2, 0, 0\)"):
            samples.copy_rows[(3,)](x, out, stride, WIDE=False, BLOCK=128)


def test_the_launcher_specialises_as_on_a_gpu():
    x, y, out = torch.randn(64), torch.randn(64), torch.zeros(64)
    with emulated_device("cuda", 90) as device:
        samples.add[(1,)](x, unaligned(y), out, 64, BLOCK=64)
        samples.add[(1,)](x, y, out, 33, BLOCK=64)
        samples.add[(1,)](x, y, out, 1, BLOCK=64)
    shifted, odd, single = device.launches
    assert shifted.divisible == {"x", "out", "size"}
    assert odd.divisible == {"x", "y", "out"}
    assert odd.constants == {"BLOCK": 64}
    assert single.constants == {"size": 1, "BLOCK": 64}
    assert shifted.signature == {"x": "*fp32", "y": "*fp32", "out": "*fp32", "size": "i32", "BLOCK": "constexpr"}
    assert (shifted.grid, shifted.arguments["size"], shifted.name) == ((1, 1, 1), 64, "add")


@pytest.mark.parametrize("arch", [80, 90, 100, 120], ids=lambda arch: f"sm_{arch}")
def test_each_device_gets_a_binary_of_its_own(arch):
    x, y, out = torch.randn(64), torch.randn(64), torch.zeros(64)
    with emulated_device("cuda", arch, run=False) as device:
        samples.add[(1,)](x, y, out, 64, BLOCK=64)
    launch = device.launches[0]
    assert f".target sm_{arch}" in launch.ptx
    assert f"sm_{arch}" in launch.sass
    assert "LDG.E" in launch.sass
    assert 0 < launch.resources.registers < 64
    assert launch.resources.spills == 0
    assert launch.counts is None
    assert not out.any()


def test_a_launch_for_amd_is_compiled_and_recorded():
    x, y, out = torch.randn(64), torch.randn(64), torch.zeros(64)
    with emulated_device("hip", "gfx942") as device:
        samples.add[(1,)](x, y, out, 64, BLOCK=64)
    launch = device.launches[0]
    assert "gfx942" in launch.asm["amdgcn"]
    assert launch.metadata.target.warp_size == 64
    assert 0 < launch.resources.registers < 64
    assert launch.resources.spills == 0


def test_leaving_a_device_brings_back_the_one_before():
    x, y, out = torch.randn(64), torch.randn(64), torch.zeros(64)
    before = triton.runtime.driver._active
    with emulated_device("cuda", 80) as outer:
        with emulated_device("cuda", 90) as inner, pytest.raises(OutOfBounds):
            samples.add[(1,)](x, y, out[:10], 64, BLOCK=64)
        samples.add[(1,)](x, y, out, 64, BLOCK=64)
    assert triton.runtime.driver._active is before
    assert [launch.metadata.target.arch for launch in outer.launches + inner.launches] == [80, 90]
    assert not {outer.index, inner.index} & samples.add.device_caches.keys()
