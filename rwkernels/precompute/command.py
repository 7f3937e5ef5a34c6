"""The command from its options to its summary: sources, classes, maps, verification, what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from rwkernels.commands import processors
from rwkernels.data.store import Store
from rwkernels.formats import SUFFIXES
from rwkernels.formats.files import is_zarr
from rwkernels.precompute import cluster, items, runner, sources, verify
from rwkernels.precompute.items import Job, Outcome
from rwkernels.precompute.settings import Settings, checked_bits

Spread = Callable[[runner.Task, Sequence[Job]], Iterator[Outcome]]


def run(args: argparse.Namespace) -> int:
    """See `precompute.run`."""
    start = time.perf_counter()
    if args.workers != 1 and not args.cluster and not args.scheduler:
        runner.prepare()
    try:
        root, store = _places(args)
        settings = _settings(args)
        unlisted: list[Outcome] = []
        names = sources.find(root, args.include, store.root, partial(_unlisted, unlisted))
        if not names and not unlisted:
            raise ValueError(f"SRC: expected label maps ({', '.join(SUFFIXES)}) under {root}, got none")
        workers = min(args.workers or _default_workers(args.device), max(len(names), 1))
        job = Job("", root, store, settings, args.max_bytes or _default_bytes(workers), _threads(workers), args.device)
        jobs = [replace(job, source=name, rebuild=args.rebuild) for name in names]
        chosen = verify.sample(names, args.verify, args.seed) if args.verify else []
        with ExitStack() as stack:
            spread = _spread(args, workers, stack)
            if not args.dry_run:
                store.prepare()
            failed, status = _work(args, spread, jobs, unlisted, chosen)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"rwkernels precompute: {error}", file=sys.stderr)
        return 2
    if not args.dry_run:
        store.sweep()
        os.sync()  # from here on the maps survive a power cut too
        orphans = _without_source(store, names) if not args.include else 0
        if orphans:
            print(f"{_count(orphans, 'map')} in {store.root} have no source under {root} any more")
    print(f"took {time.perf_counter() - start:.1f} s", flush=True)
    _report(failed)
    return status


def _work(
    args: argparse.Namespace, spread: Spread, jobs: list[Job], unlisted: list[Outcome], chosen: list[str]
) -> tuple[list[Outcome], int]:
    """Classes, then maps, then verification; what failed, and the exit status."""
    failed = list(unlisted)
    if args.num_classes is None:
        jobs, wrong = _with_classes(spread, jobs)
        failed += wrong
    if args.dry_run:
        failed += _show(spread(items.look, jobs), jobs)
        return failed, 1 if failed else 0
    outcomes = list(_watched(spread(items.build, jobs), len(jobs), "maps", "map"))
    counts = Counter(outcome.status for outcome in outcomes)
    failed += [outcome for outcome in outcomes if outcome.status == "failed"]
    made = sum(outcome.size for outcome in outcomes)
    print(
        f"{_count(counts['built'], 'map')} built ({_bytes(made)} before compression), "
        f"{counts['kept']} already there, {len(failed)} failed"
    )
    there = {outcome.source for outcome in outcomes if outcome.status != "failed"}
    checked = [job for job in jobs if job.source in there and job.source in set(chosen)]
    if checked:
        found = list(_watched(spread(verify.verify, checked), len(checked), "verifying", "map"))
        wrong = [outcome for outcome in found if outcome.status == "failed"]
        print(f"{len(found) - len(wrong)} of {_count(len(found), 'map')} verified against SciPy")
        failed += wrong
    return failed, 1 if failed else 0


def _places(args: argparse.Namespace) -> tuple[Path, Store]:
    """The absolute folder of the sources, and the store."""
    root = args.src.resolve()
    if not root.exists():
        raise ValueError(f"SRC: expected a folder or a label map, got {args.src}")
    if args.beside:
        if args.dst is not None:
            raise ValueError(f"DST: expected none with --beside, got {args.dst}")
        return root, Store(root if root.is_dir() and not is_zarr(root) else root.parent, beside=True)
    if args.dst is None:
        raise ValueError("DST: expected a folder for the maps, or --beside")
    target = args.dst.resolve()
    if target == root or target in root.parents:
        raise ValueError(f"DST: expected another folder than that of the sources, got {args.dst}")
    if target.exists() and not target.is_dir():
        raise ValueError(f"DST: expected a folder, got the file {args.dst}")
    return root, Store(target)


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the options; whatever the family does not take is an error here, not in every item."""
    options = dict(args.map_option)
    bits = checked_bits(args.maps, args.bits, options)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: expected a device of this machine, got {args.device} (no CUDA device is visible)")
    settings = Settings(
        num_classes=args.num_classes or 1,
        maps=args.maps,
        bits=bits,
        ignore_index=args.ignore_index,
        black_border=args.black_border,
        options=options,
        spacing=args.spacing,
        axes=args.axes,
        key=args.key,
        dense=args.dense,
        nifti=args.nifti,
    )
    settings.builder(3)
    return settings


