"""What the tests of the loss share: inputs that would expose a mistake, and the same loss in eager PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from choices import readable
from torch import Tensor

import rwkernels as rw
from rwkernels.backends import native
from rwkernels.ops import mode
from rwkernels.ops import planned as plans

_WHY_NOT_NATIVE = native.can_run(torch.device("cpu"))
needs_native = pytest.mark.skipif(_WHY_NOT_NATIVE is not None, reason=f"no native backend: {_WHY_NOT_NATIVE}")
_BACKENDS: list[Any] = ["reference", pytest.param("native", marks=needs_native)]
if os.environ.get("TRITON_INTERPRET") == "1":  # set by test_triton_interpreter.py, in a process of its own
    _BACKENDS.append("triton")
on_cpu_backends = pytest.mark.parametrize("backend", _BACKENDS)
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KINDS = ["compact", "dense"]
REDUCTIONS = ["mean", "sum", "none"]
either_kind = pytest.mark.parametrize("kind", KINDS)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
kept_or_recomputed = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
# Ways to lay out [B, K, H, W] in memory.
LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed-space": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch-inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "class-slice": lambda x: torch.stack([x, x + 7], 2).flatten(1, 2)[:, ::2],
    "crop": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
    "every-other-column": lambda x: torch.stack([x, x + 7], -1).flatten(3)[..., ::2],
    "flipped-twice": lambda x: x.flip(3).flip(3),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
FAMILIES = ["rectified", "boundary", "active_contour", "constant"]
name = readable  # of a parameter, as `ids=name`


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_labels(
    shape: Sequence[int], num_classes: int, ignore_index: int | None = None, seed: int = 0, dtype: Any = torch.int64
) -> Tensor:
    """Labels [B, *S] of every class; about a quarter of the pixels ignored if there is an `ignore_index`."""
    labels = torch.randint(num_classes, tuple(shape), generator=generator(seed))
    if ignore_index is not None:
        ignored = torch.rand(tuple(shape), generator=generator(seed + 1)) < 0.25
        labels = torch.where(ignored, ignore_index, labels)
    return labels.to(dtype)


def random_logits(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 10) -> Tensor:
    return (3 * torch.randn(tuple(shape), generator=generator(seed))).to(dtype)


@dataclass
class Case:
    """One problem, and its map once more, dense and in float64."""

    logits: Tensor
    maps: Tensor | rw.RectifiedMap
    dense: Tensor
    labels: Tensor | None
    ignore_index: int | None

    def options(self) -> dict[str, Any]:
        """What `region_wise_loss` needs besides logits and maps."""
        if isinstance(self.maps, rw.RectifiedMap):
            return {}
        return {"labels": self.labels, "ignore_index": self.ignore_index}

    def to(self, device: Any) -> Case:
        labels = None if self.labels is None else self.labels.to(device)
        return Case(self.logits.to(device), self.maps.to(device), self.dense.to(device), labels, self.ignore_index)


def make_case(
    kind: str = "compact",
    *,
    batch: int = 2,
    num_classes: int = 3,
    shape: Sequence[int] = (5, 7),
    dtype: torch.dtype = torch.float32,
    ignore_index: int | None = None,
    background: str = "number",
    class_scale: bool = False,
    label_dtype: torch.dtype = torch.int64,
    seed: int = 0,
) -> Case:
    """A compact map, or a dense one that is not rectified, with random values everywhere."""
    pixels = (batch, *shape)
    logits = random_logits((batch, num_classes, *shape), dtype, seed + 10)
    labels = random_labels(pixels, num_classes, ignore_index, seed, label_dtype)
    scale = 0.5 + torch.rand(num_classes, generator=generator(seed + 2)) if class_scale else None
    if kind == "dense":
        maps = 2 * torch.randn(logits.shape, generator=generator(seed + 3))
        maps = maps if scale is None else maps * scale.view(1, -1, *[1] * len(shape))
        return Case(logits, maps, maps.double(), labels, ignore_index)
    foreground = -torch.rand(pixels, generator=generator(seed + 4))
    per_pixel = 0.5 + torch.rand(pixels, generator=generator(seed + 5))
    compact = rw.RectifiedMap(
        labels, foreground, per_pixel if background == "pixel" else 1.25, num_classes, scale, ignore_index
    )
    return Case(logits, compact, written_out(compact), labels, ignore_index)


def written_out(maps: rw.RectifiedMap) -> Tensor:
    """The dense map that a compact one stands for, in float64, by its definition (section 2)."""
    background = torch.as_tensor(maps.background, dtype=torch.float64, device=maps.device).expand(maps.shape)
    classes = torch.arange(maps.num_classes, device=maps.device).view(1, -1, *[1] * (len(maps.shape) - 1))
    true_class = maps.labels.unsqueeze(1).long() == classes
    dense = torch.where(true_class, maps.foreground.double().unsqueeze(1), background.unsqueeze(1))
    if maps.class_scale is not None:
        dense = dense * maps.class_scale.double().view(classes.shape)
    return dense


def eager_loss(
    logits: Tensor,
    dense: Tensor,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Eq. 1 as one would write it in PyTorch: `(softmax(logits) * maps).mean()`, over the pixels that count."""
    count = logits[:, 0].numel()
    if ignore_index is not None:
        counts = (labels != ignore_index).unsqueeze(1)
        count = int(counts.sum())
        logits, dense = torch.where(counts, logits, 0.0), torch.where(counts, dense, 0.0)
    first = 0 if include_background else 1
    pixel = (torch.softmax(logits, 1) * dense)[:, first:].sum(1)
    if reduction == "none":
        return pixel
    divisor = max(count * (logits.shape[1] - first), 1) if reduction == "mean" else 1
    return pixel.sum() / divisor


