#!/usr/bin/env bash
# A mask without any background: what the distance transforms of seven libraries answer (edt 3.1.2, mahotas 1.4.19,
# DIPlib 3.6.1, VTK 9.7.2, kornia 0.9.0, SimpleITK 2.5.7, torchmetrics 1.9.0). There is no nearest pixel, so the
# answer is a convention.
#
# Expected: infinity, an error, or at least a value that nobody takes for a distance within a picture of 4 x 6 pixels;
#           one answer per library.
# Seen:     edt gives inf; SimpleITK's Maurer map -1.8e19; VTK the largest 32-bit integer. The others look like
#           distances and grow with the picture: mahotas 8.54; DIPlib 7.21 by method "true" and 54 to 56 by its
#           default "separable", which agree on a mask with background; SimpleITK's signed Danielsson map -12.2 to
#           -17.0. kornia measures the distance to the object, and without one answers 0, which means "object
#           everywhere". torchmetrics has two engines for the same function: one raises an IndexError, the other
#           measures from outside of the corner. A rectified map, a loss or a maximum computed from these is finite
#           and wrong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.2.6 edt==3.1.2 mahotas==1.4.19 diplib==3.6.1 \
    simpleitk==2.5.7 vtk==9.7.2 torch==2.13.0 kornia==0.9.0 torchmetrics==1.9.0 scipy==1.15.3
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import diplib
import edt
import kornia.contrib
import mahotas
import numpy as np
import SimpleITK as sitk
import torch
import vtk
from torchmetrics.functional.segmentation.utils import distance_transform
from vtk.util import numpy_support


def diplib_distance(mask: np.ndarray, method: str) -> np.ndarray:
    return np.asarray(diplib.EuclideanDistanceTransform(diplib.Image(mask > 0), "object", method))


def vtk_distance(mask: np.ndarray) -> np.ndarray:
    image = vtk.vtkImageData()
    image.SetDimensions(mask.shape[1], mask.shape[0], 1)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(mask.ravel(), deep=True))
    transform = vtk.vtkImageEuclideanDistance()
    transform.SetInputData(image)
    transform.Update()
    return numpy_support.vtk_to_numpy(transform.GetOutput().GetPointData().GetScalars())


def simpleitk_distance(mask: np.ndarray, transform: type) -> np.ndarray:
    return sitk.GetArrayFromImage(transform(sitk.GetImageFromArray(mask), squaredDistance=False))


def torchmetrics_distance(mask: np.ndarray, engine: str) -> np.ndarray:
    try:
        return np.asarray(distance_transform(torch.from_numpy(mask), engine=engine))
    except IndexError:
        return np.full(mask.shape, np.nan)


def answers(rows: int, columns: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest value for a mask of ones (for kornia: of zeros)."""
    mask = np.ones((rows, columns), np.uint8)
    values = {
        "edt": edt.edt(mask),
        "mahotas": mahotas.distance(mask, metric="euclidean"),
        "DIPlib true": diplib_distance(mask, "true"),
        "DIPlib separable": diplib_distance(mask, "separable"),
        "VTK, squared": vtk_distance(mask),
        "kornia": kornia.contrib.distance_transform(torch.zeros(1, 1, rows, columns)).numpy(),
        "SimpleITK Maurer": simpleitk_distance(mask, sitk.SignedMaurerDistanceMap),
        "SimpleITK Danielsson": simpleitk_distance(mask, sitk.SignedDanielssonDistanceMap),
        "torchmetrics pytorch": torchmetrics_distance(mask, "pytorch"),
        "torchmetrics scipy": torchmetrics_distance(mask, "scipy"),
    }
    return {name: (float(value.min()), float(value.max())) for name, value in values.items()}


small, large = answers(4, 6), answers(40, 60)
print("no background: smallest and largest value in 4 x 6 and in 40 x 60 pixels (nan: IndexError)")
for name in small:
    print(f"  {name}: {small[name][0]:.6g} to {small[name][1]:.6g}; {large[name][0]:.6g} to {large[name][1]:.6g}")

random = np.random.default_rng(0).random((40, 60)) < 0.9
agree = np.array_equal(diplib_distance(random, "true"), diplib_distance(random, "separable"))
print(f"the two methods of DIPlib agree on a mask with background: {agree}")

plausible = {"mahotas", "DIPlib true", "DIPlib separable", "SimpleITK Danielsson", "torchmetrics scipy"}
same = (
    agree
    and small["edt"] == (np.inf, np.inf)
    and small["VTK, squared"][0] == 2**31 - 1
    and small["SimpleITK Maurer"][1] < -1e19
    and small["kornia"] == (0, 0)
    and np.isnan(small["torchmetrics pytorch"][0])
    and all(
        0 < max(map(abs, small[name])) < 100 and max(map(abs, large[name])) > 2 * max(map(abs, small[name]))
        for name in plausible
    )
)
sys.exit(0 if same else "the behaviour has changed")
EOF
