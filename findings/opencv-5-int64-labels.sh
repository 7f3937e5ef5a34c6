#!/usr/bin/env bash
# OpenCV 5.0.0: every call from Python turns int64 and uint64 arrays into int32, ids wrap, and AlbumentationsX hands
# that on.
#
# Expected: OpenCV 5 is the release that brought 64-bit integer matrices, so a flip or a border of an int64 label map
#           keeps type and ids; or a TypeError, as for other types that a function does not take.
# Seen:     the result is int32 and holds the low 32 bits: 2^32 + 5 becomes 5, another class, 2^31 becomes negative.
#           The unsigned 32-bit type, new in 5 as well, is kept. In AlbumentationsX 2.5.1 whether an int64 mask (the
#           type that torch wants) survives depends on the transform: HorizontalFlip keeps it, PadIfNeeded, Resize and
#           Rotate do not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile albumentationsx==2.5.1 opencv-python-headless==5.0.0.93 \
    torch==2.13.0 numpy==2.2.6
NO_ALBUMENTATIONS_UPDATE=1 "$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import albumentations
import cv2
import numpy as np

ids = np.zeros((6, 6), np.int64)
ids[1:3], ids[3:5] = 2**32 + 5, 2**31
image = np.zeros((6, 6, 3), np.uint8)
wrapped = ("int32", [-(2**31), 0, 5])
kept = ("int64", [0, 2**31, 2**32 + 5])


def transformed(transform: albumentations.DualTransform) -> np.ndarray:
    return transform(image=image, mask=ids)["mask"]


print(f"ids {kept[1]} of type int64")
same = True
for name, result, expected in [
    ("OpenCV flip", cv2.flip(ids, 1), wrapped),
    ("OpenCV copyMakeBorder", cv2.copyMakeBorder(ids, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0), wrapped),
    ("OpenCV resize, nearest", cv2.resize(ids, (12, 12), interpolation=cv2.INTER_NEAREST), wrapped),
    ("OpenCV flip of uint64", cv2.flip(ids.astype(np.uint64), 1), wrapped),
    ("OpenCV flip of uint32", cv2.flip(ids.astype(np.uint32), 1), ("uint32", [0, 5, 2**31])),
    ("AlbumentationsX HorizontalFlip", transformed(albumentations.HorizontalFlip(p=1)), kept),
    ("AlbumentationsX PadIfNeeded", transformed(albumentations.PadIfNeeded(8, 8, p=1)), wrapped),
    ("AlbumentationsX Resize", transformed(albumentations.Resize(12, 12, p=1)), wrapped),
]:
    seen = (str(result.dtype), np.unique(result).tolist())
    print(f"  {name}: {seen[1]} of type {seen[0]}")
    same &= seen == expected
sys.exit(0 if same else "the behaviour has changed")
EOF
