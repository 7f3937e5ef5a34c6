"""The label maps of a folder: which there are, and what they are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from rwkernels.data.store import SUFFIX
from rwkernels.formats.files import is_zarr, suffix_of


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


def _is_source(path: Path) -> bool:
    return suffix_of(path) is not None and suffix_of(path) != ".zarr" and not path.name.startswith(".")


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name.rpartition("/")[2], pattern)
