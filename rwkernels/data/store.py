"""Where maps are kept: a Zarr group for every source, finished or not there at all.

A store is a folder and a Zarr group (version 3). The item of the source `a/case.nii.gz` is the group of that name:

    zarr.json           attributes: whence it comes, how it was made, the checksum of every other file
    labels/             `[*S]`, the smallest integer type
    foreground/         `[*S]`, codes of `rwkernels.maps.quantised` or float32; maps that are not compact have
    dense/              `[K, *S]` float32 instead, or as well where it was asked for
    map.nii             on request

An item is written into a folder of its own under `.partial`, and renamed when it is whole; a process that is killed
leaves that folder behind, for the next run to sweep. Items are not forced to the disk one by one: after a power cut
some may be torn, which their checksums tell.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = 1
MARK = "rwkernels"
SUFFIX = ".map.zarr"  # of items beside their sources
PARTIAL = ".partial"
_METADATA = "zarr.json"
_OLD = 24 * 60 * 60.0


@dataclass(frozen=True)
class Store:
    """A folder with items; `beside` their sources they have a suffix, and the folder is no group."""

    root: Path
    beside: bool = False

    def item_name(self, source: str) -> str:
        """The name of the item of a source, a relative path with `/`. No two sources have the same."""
        parts = PurePosixPath(source).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(f"source: expected a relative path without '..', got {source!r}")
        # Zarr keeps `__` at the start of a name to itself, and JSON takes no bytes that are no text.
        escaped = [re.sub(r"^__|%|[\ud800-\udfff]", _percent, part) for part in parts]
        return "/".join(escaped) + (SUFFIX if self.beside else "")

    def prepare(self) -> None:
        """Makes the folder a store, or finds that it is one; sweeps what killed processes left.

        Raises:
            ValueError: It is a file, or a folder with something else in it.
        """
        if self.beside:
            self.sweep()
            return
        self.root.mkdir(parents=True, exist_ok=True)
        metadata = _read_json(self.root / _METADATA)
        if metadata is None and any(entry.name != PARTIAL for entry in self.root.iterdir()):
            raise ValueError(f"DST: expected an empty folder or a store of this command, got {self.root}")
        if metadata is not None and MARK not in metadata.get("attributes", {}):
            raise ValueError(f"DST: expected a store of this command, got another Zarr group: {self.root}")
        self.sweep()
        if metadata is None:
            handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _write_group(handle, {MARK: {"format": FORMAT}})
            finally:
                os.close(handle)

    def sweep(self) -> None:
        """Removes unfinished items of processes of this machine that are gone, and very old ones of others."""
        folder = self.root / PARTIAL
        if folder.is_symlink() or not folder.is_dir():
            return
        for entry in folder.iterdir():
            if _is_abandoned(entry):
                shutil.rmtree(entry, ignore_errors=True)
        with suppress(OSError):  # not empty: another run is at work
            folder.rmdir()

    def items(self) -> Iterator[str]:
        """Names of all items, sorted."""
        found = []
        for folder, folders, _ in os.walk(self.root):
            inside = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            for name in list(folders):
                is_item = name.endswith(SUFFIX) if self.beside else True
                if is_item and not name.startswith(".") and record(Path(folder) / name) is not None:
                    found.append(str(inside / name))
                elif not name.startswith(".") and not (self.beside and name.endswith(".zarr")):
                    continue
                folders.remove(name)
        return iter(sorted(found))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A folder to write the item `name` into; put in its place at the end, removed if anything fails."""
        folder = self.root / PARTIAL
        if folder.is_symlink():
            raise ValueError(f"{PARTIAL}: expected a folder, got a link, which would lead out of the store")
        partial = folder / f"{_machine()}-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:12]}"
        for attempt in range(10):
            try:
                partial.mkdir(parents=True)
                break
            except FileNotFoundError:  # the folder was empty, and another run has swept it away
                if attempt == 9:
                    raise
        try:
            yield partial / "item"
            self._place(partial / "item", name, partial / "old")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _place(self, item: Path, name: str, old: Path) -> None:
        """Renames a finished item into its place; what was there is moved out of the way first."""
        *parents, last = PurePosixPath(name).parts
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Step by step, following no link: renames go by the open folder, wherever its name leads by then.
            for part in parents:
                inner = self._enter(handle, part)
                os.close(handle)
                handle = inner
            for attempt in range(5):  # somebody else may finish the same item in between
                with suppress(FileNotFoundError):
                    os.rename(last, f"{old}{attempt}", src_dir_fd=handle)  # a link is moved, not followed
                try:
                    os.rename(item, last, dst_dir_fd=handle)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or attempt == 4:
                        raise
        finally:
            os.close(handle)

    def _enter(self, handle: int, part: str) -> int:
        """Opens the folder `part` of an open one, and makes it, a group of the store, where it is missing."""
        try:
            os.mkdir(part, dir_fd=handle)
            created = True
        except FileExistsError:
            created = False
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        except OSError as error:
            raise ValueError(f"{part}: expected a folder of the store, got a link or a file") from error
        if not self.beside and (created or not _has(inner, _METADATA)):
            _write_group(inner, {})
        return inner


