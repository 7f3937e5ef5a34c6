"""`rwkernels precompute`: from a folder of label maps to a store of their maps, on one machine or on a cluster.

`sources` finds label maps, which `rwkernels.formats` opens, `settings` says how maps are made, `items` makes one, whose
arrays `shards` packs, `runner` (processes of this machine) and `cluster` (Dask distributed) do many at once, `verify`
compares with SciPy, and `command` puts them together. `rwkernels.data` has the store, which keeps an item whole or not
at all, and `PrecomputedMaps`, which reads it.

Nothing heavier than `argparse` is imported until `run` is called.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rwkernels.commands import lacks, positive
from rwkernels.maps.families import FAMILIES

__all__ = ["add_arguments", "run"]

_NEEDED = ("zarr", "nibabel", "SimpleITK", "tifffile", "PIL", "tqdm")
_EPILOG = """\
examples:
  rwkernels precompute labelsTr maps                        every label map under labelsTr, as many processes as cores
  rwkernels precompute data maps --include "*_seg.nii.gz"   only these
  rwkernels precompute labelsTr maps --dry-run              what would be done, and how large it would be
  rwkernels precompute labelsTr --beside --nifti            maps beside their labels, as NIfTI too
  rwkernels precompute labelsTr maps --verify 10            and compare ten of them with SciPy
  rwkernels precompute labelsTr maps --scheduler tcp://head:8786

Finished maps are skipped, so a run that was stopped goes on where it was. The exit status is 0 if every map is there,
1 if a source or a comparison failed (they are listed at the end), 2 if the options make no sense, 130 after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `rwkernels precompute` on `parser`."""
    parser.description = (
        "Makes the map of every label map under SRC (NIfTI, NRRD, MetaImage, NPY, NPZ, TIFF, PNG, Zarr) and keeps "
        "them in DST, a Zarr store that rwkernels.data.PrecomputedMaps reads."
    )
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("src", metavar="SRC", type=Path, help="folder of label maps, or one of them")
    parser.add_argument(
        "dst", metavar="DST", type=Path, nargs="?", help="folder of the store; new, or of an earlier run"
    )
    parser.add_argument("--beside", action="store_true", help="write NAME.map.zarr beside every source instead of DST")
    what = parser.add_argument_group("which label maps, and how they are read")
    what.add_argument("--include", metavar="PATTERN", action="append", default=[], help="only names like this; repeats")
    what.add_argument("--key", metavar="NAME", help="which array of NPZ files and Zarr groups")
    what.add_argument(
        "--axes",
        choices=("xyz", "zyx"),
        default="xyz",
        help="axis order of scans: that of nibabel and MONAI (xyz, the default) or of SimpleITK and nnU-Net (zyx)",
    )
    what.add_argument("--spacing", metavar="A[,B,C]", type=_numbers, help="instead of that in the headers")
    what.add_argument(
        "--max-bytes",
        metavar="SIZE",
        type=_size,
        help="largest label map with its map in memory, like 2G (default: a quarter of the memory, over the workers)",
    )
    maps = parser.add_argument_group("which maps")
    maps.add_argument("--maps", default="rectified", choices=tuple(FAMILIES))
    maps.add_argument("--num-classes", metavar="K", type=positive, help="default: found by reading all labels first")
    maps.add_argument("--ignore-index", metavar="LABEL", type=int, help="label of pixels that do not count")
    maps.add_argument("--black-border", action="store_true", help="the outside of an image is another label")
    maps.add_argument(
        "--map-option",
        metavar="NAME=VALUE",
        type=_option,
        action="append",
        default=[],
        help="further options of the family, such as beta=0.5 or inside_offset=1",
    )
    maps.add_argument(
        "--bits",
        type=int,
        choices=(8, 16, 32),
        help="of a value; 32 is float32 (default: 16 where all values lie in [-1, 0])",
    )
    maps.add_argument("--dense", action="store_true", help="write the map of every class as well, float32")
    maps.add_argument("--nifti", action="store_true", help="write map.nii into every item as well")
    how = parser.add_argument_group("how")
    how.add_argument("--workers", metavar="N", type=positive, help="processes (default: one a core)")
    how.add_argument("--device", default="cpu", help="where maps are computed: cpu (default), cuda, cuda:1")
    how.add_argument("--cluster", choices=("local",), help="start a Dask cluster of --workers processes here")
    how.add_argument("--scheduler", metavar="ADDRESS", help="run on the Dask cluster of this scheduler")
    how.add_argument("--rebuild", action="store_true", help="make every map anew")
    how.add_argument("--dry-run", action="store_true", help="list what would be done, and stop")
    how.add_argument("--verify", metavar="N", help="compare N items (a number, a fraction like 0.1, or all) with SciPy")
    how.add_argument("--seed", type=int, default=0, help="which items --verify takes (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Run with the parsed options; return the exit status.

    Returns
    -------
    int
        0 when every map is there, 1 if a source or a comparison failed, 2 for an option that cannot be honoured.
    """
    if lacks("precompute", "precompute", _NEEDED):
        return 1
    from rwkernels.precompute import command

    return command.run(args)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
        if not all(0 < number < float("inf") for number in found):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected positive numbers like 1.5 or 3,1,1, got {text!r}") from None
    return found


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"expected a size like 500M or 2G, got {text!r}")
    return int(digits) * units.get(unit, 1)


def _option(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not equals or not name.isidentifier():
            raise ValueError
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text!r}") from None
