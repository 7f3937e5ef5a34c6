"""What a service costs: maps that another process builds, against maps built here.

`python -m benchmarks.service` starts `rwkernels serve` on loopback and prints

* the rate of batches of 2 MiB of labels, built in this process by all threads and served in float32, 16 and 8 bits a
  pixel, in turns, client and service on the same cores, which share memory or, as clients on other machines do, send
  everything in messages;
* the median and 99th percentile of the time that one map takes, with 1 and with 8 client processes;
* the memory of the service over 10,000 requests.

Every answer is compared with the map of this process, before anything is timed. `--tiny` runs small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from rwkernels.data.building import MapBuilder
from rwkernels.maps.quantised import largest_error
from rwkernels.pages import Table, markdown
from rwkernels.service import RemoteMapBuilder

CLASSES = 4
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "rwkernels.data.building", "rwkernels.service.wire.limits"]
)  # these take seconds


@dataclass(frozen=True)
class Setting:
    """Sizes of one run."""

    shape: tuple[int, ...] = (8, 512, 512)  # 2 MiB in uint8
    small: tuple[int, ...] = (2, 256, 256)
    batches: int = 100  # of one turn, over one stream
    turns: int = 5
    seconds: float = 10.0  # of every row of latencies
    requests: int = 10_000
    clients: int = 8


def labels(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Nested ellipses on a background, uint8; about a fifth of every image."""
    random = np.random.default_rng(seed)
    found = np.zeros(shape, np.uint8)
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in shape[1:]), indexing="ij")
    for image in found:
        centre, radius = random.uniform(0.35, 0.65, len(axes)), random.uniform(0.2, 0.3)
        away = np.sqrt(sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)))
        for k in range(1, CLASSES):
            image[away < radius / k] = k
    return torch.from_numpy(found)


@contextmanager
def service(threads: int, *more: str) -> Iterator[tuple[str, int]]:
    """A service on loopback, with more options: its URL and process id."""
    command = [sys.executable, "-m", "rwkernels", "serve", "--port", "0", "--monitor-port", "-1"]
    process = subprocess.Popen([*command, "--threads", str(threads), *more], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        try:
            port = json.loads(line)["port"]
        except (ValueError, KeyError):
            raise SystemExit(f"the service did not start: {line}{process.stderr.read()}") from None
        log = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)  # read, so that no pipe fills up
        log.start()
        yield f"grpc://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def check(url: str, batch: Tensor) -> None:
    """Every answer is the map of this process, of one request and of a stream."""
    expected = MapBuilder(CLASSES).of_batch({}, batch).foreground
    for bits in (None, 16, 8):
        builder = RemoteMapBuilder(url, CLASSES, bits=bits)
        allowed = 0.0 if bits is None else largest_error(bits)
        for found in (builder.of_batch({}, batch), *builder.maps_of([batch] * 20)):  # twice in every slot
            if float((found.foreground - expected).abs().max()) > allowed:
                raise AssertionError(f"bits={bits}: the service has another map")


def throughput(url: str, plain_url: str, threads: int, setting: Setting) -> str:
    """Batches a second, medians of turns; the second service shares no memory."""
    batches = [labels(setting.shape, seed) for seed in range(4)]
    for one in (url, plain_url):
        check(one, batches[0])
    local = MapBuilder(CLASSES, threads=threads)
    remote = {bits: RemoteMapBuilder(url, CLASSES, bits=bits) for bits in (None, 16, 8)}
    plain = {bits: RemoteMapBuilder(plain_url, CLASSES, bits=bits) for bits in (None, 8)}
    work: dict[str, Any] = {
        "in this process": lambda source: [local.of_batch({}, batch).shape for batch in source],
        "served, float32": lambda source: [maps.shape for maps in remote[None].maps_of(source)],
        "served, 16 bits": lambda source: [maps.shape for maps in remote[16].maps_of(source)],
        "served, 8 bits": lambda source: [maps.shape for maps in remote[8].maps_of(source)],
        "float32, all in messages": lambda source: [maps.shape for maps in plain[None].maps_of(source)],
        "8 bits, all in messages": lambda source: [maps.shape for maps in plain[8].maps_of(source)],
        "served, 8 bits, one at a time": lambda source: [remote[8].of_batch({}, b).shape for b in source],
    }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(setting.turns + 1):
        for name, function in work.items():
            source = [batches[index % len(batches)] for index in range(setting.batches)]
            start = time.perf_counter()
            function(source)
            if turn > 0:
                rates[name].append(setting.batches / (time.perf_counter() - start))
    size = batches[0].numel()
    here = statistics.median(rates["in this process"])
    medians = {name: statistics.median(found) for name, found in rates.items()}
    rows = [[name, f"{r:.1f}", f"{r * size / 1e6:.0f}", f"{r / here:.0%}"] for name, r in medians.items()]
    head = [f"batches of {size / 2**20:.3g} MiB of labels", "batches/s", "Mpixel/s", "of in-process"]
    return markdown([Table(head, rows)])


