"""`rwkernels experiment`, once its packages are known to be there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rwkernels import commands
from rwkernels.experiments import configuration, presets
from rwkernels.experiments.configuration import Experiment, Run
from rwkernels.files import write

if TYPE_CHECKING:
    from rwkernels.experiments.runner import Outcome


def run(args: argparse.Namespace) -> int:
    """See `rwkernels.experiments.run`."""
    return {"run": _run, "report": _report, "show": _show, "prepare": _prepare}[args.experiment_command](args)


_problem = partial(commands.problem, "experiment")


def chosen(names: Sequence[str], scale: str) -> list[Experiment]:
    """The experiments that a name or a file stands for. Raises `ValueError` for one that is neither."""
    found = []
    for name in names:
        if name in presets.NAMES:
            found.append(presets.experiment(name, scale))
        elif Path(name).is_file():
            found.append(configuration.load(Path(name)))
        else:
            raise ValueError(f"experiment: expected {', '.join(presets.NAMES)} or a JSON file, got {name!r}")
    twice = sorted({each.name for each in found if [other.name for other in found].count(each.name) > 1})
    if twice:
        raise ValueError(f"experiment: expected each name once, got {twice[0]!r} twice")
    return found


def _show(args: argparse.Namespace) -> int:
    try:
        print(configuration.dumped(presets.experiment(args.experiment, args.scale)), end="")
    except ValueError as error:
        return _problem(error)
    return 0


def _run(args: argparse.Namespace) -> int:
    from rwkernels.experiments import records, runner

    try:
        experiments = chosen(args.experiments, args.scale)
        runs = runner.unique([run for experiment in experiments for run in experiment.runs()])
        paths = _paths(args.data, runs)
        _check_device(args.device)
        if args.list:
            return _list(runs, set(records.load(args.out)))
        _keep(experiments, args.out)
    except ValueError as error:
        return _problem(error)
    except OSError as error:
        return _problem(f"--out {args.out}: {error.strerror or error}")
    try:
        outcome = _with_bar(runs, args, paths)
    except records.RecordError as error:
        return _problem(error)
    except KeyboardInterrupt:
        return _problem("interrupted; what is finished is kept, start it again to go on", commands.INTERRUPTED)
    print(f"{outcome.finished} runs finished, {outcome.found} were finished before, {len(outcome.failed)} failed")
    for title, reason in outcome.failed.items():
        _problem(f"{title}: {reason}")
    status = _report(argparse.Namespace(folder=args.out, into=None)) if outcome.finished + outcome.found else 0
    return status or (0 if outcome.complete else 1)


def _paths(given: Sequence[tuple[str, Path]], runs: Sequence[Run]) -> dict[str, Path]:
    names = {run.data.name for run in runs}
    for name, path in given:
        if name not in names:
            raise ValueError(f"--data: expected one of {', '.join(sorted(names))}, got {name!r}")
        if not path.exists():
            raise ValueError(f"--data {name}: expected a file or folder, got {path}, which does not exist")
    return {name: path.resolve() for name, path in given}


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: expected a device that PyTorch can use here, got {name!r} ({error})") from None


def _keep(experiments: Sequence[Experiment], folder: Path) -> None:
    """Writes the configurations beside the runs; another one under the same name is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        path = folder / f"{experiment.name}.json"
        if path.exists() and configuration.load(path) != experiment:
            raise ValueError(
                f"--out {folder}: expected the folder of this experiment, got one in which {path.name} is another; "
                "give it another name or another folder"
            )
        write(path, configuration.dumped(experiment))


def _list(runs: Sequence[Run], finished: set[str]) -> int:
    for run in runs:
        print(f"{run.key}  {'finished' if run.key in finished else 'to run  '}  {run.title}")
    return 0


def _with_bar(runs: Sequence[Run], args: argparse.Namespace, paths: dict[str, Path]) -> Outcome:
    from tqdm import tqdm

    from rwkernels.experiments import runner

    # disable=None: a bar on a terminal; a line for each run in a pipe or a log file.
    with tqdm(total=len(runs), unit="run", disable=None) as bar:

        def told(run: Run, seconds: float | None) -> None:
            bar.set_postfix_str(run.title, refresh=False)
            bar.update()
            if bar.disable and seconds is not None:
                print(f"{run.title}: {seconds:.0f} s", flush=True)

        return runner.execute(runs, args.out, paths=paths, processes=args.processes, device=args.device, told=told)


def _report(args: argparse.Namespace) -> int:
    from rwkernels.experiments import records, report

    try:
        experiments, found = report.load(args.folder)
        written = (
            report.save(experiments, found, args.folder)
            if args.into is None
            else report.into(experiments, found, args.into)
        )
    except (ValueError, records.RecordError) as error:
        return _problem(error)
    except OSError as error:
        return _problem(f"{error.filename}: {error.strerror}")
    for path in written:
        if path.suffix != ".svg":
            print(f"wrote {path}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rwkernels.experiments import recipes

    try:
        with tqdm(unit="case", disable=None) as bar:
            prepared = recipes.prepare(
                args.recipe,
                args.source,
                args.target,
                layout=args.format,
                allow_missing=args.allow_missing,
                told=lambda case: bar.update(),
            )
    except recipes.RecipeError as error:
        return _problem(error, 1)
    except (ValueError, OSError) as error:
        return _problem(error)
    for problem in prepared.left_out:
        _problem(f"left out: {problem}")
    print(
        f"wrote {prepared.folder}: {prepared.train} cases to train, {prepared.validation} to validate"
        + (f", {len(prepared.left_out)} problems, see above" if prepared.left_out else "")
    )
    return 0
