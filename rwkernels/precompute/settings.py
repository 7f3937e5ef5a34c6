"""How maps are made: what the command was asked for, in the form that every item of a store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rwkernels import checks
from rwkernels.data.building import MapBuilder
from rwkernels.formats import ReadOptions
from rwkernels.maps.families import FAMILIES

BITS = (8, 16, 32)


@dataclass(frozen=True)
class Settings:
    """What an item depends on besides its source. `bits` of 32 stands for float32."""

    num_classes: int
    maps: str = "rectified"
    bits: int = 16
    ignore_index: int | None = None
    black_border: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    axes: str = "xyz"
    key: str | None = None
    dense: bool = False
    nifti: bool = False
    chunk: int = 64

    def as_json(self) -> dict[str, Any]:
        """The settings as an item keeps them."""
        kept = asdict(self)
        kept["options"] = dict(self.options)
        kept["spacing"] = None if self.spacing is None else list(self.spacing)
        return kept

    def builder(self, spatial_dims: int, threads: int | None = 1) -> MapBuilder:
        """What makes the map of the labels of one source."""
        return MapBuilder(
            self.num_classes,
            maps=self.maps,
            spacing_key="spacing",
            ignore_index=self.ignore_index,
            black_border=self.black_border,
            spatial_dims=spatial_dims,
            validate=True,
            map_options=self.options,
            threads=threads,
        )

    def read_options(self, max_bytes: int) -> ReadOptions:
        """How sources are read."""
        return ReadOptions(self.axes, self.key, self.spacing, max_bytes)

    @property
    def compact(self) -> bool:
        """Whether the map is a label and one number a pixel."""
        return not FAMILIES[self.maps].dense


def checked_bits(maps: str, bits: int | None, options: Mapping[str, float]) -> int:
    """The bits of a foreground value: those asked for, else 16 where all values lie in [-1, 0].

    Raises:
        ValueError: The values of the family do not fit into codes.
    """
    fits = FAMILIES[checks.choice("maps", maps, tuple(FAMILIES))].fits_codes(options)
    if bits is None:
        return 16 if fits else 32
    if bits not in BITS:
        raise ValueError(f"bits: expected one of {', '.join(map(str, BITS))}, got {bits}")
    if bits != 32 and not fits:
        raise ValueError(f"bits: expected 32 (float32) for maps whose values leave [-1, 0], got {bits}")
    return bits