def _client(url: str, shape: tuple[int, ...], bits: int | None, start: Any, seconds: float, found: Any) -> None:
    """One client process: asks again and again, and tells what every map took."""
    torch.set_num_threads(1)
    builder, batch = RemoteMapBuilder(url, CLASSES, bits=bits), labels(shape)
    for _ in range(3):
        builder.of_batch({}, batch)
    start.wait()
    took = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        builder.of_batch({}, batch)
        took.append(time.perf_counter() - began)
    found.put(took)


def latencies(url: str, shape: tuple[int, ...], clients: int, setting: Setting) -> str:
    """One row: what a map takes, asked for by so many processes at a time."""
    start, found = FORKS.Barrier(clients), FORKS.Queue()
    arguments = (url, shape, 8, start, setting.seconds, found)
    processes = [FORKS.Process(target=_client, args=arguments, daemon=True) for _ in range(clients)]
    for process in processes:
        process.start()
    took: list[float] = []
    for _ in processes:
        try:
            took += found.get(timeout=120 + setting.seconds)
        except queue.Empty:
            raise SystemExit("a client gave no answer") from None
    for process in processes:
        process.join()
    p50, p99 = (np.percentile(took, q) * 1e3 for q in (50, 99))
    size = " x ".join(map(str, shape))
    return f"| {size} | {clients} | {len(took) / setting.seconds:.0f} | {p50:.2f} | {p99:.2f} |"


def memory(url: str, pid: int, setting: Setting) -> str:
    """The memory of the service after every tenth of many requests, beyond a tenth to warm up."""
    builder = RemoteMapBuilder(url, CLASSES, bits=8)
    batch = labels(setting.small)
    tenth = max(setting.requests // 10, 1)
    sizes = []
    for _ in range(11):
        for _ in builder.maps_of(batch for _ in range(tenth)):
            pass
        sizes.append(psutil.Process(pid).memory_info().rss)
    shown = " ".join(f"{size / 2**20:.1f}" for size in sizes)
    return (
        f"MiB after every {tenth} requests: {shown}\ngrowth over {10 * tenth} requests: {sizes[-1] / sizes[0] - 1:+.2%}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="sizes too small to mean anything: does it run?")
    parser.add_argument("--only", nargs="+", choices=["throughput", "latency", "memory"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the core, here and in the service")
    parser.add_argument("--turns", type=int, default=Setting.turns)
    parser.add_argument("--seconds", type=float, default=Setting.seconds, help="of every row of latencies")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(turns=options.turns, seconds=options.seconds)
    if options.tiny:
        setting = replace(
            setting, shape=(2, 32, 32), small=(1, 16, 16), batches=3, turns=1, seconds=0.2, requests=40, clients=2
        )
    wanted = options.only or ["throughput", "latency", "memory"]
    print(f"K={CLASSES}, torch {torch.__version__}, {options.threads} threads, {os.cpu_count()} cores for all\n")
    with service(options.threads) as (url, pid):
        if "throughput" in wanted:
            with service(options.threads, "--shared-bytes", "0") as (plain_url, _):
                print(throughput(url, plain_url, options.threads, setting), end="\n\n", flush=True)
        if "latency" in wanted:
            print("| labels | clients | maps/s | p50, ms | p99, ms |\n|---|---|---|---|---|")
            for shape in (setting.small, setting.shape):
                for clients in (1, setting.clients):
                    print(latencies(url, shape, clients, setting), flush=True)
            print()
        if "memory" in wanted:
            print(memory(url, pid, setting))


if __name__ == "__main__":
    main()
