"""Equations 1 and 2 in plain PyTorch: differentiable as often as one likes, and on any device.

The reference evaluates them in float64; derivatives beyond the first are taken of them. Equation numbers are those of
Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation" (Pattern Recognition 2022, doi
10.1016/j.patcog.2022.109208).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkernels.backends.problem import LossProblem, all_class_scales, is_label, is_no_class


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


def dense(
    labels: Tensor,
    foreground: Tensor,
    background: Tensor | float,
    num_classes: int,
    class_scale: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """The map [B, K, *S] that a compact one stands for: foreground at the true class, background elsewhere."""
    if not isinstance(background, Tensor):
        background = torch.full_like(foreground, background)
    channels = [torch.where(is_label(labels, k), foreground, background) for k in range(num_classes)]
    maps = torch.stack(channels, 1)
    maps = torch.where(is_no_class(labels, num_classes).unsqueeze(1), torch.nan, maps)
    if class_scale is not None:
        maps = maps * scale_view(class_scale, maps)
    if ignore_index is not None:
        maps = torch.where(is_label(labels, ignore_index).unsqueeze(1), 0.0, maps)
    return maps


def scale_view(class_scale: Tensor, maps: Tensor) -> Tensor:
    """`class_scale` [K] or [groups, K], shaped to multiply maps [B, K, *S]."""
    if class_scale.dim() == 2:
        class_scale = class_scale.repeat_interleave(len(maps) // max(len(class_scale), 1), 0)
    else:
        class_scale = class_scale.unsqueeze(0)
    return class_scale.to(maps).view(*class_scale.shape, *[1] * (maps.dim() - 2))


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
