#!/usr/bin/env bash
# torchmetrics 1.9.0: the Hausdorff distance of a picture that is wider than high is another number, and of one that
# is higher than wide an IndexError.
#
# Expected: two objects keep their distance when rows or columns of background are added on the far side.
# Seen:     only the square picture gives the right 5. The default "pytorch" engine of `distance_transform` puts the
#           distances of a picture of H rows and W columns back at row * H + column (row * W + column is meant), so
#           they land on other pixels wherever H and W differ. The "scipy" engine is right, but the metric cannot
#           choose it. (Lightning-AI/torchmetrics #3300 is about the IndexError.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchmetrics==1.9.0 torch==2.13.0 numpy==2.2.6 scipy==1.15.3
"$work/venv/bin/python" -W ignore - <<'EOF'
import math
import sys

import scipy.ndimage
import torch
from torchmetrics.functional.segmentation.utils import distance_transform
from torchmetrics.segmentation import HausdorffDistance


def hausdorff(rows: int, columns: int) -> float | str:
    """Distance between the single pixels (2, 2) and (6, 5): 5, whatever the size of the picture."""
    prediction, target = torch.zeros(2, 1, rows, columns, dtype=torch.long)
    prediction[0, 2, 2] = target[0, 6, 5] = 1
    metric = HausdorffDistance(num_classes=2, include_background=False, input_format="index")
    try:
        metric.update(prediction, target)
        return metric.compute().item()
    except IndexError:
        return "IndexError"


print("torchmetrics 1.9.0, single pixels at (2, 2) and (6, 5), expected 5.0 everywhere")
seen = {size: hausdorff(*size) for size in [(24, 24), (20, 24), (12, 24), (24, 12)]}
for (rows, columns), value in seen.items():
    print(f"  {rows} x {columns}: {value}")

mask = torch.ones(7, 9)
mask[3, 4] = 0
truth = torch.from_numpy(scipy.ndimage.distance_transform_edt(mask.numpy())).float()
error = {
    engine: float((torch.as_tensor(distance_transform(mask, engine=engine)) - truth).abs().max())
    for engine in ("pytorch", "scipy")
}
print(f"largest error of distance_transform on 7 x 9 with one background pixel, in pixels: {error}")

same = (
    math.isclose(seen[24, 24], 5)
    and all(isinstance(seen[size], float) and seen[size] > 10 for size in [(20, 24), (12, 24)])
    and seen[24, 12] == "IndexError"
    and error["pytorch"] > 3
    and error["scipy"] < 1e-6
)
sys.exit(0 if same else "the behaviour has changed")
EOF
