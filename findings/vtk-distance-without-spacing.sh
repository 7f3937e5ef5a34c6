#!/usr/bin/env bash
# VTK 9.7.2: vtkImageEuclideanDistance ignores the spacing of the image although ConsiderAnisotropy is on, and its
# squared distances turn negative beyond 46341 pixels.
#
# Expected: with ConsiderAnisotropy on (the default) squared distances in the units of the spacing, as an option of
#           that name says; with it off, in pixels; a double output that grows with the distance.
# Seen:     both settings and both algorithms give pixels, for image data handed over and in a pipeline alike, and the
#           output still carries the spacing. 46341 pixels away the value, a double, is -2147479015: the square was
#           taken in 32 bits.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile vtk==9.7.2 numpy==2.2.6
"$work/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import vtk
from vtk.util import numpy_support


def squared_distance(row: np.ndarray, step: float, anisotropy: bool, algorithm: int) -> np.ndarray:
    """Squared distance to the nearest 0 of a row of pixels ``step`` apart."""
    image = vtk.vtkImageData()
    image.SetDimensions(len(row), 1, 1)
    image.SetSpacing(step, 1, 1)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(row, deep=True))
    source = vtk.vtkTrivialProducer()
    source.SetOutput(image)
    distance = vtk.vtkImageEuclideanDistance()
    distance.SetInputConnection(source.GetOutputPort())
    distance.SetConsiderAnisotropy(anisotropy)
    distance.SetAlgorithm(algorithm)
    distance.Update()
    assert distance.GetOutput().GetSpacing()[0] == step
    return numpy_support.vtk_to_numpy(distance.GetOutput().GetPointData().GetScalars())


row = np.ones(7, np.uint8)
row[3] = 0
print("VTK", vtk.VTK_VERSION, "- pixels 0.5 apart, expected with anisotropy: [2.25 1 0.25 0 0.25 1 2.25]")
same = vtk.vtkImageEuclideanDistance().GetConsiderAnisotropy() == 1
for anisotropy in (True, False):
    for name, algorithm in {"Saito cached": 0, "Saito": 1}.items():
        values = squared_distance(row, 0.5, anisotropy, algorithm)
        print(f"  ConsiderAnisotropy {anisotropy}, {name}: {values}")
        same &= values.tolist() == [9, 4, 1, 0, 1, 4, 9]

row = np.ones(46342, np.uint8)
row[0] = 0
values = squared_distance(row, 1, False, 1)
print(
    f"46340 and 46341 pixels away: {values[-2]:.0f} and {values[-1]:.0f} ({values.dtype}), true {46340**2}, {46341**2}"
)
same &= values[-2] == 46340**2 and values[-1] < 0
sys.exit(0 if same else "the behaviour has changed")
EOF
