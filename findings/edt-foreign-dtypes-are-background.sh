#!/usr/bin/env bash
# edt 3.1.2: labels in big-endian order or in half precision are all taken for background, without a word.
#
# Expected: the distances of the same labels in native order, or a TypeError as cc3d and fill_voids of the same
#           authors raise. Big-endian arrays are what FITS files and NIfTI files of big-endian machines give.
# Seen:     0 at every pixel. The type is compared with NumPy's native ones, and what matches none is not refused.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile edt==3.1.2 connected-components-3d==4.1.1 \
    fill-voids==2.1.2 numpy==2.2.6
"$work/venv/bin/python" - <<'EOF'
import sys

import cc3d
import edt
import fill_voids
import numpy as np

labels = np.array([[1, 1, 2, 2, 2, 1]])
truth = [[2, 1, 1, 2, 1, 1]]
print(f"edt 3.1.2, labels {labels.tolist()}, expected {truth}")
same = True
for dtype in ("<i2", "<u4", "<f4", ">i2", ">u4", ">f4", "<f2"):
    distance = edt.edt(labels.astype(dtype)).tolist()
    print(f"  {dtype}: {distance}")
    foreign = dtype.startswith(">") or dtype == "<f2"
    same &= distance == ([[0] * 6] if foreign else truth)

for name, call in {"cc3d": cc3d.connected_components, "fill_voids": fill_voids.fill}.items():
    try:
        call(labels.astype(">i2"))
        same = False
        print(f"  {name} takes >i2")
    except TypeError as error:
        print(f"  {name} refuses >i2: {str(error).splitlines()[0][:60]}")
sys.exit(0 if same else "the behaviour has changed")
EOF
