"""Plans of the Triton backend: the numbers of the reference, the binaries of the operators, and new addresses alone.

Numbers are those of emulated PTX, or of the interpreter where that runs this file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ptx
import pytest
import torch
from choices import pairwise
from loss_cases import name, operators_alone, random_labels, random_logits
from torch import Tensor

import rwkernels as rw
from rwkernels.backends import ENVIRONMENT_VARIABLE, load, triton
from rwkernels.backends.triton import plans as planning
from rwkernels.backends.triton.replay import Replay
from rwkernels.ops import planned

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ADDRESSES = Replay._pointers  # the fixture of `conftest.py` puts tensors in their place

needs_compiler = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
if not INTERPRETED and (reason := ptx.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """The plans that a test makes."""
    if not INTERPRETED:
        monkeypatch.setattr(triton, "can_run", lambda device: None)
    monkeypatch.setattr(planned, "_plans", {})
    return planned._plans


@contextmanager
def emulated(run: bool = True) -> Iterator[Any]:
    from ptx.driver import emulated_device

    with emulated_device("cuda", 90, run=run) as device:
        yield device


@pytest.fixture
def device():
    """Where the numbers come from."""
    with nullcontext() if INTERPRETED else emulated() as found:
        yield found


@pytest.fixture
def recorded():
    """A device on which nothing runs."""
    with emulated(run=False) as found:
        yield found


def names(device: Any) -> list[str]:
    return [launch.name for launch in device.launches]


def made() -> list[Any]:
    """The plans of the Triton backend."""
    kinds = (planning.StepPlan, planning.LossPlan)
    return [each.plan for each in planned._plans.values() if each is not None and isinstance(each.plan, kinds)]


def step(
    logits: list[Tensor],
    labels: list[Tensor],
    weights: list[float] | None = None,
    upstream: float | None = None,
    backend: str = "triton",
    **options: Any,
) -> tuple[Tensor, list[Tensor]]:
    """The loss of one level, or with weights of several, and the gradients."""
    loss_fn: Any = rw.RegionWiseLoss(backend=backend, validate=False, **options)
    given = [x.detach().requires_grad_() for x in logits]
    one = weights is None
    loss = loss_fn(given[0], labels[0]) if one else rw.DeepSupervisionLoss(loss_fn, weights)(given, labels)
    return loss.detach(), list(torch.autograd.grad(loss, given, upstream and torch.tensor(upstream)))


def assert_like_the_reference(logits: list[Tensor], *rest: Any, **options: Any) -> None:
    """A step by a plan, against that of the reference in float64."""
    loss, gradients = step(logits, *rest, **options)
    assert made()
    true_loss, true_gradients = step([x.double() for x in logits], *rest, **options, backend="reference")
    torch.testing.assert_close(loss, true_loss.float(), rtol=2e-6, atol=1e-6)
    for found, true, of_level in zip(gradients, true_gradients, logits, strict=True):
        eps = torch.finfo(of_level.dtype).eps
        assert found.dtype == of_level.dtype
        assert found.stride() == of_level.stride()
        least = torch.finfo(F16).tiny / 1000 if of_level.dtype == F16 else 0.0
        scale = float(true.abs().amax())
        torch.testing.assert_close(found.double(), true, rtol=2 * eps, atol=4 * max(eps, 1e-6) * scale + least)


def sample(
    shape: tuple[int, ...], dtype: torch.dtype = F32, levels: int = 1, classes: int = 3, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of two images, every level half as large as the one before."""
    shapes = [tuple(max(size >> level, 1) for size in shape) for level in range(levels)]
    logits = [random_logits((2, classes, *size), dtype, seed=level) for level, size in enumerate(shapes)]
    ignored = options.get("ignore_index")
    return logits, [random_labels((2, *size), classes, ignored, seed=level) for level, size in enumerate(shapes)]


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ignore": {"ignore_index": 255},
    "sum": {"reduction": "sum", "include_background": False},
    "anisotropic": {"spacing": 2.5, "black_border": True},
}


