"""MONAI transforms that add the region-wise map of a label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from rwkernels import checks
from rwkernels.extras import needs
from rwkernels.integrations.arrays import ArrayMap
from rwkernels.integrations.inputs import AFFINE, GivenSpacing, checked_spacing, labels_of
from rwkernels.integrations.monai import spacing as spacings

with needs("monai"):
    from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
    from monai.data.meta_obj import get_track_meta
    from monai.transforms.transform import MapTransform, Transform
    from monai.utils.misc import ensure_tuple
    from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor


class RegionWiseMap(Transform):
    """The region-wise map of a label image, as an array that other transforms can crop and flip.

    It belongs after everything that resamples labels: an interpolated map is not the map of the interpolated labels.
    Crops and flips may follow, of label and map together; a map cropped so is that of the whole image.

    Args:
        num_classes: Number of classes K.
        maps: `"rectified"`, `"boundary"`, `"active_contour"` or `"constant"`.
        output: `"foreground"`: one channel, which the label completes (not for boundary maps); `"dense"`: K channels.
            Default: what takes least memory. `RegionWiseLoss` of this package takes both.
        spacing: `"affine"` takes the spacing of a `MetaTensor` from its affine (1 for other arrays); or a number, or
            one per spatial axis.
        **options: `ignore_index`, `black_border`, `validate` and `backend`, as of `rwkernels.RegionWiseLoss`.

    Shape:
        Label: `[1, *S]`, integers or whole floats, or one-hot `[K, *S]`. Map: float32 `[1, *S]` or `[K, *S]`, a
        `MetaTensor` with the label's metadata.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range or neither labels nor one-hot, or an argument has a wrong value.

    Examples:
        >>> import torch
        >>> RegionWiseMap(num_classes=2)(torch.tensor([[[0, 0, 1, 1]]])).shape
        torch.Size([1, 1, 4])
    """

    def __init__(
        self,
        num_classes: int,
        maps: str = "rectified",
        output: str | None = None,
        spacing: GivenSpacing = AFFINE,
        **options: Any,
    ) -> None:
        self.array_map = ArrayMap(num_classes, maps, output, **options)
        self.spacing = checked_spacing(spacing)

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """The map of `label`."""
        image = convert_to_tensor(label, track_meta=get_track_meta())
        labels = labels_of(checks.plain(image)[None], self.array_map.num_classes, self.array_map.options)
        of_image = spacings.of_images(self.spacing, image, 1, labels.dim() - 1)
        found = self.array_map(labels, of_image)[0]
        result: Tensor = convert_to_dst_type(found, dst=image, dtype=found.dtype)[0]
        return result


class RegionWiseMapd(MapTransform):
    """Dictionary version of `RegionWiseMap`: adds the map of every label in `keys` under its key in `map_keys`.

    Args:
        keys: Keys of labels.
        num_classes: Number of classes K.
        map_keys: Keys of the maps. Default: `"<key>_map"`.
        maps, output, spacing: As of `RegionWiseMap`.
        allow_missing_keys: Pass over a key that a sample lacks.
        **options: As of `RegionWiseMap`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `keys` and `map_keys` differ in number, or see `RegionWiseMap`.
        KeyError: A sample lacks a key.

    Examples:
        >>> import torch
        >>> add_map = RegionWiseMapd("label", num_classes=2, map_keys="map")
        >>> sorted(add_map({"image": torch.zeros(1, 1, 4), "label": torch.tensor([[[0, 0, 1, 1]]])}))
        ['image', 'label', 'map']
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        map_keys: KeysCollection | None = None,
        maps: str = "rectified",
        output: str | None = None,
        spacing: GivenSpacing = AFFINE,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.map_keys = ensure_tuple([f"{key}_map" for key in self.keys] if map_keys is None else map_keys)
        if len(self.map_keys) != len(self.keys):
            raise ValueError(f"map_keys: expected one for each of {len(self.keys)} keys, got {len(self.map_keys)}")
        self.region_wise_map = RegionWiseMap(num_classes, maps, output, spacing, **options)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """The sample with its maps."""
        sample = dict(data)
        for key, map_key in self.key_iterator(sample, self.map_keys):
            sample[map_key] = self.region_wise_map(sample[key])
        return sample


RegionWiseMapD = RegionWiseMapDict = RegionWiseMapd
