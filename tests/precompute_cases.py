"""Label maps on disk and runs of `rwkernels precompute` for its tests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels import precompute

SPACING = (0.75, 1.0, 3.0)
# Turned by a quarter about one axis, mirrored along another, moved: nothing that looks right by chance.
AFFINE = np.array([[0.0, -1.0, 0.0, 11.0], [0.75, 0.0, 0.0, -7.0], [0.0, 0.0, -3.0, 40.0], [0.0, 0.0, 0.0, 1.0]])


def blob(shape: tuple[int, ...], seed: int = 0, classes: int = 4) -> npt.NDArray[np.uint8]:
    """Nested, lopsided regions: no axis looks like another."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.arange(side) / side for side in shape], indexing="ij")
    away = sum(
        ((axis - random.uniform(0.35, 0.65)) / (0.3 + 0.2 * n)) ** 2 for n, axis in enumerate(grid)
    )  # fractions of the sides
    found = sum((away < (1 - k / classes) ** 2).astype(np.uint8) for k in range(classes - 1))
    return np.asarray(found, dtype=np.uint8)


LABELS = blob((21, 18, 13))


def write_nifti(path: Path, labels: npt.NDArray[Any], affine: npt.NDArray[Any] = AFFINE) -> Path:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def two_sources(folder: Path) -> tuple[Path, Path]:
    """A folder with `LABELS` and other labels below it, and where the maps of both are to go."""
    source = folder / "labels"
    write_nifti(source / "a.nii.gz", LABELS)
    write_nifti(source / "more" / "b.nii", blob((9, 12, 8), seed=3).astype(np.float32))
    return source, folder / "maps"


def write_volumes(folder: Path, count: int, shape: tuple[int, ...] = (24, 20, 17)) -> None:
    """`count` NPY files, the quickest to write and read; every fourth in a folder of its own."""
    for index in range(count):
        inner = folder / "more" if index % 4 == 3 else folder
        inner.mkdir(parents=True, exist_ok=True)
        np.save(inner / f"v{index:03}.npy", blob(shape, seed=index))


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    precompute.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def run(*arguments: object) -> int:
    """The command in this process, with one worker unless said otherwise."""
    given = [str(argument) for argument in arguments]
    if "--workers" not in given:
        given += ["--workers", "1"]
    return precompute.run(parse(*given))


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, but for those of items that are not finished."""
    return {name: (store / name).read_bytes() for name in files(store)}


def files(store: Path) -> Iterator[str]:
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and not name.startswith(".partial/"):
            yield name