# --- numbers ----------------------------------------------------------------------------------------------------


@pairwise(shape=[(16, 24), (5, 7), (4, 6, 16), (3, 5, 9), (40,)], dtype=[F32, F16, BF16], option=list(OPTIONS))
def test_the_numbers_of_a_step_are_those_of_the_reference(option, dtype, shape, device):
    options = {**OPTIONS[option]}
    if len(shape) == 1 or option == "anisotropic":
        options["spacing"] = (options.get("spacing", 1.0), *[1.0] * (len(shape) - 1))
    assert_like_the_reference(*sample(shape, dtype, **options), upstream=1.5, **options)


# Sizes that halve evenly, and sizes that do not: their levels are compiled each in its own way.
@pairwise(shape=[(16, 64), (10, 12), (4, 16, 32)], dtype=[F32, F16, BF16], option=list(OPTIONS))
def test_the_numbers_of_several_levels_are_those_of_the_reference(option, dtype, shape, device):
    options = {**OPTIONS[option]}
    if option == "anisotropic":
        options["spacing"] = (2.5, *[1.0] * (len(shape) - 1))
    logits, labels = sample(shape, dtype, 3, **options)
    assert_like_the_reference(logits, labels, [0.7, 0.2, 0.1], 3.0, **options)


def test_the_numbers_of_levels_laid_out_in_different_ways_are_those_of_the_reference(device):
    logits, labels = sample((8, 16), levels=3, classes=20)
    logits[1] = logits[1].to(memory_format=torch.channels_last)
    labels[0] = labels[0].transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(1)
    assert_like_the_reference(logits, labels, [1.0, 0.5, 0.25])


def test_the_numbers_of_a_map_that_was_built_before_are_those_of_the_reference(device):
    (logits,), (labels,) = sample((9, 16), ignore_index=255)
    maps = rw.rectified_map(labels, 3, ignore_index=255, backend="reference")
    found = {}
    for backend in ("triton", "reference"):
        x = logits.detach().requires_grad_()
        loss = rw.region_wise_loss(x, maps, validate=False, backend=backend)
        found[backend] = loss.detach(), *torch.autograd.grad(loss, x)
    assert len(made()) == 1
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_numbers_stay_when_a_backward_is_asked_for_twice(device):
    (logits,), (labels,) = sample((6, 10), F32)
    x = logits.detach().requires_grad_()
    loss = rw.RegionWiseLoss(validate=False, backend="triton")(x, labels)
    first, second = (torch.autograd.grad(loss, x, torch.tensor(f), retain_graph=True)[0] for f in (1.0, 4.0))
    assert made()
    assert torch.equal(second, 4 * first)


# --- launches ---------------------------------------------------------------------------------------------------

PASSES = {2: ["row_pass", "column_pass"], 3: ["row_pass", "column_pass", "block_minima", "column_pass"]}
AFTER = ["rectify", "region_wise", "finish_loss", "scale_gradient"]


@needs_compiler
@pytest.mark.parametrize("axes", [2, 3])
def test_five_levels_take_as_many_launches_as_one(axes, recorded):
    logits, labels = sample((128,) * axes, levels=5)
    step(logits, labels, [0.5**level for level in range(5)])
    assert names(recorded) == [f"{kernel}_levels" for kernel in (*PASSES[axes], *AFTER)]
    recorded.launches.clear()
    step(logits[:1], labels[:1])
    assert names(recorded) == [*PASSES[axes], *AFTER]


