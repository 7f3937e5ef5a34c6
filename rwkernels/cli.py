"""The command `rwkernels`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    from rwkernels import __version__, bench, demo, precompute, show

    parser = argparse.ArgumentParser(prog="rwkernels", description="Region-wise loss at memory speed.")
    parser.add_argument("--version", action="version", version=f"rwkernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_arguments(
        commands.add_parser(
            "demo",
            help="train a small U-Net on MR images with four losses, and compare them",
            description="Trains a small U-Net on the MNI152 template with four losses, and compares them.",
        )
    )
    commands.add_parser(
        "doctor",
        help="show what is installed, what can run and whether it is right",
        description="Shows versions and backends, and checks every backend that can run against the reference.",
    )
    bench.add_arguments(
        commands.add_parser("bench", help="measure maps, loss and labels to gradient here, against other libraries")
    )
    show.add_arguments(commands.add_parser("show", help="draw the maps of a label image of your own"))
    precompute.add_arguments(
        commands.add_parser("precompute", help="make the maps of a folder of label maps, here or on a cluster")
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.command == "doctor":
            from rwkernels import doctor

            return doctor.run()
        if parsed.command == "bench":
            from rwkernels import bench

            return bench.run(parsed)
        if parsed.command == "show":
            from rwkernels import show

            return show.run(parsed)
        if parsed.command == "precompute":
            from rwkernels import precompute

            return precompute.run(parsed)
        from rwkernels import demo

        return demo.run(parsed)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
