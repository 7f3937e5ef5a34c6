#!/usr/bin/env bash
# SimpleITK 2.5.7: resampling a 64-bit label image onto its own grid with an interpolator for labels changes ids above
# 2^53, and ChangeLabel does not find them.
#
# Expected: nearest neighbour copies values. LabelShapeStatistics lists the ids exactly and NRRD keeps them, so 64-bit
#           ids (connectomics, packed panoptic ids) look supported throughout.
# Seen:     sitkNearestNeighbor and sitkLabelGaussian go through double: 2^53 + 1 becomes 2^53, its neighbour's id.
#           ChangeLabel({2^53 + 1: 5}) changes another label, 2^53, and leaves the one that was named. No warning.
#           scipy.ndimage.zoom(order=0) rounds too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile simpleitk==2.5.7 scipy==1.15.3 numpy==2.2.6
"$work/venv/bin/python" -W ignore - "$work" <<'EOF'
import sys

import numpy as np
import scipy.ndimage
import SimpleITK as sitk

first = 2**53
labels = np.array([[first, first + 1, 7]], np.uint64).repeat(3, 0)
image = sitk.GetImageFromArray(labels)


def offsets(array: np.ndarray) -> list[int]:
    """The middle row's ids, 2^53 subtracted where they are large."""
    return [int(value) - first if value > first // 2 else int(value) for value in array[1]]


path = f"{sys.argv[1]}/labels.nrrd"
sitk.WriteImage(image, path)
statistics = sitk.LabelShapeStatisticsImageFilter()
statistics.Execute(image)
listed = sorted(int(label) for label in statistics.GetLabels())
results = {
    "written to NRRD and read": (sitk.ReadImage(path), [0, 1, 7]),
    "identity, nearest neighbour": (sitk.Resample(image, image, sitk.Transform(), sitk.sitkNearestNeighbor), [0, 0, 7]),
    "identity, label Gaussian": (sitk.Resample(image, image, sitk.Transform(), sitk.sitkLabelGaussian), [0, 0, 7]),
    "ChangeLabel 2^53 + 1 to 5": (sitk.ChangeLabel(image, {first + 1: 5}), [5, 1, 7]),
}
print("ids 2^53 + 0, 2^53 + 1 and 7, shown without the 2^53")
print(f"  listed by LabelShapeStatistics: {[label % first for label in listed]}")
same = True
for name, (result, expected) in results.items():
    seen = offsets(sitk.GetArrayFromImage(result))
    print(f"  {name}: {seen}")
    same &= seen == expected

zoomed = offsets(scipy.ndimage.zoom(labels, 3, order=0, grid_mode=True, mode="nearest")[:, 1::3])
print(f"  scipy.ndimage.zoom by 3, order 0, every third pixel: {zoomed}")
same &= zoomed == [0, 0, 7]
sys.exit(0 if same and listed == [7, first, first + 1] else "the behaviour has changed")
EOF
