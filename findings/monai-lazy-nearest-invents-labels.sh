#!/usr/bin/env bash
# MONAI 1.6.1: transforms with mode="nearest" interpolate linearly once they run lazily, so a label map gets values
# that are no label.
#
# Expected: lazy resampling does what the eager transform does, with the mode that was asked for: labels 0 and 4 only.
# Seen:     in Compose(..., lazy=True) Resize, Zoom, Spacing, Rotate and Affine give 0.11, 0.56 ... 3.33 beside 0 and
#           4: the pending operation does not carry the mode to where it is run. Cast to integers these are classes
#           that the image has not, and distance maps see their borders. Two things hide it: steps of whole pixels
#           (Spacing by 2) are exact in any mode, and a mode given through Compose(overrides=...) is obeyed.
#           (Project-MONAI/MONAI #6850 has been open since 2023.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from monai.data import MetaTensor
from monai.transforms import Affine, Compose, Resize, Resized, Rotate, Spacing, Zoom


def values(result: torch.Tensor) -> list[float]:
    return sorted({round(value, 2) for value in torch.as_tensor(result).unique().tolist()})


labels = MetaTensor(torch.zeros(1, 8, 8))
labels[:, 3:6, 3:6] = 4
same = True
print("MONAI 1.6.1, label map with the values 0 and 4, mode='nearest', expected 0 and 4")
for name, transform, mixes in [
    ("Resize to 12", Resize((12, 12), mode="nearest"), True),
    ("Zoom by 1.5", Zoom(1.5, mode="nearest", keep_size=False), True),
    ("Spacing 0.6", Spacing((0.6, 0.6), mode="nearest"), True),
    ("Rotate 0.5", Rotate(0.5, mode="nearest"), True),
    ("Affine 0.7", Affine(scale_params=(0.7, 0.7), mode="nearest", image_only=True), True),
    ("Spacing 2", Spacing((2, 2), mode="nearest"), False),
]:
    eager, lazy = (Compose([transform], lazy=lazy)(labels.clone()) for lazy in (False, True))
    print(f"  {name}: eager {values(eager)}, lazy {values(lazy)}")
    same &= values(eager) == [0, 4] and eager.shape == lazy.shape and (values(lazy) != [0, 4]) == mixes

resize = Resized("label", (12, 12), mode="nearest")
overridden = Compose([resize], lazy=True, overrides={"label": {"mode": "nearest"}})({"label": labels.clone()})["label"]
print(f"  Resize to 12, lazy, overrides: {values(overridden)}")
same &= values(overridden) == [0, 4]
sys.exit(0 if same else "the behaviour has changed")
EOF
