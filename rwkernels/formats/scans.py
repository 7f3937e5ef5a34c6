"""Scans that know where they lie: NIfTI through nibabel, NRRD and MetaImage through SimpleITK.

nibabel gives arrays with the axes (x, y, z) of the file, SimpleITK the same file as (z, y, x). Here both come in the
order that was asked for, and `affine` belongs to that order: it maps indices of the array to millimetres in
nibabel's world (right, anterior, superior). ITK's world points left and posterior.
"""

from __future__ import annotations

import gzip
import io
import locale
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels.formats.files import data_files
from rwkernels.formats.opened import Affine, Opened, ReadOptions, admit, read_bounded


def nifti(path: Path, options: ReadOptions) -> Opened:
    """A NIfTI file, plain or gzipped; its stream is unpacked no further than the header says it reaches."""
    import nibabel as nib

    packed = read_bounded(path, options)
    gzipped = packed[:2] == b"\x1f\x8b"
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(packed)) if gzipped else io.BytesIO(packed)
    start = stream.read(540)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    image_class = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)
    if image_class is None:
        raise ValueError("no NIfTI file: the header is missing or cut off")
    size = image_class.header_class.sizeof_hdr
    header = image_class.header_class(start[:size], check=False)
    stored = tuple(int(side) for side in header.get_data_shape())
    dtype = header.get_data_dtype()
    admit(stored, dtype, options)
    offset = int(header["vox_offset"])
    needed = offset + math.prod(stored) * dtype.itemsize
    if not size <= offset <= options.max_bytes:
        raise ValueError(f"vox_offset: expected {size} to {options.max_bytes}, got {offset}")

    def load() -> npt.NDArray[Any]:
        data = _unpacked(packed, needed) if gzipped else None
        if data is None:
            # One byte more than needed, so that a gzip stream is read to its end and its checksum tested.
            data = start + stream.read(max(needed + 1 - len(start), 0))
        if len(data) < needed:
            raise ValueError(f"data: expected {needed} bytes, got {len(data)}: the file is cut off")
        values = np.asanyarray(image_class.from_bytes(data).dataobj)
        values = values.reshape(_without_trailing(values.shape))
        native: npt.NDArray[Any] = values.astype(values.dtype.newbyteorder("="), copy=False).transpose(order)
        return native

    shape = _without_trailing(stored)
    affine = np.asarray(header.get_best_affine(), dtype=float)
    if not np.isfinite(affine).all():
        raise ValueError(f"affine: expected finite numbers, got {affine.tolist()}")
    order = _order(len(shape), options.axes)
    return Opened(
        tuple(shape[axis] for axis in order),
        dtype,
        tuple(float(np.linalg.norm(affine[:3, axis])) for axis in order),
        load,
        _with_axes(affine, order),
        options.axes,
        "mm" if int(header["xyzt_units"]) % 8 in (0, 2) else None,  # unknown is taken for mm
    )


def _unpacked(packed: bytes, size: int) -> bytes | bytearray | None:
    """The `size` bytes of a gzip stream by libdeflate, four times as fast as zlib.

    None where it does not end with the checksum and size of just these bytes, or the library is missing: what is wrong
    with the stream, if anything, is then for zlib to say.
    """
    try:
        from imagecodecs import DeflateError, deflate_crc32, gzip_decode
    except ImportError:
        return None
    try:
        data = gzip_decode(packed, out=size)
    except (DeflateError, ValueError):
        return None
    end = (deflate_crc32(data) | (size & 0xFFFFFFFF) << 32).to_bytes(8, "little")
    return data if len(data) == size and packed.endswith(end) else None


@contextmanager
def _own_locale() -> Iterator[None]:
    """Puts the locale back as it was: the reader of VTK files leaves "C", whose text is ASCII, to the whole process."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def simple_itk(path: Path, options: ReadOptions) -> Opened:
    """A file that SimpleITK reads, with its header held against the limit before its data are read."""
    import SimpleITK as sitk

    for part in data_files(path):
        if part.stat().st_size > options.max_bytes:
            raise ValueError(f"file: expected at most {options.max_bytes} bytes (--max-bytes), got {part.name}")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _own_locale():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(_last_line(error)) from None
    if reader.GetNumberOfComponents() != 1:
        raise ValueError(f"labels: expected one channel, got {reader.GetNumberOfComponents()}")
    pixel = reader.GetPixelID()
    if pixel not in _pixel_types(sitk):
        raise ValueError(f"labels: expected integers, got pixels of {sitk.GetPixelIDValueAsString(pixel)}")
    dtype = np.dtype(_pixel_types(sitk)[pixel])
    stored = tuple(int(side) for side in reader.GetSize())
    admit(stored, dtype, options)
    shape = _without_trailing(stored)
    order = _order(len(shape), options.axes)
    steps = [float(step) for step in reader.GetSpacing()[: len(shape)]]

    def load() -> npt.NDArray[Any]:
        try:
            with _own_locale():
                values = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise ValueError(_last_line(error)) from None
        found: npt.NDArray[Any] = values.T.reshape(shape).transpose(order)
        return found

    affine = _affine_of_itk(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
    return Opened(
        tuple(shape[axis] for axis in order),
        dtype,
        tuple(steps[axis] for axis in order),
        load,
        None if affine is None else _with_axes(affine, order),
        options.axes,
        "mm",
    )


def write_nifti(path: Path, values: npt.NDArray[Any], source: Opened) -> None:
    """Writes values `[*S]` or `[K, *S]` over the pixels of a source, so that they lie where it does.

    The file has the axes (x, y, z) of the scan, and K last. What knows no place in the world gets its spacing alone.
    """
    import nibabel as nib

    axes = len(source.shape)
    channels = values.ndim - axes
    matrix = np.diag([*(source.spacing or ()), *[1.0] * (4 - axes)])
    if source.affine is not None:
        matrix = np.asarray(source.affine)
    if source.axes == "zyx":
        order = _order(axes, "zyx")
        values = values.transpose([*range(channels), *(channels + axis for axis in order)])
        matrix = np.asarray(_with_axes(matrix, order))
    if channels:
        values = np.moveaxis(values.reshape(*values.shape, *[1] * (3 - axes)), 0, -1)
    nib.save(nib.Nifti1Image(np.asfortranarray(values, dtype=np.float32), matrix), path)


def _without_trailing(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the axes of 1 that come after the third."""
    kept = list(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _order(axes: int, wanted: str) -> list[int]:
    return list(range(axes)) if wanted == "xyz" else list(range(axes))[::-1]


def _with_axes(affine: npt.NDArray[Any], order: list[int]) -> Affine:
    """The affine of an array whose axes are put into `order`."""
    columns = [*order, *range(len(order), 3), 3]
    found: Affine = affine[:, columns].tolist()
    return found


def _affine_of_itk(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> Any:
    """From indices (x, y, z) to nibabel's world, whose first two axes point the other way; None beyond three axes."""
    axes = len(spacing)
    if axes > 3:
        return None
    affine = np.eye(4)
    affine[:axes, :axes] = np.asarray(direction).reshape(axes, axes) * np.asarray(spacing)
    affine[:axes, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _pixel_types(sitk: Any) -> dict[int, str]:
    names = ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64")
    return {getattr(sitk, f"sitk{name}"): name.lower() for name in names}


def _last_line(error: RuntimeError) -> str:
    """What SimpleITK says after the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*?\bERROR: ", "", lines[-1]) if lines else "cannot be read"
