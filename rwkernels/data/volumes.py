"""Maps of whole volumes for patches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.maps.compact import RectifiedMap


def crop(start: Sequence[int], size: Sequence[int], *values: Any) -> tuple[Any, ...]:
    """The same box of images, labels and maps.

    The patch of a map of the whole volume differs from the map of the patch: the nearest boundary of a pixel, and the
    pixel of its class that is farthest from one, may lie outside of the patch.

    Args:
        start: First row of the box in every spatial axis.
        size: Rows of the box in every spatial axis.
        *values: Tensors or arrays whose last axes are the spatial ones (images `[C, *S]`, labels `[*S]`, dense maps
            `[K, *S]`, any of them with more axes before), and `RectifiedMap`s.

    Returns:
        A view of every value, in their order.

    Raises:
        TypeError: A value is neither a tensor, an array nor a map.
        ValueError: The box is not inside of a value.

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.data import crop
        >>> image, labels = torch.randn(1, 64, 48), torch.randint(3, (64, 48))
        >>> maps = rw.rectified_map(labels[None], num_classes=3)[0]
        >>> image, labels, maps = crop((8, 16), (32, 32), image, labels, maps)
        >>> image.shape, maps.shape
        (torch.Size([1, 32, 32]), torch.Size([32, 32]))
    """
    first = [checks.integer("start", at, lowest=0) for at in start]
    rows = [checks.integer("size", count, lowest=1) for count in size]
    if len(first) != len(rows) or not rows:
        raise ValueError(f"size: expected one number for each of {len(first)} axes of start, got {list(size)}")
    box = tuple(slice(at, at + count) for at, count in zip(first, rows, strict=True))
    inside = (..., *box)
    cropped = []
    for index, value in enumerate(values):
        if not isinstance(value, (Tensor, RectifiedMap)) and not arrays.is_array(value):
            raise TypeError(f"values[{index}]: expected a tensor, array or map, got {checks.describe(value)}")
        shape = list(value.shape)[-len(box) :]
        if len(shape) < len(box) or any(part.stop > side for part, side in zip(box, shape, strict=True)):
            raise ValueError(
                f"values[{index}]: expected last axes that hold rows {first} to {[part.stop for part in box]}, "
                f"got shape {list(value.shape)}"
            )
        cropped.append(value[inside])
    return tuple(cropped)
