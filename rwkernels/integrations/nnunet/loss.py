"""The losses of the trainers: one for every level of deep supervision, joined and scheduled as the paper does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from rwkernels.modules import CombinedLoss, RegionWiseLoss


class DeepSupervisionLoss(nn.Module):
    """Weighted sum over the levels of deep supervision, each with a loss of its own.

    nnU-Net's own wrapper shares one loss between all levels; here a level's loss knows the spacing of its level.

    Args:
        losses: One loss per level, finest first; None where the weight is 0, for it is never called.
        weights: One weight per level.

    Shape:
        `forward(outputs, targets)` with lists of logits `[B, K, *S]` and labels `[B, 1, *S]`, one each per level.

    Raises:
        ValueError: The number of losses, weights, outputs or targets differs, or every weight is 0.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = DeepSupervisionLoss([rw.RegionWiseLoss(), rw.RegionWiseLoss(), None], [0.75, 0.25, 0.0])
        >>> outputs = [torch.zeros(1, 2, size, size) for size in (8, 4, 2)]
        >>> targets = [torch.zeros(1, 1, size, size, dtype=torch.long) for size in (8, 4, 2)]
        >>> loss_fn(outputs, targets).item()  # one label fills the images: its map holds -1 there and 1 elsewhere
        0.0
    """

    def __init__(self, losses: Sequence[nn.Module | None], weights: Sequence[float]) -> None:
        super().__init__()
        if len(losses) != len(weights):
            raise ValueError(f"weights: expected one per level ({len(losses)}), got {len(weights)}")
        if not any(weights):
            raise ValueError("weights: expected one that is not 0, got none")
        self.weights = tuple(float(weight) for weight in weights)
        self.losses = nn.ModuleList(nn.Identity() if loss is None else loss for loss in losses)

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The weighted sum; a level of weight 0 is not looked at."""
        for name, levels in (("outputs", outputs), ("targets", targets)):
            if not isinstance(levels, (list, tuple)) or len(levels) != len(self.weights):
                found = len(levels) if isinstance(levels, (list, tuple)) else type(levels).__name__
                raise ValueError(f"{name}: expected a list of {len(self.weights)} levels, got {found}")
        parts = zip(self.weights, self.losses, outputs, targets, strict=True)
        terms = [weight * loss(output, target) for weight, loss, output, target in parts if weight]
        total: Tensor = sum(terms[1:], start=terms[0])
        return total

    def extra_repr(self) -> str:
        """The weights."""
        return f"weights={self.weights}"


def level_loss(
    maps: str,
    *,
    spacing: Sequence[float] | None,
    ignore_index: int | None,
    region_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    schedule: str = "equal",
    alpha_step: float = 0.01,
    alpha_min: float = 0.01,
) -> nn.Module:
    """The loss of one level: region-wise alone, or joined with `region_loss` (section 4.3 of the paper)."""
    region_wise = RegionWiseLoss(maps, spacing=spacing, ignore_index=ignore_index)
    if region_loss is None:
        return region_wise
    return CombinedLoss(region_loss, region_wise, schedule=schedule, alpha_step=alpha_step, alpha_min=alpha_min)
