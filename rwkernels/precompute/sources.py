"""The label maps of a folder: which there are, what they are called, and the checksum that tells if one changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from rwkernels.data.store import SUFFIX
from rwkernels.formats import is_zarr, scans, suffix_of


def find(root: Path, patterns: Sequence[str], leave_out: Path | None, failed: Callable[[OSError], None]) -> list[str]:
    """Names of the label maps under `root`, relative to it and sorted; the name of `root` itself if it is one.

    Hidden folders and the one to write to are left out, links to folders are not followed, links to files are.

    Args:
        root: A folder, or one label map.
        patterns: Shell patterns of relative paths or names, one of which has to match; all match if there is none.
        leave_out: A folder whose contents are no sources.
        failed: Called with the error of a folder that cannot be listed.
    """
    if not root.is_dir() or is_zarr(root):
        return [root.name]
    found = []
    for folder, folders, names in os.walk(root, onerror=failed):
        here = Path(folder)
        for name in list(folders):
            path = here / name
            known = is_zarr(path) and not name.startswith(".") and path != leave_out
            if known and not name.endswith(SUFFIX):
                found.append(path.relative_to(root).as_posix())
            if known or name.startswith(".") or path == leave_out:
                folders.remove(name)
        found += [(here / name).relative_to(root).as_posix() for name in names if _is_source(here / name)]
    chosen = [name for name in found if not patterns or any(_matches(name, pattern) for pattern in patterns)]
    return sorted(chosen)


def path_of(root: Path, name: str) -> Path:
    """Where the source `name` is."""
    return root if not root.is_dir() or is_zarr(root) else root / name


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
        named = [(file.name, file) for file in scans.data_files(path)]
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


def _is_source(path: Path) -> bool:
    return suffix_of(path) is not None and suffix_of(path) != ".zarr" and not path.name.startswith(".")


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name.rpartition("/")[2], pattern)
