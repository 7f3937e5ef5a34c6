"""The region-wise loss as a function."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.losses import distributed
from rwkernels.losses.problem import loss_problem
from rwkernels.losses.repeated import Options, loss_of_map
from rwkernels.maps.compact import RectifiedMap
from rwkernels.ops import mode
from rwkernels.ops.autograd import region_wise


def warn_about_one_channel(num_classes: int) -> None:
    """Warns that softmax over one channel has no gradient."""
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
    options = Options(
        ignore_index=checks.ignore_index(ignore_index),
        include_background=checks.flag("include_background", include_background),
        reduction=checks.choice("reduction", reduction, checks.REDUCTIONS),
        recompute=checks.flag("recompute", recompute),
        validate=validate,
        backend=backend,
    )
    group = distributed.check_group(process_group, reduction)
    ignores = options.ignore_index is not None or getattr(maps, "ignore_index", None) is not None
    if group is None or not ignores:  # who joins losses has to know how many pixels count
        planned = loss_of_map(logits, maps, labels, options)
        if planned is not None:
            return distributed.joined(planned, logits, None, reduction, group)
    logits = checks.logits(logits)
    if group is not None and not torch.compiler.is_compiling() and mode.transforms_active():
        raise NotImplementedError("process_group: a transform of torch.func cannot sum over processes; expected None")
    problem = loss_problem(
        logits,
        maps,
        labels=labels,
        ignore_index=ignore_index,
        include_background=include_background,
        reduction=reduction,
        validate=validate,
        backend=backend,
        count_now=group is not None,
    )
    warn_about_one_channel(logits.shape[1])
    # A pixel's own incoming gradient is known in the backward only, and a transform may hide requires_grad. A compiled
    # backward cannot change in place what the forward kept: on a GPU, computing it there moves fewer bytes than a copy.
    with_grad = (
        not recompute
        and reduction != "none"
        and torch.is_grad_enabled()
        and logits.requires_grad
        and (not logits.is_cuda if torch.compiler.is_compiling() else not mode.transforms_active())
    )
    loss, _ = region_wise(problem, with_grad)
    return distributed.joined(loss, logits, problem.image_count, reduction, group)
