"""Trains MONAI's U-Net on generated volumes; maps are built once on the whole volume, cached, and cropped.

python examples/monai_training.py
"""

from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.networks.nets import UNet
from monai.transforms import Compose, NormalizeIntensityd, RandFlipd, RandSpatialCropd
from monai.utils import set_determinism

from rwkernels.integrations.monai import RegionWiseLoss, RegionWiseMapd

CLASSES = 3
SPACING = (1.0, 1.0, 3.0)  # thick slices


def volume(generator: torch.Generator) -> dict[str, MetaTensor]:
    """A noisy ball in a shell, [1, 32, 32, 12], and its labels in 0..2: what LoadImaged would return."""
    axes = [torch.arange(n) * size for n, size in zip((32, 32, 12), SPACING, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centre = 12 + 8 * torch.rand(3, 1, 1, 1, generator=generator)
    radius = (places - centre).square().sum(0, keepdim=True).sqrt()
    labels = (radius < 14).float() + (radius < 9).float()
    image = labels + 0.4 * torch.randn(labels.shape, generator=generator)
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(labels, affine=affine)}


def main(epochs: int = 20) -> float:
    """Trains, prints the loss now and then, and returns the share of right pixels of a fresh volume."""
    set_determinism(0)
    generator = torch.Generator().manual_seed(0)
    every = ["image", "label", "map"]
    transforms = Compose(
        [
            NormalizeIntensityd("image"),
            RegionWiseMapd("label", num_classes=CLASSES, map_keys="map"),  # cached, for nothing random comes before it
            RandSpatialCropd(every, (20, 20, 8), random_size=False),
            RandFlipd(every, prob=0.5, spatial_axis=0),
        ]
    )
    samples: list[Any] = [volume(generator) for _ in range(8)]
    loader = DataLoader(CacheDataset(samples, transforms, progress=False), batch_size=4, shuffle=True)
    network = UNet(3, in_channels=1, out_channels=CLASSES, channels=(8, 16, 16), strides=(2, 2), norm="batch")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=True)
    for epoch in range(epochs):
        for batch in loader:
            loss = loss_fn(network(batch["image"]), batch["label"], batch["map"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 4 == 0:
            print(f"epoch {epoch:2d}  loss {loss.item():+.4f}")

    fresh = volume(generator)
    network.eval()
    with torch.no_grad():
        prediction = network(NormalizeIntensityd("image")(fresh)["image"][None]).argmax(1)
    right = float((prediction == fresh["label"]).float().mean())
    print(f"right pixels of a fresh volume: {right:.1%}")
    return right


if __name__ == "__main__":
    main()
