"""`python -m rwkernels.integrations.nnunet`: the folder in which nnU-Net finds the trainers, and nothing else."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from rwkernels.integrations.nnunet import trainer_folder

FIRST_WITH_FOLDERS = (2, 8)


def main() -> int:
    """Prints the folder; 1 if nnU-Net is missing or does not look into folders, said on standard error."""
    try:
        version = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        print('nnunetv2 is not installed: pip install "rwkernels[nnunet]"', file=sys.stderr)
        return 1
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < FIRST_WITH_FOLDERS:
        print(
            f"nnunetv2: expected 2.8 or later, which looks for trainers in nnUNet_extTrainer, got {version}: "
            'pip install --upgrade "rwkernels[nnunet]"',
            file=sys.stderr,
        )
        return 1
    print(trainer_folder())
    return 0


if __name__ == "__main__":
    sys.exit(main())
