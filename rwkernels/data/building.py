"""From the labels of a batch to its map: the settings that loader, transform and collation share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends.threads import limited_to
from rwkernels.data import ahead, batches
from rwkernels.data.batches import Key
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import FAMILIES

Map = RectifiedMap | Tensor


class MapOptions(TypedDict, total=False):
    """The options of a `MapBuilder`, for whoever passes them on. `MapLoader` says what they mean."""

    label_key: Key | None
    map_key: str
    maps: str | Callable[..., Map]
    spacing: float | Sequence[float] | None
    spacing_key: Key | None
    class_max_key: Key | None
    ignore_index: int | None
    black_border: bool
    spatial_dims: int | None
    validate: bool | None
    backend: str | None
    map_options: Mapping[str, Any] | None
    threads: int | None


class MapBuilder:
    """Where a batch holds its labels, and which map is made of them. See `MapLoader` for the arguments."""

    remote = False  # whether another process does the work, so that this one waits for it

    def __init__(
        self,
        num_classes: int,
        *,
        label_key: Key | None = None,
        map_key: str = "map",
        maps: str | Callable[..., Map] = "rectified",
        spacing: float | Sequence[float] | None = None,
        spacing_key: Key | None = None,
        class_max_key: Key | None = None,
        ignore_index: int | None = None,
        black_border: bool = False,
        spatial_dims: int | None = None,
        validate: bool | None = None,
        backend: str | None = None,
        map_options: Mapping[str, Any] | None = None,
        threads: int | None = 1,
    ) -> None:
        self.num_classes = checks.integer("num_classes", num_classes, lowest=1)
        for name, key in (("label_key", label_key), ("spacing_key", spacing_key), ("class_max_key", class_max_key)):
            if not isinstance(key, (str, int, type(None))) or isinstance(key, bool):
                raise TypeError(f"{name}: expected a key, an index or the name of an attribute, got {key!r}")
        if not isinstance(map_key, str):
            raise TypeError(f"map_key: expected a string, got {checks.describe(map_key)}")
        if spacing is not None and spacing_key is not None:
            raise ValueError("spacing_key: expected None beside spacing, got " + checks.describe(spacing_key))
        spacing = checks.spacing_of_any_axes(spacing)
        if class_max_key is not None and isinstance(maps, str) and not (maps in FAMILIES and FAMILIES[maps].divided):
            raise ValueError(f'class_max_key: expected None for maps={maps!r} (only "rectified" maps have a maximum)')
        self.label_key, self.map_key = label_key, map_key
        self.spacing, self.spacing_key, self.class_max_key = spacing, spacing_key, class_max_key
        self.threads = None if threads is None else checks.integer("threads", threads, lowest=1)
        self.spatial_dims, self.validate = spatial_dims, validate
        common = {
            "spacing": spacing,
            "ignore_index": checks.ignore_index(ignore_index),
            "black_border": checks.flag("black_border", black_border),
            "spatial_dims": spatial_dims,
            "validate": validate,
            "backend": checks.backend(backend),
        }
        self._function = self._chosen(maps, common, dict(map_options or {}))
        self._takes_spacing = not isinstance(maps, str) or FAMILIES[maps].measured

    def _chosen(
        self, maps: str | Callable[..., Map], common: dict[str, Any], extra: dict[str, Any]
    ) -> Callable[..., Map]:
        """The function of labels that makes the map, with its settings."""
        if not isinstance(maps, str):
            if not callable(maps):
                raise TypeError(f"maps: expected a family or a function of labels, got {checks.describe(maps)}")
            for name in ("spacing", "ignore_index", "backend", "black_border"):
                if common[name] not in (None, False):
                    raise ValueError(f"{name}: expected no such option beside a function as maps, got {common[name]!r}")
            return partial(maps, **extra) if extra else maps
        function = FAMILIES[checks.choice("maps", maps, tuple(FAMILIES))].build
        takes = inspect.signature(function).parameters
        for name in extra:
            if name not in takes or name in (*common, "labels", "num_classes", "class_max", "out"):
                raise ValueError(f"map_options: expected further options of {function.__name__}, got {name!r}")
        settings = {name: value for name, value in common.items() if name in takes}
        return partial(function, num_classes=self.num_classes, **settings, **extra)

    def labels_of(self, batch: Any) -> tuple[Key, Any]:
        """Where the labels of a batch or sample are, and they themselves; a tensor."""
        key = batches.default_label_key(batch) if self.label_key is None else self.label_key
        labels = arrays.to_tensor(batches.read(batch, key, "label_key"))[0]
        if not isinstance(labels, Tensor):
            raise TypeError(f"label_key: expected labels, a tensor or an array, got {checks.describe(labels)}")
        return key, labels

    def of_batch(self, batch: Any, labels: Tensor, out: Tensor | None = None) -> Map:
        """The map of `labels` `[B, *S]` or `[B, 1, *S]`, with what `batch` says of spacing and largest distances.

        `out` is a contiguous float32 buffer for it: the foreground `[B, *S]`, or the dense map `[B, K, *S]`.
        """
        labels = self._plain(labels)
        spacing = None
        if self.spacing_key is not None:
            found = batches.read(batch, self.spacing_key, "spacing_key")
            spacing = rows_of_spacing(found, len(labels))
        return self._limited(labels, spacing, self._class_max(batch), out)

    def of_sample(self, sample: Any, labels: Tensor) -> Map:
        """The map of one sample, without an axis for images: `labels` `[*S]` or `[1, *S]`."""
        spacing = None
        if self.spacing_key is not None:
            found = arrays.to_tensor(batches.read(sample, self.spacing_key, "spacing_key"))[0]
            spacing = [found.tolist() if isinstance(found, Tensor) else found]
        class_max = self._class_max(sample)
        return self._limited(self._plain(labels[None]), spacing, None if class_max is None else class_max[None])[0]

    def other_tensors(self, batch: Any) -> list[Tensor]:
        """What the map is computed from besides labels."""
        class_max = self._class_max(batch)
        return [] if class_max is None else [class_max]

    def _class_max(self, batch: Any) -> Tensor | None:
        if self.class_max_key is None:
            return None
        found = arrays.to_tensor(batches.read(batch, self.class_max_key, "class_max_key"))[0]
        return checks.tensor("class_max", found)

    def _limited(
        self, labels: Tensor, spacing: list[Any] | None, class_max: Tensor | None, out: Tensor | None = None
    ) -> Map:
        if class_max is not None:
            class_max = ahead.to_device(class_max, labels.device)
        if self.threads is None:
            return self._build(labels, spacing, class_max, out)
        with limited_to(self.threads):
            return self._build(labels, spacing, class_max, out)

    def _plain(self, labels: Tensor) -> Tensor:
        """Integer labels [B, *S]. A second axis of 1 is that of channels, unless `spatial_dims` says otherwise."""
        found = checks.plain(labels)
        channel = found.dim() >= 4 if self.spatial_dims is None else found.dim() == self.spatial_dims + 2
        if channel and found.shape[1] == 1:
            found = found.squeeze(1)
        return checks.whole_labels(found, checks.validate(self.validate, found.device))

    def _build(
        self, labels: Tensor, spacing: list[Any] | None, class_max: Tensor | None, out: Tensor | None = None
    ) -> Map:
        given = {name: value for name, value in (("class_max", class_max), ("out", out)) if value is not None}
        if not spacing or not self._takes_spacing:
            return self._function(labels, **given)
        if all(row == spacing[0] for row in spacing):
            return self._function(labels, spacing=spacing[0], **given)
        parts = []
        for image, row in enumerate(spacing):
            one = {name: value[image : image + 1] for name, value in given.items()}
            parts.append(self._function(labels[image : image + 1], spacing=row, **one))
        return _joined(parts, labels, out)


def chosen(builder: MapBuilder | None, num_classes: int | None, options: MapOptions) -> MapBuilder:
    """The given builder, or a local one of `num_classes` with `options`; not both."""
    if builder is None:
        if num_classes is None:
            raise TypeError("num_classes: expected an integer (or a builder), got None")
        return MapBuilder(num_classes, **options)
    if not isinstance(builder, MapBuilder):
        raise TypeError(f"builder: expected a map builder, got {checks.describe(builder)}")
    if num_classes not in (None, builder.num_classes):
        raise ValueError(f"num_classes: expected {builder.num_classes}, the builder's, or None, got {num_classes!r}")
    if options:
        raise ValueError(f"{next(iter(options))}: expected to be given to the builder, not beside it")
    return builder


def rows_of_spacing(value: Any, size: int) -> list[Any]:
    """The spacing of each of `size` images, as the batch of a loader holds it.

    A tensor or array has a row for each image: `[B, axes]`, or `[B]` for isotropic ones. So has a list of one tensor
    `[B]` per axis, which default collation makes of tuples. A number, or one number per axis, holds for all.
    """
    value = arrays.to_tensor(value)[0]
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, Tensor) for part in value):
        value = torch.stack([part.reshape(-1).expand(size) for part in value], 1)
    if not isinstance(value, Tensor):
        return [value] * size
    if value.dim() == 0:
        return [float(value)] * size
    if value.dim() > 2 or len(value) != size:
        raise ValueError(
            f"spacing: expected one row for each of {size} images, [B] or [B, axes], or a tuple that holds for all, "
            f"got {checks.describe(value)}"
        )
    rows: list[Any] = value.tolist()
    return rows


def _joined(parts: list[Map], labels: Tensor, out: Tensor | None) -> Map:
    """The maps of single images as that of the batch, whose values are in `out` already if that is given."""
    first = parts[0]
    if not isinstance(first, RectifiedMap):
        return torch.cat([part for part in parts if isinstance(part, Tensor)]) if out is None else out
    maps = [part for part in parts if isinstance(part, RectifiedMap)]
    values = torch.cat([part.foreground for part in maps]) if out is None else out
    changed: dict[str, Any] = {"labels": labels, "foreground": values}
    for name in ("background", "image_count"):
        if isinstance(getattr(first, name), Tensor):
            changed[name] = torch.cat([getattr(part, name) for part in maps])
    return dataclasses.replace(first, **changed)
