"""The libraries that the maps are compared with, each called as a careful user of it would.

Every one offers a transform of one binary image; label images need a call per image and class. The form that a library
wants its images in (its own image type, uint8, the inverse) is made beforehand and not timed. All are asked for exact
Euclidean distances with the image border as no boundary.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkernels.bench.harness import Missing
from rwkernels.bench.names import CUCIM, CUPY, DIPLIB, EDT_PER_CLASS, MONAI, OPENCV, SAM3, SCIPY, SIMPLEITK

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, ...] | None


@dataclass(frozen=True)
class Library:
    """A binary distance transform.

    `prepare` brings the masks of one image [K, *S] into the library's form, `distances` gives the distance of every
    pixel to the nearest one outside its mask, class by class: what is computed, and nothing else, is timed.
    """

    name: str
    module: str
    prepare: Callable[[Mask, Spacing], Any]
    distances: Callable[[Any], Iterator[Any]]
    planar_only: bool = False
    device: str = "cpu"


def missing_module(module: str) -> str | None:
    """Why `module` cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        top = module.split(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == top:
            return f"{top} is not installed"
        return f"{top} cannot be imported ({str(error).splitlines()[0]})"
    return None


def need(module: str) -> Any:
    """`module`, imported now. Raises `Missing` if it cannot be."""
    reason = missing_module(module)
    if reason:
        raise Missing(reason)
    return importlib.import_module(module)


def monai_boundary_loss() -> Any:
    """MONAI's class of that name. Raises `Missing` where there is none."""
    found = getattr(need("monai.losses"), "BoundaryLoss", None)
    if found is None:
        raise Missing("this release of MONAI has no BoundaryLoss")
    return found


# --- on the CPU ------------------------------------------------------------------------------------------------


def _masks_and_spacing(masks: Mask, spacing: Spacing) -> tuple[Mask, Spacing]:
    return masks, spacing


def _scipy(given: tuple[Mask, Spacing]) -> Iterator[Any]:
    transform = importlib.import_module("scipy.ndimage").distance_transform_edt
    masks, spacing = given
    return (transform(mask, sampling=spacing) for mask in masks)


def _edt(given: tuple[Mask, Spacing]) -> Iterator[Any]:
    transform = importlib.import_module("edt").edt
    masks, spacing = given
    threads = torch.get_num_threads()
    steps = spacing or (1.0,) * (masks.ndim - 1)
    return (transform(mask, anisotropy=steps, parallel=threads) for mask in masks)


def _monai(given: tuple[Any, Spacing]) -> Iterator[Any]:
    """All classes of an image are the channels of one call; MONAI asks SciPy, on a GPU cuCIM if it is there."""
    transform = importlib.import_module("monai.transforms.utils").distance_transform_edt
    masks, spacing = given
    return iter(transform(masks, sampling=None if spacing is None else list(spacing)))


def _opencv_masks(masks: Mask, spacing: Spacing) -> npt.NDArray[np.uint8]:
    if spacing is not None and len(set(spacing)) > 1:
        raise ValueError("OpenCV knows one spacing only")
    return masks.astype(np.uint8)


def _opencv(masks: npt.NDArray[np.uint8]) -> Iterator[Any]:
    cv2 = importlib.import_module("cv2")
    return (cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in masks)


def _simpleitk_images(masks: Mask, spacing: Spacing) -> list[Any]:
    """The inverse masks: Maurer's distance is exact outside of an object, and to its border pixels inside."""
    sitk = importlib.import_module("SimpleITK")
    images = []
    for mask in masks:
        image = sitk.GetImageFromArray((~mask).astype(np.uint8))
        if spacing is not None:
            image.SetSpacing(spacing[::-1])
        images.append(image)
    return images


def _simpleitk(images: list[Any]) -> Iterator[Any]:
    sitk = importlib.import_module("SimpleITK")
    for image in images:
        signed = sitk.SignedMaurerDistanceMap(
            image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        yield np.maximum(sitk.GetArrayViewFromImage(signed), 0)


def _diplib_images(masks: Mask, spacing: Spacing) -> list[Any]:
    dip = importlib.import_module("diplib")
    images = []
    for mask in masks:
        image = dip.Image(np.ascontiguousarray(mask))
        if spacing is not None:
            image.SetPixelSize(list(spacing[::-1]))
        images.append(image)
    return images


def _diplib(images: list[Any]) -> Iterator[Any]:
    """The method "separable" is the exact one; the default is not."""
    dip = importlib.import_module("diplib")
    return (np.asarray(dip.EuclideanDistanceTransform(i, border="object", method="separable")) for i in images)


# --- on a GPU --------------------------------------------------------------------------------------------------


def _on_cupy(masks: Mask, spacing: Spacing) -> tuple[Any, Spacing]:
    return importlib.import_module("cupy").asarray(masks), spacing


def on_torch_stream() -> Any:
    """CuPy's context in which it launches on torch's current stream."""
    return importlib.import_module("cupy").cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)


def _cupy_like(transform_of: str) -> Callable[[tuple[Any, Spacing]], Iterator[Any]]:
    def distances(given: tuple[Any, Spacing]) -> Iterator[Any]:
        transform = importlib.import_module(transform_of).distance_transform_edt
        masks, spacing = given
        for mask in masks:
            with on_torch_stream():
                found = transform(mask, sampling=spacing, float64_distances=False)
            yield torch.as_tensor(found)

    return distances


def _masks_on_cuda(masks: Mask, spacing: Spacing) -> tuple[Any, Spacing]:
    return torch.from_numpy(masks).cuda(), spacing


def _sam3(given: tuple[Any, Spacing]) -> Iterator[Any]:
    """Its transform in Triton takes a batch of planar images, and one row or column a program."""
    return iter(importlib.import_module("sam3.model.edt").edt_triton(given[0]))


_CUCIM = "cucim.core.operations.morphology"

CPU_LIBRARIES = {
    library.name: library
    for library in (
        Library(SCIPY, "scipy.ndimage", _masks_and_spacing, _scipy),
        Library(MONAI, "monai.transforms.utils", _masks_and_spacing, _monai),
        Library(OPENCV, "cv2", _opencv_masks, _opencv, planar_only=True),
        Library(SIMPLEITK, "SimpleITK", _simpleitk_images, _simpleitk),
        Library(DIPLIB, "diplib", _diplib_images, _diplib),
        Library(EDT_PER_CLASS, "edt", _masks_and_spacing, _edt),
    )
}
GPU_LIBRARIES = {
    library.name: library
    for library in (
        Library(CUCIM, _CUCIM, _on_cupy, _cupy_like(_CUCIM), device="cuda"),
        Library(CUPY, "cupyx.scipy.ndimage", _on_cupy, _cupy_like("cupyx.scipy.ndimage"), device="cuda"),
        Library(MONAI, "monai.transforms.utils", _masks_on_cuda, _monai, device="cuda"),
        Library(SAM3, "sam3.model.edt", _masks_on_cuda, _sam3, planar_only=True, device="cuda"),
    )
}  # fmt: skip


NAMES = tuple({**CPU_LIBRARIES, **GPU_LIBRARIES})


def library(name: str, device: str) -> Library:
    """The library called `name` for images on `device`; one of the CPU if it has none for a GPU.

    Raises `Missing` if it cannot be used here.
    """
    found = GPU_LIBRARIES[name] if device == "cuda" and name in GPU_LIBRARIES else CPU_LIBRARIES[name]
    need(found.module)
    return found


def rectify(distances: Iterable[Any], channels: npt.NDArray[np.float32]) -> None:
    """The rectified map [K, *S] of an image from the distances of its classes, as the paper's code makes it (Eq. 4)."""
    for channel, distance in zip(channels, distances, strict=True):
        np.divide(distance, -(distance.max() + 1e-15), out=channel, casting="unsafe")
    channels[channels == 0] = 1


def usable(names: Sequence[str], axes: int, isotropic: bool) -> list[str]:
    """Those of `names` that can do images of so many axes at all (OpenCV, SAM3: planar and isotropic ones)."""
    libraries = {**CPU_LIBRARIES, **GPU_LIBRARIES}
    return [
        name
        for name in names
        if not (name in libraries and libraries[name].planar_only and (axes != 2 or not isotropic))
    ]
