"""Region-wise maps in Lightning: built on the device, when a batch has arrived there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from rwkernels import checks
from rwkernels.compact import RectifiedMap
from rwkernels.integrations.arrays import build
from rwkernels.integrations.extras import needs
from rwkernels.integrations.schedule import set_epoch
from rwkernels.modules import FAMILIES, CombinedLoss, RegionWiseLoss, whole_labels

with needs("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["AlphaSchedule", "BatchMaps", "RegionWiseMaps"]


class BatchMaps:
    """Adds the map of its labels to a batch: `batch["map"]` of a dictionary, the last element of a tuple or list.

    Args:
        num_classes: Number of classes K.
        label_key: Where the labels are: a key, or an index. Default: `"label"` of a dictionary, else 1.
        map_key: Where the map goes in a dictionary.
        maps: `"rectified"`, `"boundary"`, `"active_contour"` or `"constant"`.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        spatial_dims: Number of spatial axes; needed where labels `[B, 1, *S]` and `[B, *S]` look alike.
        **options: `ignore_index`, `black_border`, `validate` and `backend`, as of `rwkernels.RegionWiseLoss`.

    Shape:
        Labels: `[B, *S]` or `[B, 1, *S]`, integers or whole floats. Map: a `RectifiedMap` or, for boundary maps, a
        tensor `[B, K, *S]`, on the device of the labels.

    Raises:
        TypeError: An argument has the wrong type, or the batch is neither dictionary, tuple nor list.
        KeyError: The batch has no such labels.
        ValueError: An argument or a label has a wrong value.

    Examples:
        >>> import torch
        >>> add_maps = BatchMaps(num_classes=3)
        >>> images, labels = torch.randn(2, 1, 8, 9), torch.randint(3, (2, 8, 9))
        >>> add_maps((images, labels))[2].shape
        torch.Size([2, 8, 9])
        >>> sorted(add_maps({"image": images, "label": labels}))
        ['image', 'label', 'map']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        label_key: str | int | None = None,
        map_key: str = "map",
        maps: str = "rectified",
        spacing: float | Sequence[float] | None = None,
        spatial_dims: int | None = None,
        **options: Any,
    ) -> None:
        self.num_classes = checks.integer("num_classes", num_classes, lowest=1)
        if label_key is not None and (isinstance(label_key, bool) or not isinstance(label_key, (str, int))):
            raise TypeError(f"label_key: expected a key or an index, got {checks.describe(label_key)}")
        if not isinstance(map_key, str):
            raise TypeError(f"map_key: expected a key, got {checks.describe(map_key)}")
        self.maps = checks.choice("maps", maps, FAMILIES)
        self.label_key, self.map_key, self.spatial_dims = label_key, map_key, spatial_dims
        RegionWiseLoss(maps, spacing=spacing, **options)  # refuses bad options before the first batch does
        self.spacing, self.options = spacing, options

    def __call__(self, batch: Any) -> Any:
        """A batch of the same kind with its map; the one given is left as it is."""
        if isinstance(batch, Mapping):
            return {**batch, self.map_key: self._of(batch, "label")}
        if isinstance(batch, (tuple, list)):
            longer = (*batch, self._of(batch, 1))
            return list(longer) if isinstance(batch, list) else longer
        raise TypeError(f"batch: expected a dictionary, a tuple or a list, got {checks.describe(batch)}")

    def _of(self, batch: Any, usual: str | int) -> RectifiedMap | Tensor:
        key = usual if self.label_key is None else self.label_key
        try:
            labels = checks.tensor("labels", batch[key])
        except (KeyError, IndexError) as error:
            found = list(batch) if isinstance(batch, Mapping) else f"{len(batch)} elements"
            raise KeyError(f"label_key: expected {key!r} in the batch, got {found}") from error
        channel = labels.dim() >= 4 if self.spatial_dims is None else labels.dim() == self.spatial_dims + 2
        if channel and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        labels = whole_labels(labels, checks.validate(self.options.get("validate"), labels.device))
        spacing = None if self.spacing is None else tuple(checks.spacing(self.spacing, labels.dim() - 1))
        return build(self.maps, labels, self.num_classes, [spacing] * len(labels), **self.options)


class RegionWiseMaps:
    """Mixin for a `LightningModule` or a `LightningDataModule` whose batches shall have maps.

    Lightning calls `on_after_batch_transfer` once a batch is on the device, in every process of a distributed training
    for its own batch. Where a data module overrides that hook, Lightning asks the data module alone: mix it in there.
    While predicting, batches stay as they are.

    Attributes:
        region_wise_maps: What adds the map to a batch: a `BatchMaps`, on the class or set in `__init__`; or a method.

    Examples:
        >>> import torch, lightning as L, rwkernels as rw
        >>> class Model(RegionWiseMaps, L.LightningModule):
        ...     region_wise_maps = BatchMaps(num_classes=3)
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = torch.nn.Conv2d(1, 3, 3, padding=1)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         images, labels, maps = batch
        ...         return rw.region_wise_loss(self.network(images), maps)
    """

    region_wise_maps: Callable[[Any], Any]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch, as other classes leave it, with its maps."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)  # type: ignore[misc]
        if not hasattr(self, "region_wise_maps"):
            raise TypeError(f"region_wise_maps: expected a BatchMaps on {type(self).__name__}, got none")
        # A module keeps its trainer in `_trainer` and may have none; a data module has it in `trainer`.
        trainer = getattr(self, "_trainer", None) or vars(self).get("trainer")
        return batch if trainer is not None and trainer.predicting else self.region_wise_maps(batch)


class AlphaSchedule(Callback):
    """Moves the `alpha` of every `CombinedLoss` in a module on from one training epoch to the next.

    The loss has to be an attribute of the module. A training that is resumed goes on with the alpha of its epoch.

    Examples:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[AlphaSchedule()], accelerator="cpu", logger=False)
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a module without such a loss: nothing would ever move."""
        if not any(isinstance(part, CombinedLoss) and part.schedule == "gradual" for part in pl_module.modules()):
            name = type(pl_module).__name__
            raise ValueError(f'AlphaSchedule: expected a CombinedLoss with schedule="gradual" in {name}, got none')

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets alpha to what it is after as many epochs."""
        set_epoch(pl_module, trainer.current_epoch)
