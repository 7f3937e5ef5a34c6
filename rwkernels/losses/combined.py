"""A region loss joined with a region-wise loss (section 4.3 of the paper), in one operator where both are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkernels import checks
from rwkernels.losses.cross_entropy import CrossEntropyLoss, FocalLoss
from rwkernels.losses.dice import DiceCELoss, DiceFocalLoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from rwkernels.losses.joint import JointLoss, JointOptions
from rwkernels.losses.modules import RegionWiseLoss
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import FAMILIES

# What a `CombinedLoss` can be asked for by name.
NAMED: dict[str, type[JointLoss]] = {
    "dice": DiceLoss,
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "dice_ce": DiceCELoss,
    "dice_focal": DiceFocalLoss,
    "tversky": TverskyLoss,
    "generalized_dice": GeneralizedDiceLoss,
}


def with_maps(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, maps: Any) -> Tensor:
    """`loss` of a map built before, and its labels where the loss takes both."""
    both: Callable[..., Tensor] | None = getattr(loss, "with_maps", None)
    return loss(logits, maps) if both is None else both(logits, labels, maps)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see every call of a module."""
    return bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks)


# What the parts of a fused loss have to agree on.
_SHARED = tuple(JointOptions.__annotations__)


def _by_name(region_loss: Any, rw_loss: Any) -> tuple[Any, Any]:
    """The losses that are given by name, with what they share with the other one."""
    if isinstance(region_loss, str):
        checks.choice("region_loss", region_loss, tuple(NAMED))
    if isinstance(rw_loss, str):
        checks.choice("rw_loss", rw_loss, tuple(FAMILIES))
        shared = {name: getattr(region_loss, name) for name in _SHARED} if isinstance(region_loss, JointLoss) else {}
        rw_loss = RegionWiseLoss(rw_loss, **shared)
    if isinstance(region_loss, str):
        shared = {name: getattr(rw_loss, name) for name in _SHARED} if isinstance(rw_loss, RegionWiseLoss) else {}
        region_loss = NAMED[region_loss](**shared)
    return region_loss, rw_loss


