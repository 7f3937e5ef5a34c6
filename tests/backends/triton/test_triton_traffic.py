"""The bytes that a step of the Triton backend moves, counted access by access where its binaries are emulated.

Of N pixels and K classes in float32 a step reads the logits and writes their gradient, 2K * 4 bytes a pixel, and reads
the map: K * 4 if it is dense; a label and 4 bytes if it is compact.
"""

from __future__ import annotations

from typing import Any

import ptx
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if (reason := ptx.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

from loss_cases import make_case, name
from ptx.driver import Device, Launch, emulated_device
from triton_launches import Variant

import rwkernels as rw
from rwkernels.backends import triton
from rwkernels.ops import loss as loss_ops

F32, BF16 = torch.float32, torch.bfloat16
BATCH, SHAPE = 2, (24, 43)  # several programs an image, the last one not full
PIXELS = BATCH * 24 * 43


@pytest.fixture(autouse=True)
def on_cpu_tensors(monkeypatch):
    monkeypatch.setattr(triton, "can_run", lambda device: None)


@pytest.fixture
def device():
    with emulated_device("cuda", 90) as found:
        yield found


def case(kind: str, num_classes: int = 4, **options: Any) -> Any:
    return make_case(kind, batch=BATCH, num_classes=num_classes, shape=SHAPE, **options)


def step(device: Device, given: Any, upstream: Tensor | None = None, **options: Any) -> list[Launch]:
    """The launches of a forward and a backward."""
    before = len(device.launches)
    x = given.logits.detach().requires_grad_()
    loss = rw.region_wise_loss(x, given.maps, backend="triton", validate=False, **options)
    torch.autograd.grad(loss, x, upstream)
    return device.launches[before:]


def names(launches: list[Launch]) -> list[str]:
    return [launch.name for launch in launches]


def per_pixel(launch: Launch) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes loaded and stored for a pixel, by argument; without the sums of programs, which are 4 bytes each."""
    assert launch.counts is not None
    loaded = {argument: size / PIXELS for argument, size in launch.counts.loaded.items()}
    stored = {argument: size / PIXELS for argument, size in launch.counts.stored.items()}
    if not launch.constants["PER_PIXEL"] and "loss" in stored:
        programs, pixels_of_a_program = launch.grid[0], launch.constants["BLOCK"]
        assert launch.counts.stored["loss"] == 4 * programs
        assert 4 / pixels_of_a_program < 0.01 * sum(loaded.values())
        del stored["loss"]
    return loaded, stored


@pytest.mark.parametrize("num_classes", [2, 4, 17, 40])
def test_a_dense_step_in_float32_moves_the_logits_their_gradient_and_the_map_once(device, num_classes):
    loaded, stored = per_pixel(step(device, case("dense", num_classes))[0])
    k = num_classes
    assert loaded == {"logits": k * 4, "maps": k * 4}
    assert stored == {"grad": k * 4}
    assert sum(loaded.values()) + sum(stored.values()) == 2 * k * 4 + k * 4


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int16, torch.int64], ids=name)
@pytest.mark.parametrize("num_classes", [2, 4, 17, 40])
def test_a_compact_step_in_float32_moves_a_label_and_4_bytes_instead_of_the_map(device, num_classes, label_dtype):
    loaded, stored = per_pixel(step(device, case("compact", num_classes, label_dtype=label_dtype))[0])
    k, label = num_classes, label_dtype.itemsize
    assert loaded["logits"] == stored["grad"] == k * 4
    if k <= 32:  # of more classes, threads share a pixel and ask for its label together
        assert loaded == {"logits": k * 4, "maps": 4, "labels": label}
        assert sum(loaded.values()) + sum(stored.values()) == 2 * k * 4 + label + 4


def test_bfloat16_halves_what_logits_and_gradient_cost_and_the_map_where_it_is_bfloat16_too(device):
    k = 4
    dense = case("dense", dtype=BF16)
    assert per_pixel(step(device, dense)[0]) == ({"logits": 2 * k, "maps": 4 * k}, {"grad": 2 * k})
    dense.maps = dense.maps.to(BF16)
    assert per_pixel(step(device, dense)[0]) == ({"logits": 2 * k, "maps": 2 * k}, {"grad": 2 * k})
    compact = case("compact", dtype=BF16, label_dtype=torch.uint8)
    loaded = {"logits": 2 * k, "maps": 4, "labels": 1}
    assert per_pixel(step(device, compact)[0]) == (loaded, {"grad": 2 * k})


def test_a_background_of_every_pixel_costs_4_bytes_and_a_class_scale_what_the_cache_gives(device):
    loaded, stored = per_pixel(step(device, case("compact", background="pixel", class_scale=True))[0])
    del loaded["class_scale"]  # the same 16 bytes for all threads
    assert loaded == {"logits": 16, "maps": 4, "labels": 8, "background": 4}
    assert stored == {"grad": 16}


def test_without_a_gradient_none_is_written(device):
    given = case("dense")
    rw.region_wise_loss(given.logits, given.maps, backend="triton")
    assert names(device.launches) == ["region_wise", "finish_loss"]
    assert per_pixel(device.launches[0]) == ({"logits": 16, "maps": 16}, {})


def test_recomputing_reads_twice_and_writes_the_gradient_once(device):
    forward, finish, backward = step(device, case("dense"), recompute=True)
    assert names([forward, finish, backward]) == ["region_wise", "finish_loss", "region_wise"]
    assert per_pixel(forward) == ({"logits": 16, "maps": 16}, {})
    loaded, stored = per_pixel(backward)
    assert loaded.pop("upstream") * PIXELS <= 4 * 128 * backward.grid[0]
    assert (loaded, stored) == ({"logits": 16, "maps": 16}, {"grad": 16})


def test_the_loss_of_every_pixel_is_written_once(device):
    forward, backward = step(device, case("dense"), torch.ones(BATCH, *SHAPE), reduction="none")
    assert per_pixel(forward) == ({"logits": 16, "maps": 16}, {"loss": 4})
    assert per_pixel(backward) == ({"logits": 16, "maps": 16, "pixel_scale": 4}, {"grad": 16})


def test_channels_last_moves_no_more(device):
    given = case("dense", num_classes=3)
    given.logits = given.logits.to(memory_format=torch.channels_last)
    given.maps = given.maps.to(memory_format=torch.channels_last)
    launches = step(device, given)
    assert names(launches) == ["region_wise", "finish_loss", "scale_gradient"]
    assert launches[0].constants["LOGITS_LAST"]
    assert per_pixel(launches[0]) == ({"logits": 12, "maps": 12}, {"grad": 12})


def test_ignored_pixels_are_counted_in_one_more_reading_of_the_labels_unless_the_map_brings_their_number(device):
    given = case("compact", ignore_index=-1, label_dtype=torch.int16)
    launches = step(device, given)
    assert names(launches) == ["count_pixels", "region_wise", "finish_loss", "scale_gradient"]
    assert launches[0].counts.loaded["labels"] == 2 * PIXELS
    counted = (given.maps.labels != -1).flatten(1).sum(1)
    given.maps = rw.RectifiedMap(given.maps.labels, given.maps.foreground, 1.25, 4, None, -1, counted)
    launches = step(device, given)
    assert names(launches) == ["region_wise", "finish_loss", "scale_gradient"]
    loaded, stored = per_pixel(launches[0])
    assert loaded.pop("count") * PIXELS <= launches[0].grid[0] * 128 * 8 * BATCH  # from the cache
    assert (loaded, stored) == ({"logits": 16, "maps": 4, "labels": 2}, {"grad": 16})


def test_scaling_a_gradient_by_1_in_place_touches_nothing_of_it(device):
    *_, scaling = step(device, case("dense"))
    assert scaling.name == "scale_gradient"
    assert scaling.counts.loaded.keys() == {"upstream"}
    assert not scaling.counts.stored


def test_scaling_a_gradient_by_anything_else_reads_and_writes_it_once(device):
    *_, scaling = step(device, case("dense"), torch.tensor(2.0))
    loaded = dict(scaling.counts.loaded)
    del loaded["upstream"]
    assert loaded == dict(scaling.counts.stored) == {"grad": 4 * 4 * PIXELS}
    problem = Variant("dense", 4).problem()
    grad = torch.ones_like(problem.logits)
    copy = triton.scale_gradient(problem, grad, torch.ones(()), divide=False, in_place=False)
    counts = device.launches[-1].counts
    assert torch.equal(copy, grad)
    assert (counts.loaded["grad"], counts.stored["out"]) == (grad.nbytes, grad.nbytes)


class Operations(TorchDispatchMode):
    """Lists what PyTorch runs besides the kernels, inside the package's own operators too, but no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is torch.ops.rwkernels.region_wise.default:
            with self:
                return loss_ops._region_wise(*arguments)
        result = function(*arguments, **(keywords or {}))
        inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
        if not inputs or result.untyped_storage().data_ptr() != inputs[0].untyped_storage().data_ptr():
            self.names.append(str(function).removeprefix("aten.").rpartition(".")[0])
        return result


@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_a_step_is_one_kernel_and_a_small_reduction_and_pytorch_only_allocates(device, kind):
    given = case(kind, ignore_index=None if kind == "dense" else -1, label_dtype=torch.int16)
    if kind == "compact":
        counted = (given.maps.labels != -1).flatten(1).sum(1)
        given.maps = rw.RectifiedMap(given.maps.labels, given.maps.foreground, 1.25, 4, None, -1, counted)
    with Operations() as operations:
        launches = step(device, given)
    assert names(launches) == ["region_wise", "finish_loss", "scale_gradient"]
    finishing = launches[1]
    assert finishing.counts.loaded["partials"] == 4 * launches[0].grid[0]
    assert finishing.counts.stored == {"loss": 4}
    touching = [operation for operation in operations.names if operation not in ("empty", "empty_like", "new_empty")]
    assert touching == ["ones_like"]  # what the backward starts from


@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_the_same_step_gives_the_same_bits(device, kind):
    given = case(kind, num_classes=5)

    def once() -> tuple[Tensor, Tensor]:
        x = given.logits.detach().requires_grad_()
        loss = rw.region_wise_loss(x, given.maps, backend="triton", validate=False)
        loss.backward()
        return loss.detach(), x.grad

    (loss, grad), (again, grad_again) = once(), once()
    assert torch.equal(loss, again)
    assert torch.equal(grad, grad_again)
    pixels = slice(0, 1)  # an image has the same gradient, up to the divisor, whatever is beside it
    x = given.logits[pixels].detach().requires_grad_()
    maps = given.maps[pixels]
    rw.region_wise_loss(x, maps, reduction="sum", backend="triton", validate=False).backward()
    y = given.logits.detach().requires_grad_()
    rw.region_wise_loss(y, given.maps, reduction="sum", backend="triton", validate=False).backward()
    assert torch.equal(x.grad, y.grad[pixels])
