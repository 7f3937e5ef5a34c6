"""Many sources at once on this machine: processes that survive the death of one of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import forkserver

import torch

from rwkernels.commands import start_worker
from rwkernels.precompute.items import Job, Outcome

Task = Callable[[Job], Outcome]
# What the process from which workers are forked imports once for all of them.
_PRELOADED = ["rwkernels.precompute.items", "zarr.codecs", "numcodecs.blosc", "nibabel", "imagecodecs._deflate"]


def start_method() -> str:
    """How workers are started: forked from a process that has imported what they need and runs no threads."""
    return "forkserver" if hasattr(os, "fork") else "spawn"


def prepare() -> None:
    """Starts the process from which workers are forked, which imports while this one looks for sources."""
    if start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()


def here(task: Task, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Every job in this process, one after the other, with the threads that the jobs say."""
    before = torch.get_num_threads()
    try:
        for job in jobs:
            torch.set_num_threads(job.threads)
            yield task(job)
    finally:
        torch.set_num_threads(before)


def processes(task: Task, jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    """Every job in one of `workers` processes, in the order in which they are done.

    A process that dies (it was killed, or ran out of memory) takes the jobs with it that were under way. Those are run
    again one by one; the one whose process dies again is reported. Some may have been done already, by a process that
    was ended before anybody heard of it.
    """
    began = time.time()
    waiting = deque(jobs)
    while waiting:
        under_way: dict[Future[Outcome], Job] = {}
        try:
            yield from _pool(task, waiting, workers, under_way)
        except BrokenProcessPool:
            for job in under_way.values():
                yield _alone(task, job, began)


def _alone(task: Task, job: Job, began: float) -> Outcome:
    """A job whose process died, or that of a neighbour, once more."""
    try:
        (outcome,) = _pool(task, deque([job]), 1, {})
    except BrokenProcessPool:
        return Outcome(job.source, "failed", "its process died twice (killed, or out of memory)")
    if outcome.status == "kept" and job.item.stat().st_mtime >= began:
        return replace(outcome, status="built")
    return outcome


def _pool(task: Task, waiting: deque[Job], workers: int, pending: dict[Future[Outcome], Job]) -> Iterator[Outcome]:
    """One pool, which takes from `waiting`; few jobs are `pending` in it at a time, so that it holds little."""
    workers = min(workers, len(waiting))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context(start_method()), start_worker, (waiting[0].threads,)
    )
    try:
        while True:
            while waiting and len(pending) < workers + 1:
                future = pool.submit(task, waiting[0])  # a pool that broke takes none, which stays where it is
                pending[future] = waiting.popleft()
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                del pending[future]
                yield outcome
    finally:
        children = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not pending, cancel_futures=True)
        for child in children if pending else ():  # interrupted: what is under way is thrown away
            child.kill()
