"""The slow and obviously right version of everything, in plain PyTorch: the loss here, maps in `maps.py`.

Every other backend is tested against this one. It runs on any device and computes in float64 unless told
otherwise. Definitions are those of Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation"
(Pattern Recognition 2022, doi 10.1016/j.patcog.2022.109208); equation numbers below are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkernels.backends.equations import (
    dense,
    hessian_product,
    pixel_gradient,
    pixel_loss,
    problem_logits_and_maps,
    scale_view,
)
from rwkernels.backends.joint import scaled
from rwkernels.backends.problem import (
    LossProblem,
    first_bad_label,
    gradient_scale,
    is_label,
    is_no_class,
    precision_of,
    reduced,
    refuse_bad_label,
    scaled_gradient,
)
from rwkernels.backends.reference.codes import (
    advise_huge_pages,
    decode_values,
    encode_values,
    pack_labels,
    reverse_axes,
    unpack_labels,
)
from rwkernels.backends.reference.joint import joint, joint_gradient
from rwkernels.backends.reference.maps import (
    boundary,
    class_distance,
    class_max,
    distance,
    fill_boundary,
    fill_class_distance,
    fill_dense,
    fill_distance,
    fill_rectified,
    largest_of_classes,
    pass_axis,
    rectified,
    rectified_distance,
    rectify,
)

__all__ = [
    "NAME",
    "advise_huge_pages",
    "boundary",
    "can_run",
    "class_distance",
    "class_max",
    "decode_values",
    "dense",
    "distance",
    "encode_values",
    "fill_boundary",
    "fill_class_distance",
    "fill_dense",
    "fill_distance",
    "fill_negatives",
    "fill_rectified",
    "first_bad_label",
    "hessian_product",
    "joint",
    "joint_gradient",
    "largest_of_classes",
    "loss",
    "pack_labels",
    "pass_axis",
    "pixel_gradient",
    "pixel_loss",
    "problem_logits_and_maps",
    "rectified",
    "rectified_distance",
    "rectify",
    "relative_probabilities",
    "reverse_axes",
    "scale_gradient",
    "scale_joint",
    "scale_view",
    "unpack_labels",
]

NAME = "reference"
scale_gradient = scaled_gradient
scale_joint = scaled


def can_run(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None if it can."""
    if device.type == "meta":
        return "meta tensors hold no values"
    return None


def loss(
    problem: LossProblem,
    *,
    with_loss: bool,
    grad: Tensor | None,
    upstream: Tensor | None,
    divide: bool,
    validate: bool,
) -> Tensor:
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
    if validate and problem.labels is not None:
        refuse_bad_label(problem.labels, logits.shape[1], problem.ignore_index)
    return value


def relative_probabilities(problem: LossProblem, values: Tensor, probabilities: bool) -> Tensor:
    """Probabilities, of logits over the largest one; 0 below the smallest normal number of the loss's precision."""
    if not probabilities:
        values = (values - values.amax(1, keepdim=True)).exp()
    return values.masked_fill(values < torch.finfo(problem.loss_dtype).tiny, 0.0)


def fill_negatives(out: Tensor, problem: LossProblem, *, probabilities: bool, wrong: bool, validate: bool) -> None:
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
    if validate and labels is not None:
        refuse_bad_label(labels, values.shape[1], problem.ignore_index)
