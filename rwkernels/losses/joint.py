"""Dice, cross-entropy and focal loss, alone, together and joined with a region-wise loss, over one softmax.

They are functions of the same probabilities and the same labels, so one operator computes any weighted sum of them: in
one pass over the logits, or two where Dice is among them. Values and gradients are those of MONAI's losses and, with
the options that the classes name, of nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rwkernels import checks
from rwkernels.backends.joint import VOLUMES, JointProblem, Overlap
from rwkernels.backends.problem import precision_of
from rwkernels.losses import distributed
from rwkernels.losses.functional import warn_about_one_channel
from rwkernels.losses.problem import loss_problem
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.scaling import weights_of_any_classes
from rwkernels.ops import mode
from rwkernels.ops.joint import joint_loss, joint_sums

ClassWeight = Tensor | Sequence[float] | float | None


class DiceTerm(NamedTuple):
    """Soft Dice or a relative of it (see `joint.JointProblem`)."""

    overlap: Overlap
    include_background: bool = True
    squared: bool = False
    batch: bool = False
    volumes: str = ""


class Terms(NamedTuple):
    """Which losses are summed, and how much each counts."""

    dice: DiceTerm | None = None
    of_dice: float = 0.0
    of_entropy: float = 0.0
    label_smoothing: float = 0.0
    of_focal: float = 0.0
    gamma: float = 2.0

    def weights(self, region_wise: float) -> tuple[float, float, float, float]:
        """In the order of `JointProblem.weights`."""
        return (region_wise, self.of_entropy, self.of_focal, self.of_dice)


@lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Weights on their device: copying them there at every call would make a GPU wait."""
    return torch.tensor(values, dtype=precision_of(device), device=device)


def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    if mode.is_watched():  # a compiler takes numbers for constants; what it makes is no tensor to keep
        return torch.tensor(values, dtype=precision_of(device), device=device)
    return _kept(values, device)


