"""What nnU-Net imports when it looks through `nnUNet_extTrainer`: hands out every trainer by its name."""

from __future__ import annotations

from typing import Any

from rwkernels.integrations.nnunet.trainers import trainer


def __getattr__(name: str) -> Any:
    try:
        return trainer(name)
    except ValueError as error:
        raise AttributeError(str(error)) from error
