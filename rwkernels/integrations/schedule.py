"""The schedule of a combined loss, told by the epoch that a training framework counts."""

from __future__ import annotations

from torch import nn

from rwkernels.losses.combined import CombinedLoss


def set_epoch(loss: nn.Module, epoch: int) -> float | None:
    """Puts every schedule in `loss` where it is after `epoch` epochs; returns alpha, None where there is no schedule.

    Whoever keeps the epoch in a checkpoint needs nothing else to go on with the right alpha.
    """
    alpha = None
    for part in loss.modules():
        if isinstance(part, CombinedLoss) and part.schedule == "gradual":
            part.alpha.fill_(1.0)
            for _ in range(epoch):
                part.step()
            alpha = float(part.alpha)
    return alpha
