"""Region-wise maps in Lightning: built on the device, when a batch has arrived there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rwkernels.data import batches
from rwkernels.data.building import MapBuilder, MapOptions
from rwkernels.extras import needs
from rwkernels.integrations.schedule import set_epoch
from rwkernels.losses.combined import CombinedLoss

with needs("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AlphaSchedule", "BatchMaps", "RegionWiseMaps"]


class BatchMaps:
    """Adds the map of its labels to a batch: under `map_key`, or as the last element of a tuple or list.

    Args:
        num_classes: Number of classes K.
        **options: `label_key`, `map_key`, `maps`, `spacing`, `spacing_key`, `class_max_key`, `ignore_index`,
            `black_border`, `spatial_dims`, `validate`, `backend` and `map_options`, as of `rwkernels.data.MapLoader`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value, or a batch lacks an entry or has bad labels.

    Examples:
        >>> import torch
        >>> add_maps = BatchMaps(num_classes=3)
        >>> images, labels = torch.randn(2, 1, 8, 9), torch.randint(3, (2, 8, 9))
        >>> add_maps((images, labels))[2].shape
        torch.Size([2, 8, 9])
        >>> sorted(add_maps({"image": images, "label": labels}))
        ['image', 'label', 'map']
    """

    def __init__(self, num_classes: int, **options: Unpack[MapOptions]) -> None:
        options.setdefault("threads", None)
        self.builder = MapBuilder(num_classes, **options)

    def __call__(self, batch: Any) -> Any:
        """A batch of the same kind with its map; the one given is left as it is."""
        _, labels = self.builder.labels_of(batch)
        return batches.added(batch, self.builder.map_key, self.builder.of_batch(batch, labels))


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
