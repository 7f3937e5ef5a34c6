"""ACDC17: cine MR of 100 patients, labelled at the ends of diastole and systole.

    SRC[/training]/patient001/Info.cfg                          ED: 1, ES: 12, Group, Height, NbFrame, Weight
    SRC[/training]/patient001/patient001_frame01.nii.gz         and ..._frame01_gt.nii.gz
    SRC[/training]/patient001/patient001_frame12.nii.gz         and ..._frame12_gt.nii.gz

Even patients train and odd ones validate. The code published with the paper takes every file that ends in `_gt`; here
Info.cfg says which two frames there have to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from rwkernels.experiments.recipes.cases import Case, Recipe, first_folder, part_of

PATIENTS = range(1, 101)


def find(source: Path) -> Iterator[Case | str]:
    """Two frames of every patient."""
    root = first_folder(source, ("training", "database/training", "ACDC/database/training"), "patient[0-9]*")
    for number in PATIENTS:
        patient = f"patient{number:03d}"
        folder = root / patient
        if not folder.is_dir():
            yield f"{patient}: no such folder in {root}"
            continue
        frames = _frames(folder / "Info.cfg")
        if isinstance(frames, str):
            yield f"{patient}: {frames}"
            continue
        for frame in frames:
            name = f"{patient}_frame{frame:02d}"
            yield Case(name, part_of(number), (folder / f"{name}.nii.gz",), folder / f"{name}_gt.nii.gz")


def _frames(path: Path) -> list[int] | str:
    """Numbers of the frames at the ends of diastole and systole, or what is wrong."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "Info.cfg missing"
    found = {name: re.search(rf"^{name}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for name in ("ED", "ES")}
    numbers = [int(match.group(1)) for match in found.values() if match]
    if len(numbers) < 2:
        return f"Info.cfg has no line {next(name for name, match in found.items() if not match)}: NUMBER"
    return sorted(set(numbers))


RECIPE = Recipe(
    name="acdc17",
    title="ACDC17",
    number=101,
    channels=("cine MR",),
    classes=("background", "RV", "MYO", "LV"),
    description="ACDC17: even patients train, odd ones validate; both labelled frames of each.",
    find=find,
    axes=(2, 1, 0),
)
