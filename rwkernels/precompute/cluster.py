"""Many sources at once on Dask distributed. It schedules, retries and replaces; here jobs go in and outcomes come out.

A job holds two paths and the settings, and its outcome a few words: workers read the sources and write the items
themselves, through a file system that they share.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from rwkernels.data.store import record
from rwkernels.precompute.items import Job, Outcome, describe
from rwkernels.precompute.runner import Task

RETRIES = 3
_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


def checked_address(address: str) -> str:
    """The address of a scheduler, with its protocol.

    Raises:
        ValueError: It is no such address.
    """
    full = address if "://" in address else f"tcp://{address}"
    found = _ADDRESS.fullmatch(full)
    if not found or not 0 < int(found.group(3)) < 1 << 16:
        raise ValueError(f"--scheduler: expected an address like tcp://host:8786, got {address!r}")
    return full


def connect(scheduler: str | None, workers: int, stack: ExitStack) -> Any:
    """A client of the scheduler at an address, or of a cluster of this machine; closed with `stack`.

    Raises:
        ImportError: Dask distributed is not installed.
        ValueError: The address is none.
        OSError: Nobody answers at the address.
    """
    address = None if scheduler is None else checked_address(scheduler)
    try:
        import dask
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise ImportError(
            'clusters need dask and distributed, which are not installed: pip install "rwkernels[scale]"'
        ) from error
    if address is not None:
        timeout = dask.config.get("distributed.comm.timeouts.connect")
        return stack.enter_context(Client(address, timeout=timeout))
    # The scheduler's page of this machine alone, at any free port.
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0")
    stack.enter_context(cluster)
    return stack.enter_context(Client(cluster))


def tasks(client: Any, task: Task, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Every job as one task of the cluster, in the order in which they are done."""
    from distributed import as_completed

    run = uuid.uuid4().hex[:8]  # the results of an earlier run may still be held there
    named: dict[str, Job] = {f"{task.__name__}-{run}-{job.source}": job for job in jobs}
    futures = [
        client.submit(attempt, task, replace(job, raise_passing=True), key=key, retries=RETRIES, pure=False)
        for key, job in named.items()
    ]
    for future in as_completed(futures):
        yield _outcome(future, named[future.key])
        future.release()


def attempt(task: Task, job: Job) -> Outcome:
    """One try of a job, in a worker of the cluster."""
    torch.set_num_threads(job.threads)
    return task(job)


def _outcome(future: Any, job: Job) -> Outcome:
    if future.status != "finished":
        error = future.exception() if future.status == "error" else None
        reason = f"the task was {future.status}"
        if type(error).__name__ == "KilledWorker":
            reason = "every worker that had it died (killed, or out of memory)"
        elif error is not None:
            reason = describe(error)
        return Outcome(job.source, "failed", reason)
    outcome: Outcome = future.result()
    if outcome.status == "built" and not _seen(job):
        return replace(outcome, status="failed", reason="written by a worker, but not seen here: is DST shared by all?")
    return outcome


def _seen(job: Job) -> bool:
    """Whether the item that a worker wrote is there; a shared file system may show it a little later."""
    for wait in (0.0, 0.5, 1.0, 2.0, 4.0):
        time.sleep(wait)
        if record(job.item) is not None:
            return True
    return False
