#!/usr/bin/env bash
# miseval 1.3.0: the Hausdorff distance of two squares that lie apart is 0, and the "boundary distance" of a perfect
# prediction is larger than that of some wrong ones.
#
# Expected: HD of a mask and its copy moved down by 6 rows: 6. BD of two equal masks: 0. CE: lowest for the truth.
# Seen:     HD hands the picture to a function for point sets, so each row of the picture is a point and each column a
#           coordinate: the same rows in another place are the same set, and the distance is 0 (moved sideways it is
#           the root of the width). BD takes the mean of all pairs of boundary points and is 4.4 for two equal squares
#           of 6 x 6. CE is the same number for every one of these masks, the truth included. AHD is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile miseval==1.3.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from miseval import evaluate

truth = np.zeros((24, 24), int)
truth[4:10, 4:10] = 1
predictions = {
    "the truth": truth,
    "6 rows down": np.roll(truth, 6, 0),
    "6 columns right": np.roll(truth, 6, 1),
    "its 2 x 2 centre": np.pad(np.ones((2, 2), int), ((6, 16), (6, 16))),
    "nothing": np.zeros_like(truth),
}
print("miseval 1.3.0, one square of 6 x 6; Hausdorff (HD), average Hausdorff (AHD), cross-entropy (CE) of")
seen = {}
for name, mask in predictions.items():
    seen[name] = {metric: float(evaluate(truth, mask, metric=metric)) for metric in ("HD", "AHD", "CE")}
    print(f"  {name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in seen[name].items()))
boundary = {name: float(evaluate(truth, predictions[name], metric="BD")) for name in list(predictions)[:4]}
print("boundary distance (BD): " + ", ".join(f"{name} {value:.3f}" for name, value in boundary.items()))
same = (
    seen["6 rows down"]["HD"] == 0
    and abs(seen["6 columns right"]["HD"] - 6**0.5) < 1e-9
    and [seen[name]["AHD"] for name in ("the truth", "6 rows down", "6 columns right")] == [0, 6, 6]
    and len({value["CE"] for value in seen.values()}) == 1
    and boundary["the truth"] > boundary["its 2 x 2 centre"] > 1
)
sys.exit(0 if same else "the behaviour has changed")
EOF
