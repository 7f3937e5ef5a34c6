#!/usr/bin/env bash
# optax 0.2.8: dice_loss takes the columns of a binary mask for classes.
#
# Expected: the documentation allows binary logits and targets of shape [...] as well as [..., 1], and says that the
#           loss works for both; a batch [B, H, W] then has the loss of the same batch as [B, H, W, 1].
# Seen:     without the channel the last axis, W, is read as classes: a softmax runs along each row of pixels and one
#           Dice per column is averaged. A perfect prediction has a loss of about 0.5 and no error is raised.
#           binary_dice_loss gives the right value for both shapes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import jax.numpy as jnp
from optax.losses import binary_dice_loss, dice_loss

mask = jnp.zeros((1, 32, 32)).at[:, 8:24, 8:24].set(1)
logits = 40 * mask - 20
plain = float(dice_loss(logits, mask)[0])
channel = float(dice_loss(logits[..., None], mask[..., None])[0])
binary = [float(binary_dice_loss(*pair)[0]) for pair in ((logits, mask), (logits[..., None], mask[..., None]))]
print("optax 0.2.8, perfect logits of one square, expected a loss of 0")
print(f"  dice_loss        [B, H, W]: {plain:.4f}   [B, H, W, 1]: {channel:.4f}")
print(f"  binary_dice_loss [B, H, W]: {binary[0]:.4f}   [B, H, W, 1]: {binary[1]:.4f}")
same = plain > 0.2 and max(channel, *binary) < 1e-3
sys.exit(0 if same else "the behaviour has changed")
EOF
