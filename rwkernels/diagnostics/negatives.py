"""Signs of the gradient: how many entries of a pixel's gradient are negative, and how many are wrong (Fig. 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.losses.problem import loss_problem
from rwkernels.maps.compact import RectifiedMap
from rwkernels.ops import loss as loss_ops  # noqa: F401  (loss_ops defines the operators)


def _signs(
    logits: Tensor,
    maps: Tensor | RectifiedMap,
    labels: Tensor | None,
    ignore_index: int | None,
    include_background: bool,
    probabilities: bool,
    wrong: bool,
    validate: bool | None,
    backend: str | None,
) -> Tensor:
    logits = checks.logits(logits).detach()
    problem = loss_problem(
        logits,
        maps,
        labels=labels,
        ignore_index=ignore_index,
        include_background=include_background,
        reduction="none",
        validate=validate,
        backend=backend,
    )
    if wrong and problem.labels is None:
        raise ValueError("labels: expected the labels of the map, which a dense map does not carry, got None")
    problem = problem._replace(image_count=None)
    found: Tensor = torch.ops.rwkernels.negatives(*problem, checks.flag("probabilities", probabilities), wrong)
    return found


def negative_gradients(
    logits: Tensor,
    maps: Tensor | RectifiedMap,
    *,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    probabilities: bool = False,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Number of negative entries in every pixel's gradient of the region-wise loss (Fig. 3).

    Gradient descent raises the logits whose entries are negative. A rectified map gives one negative entry, that of the
    true class; a boundary map of three classes or more can give several, which pull against each other. The gradient is
    that of Eq. 2; no sum or mean over pixels changes its signs.

    Args:
        logits: float32, float64, bfloat16 or float16 `[B, K, *S]` with one to three spatial axes, any strides.
        maps: A `RectifiedMap`, or a dense floating map `[B, K, *S]`.
        labels: Integers `[B, *S]`: needed for a dense map with `ignore_index`.
        ignore_index: Label, possibly negative, of pixels that do not count.
        include_background: False leaves channel 0 out of the loss (see `region_wise_loss`); it keeps its entry.
        probabilities: `logits` holds probabilities instead, which need not sum to 1; negative ones count as 0.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Returns:
        int32 `[B, *S]`: 0 to K - 1, or -1 where there is no gradient (the pixel is ignored, or its logits are not
        finite). An entry of a class whose probability underflows is 0, not negative.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices, class counts or label values are wrong.

    References:
        Valverde & Tohka, section 3.3 and Fig. 3.

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.diagnostics import negative_gradients
        >>> maps = torch.tensor([12.0, 4.0, -3.0]).view(1, 3, 1, 1)
        >>> y = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1)  # the second class too is below sum y z = 7.4
        >>> negative_gradients(y, maps, probabilities=True)
        tensor([[[2]]], dtype=torch.int32)
    """
    return _signs(logits, maps, labels, ignore_index, include_background, probabilities, False, validate, backend)


def wrong_signs(
    logits: Tensor,
    maps: Tensor | RectifiedMap,
    *,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    probabilities: bool = False,
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Number of entries in every pixel's gradient whose sign is wrong: that move a logit away from the label.

    Right is a negative entry at the true class, whose logit descent then raises, and a positive one at every other
    class. An entry that is zero is not wrong: it moves nothing.

    Args:
        logits: As of `negative_gradients`, like the other arguments.
        maps: A `RectifiedMap`, or a dense floating map `[B, K, *S]`.
        labels: Integers `[B, *S]`, needed for a dense map.
        ignore_index: Label of pixels that do not count.
        include_background: False leaves channel 0 out of the loss.
        probabilities: `logits` holds probabilities instead.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Returns:
        int32 `[B, *S]`: 0 to K, or -1 where there is no gradient.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `labels` are missing for a dense map; or shapes, devices, class counts or label values are wrong.

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.diagnostics import wrong_signs
        >>> maps = torch.tensor([12.0, 4.0, -3.0]).view(1, 3, 1, 1)
        >>> y = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1)
        >>> wrong_signs(y, maps, labels=torch.tensor([[[2]]]), probabilities=True)  # the negative one of the second
        tensor([[[1]]], dtype=torch.int32)
    """
    return _signs(logits, maps, labels, ignore_index, include_background, probabilities, True, validate, backend)


def wrong_sign_fraction(logits: Tensor, maps: Tensor | RectifiedMap, **options: Any) -> Tensor:
    """Part of all gradient entries whose sign is wrong (see `wrong_signs`).

    Args:
        logits: As of `negative_gradients`.
        maps: A `RectifiedMap`, or a dense floating map `[B, K, *S]` with its `labels`.
        **options: As of `wrong_signs`.

    Returns:
        float64 scalar in [0, 1], over the K entries of every pixel that has a gradient; 0 if none has.

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.diagnostics import wrong_sign_fraction
        >>> labels = torch.randint(4, (2, 16, 16))
        >>> wrong_sign_fraction(torch.randn(2, 4, 16, 16), rw.rectified_map(labels, 4))
        tensor(0., dtype=torch.float64)
    """
    wrong = wrong_signs(logits, maps, **options)
    counts = wrong >= 0
    entries = counts.sum() * logits.shape[1]
    return wrong.clamp(min=0).sum().double() / entries.clamp(min=1)


def sign_histogram(counts: Tensor, num_classes: int) -> Tensor:
    """How many pixels have 0, 1, ..., K negative (or wrong) entries, int64 `[K + 1]`; those with -1 are left out.

    Rows of it, one per epoch, are what `rwkernels.plots.negative_counts` draws.

    Args:
        counts: What `negative_gradients` or `wrong_signs` returned.
        num_classes: Number of classes K.

    Raises:
        TypeError: `counts` are no integers.
        ValueError: A count is not in [-1, K].

    Examples:
        >>> import torch
        >>> sign_histogram(torch.tensor([[1, 2, 1, -1]], dtype=torch.int32), num_classes=3)
        tensor([0, 2, 1, 0])
    """
    checks.integer("num_classes", num_classes, lowest=1)
    found = checks.tensor("counts", counts).flatten()
    if found.dtype not in checks.LABEL_DTYPES:
        raise TypeError(f"counts: expected integers, got {checks.describe(counts)}")
    found = found.long()
    outside = (found < -1) | (found > num_classes)
    if bool(outside.any()):
        raise ValueError(f"counts: expected integers in [-1, {num_classes}], got {int(found[outside][0])}")
    return torch.bincount(found + 1, minlength=num_classes + 2)[1:]
