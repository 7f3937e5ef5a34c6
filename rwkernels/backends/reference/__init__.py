"""The slow and obviously right version of everything, in plain PyTorch: the loss here, maps in `maps.py`.

Every other backend is tested against this one. It runs on any device and computes in float64 unless told
otherwise. Definitions are those of Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation"
(Pattern Recognition 2022, doi 10.1016/j.patcog.2022.109208); equation numbers below are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkernels.backends import LossProblem
from rwkernels.backends.reference.maps import (
    boundary,
    class_distance,
    class_max,
    count_valid,
    dense,
    distance,
    fill_boundary,
    fill_class_distance,
    fill_dense,
    fill_distance,
    fill_rectified,
    first_bad_label,
    first_bad_maximum,
    is_label,
    is_no_class,
    largest_of_classes,
    pass_axis,
    precision_of,
    rectified,
    rectified_distance,
    rectify,
    scale_view,
)

__all__ = [
    "NAME",
    "all_class_scales",
    "boundary",
    "can_run",
    "class_distance",
    "class_max",
    "count_valid",
    "dense",
    "distance",
    "fill_boundary",
    "fill_class_distance",
    "fill_dense",
    "fill_distance",
    "fill_negatives",
    "fill_rectified",
    "first_bad_label",
    "first_bad_maximum",
    "gradient_scale",
    "hessian_product",
    "is_label",
    "is_no_class",
    "largest_of_classes",
    "loss",
    "mean_divisor",
    "pass_axis",
    "per_image",
    "pixel_gradient",
    "pixel_loss",
    "problem_logits_and_maps",
    "rectified",
    "rectified_distance",
    "rectify",
    "reduced",
    "relative_probabilities",
    "scale_gradient",
    "scale_view",
]

NAME = "reference"


def can_run(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type == "meta":
        return "meta tensors hold no values"
    return None


def pixel_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """sum_k y_k z_k of every pixel, [B, *S] (Eq. 1 before the sum over pixels)."""
    return (torch.softmax(logits, 1) * maps).sum(1)


def pixel_gradient(logits: Tensor, maps: Tensor) -> Tensor:
    """Gradient of a pixel's loss by its own logits, [B, K, *S] (Eq. 2): y_k (z_k - sum_l y_l z_l)."""
    y = torch.softmax(logits, 1)
    return y * (maps - (y * maps).sum(1, keepdim=True))


def hessian_product(logits: Tensor, maps: Tensor, vector: Tensor) -> Tensor:
    """Second derivative of every pixel's loss times `vector` [B, K, *S]: the differential of Eq. 2.

    With dy = y (v - sum y v) along v, and l = sum y z: d(y (z - l)) = dy (z - l) - y sum(dy z).
    """
    y = torch.softmax(logits, 1)
    dy = y * (vector - (y * vector).sum(1, keepdim=True))
    loss = (y * maps).sum(1, keepdim=True)
    return dy * (maps - loss) - y * (dy * maps).sum(1, keepdim=True)


# --- the functions of `Backend`, over the definitions above ---------------------------------------------------


def mean_divisor(problem: LossProblem) -> Tensor:
    """N * K of every run, float64 [runs]; at least 1, so that nothing left gives 0 and no NaN."""
    logits, count = problem.logits, problem.image_count
    precision = precision_of(logits.device)
    if problem.ignore_index is None:
        elements = logits[:, 0].numel() // problem.runs * problem.channels
        return torch.full((problem.runs,), max(elements, 1), dtype=precision, device=logits.device)
    if count is None:
        assert problem.labels is not None
        count = count_valid(problem.labels, problem.ignore_index)
    return (count.reshape(problem.runs, -1).sum(1) * problem.channels).clamp(min=1).to(precision)


def per_image(values: Tensor, problem: LossProblem) -> Tensor:
    """One value for every image from one for every run."""
    images = len(problem.logits) // problem.runs
    return values.unsqueeze(1).expand(problem.runs, images).reshape(-1).contiguous()


def gradient_scale(problem: LossProblem, upstream: Tensor | None, divide: bool) -> tuple[Tensor | None, Tensor | None]:
    """What multiplies a gradient: a factor for every image, float64 [B], and one for every pixel, [B, *S]."""
    if problem.reduction == "none":
        return None, None if upstream is None else upstream.to(problem.loss_dtype).contiguous()
    scale = None if upstream is None else upstream.to(precision_of(upstream.device)).reshape(-1)
    if problem.reduction == "mean" and divide:
        divisor = mean_divisor(problem)
        scale = divisor.reciprocal() if scale is None else scale / divisor
    return None if scale is None else per_image(scale, problem), None


