"""Trainers for nnU-Net v2 that minimise the region-wise loss.

nnU-Net finds a trainer by the name of its class, also in the folders of the environment variable `nnUNet_extTrainer`:

    export nnUNet_extTrainer="$(python -m rwkernels.integrations.nnunet)"
    nnUNetv2_train DATASET 2d 0 -tr nnUNetTrainerRRW

`trainers` has the classes and says how a name chooses optimiser and length of a training.
Importing this package imports nothing of nnU-Net.
"""

from __future__ import annotations

from pathlib import Path


def trainer_folder() -> Path:
    """The folder for `nnUNet_extTrainer`; other folders may stand beside it, separated by `os.pathsep`."""
    return Path(__file__).resolve().parent / "external"
