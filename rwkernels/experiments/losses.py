"""The compared losses, from their configuration. Each is called with logits `[B, K, *S]` and labels `[B, *S]`."""

from __future__ import annotations

from torch import Tensor, nn

import rwkernels as rw
from rwkernels.experiments.configuration import Loss
from rwkernels.extras import needs

with needs("experiments", "monai", "rwkernels.experiments"):
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss


class _OnChannel(nn.Module):
    """A loss of MONAI, which wants labels with a channel axis, times a number."""

    def __init__(self, loss: nn.Module, per_class: bool = False) -> None:
        super().__init__()
        self.loss, self.per_class = loss, per_class

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(logits, labels[:, None])
        return loss * logits.shape[1] if self.per_class else loss


def dice() -> nn.Module:
    """Soft Dice loss, one minus the mean over images and classes, the background included.

    As in the code published with the paper: `2 sum(p y) / (sum(p + y) + 1e-6)`, nothing added above.
    """
    return _OnChannel(DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=0.0, smooth_dr=1e-6))


def focal(gamma: float = 2.0) -> nn.Module:
    """Focal loss with alpha 1, `-(1 - p)^gamma log p` of the true class, mean over pixels.

    MONAI divides by pixels and classes; the paper's code by pixels.
    """
    return _OnChannel(FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma), per_class=True)


def build(loss: Loss) -> nn.Module:
    """The loss that the configuration describes.

    Examples:
        >>> import torch
        >>> from rwkernels.experiments.configuration import Loss
        >>> loss_fn = build(Loss("Dice to RRW", region="dice", maps="rectified", schedule="gradual", alpha_step=0.1))
        >>> loss_fn(torch.zeros(1, 2, 4, 4), torch.eye(4, dtype=torch.long)[None]).shape
        torch.Size([])
    """
    region = {None: lambda: None, "dice": dice, "cross_entropy": nn.CrossEntropyLoss}.get(
        loss.region, lambda: focal(loss.gamma)
    )()
    region_wise = None if loss.maps is None else rw.RegionWiseLoss(loss.maps)
    if region is None or region_wise is None:
        found = region_wise if region is None else region
        assert found is not None  # a Loss has one of them
        return found
    assert loss.schedule is not None
    return rw.CombinedLoss(
        region, region_wise, schedule=loss.schedule, alpha_step=loss.alpha_step, alpha_min=loss.alpha_min
    )
