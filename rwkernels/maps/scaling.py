"""Maps with their classes or pixels weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import dense_map
from rwkernels.ops import mode


def class_weights(name: str, weight: Any, num_classes: int, device: torch.device) -> Tensor:
    """One finite floating weight per class on `device`, float32 or float64 `[K]`."""
    weight = arrays.to_tensor(weight)[0]
    if isinstance(weight, Sequence) and not isinstance(weight, str):
        weight = torch.tensor([checks.number(name, w) for w in weight], device=device)
    found = checks.tensor(name, weight)
    checks.floating(name, found)
    checks.shape(name, found, (num_classes,), "[K]")
    if found.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} like the map, got {checks.describe(found)}")
    return found if found.dtype == torch.float64 else found.float()


def weights_of_any_classes(name: str, weight: Any) -> Tensor:
    """One weight per class `[K]`, where K is known with the logits only."""
    if not hasattr(weight, "__len__") or getattr(weight, "ndim", 1) != 1:
        raise TypeError(f"{name}: expected one number per class, got {checks.describe(weight)}")
    device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
    return class_weights(name, weight, len(weight), device)


def _by_label(weight: Tensor, labels: Tensor) -> Tensor:
    """The weight of every pixel's class; 1 where the label is none (an ignored or a bad one keeps its value)."""
    labels = labels.long()
    known = (labels >= 0) & (labels < len(weight))
    return torch.where(known, weight[labels.clamp(0, len(weight) - 1)], 1.0)


def scale_classes(maps: Any, weight: Any, *, by: str = "channel", labels: Any = None) -> Any:
    """A map with its classes weighted.

    `by="channel"` multiplies every channel by its class's weight: the paper's sentence, after which a map is **no
    longer rectified** unless the weights are equal or K = 2. `by="label"` multiplies every pixel's whole map by
    the weight of its true class, as weighted cross-entropy does; the map stays rectified.

    Args:
        maps: `RectifiedMap`, or a dense floating map `[B, K, *S]`.
        weight: One number per class: a floating tensor `[K]` or a sequence.
        by: `"channel"` or `"label"`.
        labels: Integers `[B, *S]`; needed for a dense map and `by="label"`, as it carries no labels.

    Returns:
        A map of the same kind.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `weight` or `labels` have a wrong shape, or `by` is unknown.

    Examples:
        >>> import torch, rwkernels as rw
        >>> m = rw.active_contour_map(torch.tensor([[[0, 1]]]), num_classes=2)
        >>> rw.scale_classes(m, [1.0, 3.0], by="label").background
        tensor([[[1., 3.]]])
    """
    checks.choice("by", by, ("channel", "label"))
    if isinstance(maps, RectifiedMap):
        compact, back = maps._tensors()
        weight = class_weights("weight", weight, maps.num_classes, compact.device)
        if by == "channel":
            scale = weight if compact.class_scale is None else weight * compact.class_scale
            return compact._with(class_scale=scale)._map(back)
        return _times(compact, _by_label(weight, compact.labels).to(compact.foreground.dtype))._map(back)
    maps, back = dense_map(maps)
    weight = class_weights("weight", weight, maps.shape[1], maps.device)
    if by == "channel":
        return back(maps * weight.to(maps.dtype).view(1, -1, *[1] * (maps.dim() - 2)))
    if labels is None:
        raise ValueError('labels: expected the labels of the map, which by="label" needs for a dense map, got None')
    labels = checks.labels_like("labels", arrays.to_tensor(labels)[0], maps.shape)
    checks.same_device("labels", labels, "maps", maps)
    return back(maps * _by_label(weight, labels).to(maps.dtype).unsqueeze(1))


def _refuse_negative(name: str, weight: Tensor) -> None:
    good = (weight >= 0).all()
    if torch.compiler.is_compiling():  # a compiled graph cannot read the value; the check stays in it
        torch._assert_async(good, f"{name}: expected numbers >= 0")
    elif not mode.transforms_active() and not bool(good):
        raise ValueError(f"{name}: expected numbers >= 0, got a smallest of {float(weight.min())}")


def _times(maps: RectifiedMap, weight: Tensor | float) -> RectifiedMap:
    return maps._with(foreground=maps.foreground * weight, background=maps.background * weight)


def scale_pixels(maps: Any, weight: Any, *, validate: bool | None = None) -> Any:
    """A map with every pixel weighted: its whole map times a number that is not negative. Stays rectified.

    Args:
        maps: `RectifiedMap`, or a dense floating map `[B, K, *S]`.
        weight: Floating `[B, *S]` or `[B, 1, *S]`, or one number.
        validate: Check that no weight is negative or NaN: by default on the CPU only.

    Returns:
        A map of the same kind.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `weight` has a wrong shape or a negative entry.

    Examples:
        >>> import torch, rwkernels as rw
        >>> m = rw.active_contour_map(torch.tensor([[[0, 1]]]), num_classes=2)
        >>> rw.scale_pixels(m, torch.tensor([[[1.0, 0.5]]])).background
        tensor([[[1.0000, 0.5000]]])
    """
    if isinstance(maps, RectifiedMap):
        compact, back = maps._tensors()
        return _times(compact, _pixel_weight(weight, compact.foreground, validate))._map(back)
    maps, back = dense_map(maps)
    weight = _pixel_weight(weight, maps[:, 0], validate)
    return back(maps * (weight.unsqueeze(1) if isinstance(weight, Tensor) else weight))


def _pixel_weight(weight: Any, like: Tensor, validate: bool | None) -> Tensor | float:
    """Weights that are not negative, in shape [B, *S] and dtype of `like`; or one number."""
    weight = arrays.to_tensor(weight)[0]
    if not isinstance(weight, Tensor):
        if checks.number("weight", weight) < 0:
            raise ValueError(f"weight: expected numbers >= 0, got {weight}")
        return float(weight)
    found = weight.squeeze(1) if weight.dim() == like.dim() + 1 and weight.shape[1] == 1 else weight
    checks.floating("weight", found)
    checks.same_device("weight", found, "maps", like)
    checks.shape("weight", found, like.shape, "[B, *S]")
    if checks.validate(validate, like.device):
        _refuse_negative("weight", found)
    return found.to(like.dtype)
