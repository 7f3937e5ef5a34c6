"""Arrays and pictures: NPY, NPZ, TIFF, PNG and Zarr. Their axes are kept as they are in the file."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import warnings
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels.formats.opened import Opened, ReadOptions, admit, read_bounded

_NAMES = ("labels", "label", "seg", "mask")
# Formats of a pixel that hold one integer; a palette's index is the label.
_MODES = {"1": "?", "L": "u1", "P": "u1", "I": "i4", "I;16": "<u2", "I;16B": ">u2", "I;16L": "<u2", "F": "f4"}
# The others, filters among them, may run code, as the one that unpickles does.
_CODECS = {"bytes", "transpose", "crc32c", "sharding_indexed", "blosc", "zstd", "gzip", "zlib", "lz4", "shuffle"}


def npy(path: Path, options: ReadOptions) -> Opened:
    """An array of NumPy; objects are refused, not unpickled."""
    return _npy(io.BytesIO(read_bounded(path, options)), options)


def _npy(file: Any, options: ReadOptions) -> Opened:
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = readers[version](file)
    except KeyError:
        raise ValueError(f"npy: expected version 1.0 or 2.0, got {version}") from None
    except ValueError:  # NumPy's own text advises to trust the file
        raise ValueError("npy: expected an array of numbers as NumPy saves it") from None
    admit(shape, dtype, options)

    def load() -> npt.NDArray[Any]:
        file.seek(0)
        values = np.lib.format.read_array(file, allow_pickle=False)
        native: npt.NDArray[Any] = values.astype(dtype.newbyteorder("="), copy=False)
        return native

    return Opened(tuple(shape), dtype, None, load)


def npz(path: Path, options: ReadOptions) -> Opened:
    """One array of an archive of NumPy. A member is unpacked no further than the archive says, nor beyond the limit."""
    archive = zipfile.ZipFile(io.BytesIO(read_bounded(path, options)))
    members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    name = members[chosen(list(members), options.key)]
    if archive.getinfo(name).file_size > options.max_bytes:
        raise ValueError(f"{name}: expected at most {options.max_bytes} bytes (--max-bytes)")
    return _npy(archive.open(name), options)


def chosen(names: list[str], key: str | None) -> str:
    """The array of a file that holds several: the one that was asked for, the only one, or the one called labels."""
    if key is not None:
        if key not in names:
            raise ValueError(f"key: expected one of {', '.join(sorted(names)) or '(no arrays)'}, got {key!r}")
        return key
    usual = names if len(names) == 1 else [name for name in _NAMES if name in names]
    if not usual:
        raise ValueError(f"key: expected --key, as the file holds {', '.join(sorted(names)) or 'no arrays'}")
    return usual[0]


def tiff(path: Path, options: ReadOptions) -> Opened:
    """The first series of a TIFF file. Spacing is that of OME or ImageJ, or the resolution of a picture."""
    import tifffile

    packed = read_bounded(path, options)
    with _errors_raised("tifffile"):
        file = tifffile.TiffFile(io.BytesIO(packed))  # without a name it opens no other file
        if not file.series:
            raise ValueError("no picture in the TIFF file")
        series = file.series[0]
        sizes = {one.shape[-2:] for one in file.series}
    if len(sizes) > 1:
        raise ValueError(f"labels: expected pages of one size, got {len(sizes)} sizes")
    shape = tuple(int(side) for side in series.shape)
    admit(shape, series.dtype, options)
    page = series.pages[0]
    admit((page.imagelength, page.imagewidth), series.dtype, options)
    if page.compression != 1:
        try:
            import imagecodecs  # noqa: F401  (bounds what it unpacks; what tifffile falls back to does not)
        except ModuleNotFoundError:
            hint = 'pip install "rwkernels[precompute]"'
            raise ValueError(f"{page.compression!r}: a compressed TIFF file needs imagecodecs: {hint}") from None
    if page.samplesperpixel != 1:
        raise ValueError(f"labels: expected one channel, got {page.samplesperpixel}")
    for one in series.pages:
        for start, size in zip(one.dataoffsets, one.databytecounts, strict=True) if one is not None else ():
            if start + size > len(packed):
                raise ValueError(f"data: expected {start + size} bytes, got {len(packed)}: the file is cut off")

    def load() -> npt.NDArray[Any]:
        with _errors_raised("tifffile"):
            values = np.asarray(series.asarray())
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    return Opened(shape, series.dtype, _tiff_spacing(file, series, len(shape)), load)


@contextmanager
def _errors_raised(name: str) -> Iterator[None]:
    """Raises what a library only logs: tifffile reads on where a chain of pages is broken."""
    handler = BufferingHandler(sys.maxsize)
    handler.setLevel(logging.ERROR)
    logger = logging.getLogger(name)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
    if handler.buffer:
        raise ValueError(handler.buffer[0].getMessage())


def _tiff_spacing(file: Any, series: Any, axes: int) -> tuple[float, ...] | None:
    """Spacing of the axes Z, Y, X as far as the file tells it of all of them."""
    named = dict.fromkeys("XYZ", 0.0)
    if file.is_ome and file.ome_metadata:
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        if pixels is not None:
            named.update({axis: float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in named})
    else:
        tags = series.pages[0].tags
        for axis in "XY":
            tag = tags.get(f"{axis}Resolution")
            per_unit = tag.value[0] / tag.value[1] if tag is not None and tag.value[1] else 0.0
            named[axis] = 1 / per_unit if per_unit > 0 else 0.0
        named["Z"] = float((file.imagej_metadata or {}).get("spacing", 0)) if file.is_imagej else 0.0
    wanted = "ZYX"[-axes:] if axes > 1 else ""
    found = tuple(named[axis] for axis in wanted)
    return found if found and all(0 < step < math.inf for step in found) else None


def png(path: Path, options: ReadOptions) -> Opened:
    """A picture of one channel. Pillow's guard against pictures that unpack to far more than their size stays on."""
    from PIL import Image

    packed = io.BytesIO(read_bounded(path, options))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(packed, formats=("PNG",))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None
    if picture.mode not in _MODES:
        raise ValueError(f"labels: expected one channel, got {picture.mode} with {len(picture.getbands())}")
    dtype = np.dtype(_MODES[picture.mode])
    shape = (picture.height, picture.width)
    admit(shape, dtype, options)
    dots = picture.info.get("dpi", (0, 0))
    spacing = (25.4 / dots[1], 25.4 / dots[0]) if min(dots) > 0 else None
    return Opened(shape, dtype, spacing, lambda: np.asarray(picture), unit="mm")


