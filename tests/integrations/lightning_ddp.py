"""Trains with Lightning in as many processes as the first argument says; test_lightning.py runs it.

Rank 0 writes the weights after two steps, and every rank what its batches were, into the folder of the second argument.
"""

import sys
from pathlib import Path

import lightning as L
import torch
from samples import scene
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rwkernels as rw
from rwkernels.integrations.lightning import AlphaSchedule, BatchMaps, RegionWiseMaps

CLASSES = 3
SPACING = (0.5, 2.0)


def data() -> TensorDataset:
    labels = scene("blobs", (16, 20), CLASSES, batch=8)
    images = labels[:, None] + torch.randn(8, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, labels)


class Model(RegionWiseMaps, L.LightningModule):
    region_wise_maps = BatchMaps(CLASSES, spacing=SPACING)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.folder = folder
        self.network = nn.Conv2d(1, CLASSES, 5, padding=2)
        self.loss = rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(), "gradual", alpha_step=0.5)

    def train_dataloader(self):
        sampler = DistributedSampler(data(), self.trainer.world_size, self.global_rank, shuffle=False)
        return DataLoader(data(), batch_size=4 // self.trainer.world_size, sampler=sampler)

    def training_step(self, batch, batch_idx):
        images, labels, maps = batch
        expected = rw.rectified_map(labels, CLASSES, spacing=SPACING)
        assert torch.equal(maps.foreground, expected.foreground)  # each process has the maps of its own batch
        assert maps.device == images.device
        torch.save(labels, self.folder / f"labels-{self.global_rank}-{self.current_epoch}-{batch_idx}.pt")
        return self.loss(self.network(images), labels, maps)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(processes: int, folder: Path) -> None:
    model = Model(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=2,
        use_distributed_sampler=False,  # it would shuffle
        callbacks=[AlphaSchedule()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    if trainer.global_rank == 0:
        torch.save({"weights": model.network.state_dict(), "alpha": float(model.loss.alpha)}, folder / "end.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
