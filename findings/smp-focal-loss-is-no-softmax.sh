#!/usr/bin/env bash
# segmentation-models-pytorch 0.6.0: FocalLoss("multiclass") is a sum of sigmoids, so logits that are perfect for the
# softmax and for argmax are punished, and adding a constant to all logits of a pixel changes the loss.
#
# Expected: mode "multiclass" means a softmax over the classes, as in its DiceLoss, JaccardLoss, TverskyLoss and
#           LovaszLoss: with gamma=0 the focal loss is the cross-entropy, a shift changes nothing, and a softmax of 1
#           - 1e-43 at the true class costs nothing.
# Seen:     one binary focal loss per class, averaged over the classes: with gamma=0 it is not the cross-entropy, and
#           [100, 0, 0, 0] costs 0.13 because 0 is a probability of one half there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.2.6
"$work/venv/bin/pip" install --quiet --no-compile --no-deps segmentation-models-pytorch==0.6.0
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.util
import sys
import types

import torch
from torch.nn.functional import cross_entropy, one_hot

# The losses need torch alone; the package around them would import timm and torchvision.
package = types.ModuleType("segmentation_models_pytorch")
package.__path__ = list(importlib.util.find_spec(package.__name__).submodule_search_locations)
sys.modules[package.__name__] = package
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, JaccardLoss, LovaszLoss, TverskyLoss  # noqa: E402

torch.manual_seed(0)
logits, labels = torch.randn(2, 4, 16, 16), torch.randint(0, 4, (2, 16, 16))
perfect = 100.0 * one_hot(labels, 4).movedim(-1, 1)
same = True
print("segmentation-models-pytorch 0.6.0, mode 'multiclass', expected equal in each of the first two columns")
for loss in (DiceLoss, JaccardLoss, TverskyLoss, LovaszLoss, FocalLoss):
    value, shifted, best = (float(loss("multiclass")(x, labels)) for x in (logits, logits + 3, perfect))
    print(f"  {loss.__name__}: {value:.4f}; logits + 3: {shifted:.4f}; perfect logits: {best:.4f}")
    moves = abs(shifted - value) > 1e-4
    same &= moves == (loss is FocalLoss) and (best > 0.1) == (loss is FocalLoss)

focal, entropy = float(FocalLoss("multiclass", gamma=0)(logits, labels)), float(cross_entropy(logits, labels))
print(f"gamma=0: {focal:.4f}, cross-entropy: {entropy:.4f}, expected equal")
sys.exit(0 if same and abs(focal - entropy) > 0.1 else "the behaviour has changed")
EOF
