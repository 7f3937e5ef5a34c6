"""The command `rwkernels`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from rwkernels import __version__
from rwkernels.commands import INTERRUPTED


class Command(NamedTuple):
    """A module with `add_arguments(parser)`, unless it takes none, and `run(parsed)`, which returns the exit code."""

    module: str
    help: str

    def load(self) -> ModuleType:
        """What it stands for; each of them imports what it needs when it runs."""
        return importlib.import_module(self.module)


COMMANDS = {
    "demo": Command("rwkernels.demo", "train a small U-Net on MR images with four losses, and compare them"),
    "doctor": Command("rwkernels.doctor", "show what is installed, what can run and whether it is right"),
    "bench": Command("rwkernels.bench", "measure maps, loss and labels to gradient here, against other libraries"),
    "show": Command("rwkernels.show", "draw the maps of a label image of your own"),
    "experiment": Command("rwkernels.experiments", "run the paper's experiments, report them, prepare their data sets"),
    "precompute": Command("rwkernels.precompute", "make the maps of a folder of label maps, here or on a cluster"),
    "serve": Command(
        "rwkernels.service.server.command",
        "answer batches of labels with their maps, for loaders elsewhere (gRPC)",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rwkernels", description="Region-wise loss at memory speed.")
    parser.add_argument("--version", action="version", version=f"rwkernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        found = commands.add_parser(
            name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        module = command.load()
        if hasattr(module, "add_arguments"):
            module.add_arguments(found)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = COMMANDS[parsed.command].load().run(parsed)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
