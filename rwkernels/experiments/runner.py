"""Runs in several processes. What is finished is never run again; what is killed is the only thing lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from rwkernels.commands import processors, start_worker
from rwkernels.experiments import records
from rwkernels.experiments.configuration import Data, Run
from rwkernels.experiments.records import Record


@dataclass
class Outcome:
    """What a call of `execute` did: how many runs it finished, found finished before, and why others failed."""

    finished: int = 0
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all runs are there now."""
        return not self.failed


def unique(runs: Sequence[Run]) -> list[Run]:
    """Runs without those that another one stands for."""
    return list({run.key: run for run in runs}.values())


def execute(
    runs: Sequence[Run],
    folder: Path,
    *,
    paths: Mapping[str, Path] | None = None,
    processes: int | None = None,
    device: str = "cpu",
    told: Callable[[Run, float | None], None] | None = None,
) -> Outcome:
    """Runs what is not in `folder` yet, and appends each run to its `runs.jsonl` when it is done.

    Args:
        runs: What to run. Two with the same key run once.
        folder: Made if it is not there.
        paths: Where the files of data sets are, by the name of the data set.
        processes: How many at once (default: one for each core, each with one thread); the cores are shared out
            between them.
        device: Where to train.
        told: Called with each run that is finished and its seconds, or None if it failed or was finished before.

    Returns:
        What was done. A run that raised an error is named with it; the others go on.

    Raises:
        RecordError: Another runner writes into the folder, or its file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, outcome = unique(runs), Outcome()
    tell = told or (lambda run, seconds: None)
    with records.only_writer(folder):
        before = records.load(folder)
        for run in wanted:
            if run.key in before:
                outcome.found += 1
                tell(run, None)
        left = [run for run in wanted if run.key not in before]
        count = max(1, min(processes or processors(), len(left) or 1))
        threads = max(1, processors() // count)
        context = multiprocessing.get_context("spawn")  # a fork would copy the thread pools of torch half-alive
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=start_worker, initargs=(threads,))
        waiting: dict[Future[Record], Run] = {}
        queue = iter(left)

        def hand_out(most: int) -> None:
            """No more than run at once: what is killed then is what was running."""
            for run in islice(queue, most):
                try:
                    waiting[pool.submit(_one, run, (paths or {}).get(run.data.name), device)] = run
                except BrokenProcessPool:
                    outcome.failed[run.title] = "not started: a process was killed"

        try:
            hand_out(count)
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    run, seconds = waiting.pop(future), None
                    try:
                        record = future.result()
                    except BrokenProcessPool:
                        outcome.failed[run.title] = "its process, or one beside it, was killed"
                    except Exception as error:
                        outcome.failed[run.title] = f"{type(error).__name__}: {error}"
                    else:
                        records.append(folder, record)
                        outcome.finished += 1
                        seconds = record.result.seconds
                    tell(run, seconds)
                    hand_out(1)
            hand_out(len(left))  # to a pool that is broken: each is named
        finally:
            _end(pool)
    return outcome


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers now: after Ctrl-C nobody waits for a run that is not kept."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


# --- in the workers --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _images(name: str, options: str, path: Path | None) -> Any:
    import json

    from rwkernels.experiments import datasets

    return datasets.load(Data(name, json.loads(options)), path)


def _one(run: Run, path: Path | None, device: str) -> Record:
    import json

    import monai
    import torch

    import rwkernels
    from rwkernels.experiments import training

    images = _images(run.data.name, json.dumps(run.data.options, sort_keys=True), path)
    result = training.train(run, images, device)
    environment = {
        "rwkernels": rwkernels.__version__,
        "torch": str(torch.__version__),
        "monai": monai.__version__,
        "threads": torch.get_num_threads(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
    }
    return Record(run, result, environment)
