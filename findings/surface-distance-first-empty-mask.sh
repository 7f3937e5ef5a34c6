#!/usr/bin/env bash
# surface-distance 0.1 (Google DeepMind's, as PyPI has it) with a NumPy of today: every pair of masks is scored until
# the first one in which a mask is empty.
#
# Expected: pip's solution of `surface-distance numpy` works or fails at the import; an empty prediction gives inf,
#           which is what the package's documentation and its source say.
# Seen:     AttributeError: np.Inf is named only in the branch for empty masks, and 0.1 sets no upper bound for NumPy.
#           A validation runs through for as long as each object is found at all, and ends at the first one that is
#           missed. With NumPy 1.26 the same call gives inf.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/score.py" <<'EOF'
import numpy as np
import surface_distance

truth = np.zeros((9, 9, 9), bool)
truth[3:6, 3:6, 3:6] = True
seen = []
for prediction in (np.roll(truth, 1, 0), np.zeros_like(truth)):
    try:
        distances = surface_distance.compute_surface_distances(truth, prediction, (1, 1, 1))
        seen.append(str(float(surface_distance.compute_robust_hausdorff(distances, 100))))
    except AttributeError:
        seen.append("AttributeError")
print(f"NumPy {np.__version__}: Hausdorff distance of a moved mask {seen[0]}, of an empty one {seen[1]} (expected inf)")
raise SystemExit(0 if seen == EXPECTED else "the behaviour has changed")
EOF
for numpy in 2.2.6 1.26.4; do
    python3 -m venv "$work/$numpy"
    "$work/$numpy/bin/pip" install --quiet --no-compile surface-distance==0.1 "numpy==$numpy" scipy==1.15.3
    if [ "$numpy" = 2.2.6 ]; then missed=AttributeError; else missed=inf; fi
    sed "1i EXPECTED = ['1.0', '$missed']" "$work/score.py" > "$work/$numpy.py"
    "$work/$numpy/bin/python" -W ignore "$work/$numpy.py"
done