@needs_compiler
def test_integers_of_levels_are_not_compiled_in(recorded):
    binaries = []
    for sizes in ((64, 48), (16, 16), (128, 32)):
        logits, labels = sample(sizes, levels=2)
        start = len(recorded.launches)
        step(logits, labels, [1.0, 0.5])
        binaries.append([launch.compiled for launch in recorded.launches[start:]])
    for launch in recorded.launches:
        assert not [path for path, value in launch.constants.items() if not path.isupper() and value is not None]
        divisible = {path.split(".")[0] for path in launch.divisible}
        assert all(kind.startswith("*") for path in divisible for kind in _flat(launch.signature[path]))
    for one, other in zip(*binaries[1:], strict=True):
        assert one is other or "row_pass" in one.name  # which knows the width of its rows


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, F16], ids=name)
@pytest.mark.parametrize("shape", [(16, 24), (4, 6, 16)])
def test_a_plan_launches_the_binaries_of_the_operators(shape, dtype, recorded):
    logits, labels = sample(shape, dtype, ignore_index=255)
    step(logits, labels, ignore_index=255)
    by_plan = recorded.launches[:]
    with operators_alone():
        step(logits, labels, ignore_index=255)
    by_operators = recorded.launches[len(by_plan) :]
    for one, other in zip(by_plan, by_operators, strict=True):
        assert one.compiled is other.compiled
        assert one.grid == other.grid
        numbers = [{k: v for k, v in each.arguments.items() if not isinstance(v, Tensor)} for each in (one, other)]
        assert numbers[0] == numbers[1]


def _flat(value: Any) -> list[Any]:
    return [each for part in value for each in _flat(part)] if isinstance(value, (tuple, list)) else [value]


@needs_compiler
@pytest.mark.parametrize("levels", [1, 3])
def test_what_binaries_are_handed_are_the_addresses_of_those_tensors(levels, recorded, monkeypatch):
    """The proof that emulated numbers hold where plans hand over addresses: elsewhere in these tests they do not."""
    seen: list[tuple[Replay, Any]] = []
    run = Replay._run
    monkeypatch.setattr(Replay, "_run", lambda self, buffers: seen.append((self, buffers)) or run(self, buffers))
    logits, labels = sample((4, 8, 16), levels=levels, ignore_index=255)
    step(logits, labels, [1.0, 0.5, 0.25][:levels], ignore_index=255)
    assert len(seen) == 2  # a step, and a backward
    with_tensors = recorded.launches[:]
    monkeypatch.setattr(Replay, "_pointers", ADDRESSES)
    for replay, buffers in seen:
        run(replay, buffers)
    with_addresses = recorded.launches[len(with_tensors) :]
    for one, other in zip(with_tensors, with_addresses, strict=True):
        assert one.compiled is other.compiled
        given, taken = (_flat(list(launch.arguments.values())) for launch in (one, other))
        assert [each.data_ptr() if isinstance(each, Tensor) else each for each in given] == taken


@needs_compiler
def test_scratch_memory_lies_in_the_gradient_but_for_the_sums_of_programs(recorded, monkeypatch):
    seen: list[Any] = []
    run = Replay._run
    monkeypatch.setattr(Replay, "_run", lambda self, buffers: seen.append(buffers) or run(self, buffers))
    logits, labels = sample((32, 64, 64), levels=2)
    step(logits, labels, [1.0, 0.5])
    scratch = seen[0][-1].numel() * seen[0][-1].element_size()
    assert scratch <= labels[0].numel() // 32
    with torch.no_grad():
        loss_fn = rw.RegionWiseLoss(validate=False, backend="triton")
        loss_fn(logits[0], labels[0])
    assert seen[-1][-1].numel() >= 4 * labels[0].numel()  # without a gradient it needs memory of its own


# --- what a plan is made for, and when its binaries change ------------------------------------------------------


