"""`rwkernels bench`: how fast maps and loss are here, against what one would otherwise use, and how the cost grows.

It is part of the package, like the demo, so that it runs where only a wheel is installed. `registry` holds the cases,
`maps`, `losses` and `steps` what is timed, `peers` the libraries it is compared with, `truth` what every answer is
checked against before it is timed, `harness` the interleaved timing with a `clock`, `memory` the peaks, `session` puts
them together; `results` keeps rows and curves as JSON of pytest-benchmark, `summary`, `table`, `charts` and `page` show
them, `compare` sets two runs side by side. `rwkernels bench guard` counts instructions: `benchmarks/guard.py` of a
checkout does, where the counts are kept.

Nothing heavier than `argparse` is imported until `run` is called.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rwkernels.commands import lacks, problem

__all__ = ["add_arguments", "add_guard_arguments", "run"]

_NEEDED = ("pytest_benchmark", "rich", "matplotlib", "jinja2", "msgspec")
_EPILOG = """\
examples:
  rwkernels bench --quick                      smaller inputs, a few minutes
  rwkernels bench --save results               all of it; results/rwkernels-bench.json and .html
  rwkernels bench --only "rectified map|loss: " --list
  rwkernels bench --compare results            against an earlier run
  rwkernels bench guard --check                instruction counts against the stored ones
"""


def _threads(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers of threads like 1,4, got {text!r}")
    return sorted({int(part) for part in parts})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `rwkernels bench` on `parser`."""
    parser.description = (
        "Times maps, distances, loss and labels to gradient against the libraries one would otherwise use, after "
        "checking every answer. Contenders take turns in one process, so ratios hold on a busy machine too."
    )
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer turns: a few minutes")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="EXPR", help="regular expression on the names of cases (see --list)")
    parser.add_argument("--threads", metavar="N,M", type=_threads, help="numbers of threads (default: 1 and all)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write rwkernels-bench.json and rwkernels-bench.html")
    parser.add_argument(
        "--compare", type=Path, metavar="DIR", help="an earlier run (folder or JSON file) to compare with"
    )
    parser.add_argument("--list", action="store_true", help="print the cases with their contenders, and stop")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    commands = parser.add_subparsers(dest="bench_command", metavar="guard")
    add_guard_arguments(commands.add_parser("guard", help="count instructions of seven key rows, keep or check them"))


def add_guard_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `rwkernels bench guard` on `parser`."""
    parser.description = (
        "Has one of seven key rows become dearer? Counted in instructions, for clocks are too noisy. In a checkout."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the stored counts; exit with 1 if one grew")
    action.add_argument("--save", action="store_true", dest="store", help="keep the counts")
    parser.add_argument(
        "--baseline",
        type=Path,
        default=Path("benchmarks/guard.json"),
        metavar="FILE",
        help="the stored counts (default: benchmarks/guard.json)",
    )
    parser.add_argument("--ratios", action="store_true", help="time against a copy even where Valgrind is there")


def _guard(args: argparse.Namespace) -> int:
    """Hands over to `benchmarks.guard` of the checkout that this runs in, or that the package itself lies in."""
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if (folder / "benchmarks" / "guard.py").is_file():
            sys.path.insert(0, str(folder))
            return int(importlib.import_module("benchmarks.guard").run(args))
    return problem(
        "bench guard",
        "expected a checkout of rwkernels, which has benchmarks/guard.py and the counts it compares with; there is "
        f"none in {Path.cwd()}",
    )


def run(args: argparse.Namespace) -> int:
    """Run with the parsed options; return the exit status.

    Returns
    -------
    int
        0 when finished; 1 if an answer of this package is wrong, a package is missing, or (with `--strict`) a goal is
        missed; 2 for an option that cannot be honoured; 130 after Ctrl-C.
    """
    if args.bench_command == "guard":
        return _guard(args)
    if lacks("bench", "bench", _NEEDED):
        return 1
    from rwkernels.bench import command

    return command.run(args)
