#!/usr/bin/env bash
# nibabel 5.4.2: concat_images of an 8-bit and a 16-bit label image saves labels that were in neither.
#
# Expected: the result has a type that holds both, or the types are refused; labels stay whole numbers.
# Seen:     the type of the first image is kept and the values do not fit, so that saving scales them: with the 8-bit
#           image first, labels 0, 1, 200 and 300 are read back as 0, 1.18, 200 and 300. In memory all is well, and in
#           the other order as well. Rounded, other mixtures of labels give other classes: 2 of (2, 1000) becomes 3.9.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile nibabel==5.4.2 numpy==2.2.6
"$work/venv/bin/python" -W ignore - "$work/labels.nii" <<'EOF'
import sys

import nibabel
import numpy as np


def image(labels: list[int], dtype: type) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(np.array(labels, dtype).reshape(-1, 1, 1), np.eye(4))


def saved(*images: nibabel.Nifti1Image) -> tuple[list[float], str, list[float]]:
    """Values in memory, type of the file, values of the file."""
    joined = nibabel.concat_images(images)
    before = np.unique(joined.dataobj).tolist()
    nibabel.save(joined, sys.argv[1])
    back = nibabel.load(sys.argv[1])
    return before, str(back.get_data_dtype()), np.unique(back.dataobj).round(2).tolist()


print("nibabel 5.4.2, label images with the values shown first")
results = []
for small, large in (([0, 1, 200], [0, 1, 300]), ([0, 2, 200], [0, 2, 1000])):
    for first, second in (
        (image(small, np.uint8), image(large, np.uint16)),
        (image(large, np.uint16), image(small, np.uint8)),
    ):
        results.append(saved(first, second))
        before, dtype, after = results[-1]
        print(f"  {first.get_data_dtype()} first: in memory {before}, in the file ({dtype}) {after}")
broken, whole = results[0::2], results[1::2]
same = all(dtype == "uint8" and after != before for before, dtype, after in broken) and all(
    after == before for before, _, after in whole
)
sys.exit(0 if same else "the behaviour has changed")
EOF
