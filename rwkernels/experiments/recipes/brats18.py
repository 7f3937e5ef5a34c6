"""BraTS18: four MR sequences of gliomas, of which the high-grade ones are taken.

    SRC[/MICCAI_BraTS_2018_Data_Training]/HGG/Brats18_2013_2_1/Brats18_2013_2_1_flair.nii.gz
                                                               ..._t1, _t1ce, _t2, _seg

In the order of their names they alternately train and validate, the first one trains. Label 4 (enhancing tumour)
becomes 3, as nnU-Net wants consecutive labels. Channels are in the order of the published code: T2, T1, T1CE, FLAIR.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rwkernels.experiments.recipes.cases import Case, Recipe, part_of

HIGH_GRADE = 210
SEQUENCES = ("t2", "t1", "t1ce", "flair")


def find(source: Path) -> Iterator[Case | str]:
    """The high-grade cases by name."""
    folders = [source / "HGG", source / "MICCAI_BraTS_2018_Data_Training" / "HGG"]
    root = next((folder for folder in folders if folder.is_dir()), source if source.name == "HGG" else None)
    if root is None:
        yield f"{source}: expected a folder HGG in it (the high-grade cases)"
        return
    subjects = sorted(path for path in root.glob("Brats18_*") if path.is_dir())
    if len(subjects) != HIGH_GRADE:
        yield (
            f"{root}: expected {HIGH_GRADE} folders Brats18_*, found {len(subjects)}; every one that is missing "
            "moves the later ones to the other part of the split"
        )
    for index, folder in enumerate(subjects):
        *images, label = (folder / f"{folder.name}_{sequence}.nii.gz" for sequence in (*SEQUENCES, "seg"))
        yield Case(folder.name, part_of(index), tuple(images), label)


RECIPE = Recipe(
    name="brats18",
    title="BraTS18",
    number=102,
    channels=("T2", "T1", "T1CE", "FLAIR"),
    classes=("background", "NCR/NET", "edema", "ET"),
    description=(
        "BraTS18, high-grade gliomas: in the order of names they alternately train and validate; label 4 (enhancing "
        "tumour) is 3 here."
    ),
    find=find,
    axes=(2, 1, 0),
    renumber=((4, 3),),
    brain_only=True,
)
