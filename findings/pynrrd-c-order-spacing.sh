#!/usr/bin/env bash
# pynrrd 1.1.3 and SimpleITK 2.5.7: with index_order="C" the array is turned round on its way into the file, the
# spacing is not, so an anisotropic label map arrives with the right voxels and the wrong axes.
#
# Expected: index_order="C" means (z, y, x) for all that goes by axis: sizes, spacings and space directions.
# Seen:     sizes and voxels are reversed, spacings and space directions are written as given. Slices 3 mm apart with
#           pixels of 1 mm become pixels 3 mm apart with slices of 1 mm. pynrrd itself reads back what it wrote, so a
#           round trip shows nothing; the mistake appears in the next program, as distances that are wrong by a factor
#           of 3.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pynrrd==1.1.3 simpleitk==2.5.7 numpy==2.2.6
"$work/venv/bin/python" -W ignore - "$work/labels.nrrd" <<'EOF'
import sys

import nrrd
import numpy as np
import SimpleITK as sitk

path = sys.argv[1]
labels = np.zeros((4, 6, 9), np.uint8)
labels[1:3, 2:5, 3:7] = 1
step = {"z": 3.0, "y": 2.0, "x": 1.0}
headers = {
    "spacings": {"spacings": list(step.values())},
    "space directions": {
        "space": "left-posterior-superior",
        "space directions": np.diag(list(step.values())),
        "space origin": [0, 0, 0],
    },
}
print("label map (z, y, x) of 4 x 6 x 9, spacing 3, 2, 1, written by pynrrd with index_order='C'")
same = True
for name, header in headers.items():
    nrrd.write(path, labels, header, index_order="C")
    back, kept = nrrd.read(path, index_order="C")
    image = sitk.ReadImage(path)
    voxels = np.array_equal(sitk.GetArrayFromImage(image), labels) and np.array_equal(back, labels)
    print(
        f"  {name}: voxels right {voxels}; SimpleITK's spacing (x, y, z) {image.GetSpacing()}, expected (1.0, 2.0, 3.0)"
    )
    unchanged = np.array_equal(kept[name], header[name])
    print(f"    pynrrd reads {name} as they were given: {unchanged}")
    same &= voxels and unchanged and image.GetSpacing() == (3, 2, 1)
sys.exit(0 if same else "the behaviour has changed")
EOF
