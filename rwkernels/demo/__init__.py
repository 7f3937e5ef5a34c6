"""`rwkernels demo`: train a small U-Net on real MR images and compare the region-wise losses.

The pieces, in the order in which they run: `experiments.mni152` (slices and labels out of the MNI152 template),
`training` (one network per loss), `evaluation` (Dice, Hausdorff distance, gradient signs), `speed`
(maps and loss against the usual way), `report` (table and JSON) and `figure` (one PNG).

Nothing heavier than `argparse` is imported until `run` is called.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rwkernels.commands import INTERRUPTED, lacks, positive, problem

__all__ = ["add_arguments", "run"]

_NEEDED = ("nilearn", "monai", "matplotlib", "tqdm", "scipy", "msgspec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `rwkernels demo` on `parser`."""
    parser.description = (
        "Train a small 2D U-Net on axial slices of the MNI152 T1 template, once per loss: RRW, RW-Boundary, "
        "cross-entropy, and cross-entropy fading into RRW. Prints Dice and Hausdorff distance per class, "
        "what the gradients look like and what maps and loss cost; writes one PNG and results.json. "
        "No download: the images come with nilearn."
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="initial weights and batch order (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rwkernels-demo"),
        metavar="DIR",
        help="folder for rwkernels-demo.png and results.json (default: ./rwkernels-demo)",
    )
    parser.add_argument(
        "--device", default=None, metavar="{cpu,cuda}", help="where to train (default: cuda if there is one)"
    )
    parser.add_argument("--epochs", type=positive, default=30, metavar="N", help="epochs per loss (default: 30)")


def run(args: argparse.Namespace) -> int:
    """Run the demo with the parsed options; return the exit status.

    Returns
    -------
    int
        0 when finished, 1 when a package is missing, 2 for an option that cannot be honoured,
        130 after Ctrl-C.
    """
    if lacks("demo", "demo", _NEEDED):
        return 1
    try:
        from rwkernels.demo import session

        return session.run(seed=args.seed, out=args.out, device=args.device, epochs=args.epochs)
    except KeyboardInterrupt:
        return problem("demo", "interrupted", INTERRUPTED)