def loss_and_gradient(
    function: Callable[[Tensor], Tensor], logits: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The value of `function` at the logits, strides kept, and its gradient as autograd first receives it."""
    x = logits.detach().requires_grad_()
    loss = function(x)
    (gradient,) = torch.autograd.grad(loss, x, None if upstream is None else upstream.to(loss.dtype))
    return loss.detach(), gradient


def tolerances(case: Case, factor: float = 1.0, *, reduction: str = "mean", include_background: bool = True) -> Any:
    """(atol of the loss, {rtol, atol} of a gradient that came with an upstream of at most `factor`).

    The arithmetic is float32 or better. Rounding `x_k - max` costs `y_k` at most `eps * t * exp(-t) < eps`, and every
    further step `eps`; the gradient multiplies that by at most `2 max|z|` and the factor of the reduction: 16 of
    these are allowed. A 16-bit gradient is rounded once more, and twice for float16, whose divisor follows later:
    one `eps` of that dtype together, or one subnormal step.
    """
    dtype, pixels = case.logits.dtype, case.logits[:, 0].numel()
    exact = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    unit = 16 * exact.eps * max(1.0, float(case.dense.abs().amax()))
    if reduction == "mean":  # what reaches a pixel that counts
        counted = pixels if case.ignore_index is None else int((case.labels != case.ignore_index).sum())
        factor /= max(counted * (case.logits.shape[1] - (not include_background)), 1)
    narrow = torch.finfo(dtype).bits == 16
    step = torch.finfo(dtype).tiny * torch.finfo(dtype).eps if narrow else 0.0
    loss_atol = unit * (pixels if reduction == "sum" else 1)
    return loss_atol, {"rtol": torch.finfo(dtype).eps if narrow else 0, "atol": unit * factor + step}


def assert_like_eager(
    case: Case,
    *,
    reduction: str = "mean",
    include_background: bool = True,
    upstream: Tensor | None = None,
    maps: Any = None,
    **options: Any,
) -> None:
    """Loss and gradient of the package against those of eager PyTorch in float64, from the same rounded logits."""
    if reduction == "none" and upstream is None:
        upstream = torch.randn(case.logits[:, 0].shape, generator=generator(99)).to(case.logits.device)
    shared = {"reduction": reduction, "include_background": include_background}

    def ours(x: Tensor) -> Tensor:
        return rw.region_wise_loss(x, case.maps if maps is None else maps, **case.options(), **shared, **options)

    for ways in (nullcontext, operators_alone):
        with ways():
            loss, gradient = loss_and_gradient(ours, case.logits, upstream)
        assert_results_of_eager(case, loss, gradient, upstream=upstream, **shared)


def assert_results_of_eager(
    case: Case,
    loss: Tensor,
    gradient: Tensor,
    *,
    reduction: str = "mean",
    include_background: bool = True,
    upstream: Tensor | None = None,
) -> None:
    """A loss and its gradient, however they came about, against those of eager PyTorch in float64."""
    shared = {"reduction": reduction, "include_background": include_background}

    def expected(x: Tensor) -> Tensor:
        return eager_loss(x, case.dense, case.labels, case.ignore_index, **shared)

    true_loss, true_gradient = loss_and_gradient(expected, case.logits.double(), upstream)
    dtype = case.logits.dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert gradient.shape == case.logits.shape
    factor = 1.0 if upstream is None else float(upstream.abs().amax())
    loss_atol, of_gradient = tolerances(case, factor, **shared)
    torch.testing.assert_close(loss, true_loss.to(loss.dtype), rtol=0, atol=loss_atol)
    torch.testing.assert_close(gradient.double(), true_gradient, **of_gradient)


class MetaLike(torch.Tensor):
    """A tensor that carries metadata and survives operations, as MONAI's MetaTensor does."""

    @staticmethod
    def __new__(cls, data: Tensor) -> MetaLike:
        return data.as_subclass(cls)

    def as_tensor(self) -> Tensor:
        return self.as_subclass(torch.Tensor)


@contextmanager
def operators_alone() -> Iterator[None]:
    """A context in which losses take no plans but the operators, as where a compiler or a dispatch mode looks on."""
    with mock.patch.object(mode, "is_watched", return_value=True):
        yield


class Calls:
    """Watches the losses of a backend, planned or not: with how many calls, and into which gradient buffers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.gradients: list[int | None] = []
        real, real_plan = module.loss, module.plan_loss

        class WatchedPlan:
            def __init__(self, plan: Any, gradients: list[int | None]) -> None:
                self.plan, self.scale, self.gradients = plan, plan.scale, gradients

            def __call__(self, *tensors: Any) -> Any:
                result = self.plan(*tensors)
                self.gradients.extend([grad.data_ptr() for grad in result.grads] or [None])
                return result

        def planned(*arguments: Any, **options: Any) -> Any:
            plan = real_plan(*arguments, **options)
            return None if plan is None else WatchedPlan(plan, self.gradients)

        def watched(problem: Any, *, grad: Tensor | None, **options: Any) -> Any:
            self.gradients.append(None if grad is None else grad.data_ptr())
            return real(problem, grad=grad, **options)

        monkeypatch.setattr(module, "loss", watched)
        monkeypatch.setattr(module, "plan_loss", planned)
        monkeypatch.setattr(plans, "_plans", {})
