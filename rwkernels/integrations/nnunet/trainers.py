"""nnU-Net v2 trainers that minimise the region-wise loss, alone or joined with nnU-Net's own Dice or cross-entropy.

| trainer | loss |
|---|---|
| `nnUNetTrainerRRW` | rectified region-wise loss, the paper's proposal |
| `nnUNetTrainerRWBoundary` | region-wise loss with boundary maps |
| `nnUNetTrainerDiceRRW`, `nnUNetTrainerCERRW` | sum of Dice or cross-entropy and RRW |
| `nnUNetTrainerDiceRRWGradual`, `nnUNetTrainerCERRWGradual` | Dice or cross-entropy that fades into RRW |
| `nnUNetTrainerDiceBoundary`, `nnUNetTrainerCEBoundary` | sum of Dice or cross-entropy and RW-Boundary |
| `nnUNetTrainerDiceBoundaryGradual`, `nnUNetTrainerCEBoundaryGradual` | one that fades into RW-Boundary |

The name may end in an optimiser with its learning rate and in a number of epochs, as nnU-Net's own names do:
`nnUNetTrainerRRW_Adam1en4`, `nnUNetTrainerRRW_300epochs`, `nnUNetTrainerRRW_Adam1en4_300epochs`. So every setting has a
folder of results of its own.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from rwkernels import checks
from rwkernels.extras import needs
from rwkernels.integrations.schedule import set_epoch
from rwkernels.losses.combined import CombinedLoss
from rwkernels.losses.modules import RegionWiseLoss
from rwkernels.losses.supervision import DeepSupervisionLoss

with needs("nnunet", "nnunetv2"):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

_CUDA = torch.device("cuda")


class RegionWiseTrainer(nnUNetTrainer):
    """What the trainers of this module have in common; a subclass chooses by class attributes.

    The maps are built from the labels of every level of deep supervision, with the spacing of that level; levels that
    nnU-Net gives weight 0 are skipped. Pixels of the ignore label do not count.

    Attributes:
        maps: `"rectified"`, `"boundary"`, `"active_contour"` or `"constant"`.
        region_loss: `None`, `"dice"` or `"cross_entropy"`: nnU-Net's own loss to join.
        schedule: `"equal"` adds the two; `"gradual"` gives `alpha * region_loss + (1 - alpha) * region_wise`, where
            alpha starts at 1 and loses `alpha_step` every epoch until `alpha_min` (section 4.3 of the paper).
        alpha_step: What an epoch takes off alpha.
        alpha_min: Where alpha stops.
        use_spacing: Measure distances in the spacing of the plans; False counts pixels (of the finest level).
        optimizer_name: `"SGD"`, nnU-Net's own, or `"Adam"`, the paper's.
        learning_rate: Initial learning rate; None leaves nnU-Net's.
        epochs: Length of the training; None leaves nnU-Net's.

    Raises:
        ValueError: The data set has regions: the loss needs a softmax over classes that exclude each other.
    """

    maps: ClassVar[str] = "rectified"
    region_loss: ClassVar[str | None] = None
    schedule: ClassVar[str] = "equal"
    alpha_step: ClassVar[float] = 0.01
    alpha_min: ClassVar[float] = 0.01
    use_spacing: ClassVar[bool] = True
    optimizer_name: ClassVar[str] = "SGD"
    learning_rate: ClassVar[float | None] = None
    epochs: ClassVar[int | None] = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = _CUDA,  # nnU-Net reads this signature: names and defaults are those of its own trainer
    ) -> None:
        name = type(self).__name__
        checks.choice(f"{name}.optimizer_name", self.optimizer_name, ("SGD", "Adam"))
        checks.choice(f"{name}.region_loss", self.region_loss or "none", ("none", "dice", "cross_entropy"))
        # Before nnU-Net creates the folder of results.
        if PlansManager(plans).get_label_manager(dataset_json).has_regions:
            raise ValueError(
                f"{name}: expected a data set whose labels exclude each other, got one with regions "
                "(regions_class_order in dataset.json). The region-wise loss multiplies a softmax, and regions are "
                "trained with a sigmoid; give dataset.json one integer per label, or take nnUNetTrainer"
            )
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.learning_rate is not None:
            self.initial_lr = self.learning_rate
        if self.epochs is not None:
            self.num_epochs = self.epochs

    def _build_loss(self) -> nn.Module:
        own = super()._build_loss()  # for its weights of the levels, and for Dice and cross-entropy
        loss: nn.Module = RegionWiseLoss(
            self.maps,
            spacing=self._spacing(),
            ignore_index=self.label_manager.ignore_label,
            process_group="world" if self.is_ddp else None,
        )
        region_loss = self._region_loss(own.loss if self.enable_deep_supervision else own)
        if region_loss is not None:
            loss = CombinedLoss(
                region_loss, loss, schedule=self.schedule, alpha_step=self.alpha_step, alpha_min=self.alpha_min
            )
        return DeepSupervisionLoss(loss, own.weight_factors) if self.enable_deep_supervision else loss

    def _region_loss(self, own: nn.Module) -> nn.Module | None:
        """nnU-Net's Dice or cross-entropy alone, with its handling of the ignore label."""
        if self.region_loss is None:
            return None
        if not isinstance(own, DC_and_CE_loss):
            raise TypeError(f"region_loss: expected nnU-Net's DC_and_CE_loss to take it from, got {type(own).__name__}")
        own.weight_dice = float(self.region_loss == "dice")
        own.weight_ce = float(self.region_loss == "cross_entropy")
        found: nn.Module = own
        return found

    def _spacing(self) -> tuple[float, ...] | None:
        """Spacing in the order of the axes of a patch; the plans hold it transposed, without the slices of 2D."""
        if not self.use_spacing:
            return None
        axes = len(self.configuration_manager.patch_size)
        return tuple(float(size) for size in self.configuration_manager.spacing[-axes:])

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's SGD, or Adam with nnU-Net's weight decay and polynomial schedule, as the paper's code has it."""
        if self.optimizer_name == "SGD":
            default: tuple[torch.optim.Optimizer, Any] = super().configure_optimizers()
            return default
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """Begins an epoch with the alpha that belongs to it."""
        super().on_train_epoch_start()
        alpha = set_epoch(self.loss, self.current_epoch)
        if alpha is not None:
            self.print_to_log_file(f"Current alpha: {alpha:.4g}")

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Loads a checkpoint; alpha is the one of its epoch."""
        super().load_checkpoint(filename_or_checkpoint)
        set_epoch(self.loss, self.current_epoch)


class nnUNetTrainerRRW(RegionWiseTrainer):
    """Rectified region-wise loss (Eq. 4)."""


class nnUNetTrainerRWBoundary(RegionWiseTrainer):
    """Region-wise loss with boundary maps (Eq. 3)."""

    maps = "boundary"


class nnUNetTrainerDiceRRW(RegionWiseTrainer):
    """Dice + RRW."""

    region_loss = "dice"


class nnUNetTrainerDiceRRWGradual(nnUNetTrainerDiceRRW):
    """Dice that fades into RRW."""

    schedule = "gradual"


class nnUNetTrainerCERRW(RegionWiseTrainer):
    """Cross-entropy + RRW."""

    region_loss = "cross_entropy"


class nnUNetTrainerCERRWGradual(nnUNetTrainerCERRW):
    """Cross-entropy that fades into RRW."""

    schedule = "gradual"


class nnUNetTrainerDiceBoundary(RegionWiseTrainer):
    """Dice + RW-Boundary."""

    maps = "boundary"
    region_loss = "dice"


class nnUNetTrainerDiceBoundaryGradual(nnUNetTrainerDiceBoundary):
    """Dice that fades into RW-Boundary, as Kervadec et al. do."""

    schedule = "gradual"


class nnUNetTrainerCEBoundary(RegionWiseTrainer):
    """Cross-entropy + RW-Boundary."""

    maps = "boundary"
    region_loss = "cross_entropy"


class nnUNetTrainerCEBoundaryGradual(nnUNetTrainerCEBoundary):
    """Cross-entropy that fades into RW-Boundary."""

    schedule = "gradual"


TRAINERS: dict[str, type[RegionWiseTrainer]] = {
    name: found
    for name, found in list(globals().items())
    if isinstance(found, type) and issubclass(found, RegionWiseTrainer) and found is not RegionWiseTrainer
}

_NAME = re.compile(
    r"(?P<base>[A-Za-z]+)(_(?P<optimizer>Adam|SGD)(?P<digits>\d+)en(?P<exponent>\d+))?(_(?P<epochs>[1-9]\d*)epochs)?"
)


@cache
def trainer(name: str) -> type[RegionWiseTrainer]:
    """The trainer of this name, which may end in an optimiser with its learning rate and in a number of epochs.

    Raises:
        ValueError: No trainer of this module has that name.

    Examples:
        >>> found = trainer("nnUNetTrainerRRW_Adam1en4_300epochs")
        >>> found.optimizer_name, found.learning_rate, found.epochs
        ('Adam', 0.0001, 300)
    """
    parts = _NAME.fullmatch(name)
    if parts is None or parts["base"] not in TRAINERS:
        raise ValueError(f"name: expected one of {', '.join(TRAINERS)} (then, e.g., _Adam1en4_300epochs), got {name!r}")
    base = TRAINERS[parts["base"]]
    settings: dict[str, Any] = {"__doc__": base.__doc__, "__module__": __name__}
    if parts["optimizer"]:
        settings["optimizer_name"] = parts["optimizer"]
        settings["learning_rate"] = float(f"{parts['digits']}e-{parts['exponent']}")
    if parts["epochs"]:
        settings["epochs"] = int(parts["epochs"])
    return base if name in TRAINERS else type(name, (base,), settings)
