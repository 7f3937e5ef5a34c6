"""One run from options to files, and what happens when it is interrupted."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import torch

from rwkernels.commands import INTERRUPTED, problem
from rwkernels.demo import figure, report, speed, training
from rwkernels.demo.training import Training
from rwkernels.experiments import datasets
from rwkernels.experiments.configuration import Run
from rwkernels.files import write

FIGURE_NAME = "rwkernels-demo.png"
RESULTS_NAME = "results.json"


def run(*, seed: int, out: Path, device: str | None, epochs: int) -> int:
    """Train, compare, print and write; return the exit status (see `rwkernels.demo.run`)."""
    try:
        chosen = _device(device)
        out.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        return problem("demo", error)
    except OSError as error:
        return problem("demo", f"--out {out}: cannot make this folder: {error.strerror}")
    finished: list[Training] = []
    try:
        _compare(training.experiment(seed, epochs).runs(), chosen, out, finished)
    except KeyboardInterrupt:
        print("\nrwkernels demo: interrupted, nothing written", file=sys.stderr)
        if finished:
            print(f"Finished before that:\n\n{report.table(finished)}")
        return INTERRUPTED
    return 0


def _compare(runs: list[Run], device: torch.device, out: Path, finished: list[Training]) -> None:
    images = datasets.load(runs[0].data)
    print(report.introduction(images, runs[0], device), flush=True)
    for run in runs:
        finished.append(training.train(run, images, device))
        if not sys.stderr.isatty():
            # No progress bar in a log: one line a loss says that it moves.
            print(f"{run.loss.name} trained in {finished[-1].train_seconds:.0f} s", flush=True)
    speeds = speed.measure(runs[0], images, device)

    print(f"\n{report.table(finished)}\n\n{report.verdict(finished)}")
    print(f"\n{report.speed_lines(speeds, finished)}\n")
    picture = io.BytesIO()
    figure.draw(images, finished, speeds).savefig(picture, format="png", dpi=figure.DPI)
    write(out / FIGURE_NAME, picture.getvalue())
    tree = report.results(images, runs[0], device, finished, speeds)
    write(out / RESULTS_NAME, msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n")
    print(f"Wrote {out / FIGURE_NAME} and {out / RESULTS_NAME}")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here; leave --device out to run on the CPU"
        )
    return torch.device(name)
