"""Maps of whole volumes for patches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends import choose
from rwkernels.backends.problem import is_label, is_no_class
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.distance import distance_transform


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


def class_max(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Any:
    """The largest distance of every class, which a rectified map of these labels is divided by.

    Kept with a volume (K numbers) it lets the maps of patches be made anew, after augmentation for instance, on the
    scale of the volume: `rectified_map(patch, class_max=...)`, or `class_max_key` of `MapLoader`.

    Args:
        labels: Integers `[B, *S]`, a tensor or an array.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis.
        ignore_index: Label of pixels that do not count.
        black_border: Count the outside of the image as another label.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Returns:
        float32 `[B, K]` of the kind of `labels`, in units of `spacing`; 0 for a class that is absent, and 1 for one
        that fills its image: it has no distance to speak of, and with any number its patches have a map of -1.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong value.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 4.

    Examples:
        >>> import torch
        >>> from rwkernels.data import class_max
        >>> class_max(torch.tensor([[[0, 0, 0, 1, 1]]]), num_classes=3)
        tensor([[3., 2., 0.]])
    """
    found, back = arrays.to_tensor(labels)
    found = checks.labels(found, spatial_dims)
    num_classes = checks.integer("num_classes", num_classes, lowest=1)
    ignored = checks.ignore_index(ignore_index)
    if checks.validate(validate, found.device):
        bad = choose(found.device, "first_bad_label").first_bad_label(found.contiguous(), num_classes, ignored)
        if bad >= 0:
            checks.bad_label(found, bad, num_classes, ignored)
    distance = distance_transform(
        found, spacing=spacing, black_border=black_border, spatial_dims=spatial_dims, backend=backend
    )
    counts = ~is_no_class(found, num_classes)
    if ignored is not None:
        counts &= ~is_label(found, ignored)
    bins = torch.where(counts, found.long(), num_classes).flatten(1)  # the last bin is for what does not count
    largest = distance.new_zeros(len(found), num_classes + 1)
    largest.scatter_reduce_(1, bins, distance.flatten(1), "amax")
    largest = largest[:, :num_classes]
    return back(torch.where(largest.isinf(), 1.0, largest))
