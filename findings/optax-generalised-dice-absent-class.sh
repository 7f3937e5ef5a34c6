#!/usr/bin/env bash
# optax 0.2.8: one class that does not occur in the targets all but switches multiclass_generalized_dice_loss off.
#
# Expected: the loss of a prediction that misses every object is large; a class that neither the targets nor the
#           prediction hold changes it little. (MONAI gives an absent class the largest weight of the classes
#           present.)
# Seen:     the weight of an absent class is 1 / 1e-7, and all weights are then scaled to sum to the number of
#           classes: those of the classes present come out below 1e-7. The loss of a prediction without any object is
#           5e-11, as if it were perfect, and the gradients of the classes present are 100 times smaller than without
#           the absent class. Batches of patches lack some class most of the time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.2.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import jax
import jax.numpy as jnp
from optax.losses import multiclass_generalized_dice_loss

labels = jnp.zeros((1, 32, 32), int).at[:, 4:12, 4:12].set(1).at[:, 20:28, 20:28].set(2)


def loss_and_gradient(classes: int) -> tuple[float, float]:
    """Loss and largest gradient of a prediction of background alone, for targets that hold the classes 0, 1 and 2."""
    logits = 50.0 * jax.nn.one_hot(jnp.zeros_like(labels), classes)
    targets = jax.nn.one_hot(labels, classes)
    loss = multiclass_generalized_dice_loss(logits, targets)
    soft = jax.grad(multiclass_generalized_dice_loss)(logits / 50, targets)
    present = jnp.abs(soft[..., :3]).max()
    return float(loss), float(present)


three, four = loss_and_gradient(3), loss_and_gradient(4)
print("optax 0.2.8, generalised Dice loss of a prediction without any of the two objects, expected near 1")
print(f"  3 classes, all of them in the targets: loss {three[0]:.3g}")
print(f"  4 classes, the last one in no target:  loss {four[0]:.3g}")
print("largest gradient at the logits of classes 0 to 2 of a blurred prediction")
print(f"  3 classes: {three[1]:.3g}; 4 classes: {four[1]:.3g}")
sys.exit(0 if three[0] > 0.5 and four[0] < 1e-6 else "the behaviour has changed")
EOF
