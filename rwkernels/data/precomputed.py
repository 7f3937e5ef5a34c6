"""Maps that `rwkernels precompute` made, read back: whole or a box of them, in any worker process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rwkernels import checks
from rwkernels.data.store import Store, damage, record
from rwkernels.extras import needs
from rwkernels.formats import files
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.quantised import decode

CHECKS = ("open", "access", "never")


class PrecomputedMaps(Dataset[Any]):
    """The items of a store that `rwkernels precompute` wrote, as samples for a `DataLoader`.

    Args:
        store: Folder of the store; with `--beside`, that of the sources.
        source: Folder of the label maps it was made of. If given, a store whose labels changed is refused.
        transform: Called with every sample.
        patch_size: Rows of a random box in every axis, to draw anew at every access (torch's random numbers); None
            gives whole volumes.
        check: When labels in `source` are compared with the checksum of their map: `"open"` compares all at once,
            `"access"` each when it is first read in a process, `"never"` not at all.

    Samples are dicts of `"label"` (Tensor `[*S]`), `"map"` (`RectifiedMap` over `[*S]`, or Tensor `[K, *S]` for
    boundary maps), `"name"` and `"spacing"` (a tuple), with `"start"` for a box; default collation takes them. Only the
    chunks that a box touches are read. An instance may be pickled, and opens its files in every process anew.

    Raises:
        FileNotFoundError: There is no such folder, or no source of an item.
        ValueError: The folder has no items, an item is damaged, or labels differ from those that maps were made of.

    Examples:
        >>> from rwkernels.data import PrecomputedMaps
        >>> PrecomputedMaps("maps")  # doctest: +SKIP
        PrecomputedMaps('maps', 20 items)
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        source: str | os.PathLike[str] | None = None,
        *,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        patch_size: Sequence[int] | None = None,
        check: str = "open",
    ) -> None:
        root = Path(store).absolute()
        if not root.is_dir():
            raise FileNotFoundError(f"store: expected a folder of maps, got {os.fspath(store)!r}")
        self.store = Store(root, beside=not (root / "zarr.json").is_file())
        self.source = None if source is None else Path(source).absolute()
        self.transform = transform
        self.patch_size = None if patch_size is None else tuple(checks.integer("patch_size", n, 1) for n in patch_size)
        self.check = checks.choice("check", check, CHECKS)
        self.names = tuple(self.store.items())
        if not self.names:
            raise ValueError(f"store: expected a folder with maps of `rwkernels precompute`, got {os.fspath(store)!r}")
        self._process, self._opened = os.getpid(), {}
        if self.source is not None and check == "open":
            for name in self.names:
                self._compare(name, self._record(name))

    _opened: dict[str, tuple[dict[str, Any], Any]]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"PrecomputedMaps({os.fspath(self.store.root)!r}, {len(self)} items)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __getitem__(self, index: int | str) -> Any:
        """The sample of an item, by its place or its name."""
        kept, _ = self._open(self._name(index))
        shape = kept["shape"]
        if self.patch_size is None:
            sample = self._sample(index, [0] * len(shape), shape)
        else:
            room = [side - patch for side, patch in zip(shape, self._patch(shape), strict=True)]
            start = [int(torch.randint(left + 1, ())) for left in room]
            sample = {**self._sample(index, start, self.patch_size), "start": tuple(start)}
        return sample if self.transform is None else self.transform(sample)

    def crop(self, index: int | str, start: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
        """The sample of a box, of which alone is read. The map is that of the whole volume.

        Args:
            index: Place or name of the item.
            start: First row of the box in every spatial axis.
            size: Rows of the box in every spatial axis.

        Raises:
            ValueError: The box is not inside of the item.
        """
        shape = self._open(self._name(index))[0]["shape"]
        first = [checks.integer("start", at, lowest=0) for at in start]
        rows = [checks.integer("size", count, lowest=1) for count in size]
        inside = len(first) == len(rows) == len(shape)
        if not inside or any(at + n > side for at, n, side in zip(first, rows, shape, strict=True)):
            raise ValueError(f"start, size: expected a box inside of {shape}, got {first} and {rows}")
        return {**self._sample(index, first, rows), "start": tuple(first)}

    def class_max(self, index: int | str) -> Tensor:
        """The largest distance of every class of an item, float32 `[K]`, for `rectified_map(class_max=...)`.

        Raises:
            ValueError: The maps are not rectified ones, which alone are divided by it.
        """
        kept = self._open(self._name(index))[0]
        if kept["class_max"] is None:
            raise ValueError(f'class_max: expected a store of "rectified" maps, got {kept["settings"]["maps"]!r}')
        return torch.tensor(kept["class_max"], dtype=torch.float32, device="cpu")

    def metadata(self, index: int | str) -> dict[str, Any]:
        """What is kept of an item: version, source and its checksum, settings, shape, spacing, affine, axes."""
        return {name: value for name, value in self._open(self._name(index))[0].items() if name != "files"}

    def _name(self, index: int | str) -> str:
        if isinstance(index, str):
            for name in (index, self.store.item_name(index)):
                if name in self._known:
                    return name
            raise KeyError(index)
        return self.names[index]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def _patch(self, shape: Sequence[int]) -> tuple[int, ...]:
        patch = self.patch_size or ()
        if len(patch) != len(shape) or any(n > side for n, side in zip(patch, shape, strict=True)):
            raise ValueError(f"patch_size: expected a box inside of {list(shape)}, got {list(patch)}")
        return patch

    def _record(self, name: str) -> dict[str, Any]:
        kept = record(self.store.root / name)
        if kept is None:
            raise ValueError(f"{name}: expected a whole item, got damaged metadata; run `rwkernels precompute` again")
        harm = damage(self.store.root / name, kept, contents=False)
        if harm is not None:
            raise ValueError(f"{name}: expected a whole item, but {harm}; run `rwkernels precompute` again")
        return kept

    def _compare(self, name: str, kept: dict[str, Any]) -> None:
        """Refuses an item whose source has another checksum than the labels that its map was made of."""
        assert self.source is not None
        path = files.path_of(self.source, kept["source"]["path"])
        if not path.exists():
            raise FileNotFoundError(f"{name}: expected its label map at {path}, where there is none")
        if files.checksum(path)[0] != kept["source"]["sha256"]:
            raise ValueError(
                f"{name}: expected the labels that its map was made of, but {path} changed since; "
                "run `rwkernels precompute` again"
            )

    def _open(self, name: str) -> tuple[dict[str, Any], Any]:
        """What is kept of an item and its group, opened once in every process."""
        if self._process != os.getpid():  # a worker that was forked
            self._process, self._opened = os.getpid(), {}
        if name not in self._opened:
            with needs("precompute", "zarr", "PrecomputedMaps"):
                import zarr
            kept = self._record(name)
            if self.source is not None and self.check == "access":
                self._compare(name, kept)
            group: Any = zarr.open_group(zarr.storage.LocalStore(self.store.root / name, read_only=True), mode="r")
            arrays = {key: group[key] for key in ("labels", "foreground", "dense") if key in group}
            self._opened[name] = (kept, arrays)
        return self._opened[name]

    def _sample(self, index: int | str, start: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
        name = self._name(index)
        kept, arrays = self._open(name)
        box = tuple(slice(at, at + rows) for at, rows in zip(start, size, strict=True))
        labels = torch.from_numpy(np.ascontiguousarray(arrays["labels"][box]))
        settings = kept["settings"]
        map_: RectifiedMap | Tensor
        if "foreground" in arrays:
            stored = torch.from_numpy(np.ascontiguousarray(arrays["foreground"][box]))
            map_ = RectifiedMap(
                labels,
                stored if settings["bits"] == 32 else decode(stored),
                float(kept["background"]),
                num_classes=settings["num_classes"],
                ignore_index=settings["ignore_index"],
            )
        else:
            every = (slice(None), *box)
            map_ = torch.from_numpy(np.ascontiguousarray(arrays["dense"][every]))
        return {"label": labels, "map": map_, "name": name, "spacing": tuple(kept["spacing"])}
