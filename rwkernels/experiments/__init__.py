"""`rwkernels experiment`: the paper's three experiments (sections 4.1 to 4.3), to run, resume and report.

`configuration` says what an experiment is, `presets` has the paper's, in its size and scaled down; `datasets` loads
`images`, `training` makes one run of them with `losses` and `metrics`, `runner` many in parallel, and `records` keeps
each as one line of JSON; `scores` tests them, `report` shows them. `recipes` prepares ACDC17, BraTS18
and KiTS19.

Nothing heavier than `argparse` is imported until `run` is called.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rwkernels.commands import lacks, positive

__all__ = ["add_arguments", "run"]

_NEEDED = {
    "run": ("monai", "scipy", "matplotlib", "nibabel", "tqdm", "filelock", "jinja2", "msgspec"),
    "report": ("monai", "scipy", "matplotlib", "filelock", "jinja2", "msgspec"),
    "prepare": ("nibabel", "tqdm", "msgspec"),
    "show": ("msgspec",),
}
_EPILOG = """\
examples:
  rwkernels experiment run comparison --scale tiny --out tried      in seconds, on generated hearts
  rwkernels experiment run comparison convergence strategies --scale small --out small \\
      --data totalsegmentator-ct=totalsegmentator-2.18.0.tar.gz     two cores, an hour; start it again to go on
  rwkernels experiment report small                                 report.md and report.html
  rwkernels experiment show comparison --scale small > mine.json    to change it, then: run mine.json
  rwkernels experiment prepare acdc17 ACDC/training DIR --format nnunet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `rwkernels experiment` on `parser`."""
    parser.description = (
        "Trains and compares region-wise losses as the paper does in sections 4.1 (comparison), 4.2 (convergence) and "
        "4.3 (strategies). Every finished run is kept at once: what was interrupted goes on where it stopped."
    )
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="experiment_command", required=True, metavar="run|report|show|prepare")

    running = commands.add_parser("run", help="run experiments, or go on with them")
    running.add_argument(
        "experiments", nargs="+", metavar="NAME|FILE", help="comparison, convergence, strategies, or a JSON file"
    )
    running.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs.jsonl and the report go")
    _scale(running)
    running.add_argument(
        "--data",
        action="append",
        default=[],
        type=_named_path,
        metavar="NAME=PATH",
        help="where the files of a data set are, such as slices:acdc17=DIR; may be repeated",
    )
    running.add_argument(
        "--processes", type=positive, metavar="N", help="runs at a time (default: one for each core); share the cores"
    )
    running.add_argument("--device", default="cpu", metavar="DEVICE", help="where to train (default: cpu)")
    running.add_argument("--list", action="store_true", help="print the runs and which are finished, and stop")

    reporting = commands.add_parser("report", help="write the report of what is finished")
    reporting.add_argument("folder", type=Path, metavar="DIR", help="the --out of a run")
    reporting.add_argument(
        "--into", type=Path, metavar="FILE.md", help="write the parts between this document's markers instead"
    )

    showing = commands.add_parser("show", help="print the configuration of one of the paper's experiments")
    showing.add_argument("experiment", metavar="NAME", help="comparison, convergence or strategies")
    _scale(showing)

    preparing = commands.add_parser("prepare", help="turn a downloaded ACDC17, BraTS18 or KiTS19 into what is trained")
    preparing.add_argument("recipe", choices=("acdc17", "brats18", "kits19"), help="the data set")
    preparing.add_argument("source", type=Path, metavar="SRC", help="its downloaded folder")
    preparing.add_argument("target", type=Path, metavar="DST", help="a folder that is made; it must not exist")
    preparing.add_argument(
        "--format", choices=("nnunet", "slices"), required=True, help="nnU-Net v2's raw layout, or 2D slices as .npz"
    )
    preparing.add_argument(
        "--allow-missing", action="store_true", help="leave cases out that are missing or damaged, naming them"
    )


def run(args: argparse.Namespace) -> int:
    """Run with the parsed options; return the exit status.

    Returns
    -------
    int
        0 when finished; 1 if a run failed, a case is missing or damaged, or a package is missing; 2 for an option that
        cannot be honoured; 130 after Ctrl-C.
    """
    if lacks("experiment", "experiments", _NEEDED[args.experiment_command]):
        return 1
    from rwkernels.experiments import command

    return command.run(args)


def _scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale", choices=("paper", "small", "tiny"), default="small", help="of the named ones (default: small)"
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, Path(path).expanduser()
