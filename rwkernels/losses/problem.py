"""What logits and a map are to the operators of the loss: the fields of a `LossProblem`, checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends.problem import LossProblem, count_valid
from rwkernels.maps.compact import RectifiedMap


def labels_of(value: Any, logits: Tensor, validate: bool | None) -> Tensor:
    """Labels [B, *S] for logits, from integers or whole floats [B, *S] or [B, 1, *S]."""
    found = checks.tensor("labels", value)
    checks.same_device("labels", found, "logits", logits)
    whole = checks.whole_labels(found, checks.validate(validate, logits.device))
    return checks.labels_like("labels", whole, logits.shape)


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


def loss_problem(
    logits: Tensor,
    maps: Any,
    *,
    labels: Any,
    ignore_index: int | None,
    include_background: bool,
    reduction: str,
    validate: bool | None,
    backend: str | None,
    count_now: bool = False,
) -> LossProblem:
    """The problem of checked logits and a dense map, with its labels if they are given, or a `RectifiedMap`.

    With `count_now`, the pixels that count are counted here where the map does not bring their number.
    """
    ignored = _ignore_index(maps, ignore_index)
    background = scale = count = None
    background_value = 0.0
    if isinstance(maps, RectifiedMap):
        if labels is not None:
            raise ValueError("labels: expected None (a RectifiedMap carries its own), got " + checks.describe(labels))
        values, labels, background, scale = _compact(logits, maps)
        background_value = 0.0 if background is not None else float(maps.background)
        if ignored is not None and ignored == maps.ignore_index and maps.image_count is not None:
            count = maps.image_count if maps.image_count.dim() == 1 else maps.image_count.reshape(-1)
            checks.shape("maps.image_count", count, (logits.shape[0],), "[B]")
            checks.same_device("maps.image_count", count, "logits", logits)
    else:
        values = _dense(logits, maps)
        if labels is not None:
            labels = checks.labels_like("labels", labels, logits.shape)
            checks.same_device("labels", labels, "logits", logits)
        elif ignored is not None:
            raise ValueError(
                "labels: expected the labels of the map, which ignore_index needs for a dense map, got None"
            )
    if any(part is not None and part.requires_grad for part in (values, background, scale)):
        raise ValueError("maps: expected a map that requires no gradient, got one that does (use maps.detach())")
    if count_now and ignored is not None and count is None:
        count = count_valid(labels, ignored)
    return LossProblem(
        logits=logits,
        maps=values,
        labels=labels,
        background=background,
        class_scale=scale,
        image_count=count,
        background_value=background_value,
        ignore_index=ignored,
        include_background=checks.flag("include_background", include_background),
        reduction=checks.choice("reduction", reduction, checks.REDUCTIONS),
        validate=checks.validate(validate, logits.device),
        backend=checks.backend(backend),
        groups=0,
    )
