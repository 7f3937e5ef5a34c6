"""Starts `rwkernels precompute` again and again and kills it (SIGKILL) at random moments; run as a script.

Prints one line of JSON: what happened at every kill. Processes are forked from this one, which has imported everything
and used nothing, so that a start costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import zarr.codecs  # noqa: F401
from precompute_cases import contents, run

from rwkernels.data.store import PARTIAL, Store, damage, record
from rwkernels.precompute import cluster, command, items, verify  # noqa: F401  (imported once, for all children)


def start(*arguments: object) -> int:
    """The process number of a run."""
    child = os.fork()
    if child:
        return child
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os._exit(run(*arguments))


def assert_whole(store: Path) -> int:
    """Whatever stands in the store under the name of an item is one, with all its bytes; how many there are."""
    names = list(Store(store).items())
    for name in names:
        kept = record(store / name)
        assert kept is not None
        assert damage(store / name, kept, contents=True) is None, name
    shown = {
        path.relative_to(store).as_posix()
        for path in store.rglob("*.npy")
        if PARTIAL not in path.parts and path.is_dir()
    }
    assert shown == set(names), shown ^ set(names)
    return len(names)


def main(source: Path, folder: Path, kills: int, workers: int, seed: int) -> None:
    moments = random.Random(seed)
    arguments = (source, "--num-classes", 4, "--workers", workers)
    begin = time.perf_counter()
    child = start(arguments[0], folder / "undisturbed", *arguments[1:])
    while not any((folder / "undisturbed").glob("*.npy")):
        time.sleep(0.001)
    first = time.perf_counter() - begin  # until the first item was there
    os.waitpid(child, 0)
    duration = time.perf_counter() - begin
    store, log = folder / "killed", []
    total = len(contents(folder / "undisturbed"))
    while len(log) < kills:
        whole = store.exists() and len(contents(store)) == total
        again = ("--rebuild",) if len(log) % 3 == 2 else ()  # finished items are replaced as well
        if whole and not again:  # something to do, in any part of the store
            names = list(Store(store).items())
            for name in moments.sample(names, len(names) * 3 // 4):
                shutil.rmtree(store / name)
        child = start(arguments[0], store, *arguments[1:], *again)
        if workers > 1 and not again and len(log) % 2:  # they take seconds to start: not before one has written
            known = len(list(store.rglob("*.npy")))
            while len(list(store.rglob("*.npy"))) <= known and time.perf_counter() - begin < 60 * kills:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, (duration - first) / 2))
        else:
            time.sleep(moments.uniform(first / 2, 0.9 * duration if again else (first + duration) / 2))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if workers > 1:
            time.sleep(0.5)  # its workers notice
        there = assert_whole(store) if store.exists() else 0
        if os.WIFSIGNALED(status):  # else it was done before, and does not count
            log.append(there)
    final = os.waitpid(start(arguments[0], store, *arguments[1:]), 0)[1]
    same = contents(store) == contents(folder / "undisturbed")
    rest = [path.name for path in store.iterdir() if path.name == PARTIAL]
    print(json.dumps({"first": first, "duration": duration, "log": log, "status": final, "same": same, "rest": rest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
