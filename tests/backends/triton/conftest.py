"""What tests on emulated devices share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from rwkernels.backends.triton import replay


@pytest.fixture(autouse=True)
def launches_with_tensors(monkeypatch):
    """Plans hand tensors to binaries, not addresses: the emulator takes their bounds from them.

    `test_triton_plans.py` shows that the addresses are those of these tensors.
    """

    def tensors(self: replay.Replay, _: Sequence[int], buffers: Sequence[Tensor]) -> list[Any]:
        return [place.of(buffers[place.buffer]) for place in self._places]

    monkeypatch.setattr(replay.Replay, "_pointers", tensors)
