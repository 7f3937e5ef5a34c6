"""Maps as plain arrays, for libraries that crop, flip, cache and collate arrays and know nothing of a `RectifiedMap`.

A rectified, active contour or constant map becomes one channel, its foreground: together with the labels that lie
beside it, that is the whole map. A boundary map keeps its K channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.data.building import MapBuilder
from rwkernels.losses.modules import RegionWiseLoss
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import FAMILIES

OUTPUTS = ("foreground", "dense")
Spacing = tuple[float, ...] | None


class ArrayMap:
    """The map of labels as an array of C channels, C being 1 or the number of classes.

    Args:
        num_classes: Number of classes K.
        maps: `"rectified"`, `"boundary"`, `"active_contour"` or `"constant"`.
        output: `"foreground"` (1 channel; not for boundary maps) or `"dense"` (K). Default: what takes least memory.
        **options: `ignore_index`, `black_border`, `validate` and `backend`, as of `RegionWiseLoss`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value.
    """

    def __init__(self, num_classes: int, maps: str = "rectified", output: str | None = None, **options: Any) -> None:
        self.num_classes = checks.integer("num_classes", num_classes, lowest=1)
        self.maps = checks.choice("maps", maps, tuple(FAMILIES))
        dense = FAMILIES[maps].dense
        smallest = "dense" if dense else "foreground"
        self.output = checks.choice("output", smallest if output is None else output, OUTPUTS)
        if self.output != smallest and dense:
            raise ValueError(f'output: expected "dense" for {maps} maps, which have K values a pixel, got "foreground"')
        RegionWiseLoss(maps, **options)  # refuses bad options before the first sample does
        self.options = options

    def __call__(self, labels: Tensor, spacings: Sequence[Spacing]) -> Tensor:
        """float32 `[B, C, *S]` of labels `[B, *S]`, integers or whole floats, with a spacing for every image."""
        labels = checks.plain(labels)
        labels = checks.whole_labels(labels, checks.validate(self.options.get("validate"), labels.device))
        maps = build(self.maps, labels, self.num_classes, spacings, **self.options)
        if isinstance(maps, Tensor):
            return maps
        dense: Tensor = maps.dense() if self.output == "dense" else maps.foreground.unsqueeze(1)
        return dense


def build(
    maps: str, labels: Tensor, num_classes: int, spacings: Sequence[Spacing], **options: Any
) -> RectifiedMap | Tensor:
    """The map of labels `[B, *S]` whose images may differ in spacing."""
    axes = labels.dim() - 1
    builder = MapBuilder(num_classes, maps=maps, spacing_key="spacing", spatial_dims=axes, threads=None, **options)
    rows = [[1.0] * axes if spacing is None else spacing for spacing in spacings]
    return builder.of_batch(
        {"spacing": torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1, axes)}, labels
    )


def read_map(array: Any, labels: Any, num_classes: int, ignore_index: int | None = None) -> RectifiedMap | Tensor:
    """The map that `ArrayMap` wrote, collated and perhaps cropped with its labels.

    Args:
        array: Floating `[B, 1, *S]` (then `labels` complete it) or `[B, K, *S]`.
        labels: `[B, 1, *S]` or `[B, *S]`, integers or whole floats.
        num_classes: Number of classes K.
        ignore_index: Label of pixels that do not count.

    Returns:
        A `RectifiedMap` or the dense map, for `region_wise_loss` and the losses of this package.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The array is not the map of such labels.

    Examples:
        >>> import torch
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> array = ArrayMap(num_classes=2)(labels, [None])
        >>> array.shape
        torch.Size([1, 1, 1, 4])
        >>> read_map(array[..., 1:], labels[..., 1:], num_classes=2).dense().shape
        torch.Size([1, 2, 1, 3])
    """
    values = checks.tensor("array", array)
    checks.floating("array", values)
    if values.dim() < 3 or values.shape[1] not in (1, num_classes):
        raise ValueError(f"array: expected a map [B, 1, *S] or [B, {num_classes}, *S], got {checks.describe(values)}")
    if values.shape[1] == num_classes:
        return values
    labels = checks.tensor("labels", labels)
    labels = checks.whole_labels(labels, checks.validate(None, labels.device))
    return RectifiedMap(
        checks.labels_like("labels", labels, (values.shape[0], num_classes, *values.shape[2:])),
        values.squeeze(1),
        num_classes=num_classes,
        ignore_index=checks.ignore_index(ignore_index),
    )
