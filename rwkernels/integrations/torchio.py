"""A TorchIO transform that adds the region-wise map of a label map to a subject."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rwkernels import checks
from rwkernels.extras import needs
from rwkernels.integrations.arrays import ArrayMap, Spacing, read_map
from rwkernels.integrations.inputs import AFFINE, GivenSpacing, checked_spacing, labels_of

with needs("torchio"):
    import torchio as tio

__all__ = ["MapSubject", "RegionWiseMap", "check_order", "read_map"]

# They move pixels and change none. The last three may also pad; then the history has a `Pad`, which warns.
_MOVES = {"Crop", "Flip", "RandomFlip", "ToCanonical", "ToOrientation", "Transpose"}
_MAY_PAD = {"CropOrPad", "EnsureShapeMultiple"}


class RegionWiseMap(tio.Transform):
    """Adds the region-wise map of a label map as a `ScalarImage` with the label map's affine.

    It belongs after everything that resamples labels or changes intensities: the first would interpolate the map, which
    is not the map of the interpolated labels, and the second would take it for an image. A transform that does either
    warns. Crops, flips and TorchIO's patch samplers may follow: a map cropped with its label map is that of the whole
    volume.

    Args:
        num_classes: Number of classes K.
        label: Name of the label map in the subject.
        map_name: Name of the image to add.
        maps: `"rectified"`, `"boundary"`, `"active_contour"` or `"constant"`.
        output: `"foreground"`: one channel, which the label map completes (not for boundary maps; `read_map` joins the
            two); `"dense"`: K channels. Default: what takes least memory.
        spacing: `"affine"` takes the spacing of the label map; or a number, or one per spatial axis; None counts
            voxels.
        ignore_index: Label of voxels that do not count.
        black_border: Count the outside of the image as another label.
        **kwargs: `p`, `copy` and the other arguments of `torchio.Transform`.

    Raises:
        TypeError: An argument has the wrong type, or the label is no `LabelMap`.
        KeyError: The subject has no such label.
        ValueError: A label is out of range, or an argument has a wrong value.

    Examples:
        >>> import torch, torchio as tio
        >>> label = tio.LabelMap(tensor=torch.tensor([0, 0, 1, 1]).view(1, 4, 1, 1))
        >>> RegionWiseMap(num_classes=2)(tio.Subject(label=label)).map.data.flatten()
        tensor([-1.0000, -0.5000, -0.5000, -1.0000])
    """

    def __init__(
        self,
        num_classes: int,
        label: str = "label",
        map_name: str = "map",
        maps: str = "rectified",
        output: str | None = None,
        spacing: GivenSpacing = AFFINE,
        ignore_index: int | None = None,
        black_border: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.maps, self.output = num_classes, maps, output
        self.label, self.map_name = label, map_name
        self.spacing = checked_spacing(spacing)
        self.ignore_index, self.black_border = ignore_index, black_border
        self.array_map = ArrayMap(num_classes, maps, output, ignore_index=ignore_index, black_border=black_border)
        # With these TorchIO writes the transform into a subject's history, and builds it again from there.
        self.args_names = [
            "num_classes",
            "label",
            "map_name",
            "maps",
            "output",
            "spacing",
            "ignore_index",
            "black_border",
        ]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """The subject with its map."""
        image = subject[self.label]
        if not isinstance(image, tio.LabelMap):
            raise TypeError(f"{self.label}: expected a torchio.LabelMap, got {type(image).__name__}")
        labels = labels_of(image.data[None], self.num_classes, self.array_map.options)
        found = self.array_map(labels, [self._spacing_of(image)])[0]
        subject.add_image(tio.ScalarImage(tensor=found, affine=image.affine), self.map_name)
        return _watched(subject, self.map_name, self.label)

    def _spacing_of(self, image: tio.LabelMap) -> Spacing:
        if isinstance(self.spacing, str):
            return tuple(float(size) for size in image.spacing)
        return None if self.spacing is None else tuple(checks.spacing(self.spacing, 3))


class MapSubject(tio.Subject):
    """A subject that warns when a transform changes one of its maps, or the labels of one."""

    region_wise_maps: tuple[tuple[str, str], ...] = ()  # names of a map and of its label map

    def add_transform(self, transform: tio.Transform, parameters_dict: Any) -> None:
        """Writes the transform into the history, as TorchIO does after every one, and warns if it changed a map."""
        super().add_transform(transform, parameters_dict)
        for name, label in self.region_wise_maps:
            reason = _harm(transform, name, label if label in self else name)
            if reason and name in self:
                warnings.warn(f"{name}: {reason}", stacklevel=2)


def check_order(transform: tio.Transform) -> None:
    """Warns of every transform that comes after a `RegionWiseMap` and would change its map, before any runs.

    Args:
        transform: A `Compose`, which may hold others and `OneOf`.

    Examples:
        >>> import torchio as tio
        >>> check_order(tio.Compose([tio.RandomNoise(), RegionWiseMap(num_classes=2), tio.RandomFlip()]))
    """
    maps: list[tuple[str, str]] = []
    for step in _steps(transform):
        for name, label in maps:
            reason = _harm(step, name, label, known=_MOVES | _MAY_PAD)
            if reason:
                warnings.warn(f"{name}: {reason}", stacklevel=2)
        if isinstance(step, RegionWiseMap):
            maps.append((step.map_name, step.label))


def _steps(transform: tio.Transform) -> Iterator[tio.Transform]:
    """The transforms that `transform` may apply, in their order."""
    parts: Sequence[tio.Transform] | Mapping[tio.Transform, float] | None = None
    if isinstance(transform, tio.Compose):
        parts = transform.transforms
    elif isinstance(transform, tio.OneOf):
        parts = transform.transforms_dict
    if parts is None:
        yield transform
    else:
        for part in parts:
            yield from _steps(part)


def _selects(transform: tio.Transform, name: str) -> bool:
    if transform.include is not None and name not in transform.include:
        return False
    return transform.exclude is None or name not in transform.exclude


def _harm(transform: tio.Transform, name: str, label: str, known: set[str] = _MOVES) -> str | None:
    """What `transform` does to a map or its label map that it should not; None if it leaves the map right.

    Of spatial transforms those of the names `known` may move both. What a transform of labels does to them is not
    looked at: one that leaves all as they are warns, too.
    """
    takes_map, takes_label = _selects(transform, name), _selects(transform, label)
    if isinstance(transform, (tio.SpatialTransform, tio.RandomAnisotropy)):
        takes_label = takes_label and (label == name or not getattr(transform, "scalars_only", False))
        if takes_map != takes_label:
            moved, left = (name, label) if takes_map else (label, name)
            return f"{transform.name} after RegionWiseMap moves {moved!r} and not {left!r}; give it both or neither"
        if takes_map and transform.name not in known:
            return f"{transform.name} after RegionWiseMap leaves a map that is not that of the labels; put it before"
    if isinstance(transform, tio.LabelTransform) and takes_label and label != name:
        return f"{transform.name} after RegionWiseMap changes the labels that the map is of; put it before"
    if not takes_map:
        return None
    advice = f'put RegionWiseMap after it, or give it exclude=["{name}"]'
    if isinstance(transform, tio.IntensityTransform):
        return f"{transform.name} after RegionWiseMap changes the map as if it were an image; {advice}"
    types = getattr(transform, "types_to_apply", None)
    if isinstance(transform, tio.Lambda) and (types is None or tio.INTENSITY in types):
        return f"{transform.name} after RegionWiseMap may change the map; {advice}"
    return None


def _watched(subject: tio.Subject, name: str, label: str) -> tio.Subject:
    """The subject as one that warns; a class of the user's own is left alone."""
    if type(subject) is tio.Subject:
        subject.__class__ = MapSubject
    if isinstance(subject, MapSubject):
        others = (other for other in subject.region_wise_maps if other[0] != name)
        subject.region_wise_maps = (*others, (name, label))
    return subject
