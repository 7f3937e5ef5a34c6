"""The losses as modules: thin, over the functions of `maps` and `functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkernels import checks
from rwkernels.losses import distributed
from rwkernels.losses.functional import region_wise_loss
from rwkernels.losses.joint import NAMED, JointLoss
from rwkernels.losses.repeated import Options, loss_of_labels
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import FAMILIES
from rwkernels.maps.scaling import scale_classes, weights_of_any_classes


class RegionWiseLoss(nn.Module):
    """Region-wise loss of logits and labels; the map is built from the labels at every call, on their device.

    Args:
        maps: `"rectified"` (Eq. 4, the paper's proposal), `"boundary"` (Eq. 3), `"active_contour"` or `"constant"`.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        ignore_index: Label, possibly negative, of pixels that do not count.
        class_weight: One number per class `[K]`: every pixel's map is multiplied by the weight of its true class,
            as in weighted cross-entropy. Part of the `state_dict`.
        include_background: False leaves channel 0 out of the sum (see `region_wise_loss`).
        reduction: `"mean"`, `"sum"` or `"none"`.
        black_border: Count the outside of the image as another label.
        recompute: Compute the gradient in the backward instead of keeping it (see `region_wise_loss`).
        process_group: A process group or `"world"`: sums the pixels that count over several processes, so that
            DistributedDataParallel gives the gradient of the joined batch (see `region_wise_loss`). `"world"` names
            the default group of the moment of the call, and lets the module be pickled and copied.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Shape:
        `forward(logits, labels_or_maps, labels=None, *, spacing=None)` with logits `[B, K, *S]` and labels `[B, *S]`
        or `[B, 1, *S]` (integers, or floats that hold whole numbers), or a map built before: a `RectifiedMap`, or a
        dense floating map in the shape of the logits (with its `labels` where `ignore_index` or `class_weight` is
        set). One floating channel is a dense map where the logits have one channel, labels otherwise. `spacing` takes
        the place of the module's for the map that this call builds.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices, class counts or label values are wrong.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation".

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.RegionWiseLoss("rectified")
        >>> logits = torch.zeros(2, 3, 16, 16, requires_grad=True)
        >>> labels = torch.randint(3, (2, 16, 16))
        >>> loss_fn(logits, labels).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        maps: str = "rectified",
        *,
        spacing: float | Sequence[float] | None = None,
        ignore_index: int | None = None,
        class_weight: Tensor | Sequence[float] | None = None,
        include_background: bool = True,
        reduction: str = "mean",
        black_border: bool = False,
        recompute: bool = False,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.maps = checks.choice("maps", maps, tuple(FAMILIES))
        self.spacing = checks.spacing_of_any_axes(spacing)
        self.ignore_index = checks.ignore_index(ignore_index)
        self.include_background = checks.flag("include_background", include_background)
        self.reduction = checks.choice("reduction", reduction, checks.REDUCTIONS)
        self.black_border = checks.flag("black_border", black_border)
        self.recompute = checks.flag("recompute", recompute)
        self.process_group = distributed.check_group(process_group, reduction)
        self.validate = validate if validate is None else checks.flag("validate", validate)
        self.backend = backend
        self.map_options: dict[str, float] = {}
        if class_weight is not None:
            class_weight = weights_of_any_classes("class_weight", class_weight).clone()
        self.register_buffer("class_weight", class_weight)

    def build_map(
        self, labels: Tensor, num_classes: int, spacing: float | Sequence[float] | None = None
    ) -> RectifiedMap | Tensor:
        """The map of labels `[B, *S]`, before class weights; `spacing` takes the place of the module's."""
        common: dict[str, Any] = {
            "ignore_index": self.ignore_index,
            "spatial_dims": labels.dim() - 1,
            "validate": self.validate,
            "backend": self.backend,
        }
        family = FAMILIES[self.maps]
        if family.measured:
            steps = self.spacing if spacing is None else spacing
            common |= {"spacing": steps, "black_border": self.black_border}
        built: RectifiedMap | Tensor = family.build(labels, num_classes, **common, **self.map_options)
        return built

    def forward(
        self,
        logits: Tensor,
        labels_or_maps: Tensor | RectifiedMap,
        labels: Tensor | None = None,
        *,
        spacing: float | Sequence[float] | None = None,
    ) -> Tensor:
        """The loss; see the class for shapes."""
        if labels is None:
            loss = self.loss_of_levels([logits], [labels_or_maps], [spacing], [1.0])
            if loss is not None:
                return loss
        logits = checks.logits(logits)
        maps, labels = self.map_of(logits, labels_or_maps, labels, spacing)
        return region_wise_loss(
            logits,
            maps,
            labels=None if isinstance(maps, RectifiedMap) else labels,
            ignore_index=self.ignore_index,
            include_background=self.include_background,
            reduction=self.reduction,
            recompute=self.recompute,
            process_group=self.process_group,
            validate=self.validate,
            backend=self.backend,
        )

    def map_of(
        self,
        logits: Tensor,
        labels_or_maps: Tensor | RectifiedMap,
        labels: Tensor | None,
        spacing: float | Sequence[float] | None,
    ) -> tuple[Tensor | RectifiedMap, Tensor | None]:
        """The map of the loss, class weights included, and the labels `[B, *S]` beside it, where there are any."""
        maps: Tensor | RectifiedMap
        if self._is_map(logits, labels_or_maps):
            maps = labels_or_maps
            if labels is not None and isinstance(maps, RectifiedMap):
                raise ValueError(
                    f"labels: expected None (a RectifiedMap carries its own), got {checks.describe(labels)}"
                )
            if labels is not None:
                labels = self._labels(labels, logits)
        else:
            if labels is not None:
                raise ValueError(f"labels: expected None beside labels, got {checks.describe(labels)}")
            labels = self._labels(labels_or_maps, logits)
            maps = self.build_map(labels, logits.shape[1], spacing)
        if self.class_weight is not None:
            checks.shape("class_weight", self.class_weight, (logits.shape[1],), "[K] of the logits")
            dense_labels = None if isinstance(maps, RectifiedMap) else labels
            maps = scale_classes(maps, self.class_weight, by="label", labels=dense_labels)
        return maps, labels

    def loss_of_levels(
        self, logits: Sequence[Any], labels: Sequence[Any], spacings: Sequence[Any], weights: Sequence[float]
    ) -> Tensor | None:
        """The weighted sum of the losses of several levels by one plan; None where there is none (see `repeated`)."""
        group = self.process_group
        if self.maps != "rectified" or self.class_weight is not None:
            return None
        if type(self).build_map is not RegionWiseLoss.build_map:
            return None
        if group is not None and (len(logits) > 1 or self.ignore_index is not None):  # who joins them counts pixels
            return None
        spacings = [self.spacing if spacing is None else spacing for spacing in spacings]
        options = Options(
            self.ignore_index, self.include_background, self.reduction, self.recompute, self.validate, self.backend
        )
        loss = loss_of_labels(logits, labels, spacings, weights, self.black_border, options)
        return loss if loss is None else distributed.joined(loss, logits[0], None, self.reduction, group)

    def with_maps(self, logits: Tensor, labels: Tensor, maps: Tensor | RectifiedMap) -> Tensor:
        """The loss of logits with labels and their map, built before; `CombinedLoss` and others call it."""
        return self(logits, maps) if isinstance(maps, RectifiedMap) else self(logits, maps, labels)  # type: ignore[no-any-return]

    def level_spacing(self, labels: Tensor, ratios: Sequence[float]) -> list[float]:
        """The spacing of a grid that is coarser than that of `labels` by one ratio per axis."""
        steps = checks.spacing(self.spacing, len(ratios))
        return [step * ratio for step, ratio in zip(steps, ratios, strict=True)]

    def _is_map(self, logits: Tensor, value: Any) -> bool:
        if isinstance(value, RectifiedMap):
            return True
        checks.tensor("labels_or_maps", value)
        return bool(value.is_floating_point() and value.dim() == logits.dim() and value.shape[1] == logits.shape[1])

    def _labels(self, value: Any, logits: Tensor) -> Tensor:
        value = checks.tensor("labels", value)
        checks.same_device("labels", value, "logits", logits)
        labels = checks.whole_labels(value, checks.validate(self.validate, logits.device))
        return checks.labels_like("labels", labels, logits.shape)

    def extra_repr(self) -> str:
        """The settings that differ from the defaults."""
        parts = [repr(self.maps)]
        for name, default in (
            ("spacing", None),
            ("ignore_index", None),
            ("include_background", True),
            ("reduction", "mean"),
            ("black_border", False),
            ("recompute", False),
            ("process_group", None),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([*parts, *(f"{name}={value!r}" for name, value in self.map_options.items())])


class BoundaryLoss(RegionWiseLoss):
    """Boundary loss as a region-wise loss: `RegionWiseLoss(maps="boundary")`, Eq. 3.

    Args:
        absent: Value of the channel of a class that an image lacks.
        inside_offset: Subtracted from the distances inside a class; 1 gives the variant `-(d - 1)` of Kervadec et al.
        **options: As of `RegionWiseLoss`, without `maps`.

    References:
        Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss = rw.BoundaryLoss()(torch.zeros(1, 2, 4, 4), torch.eye(4, dtype=torch.long)[None])
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, *, absent: float = 0.0, inside_offset: float = 0.0, **options: Any) -> None:
        if "maps" in options:
            raise TypeError("maps: expected no such argument (a BoundaryLoss always takes boundary maps)")
        super().__init__("boundary", **options)
        self.map_options = {
            "absent": checks.number("absent", absent),
            "inside_offset": checks.number("inside_offset", inside_offset),
        }


def with_maps(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, maps: Any) -> Tensor:
    """`loss` of a map built before, and its labels where the loss takes both."""
    both: Callable[..., Tensor] | None = getattr(loss, "with_maps", None)
    return loss(logits, maps) if both is None else both(logits, labels, maps)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see every call of a module."""
    return bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks)


# What the parts of a fused loss have to agree on.
_SHARED = ("ignore_index", "reduction", "process_group", "validate", "backend")


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
