"""Many sources at once on this machine: processes that survive the death of one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for

import torch

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


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    suspects: list[Job] = []
    rest = list(jobs)
    while rest or suspects:
        alone = bool(suspects)
        batch = suspects[:1] if alone else rest
        width = 1 if alone else min(workers, len(batch))
        done: set[str] = set()
        started: set[str] = set()
        try:
            for outcome in _pool(task, batch, width, started):
                done.add(outcome.source)
                if alone and outcome.status == "kept" and batch[0].item.stat().st_mtime >= began:
                    outcome = replace(outcome, status="built")
                yield outcome
        except BrokenProcessPool:
            if alone:
                yield Outcome(batch[0].source, "failed", "its process died twice (killed, or out of memory)")
                done.add(batch[0].source)
        left = [job for job in batch if job.source not in done]
        if alone:
            suspects = suspects[1:]
        else:
            suspects = [job for job in left if job.source in started]
            rest = [job for job in left if job.source not in started]


def _pool(task: Task, jobs: Sequence[Job], workers: int, started: set[str]) -> Iterator[Outcome]:
    """One pool; `started` holds what may be under way. Few jobs are handed out at a time, so that it holds little."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(start_method()), _start, (jobs[0].threads,))
    waiting = iter(jobs)
    pending: dict[Future[Outcome], Job] = {}
    try:
        while True:
            while len(pending) < workers + 1 and (job := next(waiting, None)) is not None:
                pending[pool.submit(task, job)] = job
                started.add(job.source)
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                started.discard(pending.pop(future).source)
                yield outcome
    finally:
        children = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not pending, cancel_futures=True)
        for child in children if pending else ():  # interrupted: what is under way is thrown away
            child.kill()


def _start(threads: int) -> None:
    """In a worker: as many threads as it may use, and no life without the process that it works for."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which stops its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
