"""The losses of the trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rwkernels.losses.modules import CombinedLoss, RegionWiseLoss


def joined_loss(
    maps: str,
    *,
    spacing: Sequence[float] | None,
    ignore_index: int | None,
    process_group: Any = None,
    region_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    schedule: str = "equal",
    alpha_step: float = 0.01,
    alpha_min: float = 0.01,
) -> nn.Module:
    """Region-wise loss alone, or joined with `region_loss` (section 4.3 of the paper)."""
    region_wise = RegionWiseLoss(maps, spacing=spacing, ignore_index=ignore_index, process_group=process_group)
    if region_loss is None:
        return region_wise
    return CombinedLoss(region_loss, region_wise, schedule=schedule, alpha_step=alpha_step, alpha_min=alpha_min)
