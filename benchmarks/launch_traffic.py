"""How many bytes of global memory a step of our loss moves without `torch.compile`: launch by launch.

The step runs as a user's does, through the public function and PyTorch's autograd, on tensors whose memory nobody
touches: where the Triton backend would launch a kernel, the launch is noted and `kernel_traffic.jit_traffic` counts it.

One launch is counted by hand. The backward's `scale_gradient` multiplies the gradient that the forward kept by the
incoming one, in place, and leaves it alone where that is 1: known on the device only, so the addresses do not tell.
With a factor of 1 it reads the factor; with another (a GradScaler, a weighted sum of losses, and always the 1/(N K) of
a float16 mean) it reads and writes the gradient once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from benchmarks import kernel_traffic
from benchmarks.moved import Moved, Traffic
from rwkernels.backends import triton
from rwkernels.backends.triton.launch import Call, noted
from rwkernels.backends.triton.replay import Replay


def traffic(call: Call, scaled: bool) -> Traffic:
    """Bytes that a launch of one of our kernels moves; `scaled` says whether the incoming gradient is not 1."""
    given = {**dict(zip(call.kernel.arg_names, call.arguments, strict=False)), **call.constants}
    if call.kernel.fn.__name__ == "scale_gradient" and given["out"] is None and not given["MEAN"] and not scaled:
        return Traffic(given["upstream"].numel() * given["upstream"].element_size(), 0)
    return kernel_traffic.jit_traffic(call.kernel, (call.programs, 1, 1), given)


@contextmanager
def launches() -> Iterator[list[Call]]:
    """A context in which the Triton backend takes tensors of the CPU, and its launches are noted and do not happen."""
    with (
        mock.patch.object(triton, "can_run", return_value=None),
        mock.patch.object(Replay, "_run", Replay._launch),
        noted() as calls,
    ):
        yield calls


def moved(loss: Callable[[], Tensor], scaled: bool = False) -> Moved:
    """What `loss()`, with `backend="triton"` and on tensors of the CPU, and its backward move."""
    with launches() as forward:
        result = loss()
    with launches() as backward:
        result.backward()
    return Moved(*(sum((traffic(call, scaled) for call in phase), Traffic()) for phase in (forward, backward)))
