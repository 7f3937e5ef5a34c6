"""From the downloaded folders of ACDC17, BraTS18 and KiTS19 to nnU-Net v2's raw layout or plain 2D slices.

Splits and preprocessing are the paper's, as far as its text and published code agree; each recipe says where it departs
from them. Nobody's data is downloaded: all three want a registration.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rwkernels.experiments.recipes import acdc17, brats18, kits19, layouts
from rwkernels.experiments.recipes.cases import Case, CaseError, Recipe, RecipeError, read, whole

__all__ = ["RECIPES", "Prepared", "RecipeError", "prepare"]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (acdc17.RECIPE, brats18.RECIPE, kits19.RECIPE)}


@dataclass
class Prepared:
    """What was written where.

    Attributes:
        folder: The folder that was made.
        train: Number of cases.
        validation: Number of cases.
        left_out: What was wrong with cases that are not in it.
    """

    folder: Path
    train: int = 0
    validation: int = 0
    left_out: list[str] = field(default_factory=list)


def prepare(
    recipe: str,
    source: Path,
    target: Path,
    *,
    layout: str,
    allow_missing: bool = False,
    told: Callable[[Case], object] | None = None,
) -> Prepared:
    """Prepares a downloaded data set.

    Args:
        recipe: `"acdc17"`, `"brats18"` or `"kits19"`.
        source: Its downloaded folder.
        target: `layout="slices"`: the folder to make. `"nnunet"`: the folder to make if its name is one that nnU-Net
            takes (`Dataset101_ACDC17`), else nnU-Net's raw folder, in which that one is made.
        layout: `"nnunet"` or `"slices"`.
        allow_missing: Leave out cases that are missing or damaged, instead of refusing all.
        told: Called with each case before it is written.

    Returns:
        What was written. The folder is there as a whole or not at all.

    Raises:
        RecipeError: Cases are missing or damaged; the message names each. Nothing is written.
        ValueError: `recipe` or `layout` is unknown.
        FileExistsError: The folder to make is there already.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
    if layout not in layouts.LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(layouts.LAYOUTS)}, got {layout!r}")
    chosen = RECIPES[recipe]
    if not source.is_dir():
        raise RecipeError(chosen, [f"{source}: no such folder"])
    folder = layouts.folder(chosen, target, layout)
    if folder.exists():
        raise FileExistsError(17, "exists already; it is made by this command", str(folder))
    cases, problems = whole(chosen.find(source))
    if problems and not allow_missing:
        # What cannot even be found is told before hours of reading.
        raise RecipeError(chosen, problems)
    absent = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        writer = layouts.LAYOUTS[layout](chosen, partial)
        for case in cases:
            if told is not None:
                told(case)
            try:
                writer.add(case, read(chosen, case))
            except CaseError as error:
                problems.append(str(error))
        if problems and not allow_missing:
            raise RecipeError(chosen, problems)
        if not writer.train or not writer.validation:
            raise RecipeError(chosen, [*problems, "no case is left to train or to validate"])
        writer.finish()
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in absent:
            parent.rmdir()
        raise
    return Prepared(folder, len(writer.train), len(writer.validation), problems)
