#!/usr/bin/env bash
# crackle-codec 0.55.0: a lossless codec for label volumes gives back other labels, without an error, where the labels
# came in big-endian order or as floats.
#
# Expected: the labels that went in, or a TypeError as for signed integers.
# Seen:     the bytes are taken for unsigned native integers of the same width: 1 and 2 of ">u2" come back as 256 and
#           512, 1.0 and 2.0 of float32 as 1065353216 and 1073741824, with the type uint32. The file itself holds the
#           wrong numbers. Signed integers, which would fit, are the type that is refused.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile crackle-codec==0.55.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import crackle
import numpy as np

labels = np.array([[0, 1, 1], [2, 2, 1]])[:, :, None]
expected = {"<u2": [0, 1, 2], ">u2": [0, 256, 512], "<f4": [0, 1065353216, 1073741824], "<i4": None}
print("crackle-codec 0.55.0, labels 0, 1, 2, expected back: 0, 1, 2 or an error")
same = True
for dtype, values in expected.items():
    try:
        back = crackle.decompress(crackle.compress(labels.astype(dtype)))
        seen = np.unique(back).tolist()
        print(f"  {dtype}: {seen} as {back.dtype}")
    except TypeError as error:
        seen = None
        print(f"  {dtype}: {error}")
    same &= seen == values
sys.exit(0 if same else "the behaviour has changed")
EOF
