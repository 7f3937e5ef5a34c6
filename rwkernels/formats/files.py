"""The files of label maps: by which names they are known, of what they consist, and what tells that one changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

NIFTI = (".nii", ".nii.gz")
SIMPLE_ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".vtk")
PLAIN = {".npy": "npy", ".npz": "npz", ".tif": "tiff", ".tiff": "tiff", ".png": "png", ".zarr": "zarr"}
SUFFIXES = (*NIFTI, *SIMPLE_ITK, *PLAIN)


def suffix_of(path: Path) -> str | None:
    """The suffix by which a file is known, `.nii.gz` for instance; None for files that are not read."""
    name = path.name.lower()
    return next((known for known in SUFFIXES if name.endswith(known) and name != known), None)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zarray"))


def path_of(root: Path, name: str) -> Path:
    """Where the source `name` is."""
    return root if not root.is_dir() or is_zarr(root) else root / name


def data_files(path: Path) -> list[Path]:
    """The files that a scan consists of: a header that keeps its pixels in another file names it.

    Raises:
        ValueError: The other file is not beside the header, or there are several.
    """
    suffix = path.suffix.lower()
    if suffix not in (".mhd", ".nhdr"):
        return [path]
    with path.open("rb") as file:
        head = file.read(1 << 16).decode("latin-1")
    pattern = r"^ElementDataFile\s*=\s*(.*?)\s*$" if suffix == ".mhd" else r"^data ?file\s*:\s*(.*?)\s*$"
    found = re.search(pattern, head, re.MULTILINE | re.IGNORECASE)
    name = found.group(1) if found else ""
    if name.upper() == "LOCAL":
        return [path]
    data = path.parent / name
    if not name or Path(name).name != name or not data.is_file():
        raise ValueError(f"data file: expected the name of one file beside the header, got {name!r}")
    return [path, data]


def checksum(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a source: of its file, of a header and its data, or of all files of a Zarr array.

    Raises:
        OSError: A file cannot be read.
        ValueError: A header does not name its data.
    """
    if path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        named = [(file.relative_to(path).as_posix(), file) for file in files]
    else:
        named = [(file.name, file) for file in data_files(path)]
    digest, total = hashlib.sha256(), 0
    for name, file in named:
        size = 0
        if len(named) > 1:  # the checksum of one file is that of its bytes, as sha256sum gives it
            digest.update(f"\0{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        for block in _blocks(file):
            digest.update(block)
            size += len(block)
        total += size
    return digest.hexdigest(), total


def stamp(path: Path) -> tuple[int, ...]:
    """Changes when a source is written to: sizes and times of its files."""
    files = [path]
    if path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    found = [file.stat() for file in files]
    return tuple(part for status in found for part in (status.st_size, status.st_mtime_ns))


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            yield block
