#!/usr/bin/env bash
# MONAI 1.6.1: HausdorffDTLoss is lower for a prediction that misses the object altogether than for the true shape a
# few pixels off.
#
# Expected: the loss of a missing object is the worst, or undefined; certainly above that of the object moved by 3 of
#           its 8 pixels. (The Hausdorff distance it stands for is infinite there.)
# Seen:     the distances of a mask without any foreground are set to 0 and so leave the sum, and only those of the
#           target remain: predicting nothing costs what a shift of less than 3 pixels costs. Gradient descent has a
#           reason to delete small objects that it cannot place. Predicting everything costs hundreds of times more.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile monai==1.6.1 torch==2.13.0 numpy==2.2.6 scipy==1.15.3
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from monai.losses import HausdorffDTLoss

target = torch.zeros(1, 1, 32, 32)
target[..., 8:16, 8:16] = 1
loss = HausdorffDTLoss()
shifted = {shift: loss(target.roll(shift, 3), target).item() for shift in (0, 1, 2, 3, 4, 8)}
nothing = loss(torch.zeros_like(target), target).item()
everything = loss(torch.ones_like(target), target).item()
print("MONAI 1.6.1, HausdorffDTLoss of a square of 8 x 8 in 32 x 32")
for shift, value in shifted.items():
    print(f"  moved by {shift} pixels: {value:.4f}")
print(f"  nothing predicted: {nothing:.4f} (expected above each of these)")
print(f"  everything predicted: {everything:.4f}")
same = shifted[2] < nothing < shifted[3] < shifted[8] < everything
sys.exit(0 if same else "the behaviour has changed")
EOF
