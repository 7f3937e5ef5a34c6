"""The region-wise loss as a function."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends.reference import count_valid
from rwkernels.losses import distributed
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import labels_like
from rwkernels.ops.autograd import region_wise, transforms_active


def check_logits(value: Any) -> Tensor:
    """Logits as a plain floating tensor [B, K, *S] with one to three spatial axes."""
    logits = checks.tensor("logits", value)
    checks.floating("logits", logits)
    if not 3 <= logits.dim() <= 5:
        raise ValueError(f"logits: expected [B, K, *S] with 1 to 3 spatial axes, got {checks.describe(logits)}")
    if logits.shape[1] < 1:
        raise ValueError(f"logits: expected at least one channel, got {checks.describe(logits)}")
    return logits


def _spatial(name: str, value: Tensor, logits: Tensor) -> Tensor:
    """A [B, *S] tensor of a map, brought to the logits' rank and checked against them."""
    if value.dim() == logits.dim() and value.shape[1] == 1:
        value = value.squeeze(1)
    checks.shape(name, value, (logits.shape[0], *logits.shape[2:]), "[B, *S] of the logits")
    checks.same_device(name, value, "logits", logits)
    return value


def _compact(logits: Tensor, maps: RectifiedMap) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Foreground, labels, background and class scale of a map, checked against the logits."""
    if arrays.is_array(maps.labels):
        raise TypeError('maps: expected a map over torch tensors, got one over arrays (use maps.to("cpu"))')
    if maps.num_classes != logits.shape[1]:
        raise ValueError(
            f"maps: expected as many classes as the logits have channels ({logits.shape[1]}), "
            f"got num_classes={maps.num_classes}"
        )
    labels = checks.label_dtype("maps.labels", _spatial("maps.labels", maps.labels, logits))
    foreground = _spatial("maps.foreground", maps.foreground, logits)
    checks.floating("maps.foreground", foreground)
    background = None
    if isinstance(maps.background, Tensor):
        background = maps.background
        background = background.expand_as(foreground) if background.dim() == 0 else background
        background = _spatial("maps.background", background, logits)
        checks.floating("maps.background", background)
    scale = maps.class_scale
    if scale is not None:
        checks.shape("maps.class_scale", scale, (logits.shape[1],), "[K]")
        checks.same_device("maps.class_scale", scale, "logits", logits)
    return foreground, labels, background, scale


def _dense(logits: Tensor, value: Any) -> Tensor:
    maps = checks.tensor("maps", value)
    if maps.dtype in checks.LABEL_DTYPES:
        raise TypeError(
            "maps: expected a floating map or a RectifiedMap (RegionWiseLoss and rectified_map take labels), "
            f"got {checks.describe(maps)}"
        )
    checks.floating("maps", maps)
    checks.shape("maps", maps, logits.shape, "that of the logits, [B, K, *S]")
    checks.same_device("maps", maps, "logits", logits)
    return maps


def _ignore_index(maps: Any, ignore_index: int | None) -> int | None:
    found = checks.ignore_index(ignore_index)
    if not isinstance(maps, RectifiedMap):
        return found
    if found is not None and maps.ignore_index is not None and found != maps.ignore_index:
        raise ValueError(f"ignore_index: expected that of the map ({maps.ignore_index}), got {found}")
    return maps.ignore_index if found is None else found


class Parts(NamedTuple):
    """What a map is to the operators of the loss: fields of `LossProblem`, checked against the logits."""

    values: Tensor  # dense [B, K, *S], or the foreground [B, *S]
    labels: Tensor | None
    background: Tensor | None
    class_scale: Tensor | None
    image_count: Tensor | None
    background_value: float
    ignore_index: int | None


def parts(logits: Tensor, maps: Any, labels: Any, ignore_index: int | None) -> Parts:
    """The parts of a dense map, with its labels if they are given, or of a `RectifiedMap`."""
    ignored = _ignore_index(maps, ignore_index)
    background = scale = count = None
    background_value = 0.0
    if isinstance(maps, RectifiedMap):
        if labels is not None:
            raise ValueError("labels: expected None (a RectifiedMap carries its own), got " + checks.describe(labels))
        values, labels, background, scale = _compact(logits, maps)
        background_value = 0.0 if background is not None else float(maps.background)
        if ignored is not None and ignored == maps.ignore_index and maps.image_count is not None:
            count = maps.image_count.reshape(-1)
            checks.shape("maps.image_count", count, (logits.shape[0],), "[B]")
            checks.same_device("maps.image_count", count, "logits", logits)
    else:
        values = _dense(logits, maps)
        if labels is not None:
            labels = labels_like("labels", labels, logits.shape)
            checks.same_device("labels", labels, "logits", logits)
        elif ignored is not None:
            raise ValueError(
                "labels: expected the labels of the map, which ignore_index needs for a dense map, got None"
            )
    if any(part is not None and part.requires_grad for part in (values, background, scale)):
        raise ValueError("maps: expected a map that requires no gradient, got one that does (use maps.detach())")
    return Parts(values, labels, background, scale, count, background_value, ignored)


def _warn_about_one_channel(num_classes: int) -> None:
    if num_classes == 1 and not torch.compiler.is_compiling():
        warnings.warn(
            "logits: softmax over one channel is 1 everywhere, so the gradient is 0; use two channels "
            "(background and foreground)",
            stacklevel=3,
        )


def region_wise_loss(
    logits: Tensor,
    maps: Tensor | RectifiedMap,
    *,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    reduction: str = "mean",
    recompute: bool = False,
    process_group: Any = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Region-wise loss, Eq. 1: the sum over pixels and classes of `softmax(logits) * maps`.

    Loss and gradient (Eq. 2, `y_k (z_k - sum_l y_l z_l)`) are computed in one pass over the logits; the backward only
    hands the gradient over. A `RectifiedMap` is read as a label and one number a pixel instead of K map values.

    Args:
        logits: float32, float64, bfloat16 or float16 `[B, K, *S]` with one to three spatial axes, any strides.
        maps: A `RectifiedMap`, or a dense floating map `[B, K, *S]` that requires no gradient.
        labels: Integers `[B, *S]` or `[B, 1, *S]`: needed for a dense map with `ignore_index`, as it carries no labels.
        ignore_index: Label, possibly negative, of pixels that give no loss and no gradient, whatever their logits hold.
            A `RectifiedMap` that was built with one brings its own.
        include_background: False leaves channel 0 out of the sum (the softmax is over all K, the divisor `N*(K-1)`);
            the map is then no longer rectified.
        reduction: `"mean"` divides by `N*K`, N being the pixels that count in the whole batch (0 if there are none);
            `"sum"`; `"none"` returns the loss of every pixel.
        recompute: Compute the gradient in the backward instead of keeping it from the forward: saves the memory of one
            gradient between the two, and reads logits and map a second time.
        process_group: A group of W processes that each hold a part of the batch, or `"world"` for the default group
            (one process where torch.distributed was not started). Every one of them returns `W * L / (N*K)` for
            `"mean"`, L being the sum over its own pixels and N the pixels that count in all processes, and `W * L`
            for `"sum"`. The mean of these losses over the processes is the loss of the joined batch, and so is the
            mean of their gradients, which is what DistributedDataParallel takes. Without it, every process divides by
            its own N, which is the same only where all have as many pixels that count. All processes have to call it
            equally often, also those with nothing left to count. Not with `"none"`, nor under `torch.func`.
        validate: Check label values (`labels`, or those of the map): by default on the CPU, not on a GPU, where it
            would wait for the device. Bad labels that are not checked make the loss NaN.
        backend: Name of the backend to use instead of the default one.

    Returns:
        float32 (float64 for float64 logits): a scalar, or `[B, *S]` for `"none"`. The gradient has the dtype and the
        strides of the logits. Half precision is computed in float32.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes, devices or class counts disagree, or a value is out of range.
        NotImplementedError: `process_group` under a transform of `torch.func`.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 1 and 2.

    Examples:
        >>> import torch, rwkernels as rw
        >>> logits = torch.zeros(1, 4, 1, 1, requires_grad=True)  # the paper's example: softmax [.25] * 4
        >>> maps = torch.tensor([1.0, 1.0, 1.0, -0.6]).view(1, 4, 1, 1)
        >>> loss = rw.region_wise_loss(logits, maps)
        >>> loss.backward()
        >>> round(loss.item(), 6), (logits.grad * 4).flatten()
        (0.15, tensor([ 0.1000,  0.1000,  0.1000, -0.3000]))
    """
    logits = check_logits(logits)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    group = distributed.check_group(process_group, reduction)
    values, labels, background, scale, count, background_value, ignored = parts(logits, maps, labels, ignore_index)
    if group is not None and not torch.compiler.is_compiling() and transforms_active():
        raise NotImplementedError("process_group: a transform of torch.func cannot sum over processes; expected None")
    if group is not None and ignored is not None and count is None and labels is not None:
        count = count_valid(labels, ignored)
    _warn_about_one_channel(logits.shape[1])
    checks.flag("include_background", include_background)
    # A pixel's own incoming gradient is known in the backward only, and a transform may hide requires_grad. A compiled
    # backward cannot change in place what the forward kept: on a GPU, computing it there moves fewer bytes than a copy.
    with_grad = (
        not checks.flag("recompute", recompute)
        and reduction != "none"
        and torch.is_grad_enabled()
        and logits.requires_grad
        and (not logits.is_cuda if torch.compiler.is_compiling() else not transforms_active())
    )
    loss, _ = region_wise(
        logits,
        values,
        labels,
        background,
        scale,
        count,
        background_value,
        ignored,
        include_background,
        reduction,
        checks.validate(validate, logits.device),
        backend,
        0,
        with_grad,
    )
    if group is None:
        return loss
    if reduction == "sum":
        return loss * distributed.size_of(group)
    if distributed.size_of(group) == 1:
        return loss
    return distributed.weighted(loss, distributed.pixels_of(logits, count), group)