def zarr(path: Path, options: ReadOptions) -> Opened:
    """A Zarr array, or one array of a group. Its metadata are looked at before the library is handed it."""
    import zarr as library

    folder = path if _zarr_metadata(path) is not None else path / chosen(_zarr_arrays(path, options.key), options.key)
    metadata = _zarr_metadata(folder)
    if metadata is None:
        raise ValueError(f"key: expected the name of an array, got {options.key!r}")
    kind = metadata.get("data_type", metadata.get("dtype"))
    if not isinstance(kind, str) or kind.lstrip("<>|")[:1] not in ("b", "i", "u", "f"):
        raise ValueError(f"labels: expected integers, got {kind!r}")
    _refuse_codecs(metadata)
    array: Any = library.open_array(library.storage.LocalStore(folder, read_only=True), mode="r")
    admit(array.shape, array.dtype, options)
    admit(array.shards or array.chunks, array.dtype, options)  # a chunk may be larger than its array
    given = array.attrs.get("spacing")
    spacing = tuple(float(step) for step in given) if isinstance(given, (list, tuple)) else None
    return Opened(tuple(array.shape), array.dtype, spacing, lambda: np.asarray(array[...]))


def _zarr_metadata(folder: Path) -> dict[str, Any] | None:
    """What a folder says of the array in it, of either version of the format; None if there is none."""
    for name in ("zarr.json", ".zarray"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            if not isinstance(found, dict):
                raise ValueError(f"{name}: expected an object of JSON")
            return found if found.get("node_type", "array") == "array" else None
    return None


def _zarr_arrays(path: Path, key: str | None) -> list[str]:
    """The names of the arrays of a group, and `key` if it names one further down."""
    names = [entry.name for entry in path.iterdir() if entry.is_dir() and _zarr_metadata(entry) is not None]
    deeper = key is not None and not {"", ".", ".."} & set(key.split("/")) and (path / key).is_dir()
    return [*names, key] if deeper and key is not None else names


def _refuse_codecs(metadata: dict[str, Any]) -> None:
    """Refuses arrays that are packed in other ways than numbers are."""
    used = []
    pending: list[Any] = [metadata.get(name) for name in ("codecs", "compressor", "filters")]
    while pending:
        entry = pending.pop()
        if isinstance(entry, list):
            pending += entry
        elif isinstance(entry, dict):
            used.append(str(entry.get("name", entry.get("id"))))
            settings = entry.get("configuration") or {}
            pending += [settings.get("codecs"), settings.get("index_codecs")]
        elif entry is not None:
            used.append(repr(entry))
    unknown = sorted(name for name in used if name.removeprefix("numcodecs.") not in _CODECS)
    if unknown:
        raise ValueError(f"codecs: expected {', '.join(sorted(_CODECS))}, got {', '.join(unknown)}")


READERS: dict[str, Callable[[Path, ReadOptions], Opened]] = {
    "npy": npy,
    "npz": npz,
    "tiff": tiff,
    "png": png,
    "zarr": zarr,
}
