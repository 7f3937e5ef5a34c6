"""Arrays of an item, in the files of Zarr's sharding codec.

The library makes the metadata and reads the array. Its chunks are packed here, and what it made is kept for the next
array of the kind: through the library's tasks and threads, a volume of 128^3 takes longer to pack than its map takes to
compute.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PIXELS = 1 << 27  # of one file
_NAME, _LEVEL, _SHUFFLE = "lz4", 1, "bitshuffle"
_COPY, _WORTH = 0, 0.9  # Blosc's level that only copies, and what a sample has to come down to for another
_ABSENT = np.uint64(2**64 - 1)


def write(folder: Path, values: npt.NDArray[Any], chunks: tuple[int, ...], meaning: str = "") -> None:
    """Writes `values` as an array in a new folder; `meaning` says how to read a value, where that is not plain."""
    shard = shard_shape(values.shape, chunks)
    folder.mkdir()
    (folder / "zarr.json").write_text(metadata(values.shape, values.dtype, chunks, meaning))
    for place in itertools.product(*(range(-(-n // s)) for n, s in zip(values.shape, shard, strict=True))):
        inside = tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, shard, strict=True))
        with (folder / ".".join(["c", *map(str, place)])).open("xb") as file:
            file.writelines(_packed(values[inside], shard, chunks))


def metadata(shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], meaning: str = "") -> str:
    """The `zarr.json` of an array, as the library writes it."""
    return _metadata(shape, shard_shape(shape, chunks), dtype, chunks, meaning)


@lru_cache(maxsize=256)
def _metadata(
    shape: tuple[int, ...], shard: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], meaning: str
) -> str:
    made = json.loads(_metadata_of_file(shard, dtype, chunks, meaning))
    return json.dumps({**made, "shape": list(shape)}, indent=2)


@lru_cache(maxsize=256)
def _metadata_of_file(shard: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], meaning: str) -> bytes:
    """What the library writes of an array of one file."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    written: dict[str, Any] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(written),
        shape=shard,
        dtype=dtype,
        chunks=chunks,
        shards=shard,
        compressors=(
            BloscCodec(typesize=dtype.itemsize, cname=_NAME, clevel=_LEVEL, shuffle=_SHUFFLE),
            Crc32cCodec(),  # a chunk that was damaged is an error, and not another map
        ),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},  # one folder an array, not one an axis
        attributes={"value": meaning} if meaning else {},
        zarr_format=3,
    )
    found: bytes = written["zarr.json"].to_bytes()
    return found


def shard_shape(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """As many whole chunks in one file as it takes for all of them, or for `PIXELS`."""
    counts = [-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)]
    for axis in range(len(counts)):
        while counts[axis] > 1 and math.prod(counts) * math.prod(chunks) > PIXELS:
            counts[axis] = -(-counts[axis] // 2)
    return tuple(count * chunk for count, chunk in zip(counts, chunks, strict=True))


def _packed(values: npt.NDArray[Any], shard: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[bytes]:
    """The chunks of one file, each with its checksum, and the index of where they are, with its own."""
    counts = [length // side for length, side in zip(shard, chunks, strict=True)]
    index = np.full((*counts, 2), _ABSENT, "<u8")
    chunk = np.empty(chunks, values.dtype)
    offset = 0
    for place in itertools.product(*map(range, counts)):
        inside = tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, chunks, strict=True))
        part = values[inside]
        if part.size == 0:
            continue  # beyond the end of the array
        if part.shape != chunks:
            chunk[...] = 0
        chunk[tuple(map(slice, part.shape))] = part
        data = _compressed(chunk)
        yield data
        yield _checksum(data)
        index[place] = offset, len(data) + 4
        offset += len(data) + 4
    yield index.tobytes()
    yield _checksum(index.tobytes())


def _compressed(chunk: npt.NDArray[Any]) -> bytes:
    """A chunk as Blosc has it: compressed if that pays for a sixteenth of it, from its middle.

    Distances in 16 bits often are noise to it, which takes a third of the time of their map to find out.
    """
    from numcodecs import blosc

    middle, some = len(chunk) // 2, len(chunk) // 16
    sample = chunk[middle : middle + some]
    pays = some == 0 or len(blosc.compress(sample, _NAME.encode(), _LEVEL, blosc.BITSHUFFLE)) < _WORTH * sample.nbytes
    found: bytes = blosc.compress(chunk, _NAME.encode(), _LEVEL if pays else _COPY, blosc.BITSHUFFLE)
    return found


def _checksum(data: bytes) -> bytes:
    found: int = _crc32c()(data)
    return found.to_bytes(4, "little")


@cache
def _crc32c() -> Any:
    """The checksum of Zarr's codec, from the package that the installed release of Zarr brings with it."""
    try:
        from google_crc32c import value
    except ModuleNotFoundError:
        from crc32c import crc32c as value
    return value
