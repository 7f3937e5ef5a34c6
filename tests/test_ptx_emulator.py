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
from ptx.faults import OutOfBounds

ARCHITECTURES = (80, 90)
on_each_architecture = pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: f"sm_{arch}")


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose address is a multiple of the element size and of no more."""
    shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


@on_each_architecture
@pytest.mark.parametrize("size", [1, 1000, 1024, 2049])
def test_a_masked_sum_of_vectors_is_exact(arch, size):
    x, y, out = torch.randn(size), torch.randn(size), torch.zeros(size)
    with emulated_device("cuda", arch) as device:
        samples.add[(triton.cdiv(size, 1024),)](x, y, out, size, BLOCK=1024)
    assert torch.equal(out, x + y)
    counts = device.launches[0].counts
    assert counts.loaded == {"x": 4 * size, "y": 4 * size}
    assert counts.stored == {"out": 4 * size}


@on_each_architecture
@pytest.mark.parametrize("size", [77, 96])
@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.uint8], ids=str)
def test_a_tile_reduced_across_warps_gives_the_log_likelihood(arch, size, labels_dtype):
    x, labels = torch.randn(2, 19, size), torch.randint(0, 19, (2, size), dtype=labels_dtype)
    partial = torch.full((2, triton.cdiv(size, 64)), float("nan"))
    with emulated_device("cuda", arch) as device:
        grid = (partial.shape[1], 2)
        samples.softmax_tile[grid](x, labels, partial, size, K=19, K_PAD=32, BLOCK=64, num_warps=4)
    expected = x.log_softmax(1).gather(1, labels.long()[:, None]).sum()
    torch.testing.assert_close(partial.sum(), expected)
    assert device.launches[0].counts.loaded["x"] == x.numel() * 4


@on_each_architecture
def test_an_access_past_the_end_is_caught(arch):
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    with (
        emulated_device("cuda", arch),
        pytest.raises(OutOfBounds, match=r"kernel add_past_the_end, PTX line \d+") as caught,
    ):
        samples.add_past_the_end[(1,)](x, y, out, 1000, BLOCK=1024)
    assert "CTA (0, 0, 0), thread 122" in str(caught.value)
    assert "of 'x', a tensor (1000,) float32 of 4000 bytes" in str(caught.value)
