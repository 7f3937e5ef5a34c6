"""Work on the next batch while the caller computes on this one: a thread on the CPU, a stream on a GPU."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Result = TypeVar("Result")


class BackgroundThread:
    """A thread, or several, that begin what they are given in order. They end when this object is gone or closed."""

    def __init__(self, count: int = 1) -> None:
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix="rwkernels-maps")
        # The thread must not keep a loop that was left alive: work not begun is dropped.
        self.close = weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Starts `work`; what is returned waits for its result, and raises what it raised."""
        futures = [self._executor.submit(work)]

        def wait() -> Result:
            # An error holds its traceback, and that this frame: were the future still in it, only the garbage
            # collector could free them, and with them the thread.
            return futures.pop().result()

        return wait


@functools.cache
def _stream_beside(index: int) -> torch.cuda.Stream:
    """One stream a device for the whole process: the allocator keeps the memory of every stream apart, for good."""
    return torch.cuda.Stream(torch.device("cuda", index))


class SideStream:
    """A CUDA stream beside the one the caller computes on.

    The caching allocator hands memory out again in the order of the stream that allocated it. Tensors that cross
    over are therefore recorded on the stream that uses them, which also waits for the event that they are ready.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream_beside(torch.cuda.current_device() if device.index is None else device.index)

    def start(self, work: Callable[[], Result], reads: Sequence[Tensor]) -> Callable[[], Result]:
        """Queues `work`, which reads the tensors `reads`; what is returned hands the result to the current stream."""
        on_device = [tensor for tensor in reads if tensor.is_cuda]
        if on_device:  # the caller's stream may still be writing them
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            result = work()
            ready = self._stream.record_event()
        for tensor in on_device:
            tensor.record_stream(self._stream)

        def hand_over() -> Result:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_cuda:
                    leaf.record_stream(current)
            return result

        return hand_over


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting; towards the CPU with, for there nothing else says that it has come."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def at_once(work: Callable[[], Result]) -> Callable[[], Result]:
    """Does `work` now: for devices without streams."""
    result = work()
    return lambda: result


def failed(error: Exception) -> Callable[[], Any]:
    """What raises `error` when the result is asked for, with the traceback it has."""
    errors = [error]

    def finish() -> Any:
        raise errors.pop()

    return finish
