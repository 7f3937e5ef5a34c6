#!/usr/bin/env bash
# torchmetrics 1.9.0: a perfect prediction has a generalised Dice of 0.5 in one class if that class occurs in half of
# the images, and 0 if in none; Dice and mean IoU of the same package say otherwise, each in its own way.
#
# Expected: a class that neither mask has is no mistake: nan or 1 for that image, and left out of the mean over
#           images.
# Seen:     GeneralizedDiceScore(per_class=True) counts it as 0 in the mean over images, so its score of class c is
#           bounded by how often c occurs. DiceScore(average="none") leaves it out (1.0, nan where it never occurs),
#           and MeanIoU(per_class=True) leaves it out but marks "never" by -1, which a mean over classes takes for a
#           score.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchmetrics==1.9.0 torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torchmetrics.segmentation import DiceScore, GeneralizedDiceScore, MeanIoU

labels = torch.zeros(2, 16, 16, dtype=torch.long)
labels[:, :8, :8] = 1
labels[0, 10:14, 10:14] = 2
print("torchmetrics 1.9.0, prediction equal to the target, 2 images, 4 classes: 2 is in one image, 3 in none")
seen = {}
for metric in (
    DiceScore(num_classes=4, average="none", input_format="index"),
    MeanIoU(num_classes=4, per_class=True, input_format="index"),
    GeneralizedDiceScore(num_classes=4, per_class=True, input_format="index"),
):
    metric.update(labels, labels)
    seen[type(metric).__name__] = str(metric.compute().tolist())
    print(f"  {type(metric).__name__}: {seen[type(metric).__name__]}")
expected = {
    "DiceScore": "[1.0, 1.0, 1.0, nan]",
    "MeanIoU": "[1.0, 1.0, 1.0, -1.0]",
    "GeneralizedDiceScore": "[1.0, 1.0, 0.5, 0.0]",
}
sys.exit(0 if seen == expected else "the behaviour has changed")
EOF