def reduced(image_sums: Tensor, problem: LossProblem) -> Tensor:
    """The loss of every run from the sums of its images, float64 [B]."""
    sums = image_sums.reshape(problem.runs, -1).sum(1)
    return (sums / mean_divisor(problem) if problem.reduction == "mean" else sums).to(problem.loss_dtype)


def all_class_scales(problem: LossProblem) -> Tensor | None:
    """`class_scale`, with 0 for a channel that is left out of the sum."""
    scale = problem.class_scale
    if problem.include_background:
        return scale
    included = torch.arange(problem.logits.shape[1], device=problem.logits.device) > 0
    return included.to(torch.float32) if scale is None else torch.where(included, scale, 0.0)


def problem_logits_and_maps(problem: LossProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and the dense map in `dtype`; 0 in both where a pixel is ignored, whatever stood there."""
    logits, labels, ignore_index = problem.logits.to(dtype), problem.labels, problem.ignore_index
    if problem.compact:
        assert labels is not None
        background = problem.background_value if problem.background is None else problem.background.to(dtype)
        maps = dense(labels, problem.maps.to(dtype), background, logits.shape[1], None, ignore_index)
    else:
        maps = problem.maps.to(dtype)
        if labels is not None:
            maps = maps.masked_fill(is_no_class(labels, logits.shape[1]).unsqueeze(1), torch.nan)
    scale = all_class_scales(problem)
    if scale is not None:
        maps = maps * scale_view(scale, maps)
    if ignore_index is not None and labels is not None:
        ignored = is_label(labels, ignore_index).unsqueeze(1)
        logits, maps = logits.masked_fill(ignored, 0.0), maps.masked_fill(ignored, 0.0)
    return logits, maps


def loss(
    problem: LossProblem,
    *,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
    validate: bool,
) -> tuple[Tensor, int]:
    """See `Backend`."""
    precision = precision_of(problem.logits.device)
    logits, maps = problem_logits_and_maps(problem, precision)
    if grad is not None:
        gradient = pixel_gradient(logits, maps)
        image_scale, pixel_scale = gradient_scale(problem, upstream, divide)
        if image_scale is not None:
            gradient = gradient * image_scale.to(precision).view(-1, *[1] * (gradient.dim() - 1))
        if pixel_scale is not None:
            gradient = gradient * pixel_scale.to(precision).unsqueeze(1)
        grad.copy_(gradient)
    value = logits.new_empty(0)
    if with_loss:
        value = pixel_loss(logits, maps)
        if problem.reduction == "none":
            value = value.to(problem.loss_dtype)
        else:
            value = reduced(value.flatten(1).sum(1), problem)
    bad = -1
    if validate and problem.labels is not None:
        bad = first_bad_label(problem.labels, logits.shape[1], problem.ignore_index)
    return value, bad


def scale_gradient(problem: LossProblem, grad: Tensor, upstream: Tensor, *, divide: bool, in_place: bool) -> Tensor:
    """See `Backend`."""
    factor, _ = gradient_scale(problem, upstream, divide)
    assert factor is not None
    factor = factor.to(grad.dtype if grad.dtype == torch.float64 else torch.float32)
    factor = factor.view(-1, *[1] * (grad.dim() - 1))
    return grad.mul_(factor) if in_place else (grad * factor).to(grad.dtype)


def relative_probabilities(problem: LossProblem, values: Tensor, probabilities: bool) -> Tensor:
    """Probabilities, of logits over the largest one; 0 below the smallest normal number of the loss's precision."""
    if not probabilities:
        values = (values - values.amax(1, keepdim=True)).exp()
    return values.masked_fill(values < torch.finfo(problem.loss_dtype).tiny, 0.0)


def fill_negatives(out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool) -> int:
    """See `Backend`."""
    labels = problem.labels
    values, maps = problem_logits_and_maps(problem, precision_of(problem.logits.device))
    y = relative_probabilities(problem, values, probabilities)
    out.zero_()
    missing = torch.zeros_like(out, dtype=torch.bool)
    for k in range(values.shape[1]):
        pull = (y * (maps - maps[:, k : k + 1])).sum(1)
        found = pull > 0
        if wrong:
            assert labels is not None
            found = torch.where(is_label(labels, k), pull < 0, found)
        out += found & (y[:, k] > 0)
        missing |= pull.isnan()
    if labels is not None:
        missing |= is_no_class(labels, values.shape[1])
        if problem.ignore_index is not None:
            missing |= is_label(labels, problem.ignore_index)
    out.masked_fill_(missing, -1)
    return first_bad_label(labels, values.shape[1], problem.ignore_index) if validate and labels is not None else -1
