#!/usr/bin/env bash
# segmentation-models-pytorch 0.6.0 and kornia 0.9.0: pixels of ignore_index leave the sum of a loss, but not the
# number it is divided by.
#
# Expected: as torch.nn.functional.cross_entropy does, "mean" divides by the pixels that count: a batch whose upper
#           half is ignored has the loss of the lower half alone. smp calls its SoftCrossEntropyLoss a drop-in
#           replacement.
# Seen:     half of it, in SoftCrossEntropyLoss, SoftBCEWithLogitsLoss and kornia's focal_loss(reduction="mean"): the
#           weight of a pixel depends on how much of the batch is labelled, and sparse annotation scales the learning
#           rate down. smp's own FocalLoss and kornia's dice_loss and tversky_loss do what is expected.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.2.6 kornia==0.9.0
"$work/venv/bin/pip" install --quiet --no-compile --no-deps segmentation-models-pytorch==0.6.0
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.util
import sys
import types

import kornia.losses
import torch
from torch.nn.functional import cross_entropy

# The losses need torch alone; the package around them would import timm and torchvision.
package = types.ModuleType("segmentation_models_pytorch")
package.__path__ = list(importlib.util.find_spec(package.__name__).submodule_search_locations)
sys.modules[package.__name__] = package
from segmentation_models_pytorch import losses as smp  # noqa: E402

torch.manual_seed(0)
logits, labels = torch.randn(2, 4, 16, 16), torch.randint(0, 4, (2, 16, 16))
mask_logits, mask = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 1, 16, 16)).float()
many = {
    "torch cross_entropy": (cross_entropy, 1.0),
    "smp SoftCrossEntropyLoss": (smp.SoftCrossEntropyLoss(smooth_factor=0.0), 0.5),
    "smp FocalLoss": (smp.FocalLoss("multiclass", ignore_index=-100), 1.0),
    "kornia focal_loss": (lambda x, y: kornia.losses.focal_loss(x, y, alpha=0.5, reduction="mean"), 0.5),
    "kornia dice_loss": (kornia.losses.dice_loss, 1.0),
    "kornia tversky_loss": (lambda x, y: kornia.losses.tversky_loss(x, y, 0.5, 0.5), 1.0),
}
cases = [(name, loss, logits, labels, ratio) for name, (loss, ratio) in many.items()]
cases.append(("smp SoftBCEWithLogitsLoss", smp.SoftBCEWithLogitsLoss(ignore_index=-100), mask_logits, mask, 0.5))

print("loss with the upper half ignored over the loss of the lower half alone, expected 1")
same = True
for name, loss, scores, target, expected in cases:
    ignored = target.clone()
    ignored[..., :8, :] = -100
    ratio = float(loss(scores, ignored) / loss(scores[..., 8:, :], target[..., 8:, :]))
    print(f"  {name}: {ratio:.4f}")
    same &= abs(ratio - expected) < 1e-4
sys.exit(0 if same else "the behaviour has changed")
EOF
