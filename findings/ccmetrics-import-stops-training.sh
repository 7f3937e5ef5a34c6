#!/usr/bin/env bash
# CCMetrics 0.0.3: importing it turns autograd off for the whole process.
#
# Expected: an import of a package of metrics leaves the process as it was; metrics run under `torch.no_grad()`.
# Seen:     `torch.set_grad_enabled(False)` stands at the top of its modules. A training step after the import has a
#           loss without a graph: backward() raises far away from the import.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile CCMetrics==0.0.3 monai==1.6.1 torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch

layer = torch.nn.Linear(3, 1)
before = layer(torch.ones(1, 3)).sum().requires_grad
import CCMetrics  # noqa: E402, F401

after = layer(torch.ones(1, 3)).sum()
print(
    f"a linear layer has a graph: before the import {before}, after it {after.requires_grad} (expected True)"
)
try:
    after.backward()
    error = None
except RuntimeError as raised:
    error = str(raised)
print(f"backward after the import: {error}")
same = before and not torch.is_grad_enabled() and error is not None
sys.exit(0 if same else "the behaviour has changed")
EOF
