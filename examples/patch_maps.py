"""Draws how the map of a patch differs from the patch of a map, on a generated volume, and prints by how much.

python examples/patch_maps.py docs/patch_maps.png
"""

import sys

import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

import rwkernels as rw
from rwkernels.data import class_max, crop

NUM_CLASSES = 3
SPACING = (2.0, 1.0, 1.0)
START, SIZE = (12, 24, 40), (24, 48, 48)
SHOWN = 12  # slice of the patch in the picture


def volume() -> Tensor:
    """Labels [48, 128, 128] of a large organ (1) with lesions (2), one of them outside of the patch."""
    axes = [(torch.arange(n) + 0.5) * step for n, step in zip((48, 128, 128), SPACING, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    wave = 5 * torch.sin(x / 9) + 4 * torch.cos(y / 7 + z / 11)

    def ball(centre: tuple[float, float, float], radius: float, stretch: float = 1.0) -> Tensor:
        away = (z - centre[0]) ** 2 + ((y - centre[1]) / stretch) ** 2 + (x - centre[2]) ** 2
        return away.sqrt() + wave / 3 < radius

    labels = torch.zeros(48, 128, 128, dtype=torch.long)
    labels[ball((48, 62, 56), 38, 1.2)] = 1
    labels[ball((48, 44, 62), 7)] = 2
    labels[ball((50, 88, 50), 12)] = 2
    return labels


def compare() -> dict[str, Tensor]:
    """Foreground [*S] of the patch: cropped from the volume's map, of the patch alone, and with the volume's maxima."""
    labels = volume()
    whole = rw.rectified_map(labels[None], NUM_CLASSES, spacing=SPACING)[0]
    patch, cropped = crop(START, SIZE, labels, whole)
    own = rw.rectified_map(patch[None], NUM_CLASSES, spacing=SPACING)[0]
    maxima = class_max(labels[None], NUM_CLASSES, spacing=SPACING)
    scaled = rw.rectified_map(patch[None], NUM_CLASSES, spacing=SPACING, class_max=maxima)[0]
    return {
        "volume": labels,
        "cropped": cropped.foreground,
        "own": own.foreground,
        "scaled": scaled.foreground,
    }


def differences(found: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference from the crop of the volume's map, over all pixels of the patch."""
    return {name: float((found[name] - found["cropped"]).abs().max()) for name in ("own", "scaled")}


def draw(found: dict[str, Tensor], path: str) -> None:
    """Labels, the three maps and what is between them, in one slice."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    largest = differences(found)
    figure, axes = pyplot.subplots(2, 3, figsize=(8.4, 5.9), layout="constrained")
    slice_of_volume = found["volume"][START[0] + SHOWN]
    axes[0, 0].imshow(
        slice_of_volume.numpy(), cmap=ListedColormap(["#10151B", "#4A87B5", "#F3E6CB"]), interpolation="nearest"
    )
    box = Rectangle((START[2], START[1]), SIZE[2], SIZE[1], fill=False, edgecolor="#E69F00", linewidth=2)
    axes[0, 0].add_patch(box)
    axes[0, 0].set_title("labels and the patch", fontsize=10)
    panels = [
        (axes[0, 1], found["cropped"], "crop of the volume's map"),
        (axes[0, 2], found["own"], "map of the patch alone"),
        (axes[1, 0], found["scaled"], "map with class_max"),
    ]
    for axis, values, title in panels:
        image = axis.imshow(values[SHOWN].numpy(), cmap="cividis", vmin=-1, vmax=0, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes[0, 1:], shrink=0.85, label="value at the true class")
    for axis, name, title in [(axes[1, 1], "own", "patch alone"), (axes[1, 2], "scaled", "with class_max")]:
        away = (found[name] - found["cropped"]).abs()[SHOWN].numpy()
        image = axis.imshow(away, cmap="cividis", vmin=0, vmax=max(largest.values()), interpolation="nearest")
        axis.set_title(f"{title}: up to {largest[name]:.2f}", fontsize=10)
    figure.colorbar(image, ax=axes[1, 1:], shrink=0.85, label="difference from the crop")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main(path: str) -> dict[str, float]:
    """Draws the picture and returns the differences."""
    found = compare()
    draw(found, path)
    largest = differences(found)
    print(f"largest difference from the volume's map: {largest['own']:.2f}, with class_max {largest['scaled']:.2f}")
    return largest


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "patch_maps.png")