def _write_group(handle: int, attributes: dict[str, Any]) -> None:
    """Makes an open folder a Zarr group; whoever comes second writes the same."""
    text = json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2)
    name = f".{uuid.uuid4().hex}.tmp"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=handle)
    with os.fdopen(file, "w") as stream:
        stream.write(text)
    os.replace(name, _METADATA, src_dir_fd=handle, dst_dir_fd=handle)


def _has(handle: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def finish(item: Path, facts: dict[str, Any]) -> None:
    """Writes the metadata of an item whose other files are there: `facts`, and the size and checksum of every file."""
    files = {name: _fingerprint(item / name) for name in _files(item)}
    kept = {"format": FORMAT, **facts, "files": files}
    attributes = {MARK: {**kept, "digest": _digest(kept)}}
    (item / _METADATA).write_text(
        json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=1)
    )


def record(item: Path) -> dict[str, Any] | None:
    """What the metadata of an item say; None if it is not there, cut off, changed or of another format."""
    metadata = _read_json(item / _METADATA)
    kept = metadata.get("attributes", {}).get(MARK) if isinstance(metadata, dict) else None
    if not isinstance(kept, dict) or kept.get("format") != FORMAT or "digest" not in kept:
        return None
    digest = kept.pop("digest")
    return kept if digest == _digest(kept) else None


def damage(item: Path, kept: dict[str, Any], contents: bool) -> str | None:
    """What is wrong with the files of an item: one is missing, or not of the size (`contents`: bytes) it was."""
    for name, (size, checksum) in kept["files"].items():
        path = item / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or cut off"
        if contents and _fingerprint(path)[1] != checksum:
            return f"{name} is not what was written"
    return None


def _files(item: Path) -> list[str]:
    found = [Path(folder, name).relative_to(item).as_posix() for folder, _, names in os.walk(item) for name in names]
    return sorted(name for name in found if name != _METADATA)


def _fingerprint(path: Path) -> list[int]:
    checksum, size = 0, 0
    block = memoryview(bytearray(1 << 18))  # stays in the cache
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            checksum, size = _crc32()(block[:count], checksum), size + count
    return [size, checksum]


@cache
def _crc32() -> Any:
    """libdeflate's, which is ten times as fast as zlib's, where the extra `precompute` brings it."""
    try:
        from imagecodecs import deflate_crc32
    except ImportError:
        return zlib.crc32
    return deflate_crc32


def _digest(kept: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _machine() -> str:
    """A name for this machine and the space of its process numbers."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:12]


def _started(process: int) -> str:
    """When a process was started, in ticks of the machine, for numbers of processes are used again; "0" unknown."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "0"
    return text.rpartition(")")[2].split()[19]


def _is_abandoned(partial: Path) -> bool:
    """Whether nobody will finish an unfinished item any more."""
    machine, process, started, *_ = [*partial.name.split("-"), "", "", ""]
    if machine == _machine() and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return _started(int(process)) != started
    try:
        return time.time() - partial.stat().st_mtime > _OLD
    except OSError:
        return False


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found.group().encode("utf-8", "surrogateescape"))
