"""What is kept on disk between the stages of a transform: a temporary Zarr store, and how long it lives."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec


def compressors(dtype: Any) -> BloscCodec:
    """Fast ones: what is kept between stages is read once or twice."""
    return BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle" if np.dtype(dtype).itemsize == 1 else "shuffle")


class Scratch:
    """A folder of Zarr arrays that is removed with the object that made it, or at exit.

    Tasks carry it. A copy that went to another process names the same folder and never removes it.
    """

    def __init__(self, folder: Path, owned: bool) -> None:
        self.folder = folder
        if owned:
            _folders[folder] = os.getpid()
            weakref.finalize(self, _remove_unless_used, folder).atexit = False

    @classmethod
    def within(cls, parent: str | os.PathLike[str] | None, name: str = "") -> Scratch:
        """A name for a new folder in `parent` (by default, where temporary files go); made when it is first used."""
        parent = Path(tempfile.gettempdir() if parent is None else parent).absolute()
        if not parent.is_dir():
            raise ValueError(f"scratch: expected an existing folder, got {str(parent)!r}")
        return cls(parent / f".{name or 'rwkernels'}.{uuid.uuid4().hex[:12]}.scratch", owned=True)

    def __reduce__(self) -> Any:
        return Scratch, (self.folder, False)

    def __dask_tokenize__(self) -> str:
        return str(self.folder)

    def create(self, name: str, shape: Sequence[int], chunks: Sequence[int], dtype: Any) -> None:
        """Makes an array, unless it is there: a graph may be computed twice. What no task wrote is NaN."""
        if (self.folder / name / "zarr.json").exists():
            return
        self.folder.mkdir(exist_ok=True)
        zarr.create_array(
            store=str(self.folder / name),
            shape=tuple(shape),
            chunks=tuple(max(size, 1) for size in chunks),
            dtype=dtype,
            compressors=compressors(dtype),
            fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
        )

    def open(self, name: str) -> Any:
        """An array that was made."""
        try:
            return zarr.open_array(store=str(self.folder / name), mode="r+")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the temporary store {self.folder} is gone, which the stages of a distance transform share: keep the "
                "array that was returned until its results are there, and on a cluster choose a folder for scratch= "
                "that every worker sees"
            ) from error

    def remove(self) -> None:
        """Removes the folder and all that is in it."""
        _remove(self.folder)


def read_field(array: Any, region: tuple[slice, ...]) -> Any:
    """A block of distances; a chunk that is missing is an error, not a number."""
    block = array[region]
    if np.isnan(block[tuple(slice(None, None, size) for size in array.chunks)]).any():
        raise RuntimeError(f"{array.store_path}: a part that an earlier stage should have written is missing")
    return block


# Folders that are to be removed, and the process that made them: a forked child removes nothing.
_folders: dict[Path, int] = {}


def _remove(folder: Path) -> None:
    """Removes a folder. It stays known: what a task of a cluster writes that was not done yet is removed at exit."""
    if _folders.get(folder) == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unless_used(folder: Path) -> None:
    """When the graph is gone. On a cluster its tasks may live on as futures: then at exit."""
    client = getattr(sys.modules.get("distributed.client"), "_get_global_client", lambda: None)()
    if client is None:
        _remove(folder)


@atexit.register
def _remove_all() -> None:
    for folder in list(_folders):
        _remove(folder)