def unaligned(tensor: Tensor) -> Tensor:
    """A copy whose address is no multiple of 16."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter knows no alignment")
def test_tensors_at_other_addresses_get_a_binary_with_narrow_accesses(device):
    logits, labels = sample((8, 16), levels=2)
    for moved in ([0, 0], [1, 0], [0, 1], [0, 0]):
        given = [unaligned(x) if move else x for x, move in zip(logits, moved, strict=True)]
        assert_like_the_reference(given, labels, [1.0, 0.5])
        launch = [launch for launch in device.launches if launch.name == "region_wise_levels"][-1]
        aligned = [int(f"logits.{level}" not in launch.divisible) for level in range(2)]
        assert aligned == moved
    assert len(made()) == 1


@needs_compiler
def test_memory_that_an_allocator_does_not_align_is_seen_too(recorded, monkeypatch):
    logits, labels = sample((8, 16))
    step(logits, labels)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: unaligned(empty_like(tensor, **options).zero_()))
    step(logits, labels)
    first, second = [launch for launch in recorded.launches if launch.name == "region_wise"]
    assert "grad" in first.divisible
    assert "grad" not in second.divisible


@needs_compiler
def test_another_driver_gets_binaries_of_its_own():
    logits, labels = sample((8, 16))
    for _ in range(2):
        with emulated(run=False) as found:
            step(logits, labels)
            step(logits, labels)
        assert len(names(found)) == 2 * 6
    assert len(made()) == 1


@needs_compiler
def test_a_setting_of_triton_makes_other_binaries(recorded, monkeypatch):
    from triton import knobs

    logits, labels = sample((8, 16))
    step(logits, labels)
    monkeypatch.setattr(knobs.runtime, "debug", True)
    step(logits, labels)
    before, after = [launch for launch in recorded.launches if launch.name == "region_wise"]
    assert (before.metadata.debug, after.metadata.debug) == (False, True)


@needs_compiler
def test_the_environment_and_a_forced_backend_count_at_once(recorded, monkeypatch):
    logits, labels = sample((8, 16))
    step(logits, labels, backend=None)  # the native one, or the reference
    assert not names(recorded)
    step(logits, labels)
    assert len(names(recorded)) == 6
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "triton")
    step(logits, labels, backend=None)
    assert len(names(recorded)) == 12
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    step(logits, labels, backend=None)
    assert len(names(recorded)) == 12


@needs_compiler
def test_every_launch_goes_to_the_stream_of_the_moment_and_calls_the_hooks(recorded):
    import triton as language
    from triton import knobs

    driver = language.runtime.driver.active
    seen: list[tuple[str, int]] = []

    def hook(metadata: Any) -> None:
        seen.append((metadata.get()["name"], metadata.get()["stream"]))

    logits, labels = sample((8, 16))
    step(logits, labels)
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        for stream in (7, 11):
            driver.get_current_stream = lambda index, stream=stream: stream
            step(logits, labels)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert seen == [(each, stream) for stream in (7, 11) for each in [*PASSES[2], *AFTER]]


@needs_compiler
def test_where_triton_gives_no_binary_launches_are_ordinary_ones(monkeypatch):
    from triton.runtime.jit import JITFunction

    logits, labels = sample((8, 16), levels=2)
    monkeypatch.setattr(JITFunction, "warmup", lambda *arguments, **options: None)
    with emulated() as device:
        assert_like_the_reference(logits, labels, [1.0, 0.5])
    assert names(device) == [f"{kernel}_levels" for kernel in (*PASSES[2], *AFTER)]


def test_what_takes_more_than_launches_has_no_plan(device):
    (logits,), (labels,) = sample((8, 16))
    maps = rw.rectified_map(labels, 3, backend="reference")
    options = {"backend": "triton", "validate": False}
    rw.RegionWiseLoss(backend="triton", validate=True)(logits, labels)
    rw.RegionWiseLoss(**options)(torch.nn.functional.pad(logits, (0, 1))[..., :-1], labels)  # would be copied
    rw.region_wise_loss(logits.double(), maps, **options)  # a float64 background would be filled
    rw.region_wise_loss(logits, maps, ignore_index=0, **options)  # pixels would be counted
    rw.region_wise_loss(logits, maps, reduction="none", **options)
    assert not made()


@needs_compiler
def test_several_threads_share_a_plan(recorded):
    logits, labels = sample((8, 16), levels=2)
    step(logits, labels, [1.0, 0.5])
    each = len(names(recorded))
    threads = [threading.Thread(target=lambda: [step(logits, labels, [1.0, 0.5]) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(recorded)) == 21 * each
    assert len(made()) == 1
    assert load("triton") is triton
