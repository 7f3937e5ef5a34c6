#!/usr/bin/env bash
# MedPy 0.5.2: obj_tpr and obj_fpr have their arguments the wrong way round, so they contradict the examples in their
# own documentation.
#
# Expected: obj_tpr(result, reference) is the share of the reference's objects that were found, obj_fpr the share of
#           the result's objects that have no counterpart; the examples in the docstrings say so with numbers.
# Seen:     one lesion of two found: a true positive rate of 1 and a false positive rate of 0.5. A result that finds
#           both and invents a third: 0.667 and 0. A detector that misses lesions looks sensitive, one that invents
#           them precise. Dice, precision and recall of the same module are right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile medpy==0.5.2 numpy==2.2.6 scipy==1.15.3
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from medpy.metric.binary import obj_fpr, obj_tpr, recall

reference = np.array([0, 1, 0, 0, 1, 0, 0, 0])
print("MedPy 0.5.2, reference with two objects")
same = True
for name, result, expected, wrong in [
    ("one of them found", [0, 1, 0, 0, 0, 0, 0, 0], (0.5, 0), (1, 0.5)),
    ("both found, one invented", [0, 1, 0, 0, 1, 0, 1, 0], (1, 1 / 3), (2 / 3, 0)),
]:
    seen = (obj_tpr(np.array(result), reference), obj_fpr(np.array(result), reference))
    pixels = recall(np.array(result), reference)
    print(
        f"  {name}: obj_tpr {seen[0]:.3f} (not {expected[0]:.3f}), obj_fpr {seen[1]:.3f} (not {expected[1]:.3f})"
    )
    print(f"    recall of pixels: {pixels:.3f}")
    same &= np.allclose(seen, wrong) and np.isclose(pixels, expected[0])
sys.exit(0 if same else "the behaviour has changed")
EOF
