"""How a volume is cut: what every plan promises, whatever the volume and the memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dask.array", reason="dask is not installed (the extra `scale`)")
pytest.importorskip("zarr", minversion="3.1.3", reason="no Zarr 3.1.3 (the extra `scale`)")
from dask.array.core import normalize_chunks, slices_from_chunks

from rwkernels.scale.plan import plan, steps


@st.composite
def volumes(draw, longest):
    """Shape, the number of spatial axes, bytes of a label, chunks of labels, chunks of the result or None."""
    shape = tuple(draw(st.lists(st.integers(1, longest), min_size=1, max_size=4)))
    axes = draw(st.integers(1, min(len(shape), 3)))
    grain = tuple(draw(st.integers(1, n)) for n in shape)
    result = tuple(draw(st.integers(1, n)) for n in shape) if draw(st.booleans()) else None
    return shape, axes, draw(st.sampled_from([1, 2, 4, 8])), grain, result


def assert_keeps_its_promises(found, passes, memory, label_bytes, result):
    assert sum((stage.steps for stage in found.stages), ()) == passes
    passed = {step.axis for step in passes}
    for stage in found.stages:
        whole = {step.axis for step in stage.steps}
        for axis, (n, tile, block) in enumerate(zip(found.shape, found.tile, stage.block, strict=True)):
            assert block == (n if axis in whole else tile)
            assert 1 <= tile <= n
            assert axis in passed or result is not None or tile == 1
        # Labels, distances, and as much again as distances while chunks are packed.
        assert math.prod(stage.block) * (label_bytes + 8) <= found.task_bytes <= memory
    if result is not None:  # tasks of the last stage share no chunk of what they write
        for n, block, chunk in zip(found.shape, found.stages[-1].block, result, strict=True):
            assert block == n or block % chunk == 0


@settings(max_examples=150, deadline=None)
@given(volumes(longest=40), st.booleans(), st.floats(0, 1))
def test_blocks_cover_every_pixel_once_and_fit_into_memory(volume, border, part):
    shape, axes, label_bytes, grain, result = volume
    passes, _ = steps(shape, (1.0,) * axes, border)
    memory = int(part * math.prod(shape) * (label_bytes + 8)) + 1
    try:
        found = plan(shape, passes, label_bytes, memory, grain, result)
    except ValueError as error:
        found, asked, memory = None, memory, int(str(error).split("at least ")[1].split()[0])
    if found is None:
        assert memory > asked
        found = plan(shape, passes, label_bytes, memory, grain, result)
    assert_keeps_its_promises(found, passes, memory, label_bytes, result)
    for stage in found.stages:
        seen = np.zeros(shape, np.uint8)
        for region in slices_from_chunks(normalize_chunks(stage.block, shape)):
            seen[region] += 1
        assert (seen == 1).all()


@settings(max_examples=100, deadline=None)
@given(volumes(longest=20_000), st.integers(1 << 20, 1 << 34))
def test_large_volumes_fit_into_memory(volume, memory):
    shape, axes, label_bytes, grain, result = volume
    passes, _ = steps(shape, (1.0,) * axes, False)
    try:
        found = plan(shape, passes, label_bytes, memory, grain, result)
    except ValueError as error:
        found, memory = None, int(str(error).split("at least ")[1].split()[0])
    if found is None:
        found = plan(shape, passes, label_bytes, memory, grain, result)
    assert_keeps_its_promises(found, passes, memory, label_bytes, result)