class JointLoss(nn.Module):
    """A weighted sum of Dice, cross-entropy and focal loss: what the losses of this file have in common.

    Shape:
        `forward(logits, labels)` with logits `[B, K, *S]` and labels `[B, *S]` or `[B, 1, *S]`: integers, or floats
        that hold whole numbers. The loss is a scalar, float32 (float64 for float64 logits).
    """

    entropy_weight: Tensor | None
    focal_weight: Tensor | None
    dice_weight: Tensor | None

    def __init__(
        self,
        terms: Terms,
        *,
        reduction: str,
        ignore_index: int | None,
        process_group: Any,
        validate: bool | None,
        backend: str | None,
        entropy_weight: ClassWeight = None,
        focal_weight: ClassWeight = None,
        alpha: ClassWeight = None,
        dice_weight: ClassWeight = None,
    ) -> None:
        super().__init__()
        self.terms = terms
        self.reduction = checks.choice("reduction", reduction, ("mean", "sum"))
        self.ignore_index = checks.ignore_index(ignore_index)
        self.process_group = distributed.check_group(process_group, reduction)
        if process_group is not None and terms.dice is not None and not terms.dice.batch:
            raise ValueError("process_group: expected None without batch=True (images have sums of their own)")
        self.validate = validate if validate is None else checks.flag("validate", validate)
        self.backend = checks.backend(backend)
        self.register_buffer("entropy_weight", _class_weight("weight", entropy_weight))
        self.alpha, per_class = _split_alpha(alpha)
        own = _class_weight("weight", focal_weight)
        self.register_buffer(
            "focal_weight", per_class if own is None else own if per_class is None else own * per_class
        )
        self.register_buffer("dice_weight", _class_weight("weight", dice_weight))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss; see the class for shapes."""
        logits = checks.logits(logits)
        weights = _on_device(self.terms.weights(0.0), logits.device)
        return self.joined(logits, self._labels(labels, logits), weights)

    def joined_with(
        self,
        logits: Tensor,
        labels: Tensor,
        maps: Tensor | RectifiedMap,
        alpha: Tensor | None,
        *,
        map_background: bool,
        recompute: bool,
    ) -> Tensor:
        """Its sum with the region-wise loss of a map, in the same passes; weighed `alpha` to `1 - alpha` if given.

        Labels `[B, *S]` are those of the map. `map_background` and `recompute` are as of the region-wise loss.
        """
        if alpha is None:
            weights = _on_device(self.terms.weights(1.0), logits.device)
        else:
            start = _on_device((1.0, 0.0, 0.0, 0.0), logits.device)
            weights = start + _on_device(self.terms.weights(-1.0), logits.device) * alpha.to(start)
        return self.joined(logits, labels, weights, maps, map_background=map_background, recompute=recompute)

    def joined(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        maps: Tensor | RectifiedMap | None = None,
        *,
        map_background: bool = True,
        recompute: bool = False,
    ) -> Tensor:
        """The sum with `weights` (of region-wise, cross-entropy, focal and Dice loss), of checked logits and labels."""
        warn_about_one_channel(logits.shape[1])
        problem = self._problem(logits, labels, weights, maps, map_background)
        processes = 1 if self.process_group is None else distributed.size_of(self.process_group)
        if processes == 1:
            return joint_loss(problem, recompute=recompute)
        if not torch.compiler.is_compiling() and mode.transforms_active():
            raise NotImplementedError(
                "process_group: a transform of torch.func cannot sum over processes; expected None"
            )
        sums = joint_sums(problem).sum(0, keepdim=True)
        dist.all_reduce(sums, group=None if self.process_group == distributed.WORLD else self.process_group)
        loss = joint_loss(problem._replace(joined=sums))
        return loss * processes - loss.detach() * (processes - 1)  # every process's own part of the gradient, W times

    def _problem(
        self, logits: Tensor, labels: Tensor, weights: Tensor, maps: Tensor | RectifiedMap | None, map_background: bool
    ) -> JointProblem:
        classes, terms, dice = logits.shape[1], self.terms, self.terms.dice
        of_map: dict[str, Any] = {}
        if maps is not None:
            found = loss_problem(
                logits,
                maps,
                labels=None if isinstance(maps, RectifiedMap) else labels,
                ignore_index=self.ignore_index,
                include_background=map_background,
                reduction=self.reduction,
                validate=self.validate,
                backend=self.backend,
            )
            assert found.labels is not None
            labels = found.labels
            for name in ("maps", "background", "class_scale", "background_value", "ignore_index"):
                of_map[name] = getattr(found, name)
        defaults = {
            "maps": None, "background": None, "class_scale": None, "background_value": 0.0,
            "ignore_index": self.ignore_index,
        }  # fmt: skip
        return JointProblem(
            logits=logits,
            labels=labels,
            weights=weights,
            entropy_weight=_of_classes("weight", self.entropy_weight, classes),
            focal_weight=self._focal_weight(classes, logits.device),
            dice_weight=_of_classes("weight", self.dice_weight, classes, dice is None or dice.include_background),
            joined=None,
            map_background=map_background,
            cross_entropy=terms.of_entropy != 0,
            label_smoothing=terms.label_smoothing,
            focal=terms.of_focal != 0,
            gamma=terms.gamma,
            dice=dice is not None,
            # Of one channel there is no other.
            dice_background=dice is None or dice.include_background or classes == 1,
            squared=dice is not None and dice.squared,
            whole_batch=dice is not None and dice.batch,
            volumes="" if dice is None else dice.volumes,
            overlap=[] if dice is None else list(dice.overlap),
            reduction=self.reduction,
            validate=checks.validate(self.validate, logits.device),
            backend=self.backend,
            **(defaults | of_map),
        )

    def _focal_weight(self, classes: int, device: torch.device) -> Tensor | None:
        weight = _of_classes("weight", self.focal_weight, classes)
        if self.alpha is None:
            return weight
        alpha = _on_device((1 - self.alpha, *[self.alpha] * (classes - 1)), device)
        return alpha if weight is None else alpha * weight

    def _labels(self, value: Any, logits: Tensor) -> Tensor:
        value = checks.tensor("labels", value)
        checks.same_device("labels", value, "logits", logits)
        labels = checks.whole_labels(value, checks.validate(self.validate, logits.device))
        return checks.labels_like("labels", labels, logits.shape)

    def extra_repr(self) -> str:
        """The settings that differ from the defaults."""
        shown = [] if self.reduction == "mean" else [f"reduction={self.reduction!r}"]
        if self.terms.dice is not None:
            dice = self.terms.dice
            shown += [] if dice.include_background else ["include_background=False"]
            shown += ["batch=True"] if dice.batch else []
        for name in ("ignore_index", "process_group", "validate", "backend"):
            if getattr(self, name) is not None:
                shown.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(shown)


def _class_weight(name: str, value: ClassWeight) -> Tensor | None:
    if value is None:
        return None
    found = weights_of_any_classes(name, [value] if isinstance(value, (int, float)) else value)
    if not found.is_cuda and bool((found < 0).any()):
        raise ValueError(f"{name}: expected numbers >= 0, got {found.tolist()}")
    return found.clone()


def _split_alpha(value: ClassWeight) -> tuple[float | None, Tensor | None]:
    """Focal alpha as one number, or as one a class."""
    if not isinstance(value, (int, float)):
        return None, _class_weight("alpha", value)
    if not 0 <= checks.number("alpha", value) <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1] or one per class, got {value}")
    return float(value), None


def _of_classes(name: str, weight: Tensor | None, classes: int, include_background: bool = True) -> Tensor | None:
    """A weight of every class, [K]; one number counts for all, and without the background it may be left out."""
    if weight is None:
        return None
    if weight.numel() == 1:
        return weight.expand(classes)
    if not include_background and weight.numel() == classes - 1:
        return nn.functional.pad(weight, (1, 0))
    checks.shape(name, weight, (classes,), "[K] of the logits")
    return weight


def _dice_overlap(jaccard: bool, smooth_nr: float, smooth_dr: float, complement: bool) -> Overlap:
    smooth = (checks.number("smooth_nr", smooth_nr), checks.number("smooth_dr", smooth_dr))
    offset = 1.0 if checks.flag("complement", complement) else 0.0
    if checks.flag("jaccard", jaccard):
        return Overlap(2.0, -2.0, 2.0, 2.0, *smooth, offset)
    return Overlap(2.0, 0.0, 1.0, 1.0, *smooth, offset)


def _dice_term(
    include_background: bool,
    squared_pred: bool,
    jaccard: bool,
    smooth_nr: float,
    smooth_dr: float,
    batch: bool,
    complement: bool,
) -> DiceTerm:
    return DiceTerm(
        _dice_overlap(jaccard, smooth_nr, smooth_dr, complement),
        checks.flag("include_background", include_background),
        checks.flag("squared_pred", squared_pred),
        checks.flag("batch", batch),
    )


class DiceLoss(JointLoss):
    """Soft Dice loss of the softmax: two reads of the logits and one write of the gradient.

    Per image and class `1 - (2 I + smooth_nr) / (P + T + smooth_dr)`, with I the sum of the class's probability over
    its pixels, P that over all pixels and T the number of its pixels; averaged over images and classes. It is MONAI's
    `DiceLoss(softmax=True, to_onehot_y=True)`. nnU-Net's `MemoryEfficientSoftDiceLoss` is
    `DiceLoss(batch=batch_dice, include_background=do_bg, smooth_nr=smooth, smooth_dr=smooth, complement=False)`.
    A denominator is at least 1e-8.

    Args:
        include_background: False leaves class 0 out (of the average; the softmax is over all classes).
        squared_pred: P sums squares.
        jaccard: Jaccard's index (IoU) in Dice's place.
        reduction: `"mean"` or `"sum"` over images and classes.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum I, P and T over the batch before dividing.
        weight: One number per class `[K]` (`[K - 1]` without the background), or one for all, that multiplies its
            loss. Part of the `state_dict`.
        complement: False gives minus Dice in the place of one minus Dice, as nnU-Net does.
        ignore_index: Label, possibly negative, of pixels that do not count; their logits are never read.
        process_group: A process group or `"world"`, with `batch=True`: sums over the batches of all processes, as
            nnU-Net's `ddp=True` does. Every process returns the loss of the joined batch, and the mean of their
            gradients, which DistributedDataParallel takes, is its gradient.
        validate: Check label values: by default on the CPU only. Bad labels that are not checked make the loss NaN.
        backend: Name of the backend to use instead of the default one.

    Shape:
        `forward(logits, labels)` with logits `[B, K, *S]` of one to three spatial axes and labels `[B, *S]` or
        `[B, 1, *S]`: integers, or floats that hold whole numbers. The loss is a scalar, float32 (float64 for float64
        logits).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices, class counts or label values are wrong.

    References:
        Milletari et al., "V-Net", 3DV 2016; Isensee et al., "nnU-Net", Nature Methods 2021.

    Examples:
        >>> import torch, rwkernels as rw
        >>> logits = torch.zeros(1, 2, 1, 4, requires_grad=True)
        >>> loss = rw.DiceLoss(smooth_nr=0, smooth_dr=0)(logits, torch.tensor([[[0, 0, 1, 1]]]))
        >>> loss.backward()  # of both classes I = 1, P = T = 2
        >>> loss.item(), logits.grad.shape
        (0.5, torch.Size([1, 2, 1, 4]))
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight = None,
        complement: bool = True,
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            dice_weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class TverskyLoss(JointLoss):
    """Tversky loss of the softmax: Dice whose false positives and false negatives count differently.

    Per image and class `1 - (I + smooth_nr) / (I + alpha (P - I) + beta (T - I) + smooth_dr)`; MONAI's
    `TverskyLoss(softmax=True, to_onehot_y=True)`.

    Args:
        include_background: False leaves class 0 out.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        reduction: `"mean"` or `"sum"` over images and classes.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum over the batch before dividing.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Salehi et al., "Tversky loss function for image segmentation", MLMI 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> rw.TverskyLoss(smooth_nr=0, smooth_dr=0)(torch.zeros(1, 2, 1, 4), labels)
        tensor(0.5000)
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        alpha, beta = checks.number("alpha", alpha), checks.number("beta", beta)
        smooth = (checks.number("smooth_nr", smooth_nr), checks.number("smooth_dr", smooth_dr))
        dice = DiceTerm(
            Overlap(1.0, 1 - alpha - beta, alpha, beta, *smooth, 1.0),
            include_background=checks.flag("include_background", include_background),
            batch=checks.flag("batch", batch),
        )
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class GeneralizedDiceLoss(JointLoss):
    """Generalised Dice loss of the softmax: one quotient of all classes, each weighed by its volume.

    MONAI's `GeneralizedDiceLoss(softmax=True, to_onehot_y=True)`; a class that an image lacks has the largest weight of
    the others.

    Args:
        include_background: False leaves class 0 out.
        w_type: `"square"` (weights `1 / T^2`), `"simple"` (`1 / T`) or `"uniform"`.
        reduction: `"mean"` or `"sum"` over images.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum over the batch before dividing.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations",
        DLMIA 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> rw.GeneralizedDiceLoss(smooth_nr=0, smooth_dr=0)(torch.zeros(1, 2, 1, 4), labels)
        tensor(0.5000)
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        dice = DiceTerm(
            _dice_overlap(False, smooth_nr, smooth_dr, True),
            include_background=checks.flag("include_background", include_background),
            batch=checks.flag("batch", batch),
            volumes=checks.choice("w_type", w_type, VOLUMES[1:]),
        )
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class CrossEntropyLoss(JointLoss):
    """Cross-entropy, as PyTorch's of the same name: one pass gives loss and gradient.

    Args:
        weight: One number per class `[K]`; the mean then divides by the sum of the weights of the pixels that count.
            Part of the `state_dict`.
        label_smoothing: In [0, 1]: how much of the target is spread evenly over all classes.
        reduction: `"mean"` or `"sum"`.
        **options: `ignore_index` (default: none), `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.CrossEntropyLoss()(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: ClassWeight = None,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            Terms(of_entropy=1.0, label_smoothing=_smoothing(label_smoothing)),
            entropy_weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class FocalLoss(JointLoss):
    """Focal loss of the softmax: cross-entropy times `(1 - p)^gamma`, p being the probability of the true class.

    MONAI's `FocalLoss(use_softmax=True, to_onehot_y=True)`: the mean is over pixels and classes, so divides by N * K.

    Args:
        gamma: How much pixels that are right already are held back; 0 is cross-entropy.
        alpha: One number per class `[K]`; or one in [0, 1], which the others count and class 0 counts one minus it.
        weight: One number per class `[K]` beside `alpha`, or one for all.
        reduction: `"mean"`, or `"sum"` over all pixels (MONAI's averages over the pixels of an image first).
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss = rw.FocalLoss(gamma=2)(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
        >>> round(loss.item(), 4)  # log(2) / 4 over two classes
        0.0866
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        alpha: ClassWeight = None,
        weight: ClassWeight = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            Terms(of_focal=1.0, gamma=_gamma(gamma)),
            focal_weight=weight,
            alpha=alpha,
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class DiceCELoss(JointLoss):
    """Dice and cross-entropy together: two reads of the logits and one write of the gradient for both.

    MONAI's `DiceCELoss(softmax=True, to_onehot_y=True)`. nnU-Net's default, `DC_and_CE_loss` with
    `MemoryEfficientSoftDiceLoss`, is `DiceCELoss(include_background=do_bg, batch=batch_dice, smooth_nr=smooth,
    smooth_dr=smooth, complement=False)`.

    Args:
        include_background: False leaves class 0 out of Dice.
        squared_pred: As of `DiceLoss`.
        jaccard: As of `DiceLoss`.
        reduction: `"mean"` or `"sum"`, of both.
        smooth_nr: Added to the numerator of Dice.
        smooth_dr: Added to its denominator.
        batch: Sum over the batch before dividing.
        weight: One number per class `[K]`, for both. Part of the `state_dict`.
        lambda_dice: How much Dice counts.
        lambda_ce: How much cross-entropy counts.
        label_smoothing: Of cross-entropy, in [0, 1].
        complement: False gives minus Dice in the place of one minus Dice, as nnU-Net does.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.DiceCELoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> loss_fn(logits, torch.randint(3, (2, 16, 16))).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        complement: bool = True,
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(
                dice=dice,
                of_dice=_not_negative("lambda_dice", lambda_dice),
                of_entropy=_not_negative("lambda_ce", lambda_ce),
                label_smoothing=_smoothing(label_smoothing),
            ),
            entropy_weight=weight,
            dice_weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


class DiceFocalLoss(JointLoss):
    """Dice and focal loss together: two reads of the logits and one write of the gradient for both.

    It is the sum of `DiceLoss` and `FocalLoss`. MONAI's `DiceFocalLoss(softmax=True)` is not: its focal loss takes the
    sigmoid of every class.

    Args:
        include_background: False leaves class 0 out of Dice; the focal loss has all classes.
        squared_pred: As of `DiceLoss`.
        jaccard: As of `DiceLoss`.
        reduction: `"mean"` or `"sum"`, of both.
        smooth_nr: Added to the numerator of Dice.
        smooth_dr: Added to its denominator.
        batch: Sum over the batch before dividing.
        gamma: As of `FocalLoss`.
        alpha: As of `FocalLoss`.
        weight: One number per class `[K]`, for both. Part of the `state_dict`.
        lambda_dice: How much Dice counts.
        lambda_focal: How much the focal loss counts.
        complement: As of `DiceLoss`.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> rw.DiceFocalLoss(gamma=1.5)(logits, torch.randint(3, (2, 16, 16))).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        alpha: ClassWeight = None,
        weight: ClassWeight = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        complement: bool = True,
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(
                dice=dice,
                of_dice=_not_negative("lambda_dice", lambda_dice),
                of_focal=_not_negative("lambda_focal", lambda_focal),
                gamma=_gamma(gamma),
            ),
            focal_weight=weight,
            alpha=alpha,
            dice_weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            process_group=process_group,
            validate=validate,
            backend=backend,
        )


def _smoothing(value: float) -> float:
    if not 0 <= checks.number("label_smoothing", value) <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {value}")
    return float(value)


def _gamma(value: float) -> float:
    return _not_negative("gamma", value)


def _not_negative(name: str, value: float) -> float:
    if checks.number(name, value) < 0:
        raise ValueError(f"{name}: expected a number >= 0, got {value}")
    return float(value)


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
