"""`rwkernels bench`, once its packages are known to be there."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

from rwkernels import commands
from rwkernels.bench import compare, page, results, session, table
from rwkernels.bench.registry import Case
from rwkernels.bench.results import Run, threads_text
from rwkernels.bench.summary import goals
from rwkernels.files import write
from rwkernels.pages import counted

NAME = "rwkernels-bench"


_problem = partial(commands.problem, "bench")


def choose(scale: str, only: str | None) -> list[Case]:
    """The cases whose names `only` matches. Raises `ValueError` for a bad expression or if none does."""
    try:
        pattern = re.compile(only or "", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"--only: expected a regular expression, got {only!r} ({error})") from None
    chosen = [case for case in session.all_cases(scale) if pattern.search(case.id)]
    if not chosen:
        raise ValueError(f"--only: no case matches {only!r}; --list shows them")
    return chosen


def save(run: Run, folder: Path, changes: Sequence[compare.Change] = ()) -> list[Path]:
    """Writes the JSON and the report into `folder`."""
    paths = [folder / f"{NAME}.json", folder / f"{NAME}.html"]
    write(paths[0], results.dumped(run))
    write(paths[1], page.page(run, changes))
    return paths


def _list(chosen: Sequence[Case], threads: Sequence[int] | None) -> None:
    for case in chosen:
        counts = ", ".join(map(str, session.thread_counts(case, threads)))
        print(f"{case.id}  (threads {counts}; against {case.peer})\n    {'; '.join(case.names)}")
    total = session.effort(chosen, threads)
    print(f"{counted(len(chosen), 'case')}, estimated {total / 60:.1f} minutes")


def _native_is_missing() -> str | None:
    from rwkernels.backends import choose as choose_backend

    if choose_backend(torch.device("cpu"), "loss").NAME != "reference":
        return None
    return "the compiled backend cannot run here (`rwkernels doctor` says why), so there is nothing to measure"


def run(args: argparse.Namespace) -> int:
    """See `rwkernels.bench.run`."""
    scale = "tiny" if args.tiny else "quick" if args.quick else "full"
    try:
        chosen = choose(scale, args.only)
        earlier = results.load(args.compare) if args.compare else None
    except ValueError as error:
        return _problem(str(error))
    if args.list:
        _list(chosen, args.threads)
        return 0
    missing = _native_is_missing()
    if missing and scale != "tiny":
        return _problem(missing)
    if args.save is not None:
        with contextlib.suppress(OSError):
            args.save.mkdir(parents=True, exist_ok=True)
        if not args.save.is_dir() or not os.access(args.save, os.W_OK):
            return _problem(f"--save: expected a folder that can be written, got {args.save}")
    return _measure(chosen, scale, args, earlier)


def _measure(chosen: Sequence[Case], scale: str, args: argparse.Namespace, earlier: Run | None) -> int:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    total = session.effort(chosen, args.threads)
    threads = args.threads or sorted({1, commands.processors()})
    told = " and ".join(threads_text(count) for count in threads)
    console.print(f"{counted(len(chosen), 'case')} on {told}, estimated {total / 60:.1f} minutes", soft_wrap=True)
    with table.Bar(total) as bar:
        run = session.measure(chosen, scale, args.threads, bar)
    run.when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    changes = compare.changes(earlier, run) if earlier else []
    # Kept before anything is shown: half an hour of measuring must not be lost to a terminal that is gone.
    saved = save(run, args.save, changes) if args.save is not None else []
    table.show(run, console)
    if earlier is not None:
        table.show_changes(earlier, changes, console)
    for path in saved:
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
    took = sum(run.took.values())
    console.print(f"took {took / 60:.1f} minutes, estimated {total / 60:.1f}")
    if run.interrupted:
        return commands.INTERRUPTED
    met, all_goals = goals(run)
    failed = session.failures(run)
    for row in failed:
        _problem(f"{row.name}: {row.verdict}: {row.reason}")
    return 1 if failed or (args.strict and met < all_goals) else 0