def _default_workers(device: str) -> int:
    return processors() if device == "cpu" else min(4, processors())


def _threads(workers: int) -> int:
    """Threads of a worker: all of them together use the cores once."""
    return max(1, processors() // workers)


def _default_bytes(workers: int) -> int:
    """A quarter of the memory, over the workers."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // workers


def _spread(args: argparse.Namespace, workers: int, stack: ExitStack) -> Spread:
    """What runs the jobs: this process, several of this machine, or a cluster."""
    if args.cluster and args.scheduler:
        raise ValueError("--scheduler: expected none with --cluster local")
    if args.cluster or args.scheduler:
        client = cluster.connect(args.scheduler, workers, stack)
        return partial(cluster.tasks, client)
    if workers == 1:
        return runner.here
    return lambda task, jobs: runner.processes(task, jobs, workers)


def _with_classes(spread: Spread, jobs: list[Job]) -> tuple[list[Job], list[Outcome]]:
    """The jobs with the number of classes that all readable labels have, and those whose labels are not readable."""
    outcomes = list(_watched(spread(items.largest_label, jobs), len(jobs), "counting classes", "file"))
    largest = max((outcome.largest_label for outcome in outcomes if outcome.status == "good"), default=-1)
    wrong = {outcome.source: outcome for outcome in outcomes if outcome.status == "failed"}
    classes = max(largest + 1, 1)
    print(f"{_count(classes, 'class')} found in {_count(len(outcomes) - len(wrong), 'label map')}")
    kept = [
        replace(job, settings=replace(job.settings, num_classes=classes)) for job in jobs if job.source not in wrong
    ]
    return kept, list(wrong.values())


def _show(outcomes: Iterable[Outcome], jobs: Sequence[Job]) -> list[Outcome]:
    """Prints what would be done; returns what would fail."""
    found = sorted(outcomes, key=lambda outcome: outcome.source)
    for outcome in found:
        reason = f"  ({outcome.reason})" if outcome.reason else ""
        size = "" if outcome.status == "failed" else _bytes(outcome.size)
        print(f"{outcome.status:<7} {size:>9}  {outcome.source}{reason}")
    todo = [outcome for outcome in found if outcome.status == "build"]
    total = sum(outcome.size for outcome in todo)
    kept = sum(outcome.status == "kept" for outcome in found)
    print(f"{_count(len(todo), 'map')} to build, at most {_bytes(total)} before compression; {kept} already there")
    return [outcome for outcome in found if outcome.status == "failed"]


def _watched(outcomes: Iterable[Outcome], total: int, what: str, unit: str) -> Iterator[Outcome]:
    """The outcomes, with a progress bar where somebody watches."""
    failed = 0
    with tqdm(total=total, desc=what, unit=unit, disable=None, dynamic_ncols=True) as bar:
        for outcome in outcomes:
            failed += outcome.status == "failed"
            if failed:
                bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            yield outcome


def _without_source(store: Store, names: Sequence[str]) -> int:
    known = {store.item_name(name) for name in names}
    return sum(item not in known for item in store.items())


def _unlisted(outcomes: list[Outcome], error: OSError) -> None:
    outcomes.append(Outcome(str(error.filename), "failed", items.describe(error)))


def _report(failed: Sequence[Outcome]) -> None:
    """Every source that failed, with its reason; last, so that nobody overlooks it."""
    if not failed:
        return
    sys.stdout.flush()
    print(f"\n{len(failed)} failed:", file=sys.stderr)
    for outcome in sorted(failed, key=lambda outcome: outcome.source):
        print(f"  {outcome.source}: {outcome.reason}", file=sys.stderr)


def _count(number: int, name: str) -> str:
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return f"{number} {name if number == 1 else plural}"


def _bytes(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
