"""Trains a small network on discs and rings with the rectified region-wise loss; its maps are built every step.

python examples/train.py
"""

import torch

import rwkernels as rw


def batch(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images [B, 1, 40, 40] of a ring around a disc, and their labels [B, 40, 40] in 0..2."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    centre = 12 + 16 * torch.rand(size, 2, 1, 1, generator=generator)
    radius = ((y - centre[:, 0]).square() + (x - centre[:, 1]).square()).sqrt()
    labels = (radius < 10).long() + (radius < 5).long()
    images = labels[:, None] + 0.5 * torch.randn(size, 1, 40, 40, generator=generator)
    return images, labels


def main(steps: int = 100) -> float:
    """Trains, prints the loss now and then, and returns the share of right pixels on a fresh batch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 12, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 12, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 3, 1),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    loss_fn = rw.RegionWiseLoss("rectified")
    for step in range(steps):
        images, labels = batch(8, generator)
        loss = loss_fn(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3d}  loss {loss.item():+.4f}")
    images, labels = batch(32, generator)
    right = float((network(images).argmax(1) == labels).float().mean())
    print(f"right pixels on a fresh batch: {right:.1%}")
    return right


if __name__ == "__main__":
    main()
