"""Data sets by name. `load` gives the same pixels for the same options, wherever the files lie.

| name | what | files |
|---|---|---|
| `hearts` | generated hearts of many subjects (`rwkernels.experiments.hearts`) | none |
| `mni152` | MNI152 T1, a population template, with tissue labels derived from its maps | nilearn's |
| `totalsegmentator-ct` | a CT of one subject, organ labels made by a model | its source distribution |
| `slices` | what `rwkernels experiment prepare` wrote: ACDC17, BraTS18, KiTS19 | that folder |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rwkernels.experiments import hearts
from rwkernels.experiments.configuration import Data
from rwkernels.experiments.images import Images, Part


class DataError(ValueError):
    """A data set cannot be had; the message says what to do."""


def load(data: Data, path: Path | None = None) -> Images:
    """The data set that the configuration names.

    Args:
        data: Name and options.
        path: Where its files are, for those that need any.

    Raises:
        DataError: The name or an option is unknown, or files are missing or not what they should be.

    Examples:
        >>> from rwkernels.experiments.configuration import Data
        >>> images = load(Data("hearts", {"subjects": 4, "slices": 2, "size": 32}))
        >>> images.train.images.shape, images.classes
        (torch.Size([4, 1, 32, 32]), ('background', 'RV', 'MYO', 'LV'))
    """
    loader = LOADERS.get(data.name.partition(":")[0])
    if loader is None:
        raise DataError(f"data: expected one of {', '.join(LOADERS)}, got {data.name!r}")
    try:
        return loader(path, **data.options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise DataError(f"data {data.name}: {str(error).partition('() ')[2] or error}") from None


def _hearts(
    path: Path | None, *, seed: int = 0, subjects: int = 24, slices: int = 6, size: int = 64, first: int = 0
) -> Images:
    """Even subjects train, odd ones validate."""

    def part(numbers: range) -> Part:
        made = [hearts.heart(seed, number, slices=slices, size=size) for number in numbers]
        return Part(
            torch.from_numpy(np.concatenate([each.image for each in made]))[:, None],
            torch.from_numpy(np.concatenate([each.labels for each in made])).long(),
            tuple(f"heart{number:03d}" for number in numbers for _ in range(slices)),
            tuple(each.spacing for each in made for _ in range(slices)),
        )

    return Images(
        part(range(first, first + subjects, 2)),
        part(range(first + 1, first + subjects, 2)),
        hearts.CLASSES,
        "generated hearts",
        f"Synthetic: {subjects} generated hearts (seed {seed}), {slices} short-axis slices of {size} x {size} each, "
        "1.9 to 2.5 mm pixels at 64 x 64 and 8 to 11 mm between slices, z-scored by subject. Even subjects train, odd "
        "ones validate. No patient's image is in it.",
    )


def _mni152(path: Path | None, **options: Any) -> Images:
    from rwkernels.experiments import mni152

    return mni152.load(**options)


def _totalsegmentator(path: Path | None, **options: Any) -> Images:
    from rwkernels.experiments import totalsegmentator

    if path is None:
        raise DataError(f"data: expected --data totalsegmentator-ct=PATH: {totalsegmentator.WHENCE}")
    return totalsegmentator.load(path, **options)


def _slices(path: Path | None, **options: Any) -> Images:
    from rwkernels.experiments import slices

    if path is None:
        raise DataError(
            "data: expected --data NAME=FOLDER, where FOLDER is what `rwkernels experiment prepare ... --format "
            "slices` wrote"
        )
    return slices.load(path, **options)


LOADERS: dict[str, Callable[..., Images]] = {
    "hearts": _hearts,
    "mni152": _mni152,
    "totalsegmentator-ct": _totalsegmentator,
    "slices": _slices,
}
