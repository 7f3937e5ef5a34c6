#!/usr/bin/env bash
# TorchIO 1.2.1: the number that CropOrPad and Pad take for air is written into the label map as well, where it wraps.
#
# Expected: label maps are padded with background, as Resample, RandomAffine and RandomElasticDeformation treat
#           LabelMap apart from ScalarImage (nearest neighbour, a pad value of its own); or a number outside of the
#           labels' type is an error.
# Seen:     CropOrPad(8, padding_mode=-1000), the usual air of a CT, makes the padding of an 8-bit label map class 24
#           (-1000 modulo 256), of a 16-bit one -1000. With padding_mode="mean" a float label map gets the mean of its
#           labels, 0.375, around it. A loss that looks up class 24 fails far from here, or trains on it if there is
#           one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchio==1.2.1 torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
import torchio

labels = torch.zeros(1, 4, 4, 4)
labels[:, 1:3, 1:3, 1:3] = 3
print(
    "TorchIO 1.2.1, label map of 4 x 4 x 4 with the classes 0 and 3 beside a CT, brought to 8 x 8 x 8; expected 0 and 3"
)
same = True
for dtype, mode, expected in [
    (torch.uint8, -1000, [0, 3, 24]),
    (torch.int16, -1000, [-1000, 0, 3]),
    (torch.float32, "mean", [0, 0.375, 3]),
    (torch.uint8, 0, [0, 3]),
]:
    subject = torchio.Subject(
        ct=torchio.ScalarImage(tensor=torch.zeros(1, 4, 4, 4)), labels=torchio.LabelMap(tensor=labels.to(dtype))
    )
    seen = torchio.CropOrPad(8, padding_mode=mode)(subject)["labels"].data.unique().tolist()
    print(f"  {dtype}, padding_mode={mode!r}: {seen}")
    same &= seen == expected
sys.exit(0 if same else "the behaviour has changed")
EOF