class CombinedLoss(nn.Module):
    """A region loss such as Dice or cross-entropy, joined with a region-wise loss (section 4.3 of the paper).

    `"equal"` adds the two. `"gradual"` weighs them `alpha` and `1 - alpha`; `alpha` starts at 1 and every `step()`,
    called once an epoch, takes `alpha_step` off it until it is `alpha_min`.

    Losses of this package are fused: where both are (by name or as modules), one operator computes the sum, in one pass
    over the logits, or two where Dice is among them (`fused` says whether). It takes the map's labels for both. With a
    module of your own, each loss is computed by itself. Both have to agree on `ignore_index`, `reduction`,
    `process_group`, `validate` and `backend`; a loss that is given by name takes the other's.

    Args:
        region_loss: `"dice"`, `"cross_entropy"`, `"focal"`, `"dice_ce"`, `"dice_focal"`, `"tversky"` or
            `"generalized_dice"`: the loss of this package with its defaults. Or a loss called as
            `region_loss(logits, labels)`.
        rw_loss: `"rectified"` or another map of a `RegionWiseLoss`. Or a loss called as `rw_loss(logits, labels)`.
            Where a map is given, it is called as `rw_loss.with_maps(logits, labels, maps)` if it has such a method, as
            this package's losses do; else as `rw_loss(logits, maps)`.
        schedule: `"equal"` or `"gradual"`.
        alpha_step: What an epoch takes off `alpha`.
        alpha_min: Where `alpha` stops.

    Attributes:
        fused: Whether one operator computes the sum.
        alpha: Weight of `region_loss` in the gradual schedule, a float64 scalar; part of the `state_dict`.

    Raises:
        ValueError: `schedule` is unknown, or `alpha_step` or `alpha_min` is not in [0, 1].

    References:
        Valverde & Tohka, section 4.3; Kervadec et al., MIDL 2019.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.CombinedLoss("dice", "rectified", schedule="gradual")
        >>> loss_fn.fused, rw.CombinedLoss(torch.nn.CrossEntropyLoss(), rw.RegionWiseLoss()).fused
        (True, False)
        >>> loss_fn.step()  # after the first epoch
        >>> round(float(loss_fn.alpha), 2)
        0.99
    """

    alpha: Tensor

    def __init__(
        self,
        region_loss: str | Callable[[Tensor, Tensor], Tensor],
        rw_loss: str | Callable[..., Tensor],
        schedule: str = "equal",
        alpha_step: float = 0.01,
        alpha_min: float = 0.01,
    ) -> None:
        super().__init__()
        region, region_wise = _by_name(region_loss, rw_loss)
        for name, value in (("region_loss", region), ("rw_loss", region_wise)):
            if not callable(value):
                raise TypeError(f"{name}: expected a loss called with logits and labels, got {checks.describe(value)}")
        for name, number in (("alpha_step", alpha_step), ("alpha_min", alpha_min)):
            if not 0 <= checks.number(name, number) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {number}")
        self.region_loss: Callable[[Tensor, Tensor], Tensor] = region
        self.rw_loss: Callable[..., Tensor] = region_wise
        self.schedule = checks.choice("schedule", schedule, ("equal", "gradual"))
        self.alpha_step = alpha_step
        self.alpha_min = alpha_min
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | RectifiedMap | None = None,
        *,
        spacing: float | Sequence[float] | None = None,
    ) -> Tensor:
        """The joined loss of logits `[B, K, *S]` and labels.

        `maps`, of any form that `rw_loss` knows, spares it to build its own, which `spacing` is passed on for.
        """
        if isinstance(labels, RectifiedMap):
            raise TypeError("labels: expected labels for the region loss, got a RectifiedMap; pass it as maps")
        if self.fused:
            return self._fused(logits, labels, maps, spacing)
        region = self.region_loss(logits, labels)
        if maps is not None:
            region_wise = with_maps(self.rw_loss, logits, labels, maps)
        else:
            region_wise = self.rw_loss(logits, labels, **({} if spacing is None else {"spacing": spacing}))
        if self.schedule == "equal":
            return region + region_wise
        alpha = self.alpha.to(region_wise.dtype)
        return alpha * region + (1 - alpha) * region_wise

    @property
    def fused(self) -> bool:
        """Whether one operator computes the sum of both losses."""
        region, region_wise = self.region_loss, self.rw_loss
        if not isinstance(region, JointLoss) or not isinstance(region_wise, RegionWiseLoss):
            return False
        own = type(region_wise).forward is RegionWiseLoss.forward and type(region).forward is JointLoss.forward
        alike = all(getattr(region, name) == getattr(region_wise, name) for name in _SHARED)
        return own and alike and not is_hooked(region) and not is_hooked(region_wise)

    def _fused(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | RectifiedMap | None,
        spacing: float | Sequence[float] | None,
    ) -> Tensor:
        region, region_wise = self.region_loss, self.rw_loss
        assert isinstance(region, JointLoss)
        assert isinstance(region_wise, RegionWiseLoss)
        logits = checks.logits(logits)
        given = labels if maps is None else maps
        beside = labels if isinstance(maps, Tensor) else None
        maps, own = region_wise.map_of(logits, given, beside, spacing)
        if isinstance(maps, RectifiedMap):
            own = maps.labels
        elif own is None:  # a dense map in the place of labels
            raise TypeError("labels: expected labels for the region loss, got a dense map; pass it as maps")
        alpha = None if self.schedule == "equal" else self.alpha
        return region.joined_with(
            logits,
            own,
            maps,
            alpha,
            map_background=region_wise.include_background,
            recompute=region_wise.recompute,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CombinedLoss:
        alpha = self.alpha
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.alpha.dtype != alpha.dtype:  # a model cast to half precision keeps its schedule: 0.01 would not add up
            self.alpha = alpha.to(self.alpha.device)
        return self

    @torch.no_grad()
    def step(self) -> None:
        """Ends an epoch: moves `alpha` on in the gradual schedule."""
        if self.schedule == "gradual":
            self.alpha.sub_(self.alpha_step).clamp_(min=self.alpha_min)

    def extra_repr(self) -> str:
        """The schedule, and whether the losses are fused."""
        return (
            f"fused={self.fused}, schedule={self.schedule!r}, alpha_step={self.alpha_step}, alpha_min={self.alpha_min}"
        )
