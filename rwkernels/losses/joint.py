"""What Dice, cross-entropy and focal loss, alone, together or joined with a region-wise loss, have in common.

They are functions of the same probabilities and the same labels, so one operator computes any weighted sum of them: in
one pass over the logits, or two where Dice is among them. Values and gradients are those of MONAI's losses and, with
the options that the classes name, of nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rwkernels import checks
from rwkernels.backends.joint import JointProblem, Overlap
from rwkernels.backends.problem import precision_of
from rwkernels.losses import distributed
from rwkernels.losses.functional import warn_about_one_channel
from rwkernels.losses.problem import labels_of, loss_problem
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.scaling import weights_of_any_classes
from rwkernels.ops import mode
from rwkernels.ops.joint import joint_loss, joint_sums

ClassWeight = Tensor | Sequence[float] | float | None


class JointOptions(TypedDict, total=False):
    """What every loss of this kind takes; `DiceLoss` says what they mean."""

    reduction: str
    ignore_index: int | None
    process_group: Any
    validate: bool | None
    backend: str | None


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
    """A weighted sum of Dice, cross-entropy and focal loss: what `dice.py` and `cross_entropy.py` have in common.

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
        reduction: str = "mean",
        ignore_index: int | None = None,
        process_group: Any = None,
        validate: bool | None = None,
        backend: str | None = None,
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
        return self.joined(logits, labels_of(labels, logits, self.validate), weights)

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


def smoothing(value: float) -> float:
    """Label smoothing, in [0, 1]."""
    if not 0 <= checks.number("label_smoothing", value) <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {value}")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """A finite number that is not below 0."""
    if checks.number(name, value) < 0:
        raise ValueError(f"{name}: expected a number >= 0, got {value}")
    return float(value)
