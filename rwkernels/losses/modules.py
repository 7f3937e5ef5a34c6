"""The losses as modules: thin, over the functions of `maps` and `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rwkernels import checks
from rwkernels.losses import distributed
from rwkernels.losses.functional import region_wise_loss
from rwkernels.losses.problem import labels_of
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
                labels = labels_of(labels, logits, self.validate)
        else:
            if labels is not None:
                raise ValueError(f"labels: expected None beside labels, got {checks.describe(labels)}")
            labels = labels_of(labels_or_maps, logits, self.validate)
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
