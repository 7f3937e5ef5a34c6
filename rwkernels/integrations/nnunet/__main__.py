"""`python -m rwkernels.integrations.nnunet`: the folder in which nnU-Net finds the trainers, and nothing else."""

from __future__ import annotations

import importlib.util
import sys

from rwkernels.integrations.nnunet import trainer_folder


def main() -> int:
    """Prints the folder; 1 if nnU-Net is missing or does not look into folders, said on standard error."""
    if importlib.util.find_spec("nnunetv2") is None:
        print('nnunetv2 is not installed: pip install "rwkernels[nnunet]"', file=sys.stderr)
        return 1
    print(trainer_folder())
    return 0


if __name__ == "__main__":
    sys.exit(main())
