"""What a recipe is, and how a case is read and checked."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import nibabel

Array = npt.NDArray[Any]


class CaseError(ValueError):
    """A case is missing a file or is damaged; the message names it."""


class RecipeError(ValueError):
    """A data set cannot be prepared: all that is wrong with it."""

    def __init__(self, recipe: Recipe, problems: list[str]) -> None:
        self.problems = list(problems)
        shown = "\n  ".join(problems[:40] + ([f"and {len(problems) - 40} more"] if len(problems) > 40 else []))
        super().__init__(
            f"{recipe.title}: nothing was written, because of\n  {shown}\n(--allow-missing leaves such cases out)"
        )


@dataclass(frozen=True)
class Case:
    """Files of an image.

    Attributes:
        name: What its files will be called.
        part: `"train"` or `"validation"`.
        images: One file for each channel.
        label: The file of labels.
    """

    name: str
    part: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Volume:
    """A case in memory, in the axes of its files.

    Attributes:
        images: One array for each channel.
        label: Integers, after the recipe's renumbering.
        affine: From voxels to mm.
        copied: Whether the images are what the files hold, so that they can be copied as they are.
        label_copied: Whether the labels are.
    """

    images: tuple[Array, ...]
    label: Array
    affine: Array
    copied: bool = True
    label_copied: bool = True

    @property
    def spacing(self) -> tuple[float, ...]:
        """Lengths of the steps along the axes, in mm."""
        return tuple(float(step) for step in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))


@dataclass(frozen=True)
class Recipe:
    """How a data set becomes what is trained on.

    Attributes:
        name: As the command calls it.
        title: As people call it.
        number: Of nnU-Net's folder.
        channels: Names of the images of a case; nnU-Net chooses the normalisation by them.
        classes: Names of the labels, the background first.
        description: What was done, for whoever finds the result.
        find: Cases below a folder in the order of the paper's split, and in words what is wrong with that folder.
        axes: Which axes of the files are slices, rows and columns.
        renumber: Labels of the files that get another number.
        change: What else is done to a volume.
        brain_only: z-score over the voxels that are not 0, and no slices in which all are.
    """

    name: str
    title: str
    number: int
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    description: str
    find: Callable[[Path], Iterable[Case | str]]
    axes: tuple[int, int, int]
    renumber: tuple[tuple[int, int], ...] = ()
    change: Callable[[Volume], Volume] | None = None
    brain_only: bool = False


def first_folder(source: Path, inside: tuple[str, ...], pattern: str) -> Path:
    """The first of `source` and the folders in it that has folders called `pattern`; `source` if none has."""
    for name in ("", *inside):
        if any(path.is_dir() for path in (source / name).glob(pattern)):
            return source / name
    return source


def part_of(number: int) -> str:
    """Even ones train and odd ones validate."""
    return "train" if number % 2 == 0 else "validation"


def whole(found: Iterable[Case | str]) -> tuple[list[Case], list[str]]:
    """The cases whose files are all there, and what is wrong with the others and the rest."""
    cases: list[Case] = []
    problems: list[str] = []
    for case in found:
        if isinstance(case, str):
            problems.append(case)
            continue
        missing = [path.name for path in (*case.images, case.label) if not path.is_file()]
        if missing:
            problems.append(f"{case.label.parent.name}: {', '.join(missing)} missing")
        else:
            cases.append(case)
    return cases, problems


def read(recipe: Recipe, case: Case) -> Volume:
    """The case's volume, checked and changed as the recipe says. Raises `CaseError`."""
    found = [_load(case, path) for path in (*case.images, case.label)]
    *images, label = [_array(case, path, image) for path, image in zip((*case.images, case.label), found, strict=True)]
    if label.ndim != 3:
        raise CaseError(f"{case.name}: expected a volume of three axes, got shape {label.shape} in {case.label.name}")
    for path, image in zip(case.images, images, strict=True):
        if image.shape != label.shape:
            raise CaseError(
                f"{case.name}: expected one shape, got {image.shape} in {path.name} and {label.shape} in "
                f"{case.label.name}"
            )
        if not np.isfinite(image).all():
            raise CaseError(f"{case.name}: expected finite intensities in {path.name}, got nan or infinity")
    affine = np.asarray(found[0].affine, np.float64)
    numbers = _integers(recipe, case, label)
    volume = Volume(tuple(images), numbers, affine, label_copied=not recipe.renumber)
    if min(volume.spacing) <= 0:
        raise CaseError(f"{case.name}: expected a spacing above 0, got {volume.spacing} in {case.images[0].name}")
    if recipe.change is None:
        return volume
    try:
        return recipe.change(volume)
    except CaseError as error:
        raise CaseError(f"{case.name}: {error}") from None


def _load(case: Case, path: Path) -> nibabel.Nifti1Image:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
    except (ImageFileError, OSError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise CaseError(f"{case.name}: {path.name} cannot be read ({_reason(error)})") from None
    assert isinstance(image, nibabel.Nifti1Image)
    return image


def _array(case: Case, path: Path, image: nibabel.Nifti1Image) -> Array:
    try:
        return np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise CaseError(f"{case.name}: {path.name} is damaged ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _integers(recipe: Recipe, case: Case, label: Array) -> Array:
    whole = np.rint(label)
    given, taken = {old for old, _ in recipe.renumber}, {new for _, new in recipe.renumber}
    allowed = set(range(len(recipe.classes))) - taken | given
    strange = sorted(set(np.unique(label).tolist()) - allowed)
    if strange:
        raise CaseError(
            f"{case.name}: expected the labels {', '.join(map(str, sorted(allowed)))} in {case.label.name}, got "
            f"{strange[0]:g}"
        )
    numbers = whole.astype(np.uint8)
    for old, new in recipe.renumber:
        numbers[whole == old] = new
    return numbers


def changed(volume: Volume, images: tuple[Array, ...], label: Array, affine: Array) -> Volume:
    """The volume with other contents, which are not those of its files."""
    return replace(volume, images=images, label=label, affine=affine, copied=False, label_copied=False)
