"""A volume that does not fit: its distances under a limit of memory, what that took, and whether they are right.

    python -m benchmarks.large_volume FOLDER [--size 1024] [--limit 2] [--memory "512 MiB"] [--workers 1]

Three processes, one after the other: one makes labels, one transforms them from Zarr to Zarr with its memory limited by
the system, one compares every slab with the in-memory transform (which needs 5 bytes a pixel). Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil


def make_labels(path: Path, size: int) -> None:
    """uint8 [size]^3 in chunks of 64^3: 60 balls of 3 classes on a background, and 1 pixel in 100,000 of another."""
    import zarr

    random = np.random.default_rng(0)
    centres, radii = random.uniform(0, size, (60, 3)), random.uniform(0.01, 0.15, 60) * size
    labels = zarr.create_array(str(path), shape=(size,) * 3, chunks=(min(64, size),) * 3, dtype=np.uint8)
    for z in range(0, size, 64):
        slab = np.zeros((min(64, size - z), size, size), np.uint8)
        for number, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
            low = np.maximum(np.floor(centre - radius), [z, 0, 0]).astype(int)
            high = np.minimum(np.ceil(centre + radius), [z + len(slab), size, size]).astype(int)
            if (low >= high).any():
                continue
            axes = np.ogrid[tuple(map(slice, low, high))]
            away = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True))
            box = slab[low[0] - z : high[0] - z, low[1] : high[1], low[2] : high[2]]
            box[away < radius**2] = 1 + number % 3
        odd = random.integers(0, slab.size, slab.size // 100_000)
        slab.flat[odd] = random.integers(0, 4, len(odd))
        labels[z : z + len(slab)] = slab


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def transform(folder: Path, limit: int, memory: str, workers: int) -> dict[str, Any]:
    """The transform, in a process whose private memory the system holds to `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import zarr
    from dask.diagnostics import Profiler

    from rwkernels import scale
    from rwkernels.scale.volumes import make_job

    labels = zarr.open_array(str(folder / "labels.zarr"), mode="r")
    before, at_start, start = psutil.Process().io_counters(), _peak(), time.perf_counter()
    with Profiler() as profiler:
        scale.distance_transform_zarr(
            labels, folder / "distances.zarr", memory=memory, workers=workers, overwrite=True, scratch=folder
        )
    seconds, after = time.perf_counter() - start, psutil.Process().io_counters()
    of_task: dict[str, float] = defaultdict(float)
    for task in profiler.results:
        name = task.key[0] if isinstance(task.key, tuple) else task.key
        of_task[str(name).partition("-")[0]] += task.end_time - task.start_time
    job = make_job(labels, spacing=None, black_border=False, spatial_dims=None, memory=memory, grain=labels.chunks)
    return {
        "seconds": seconds,
        "megapixels_a_second": labels.size / seconds / 1e6,
        "peak_bytes": _peak(),
        "peak_bytes_before": at_start,
        "stages": [stage.block for stage in job.plan.stages],
        "tile": job.plan.tile,
        "task_bytes": job.plan.task_bytes,
        "plain_traffic": job.plan.traffic(labels.dtype.itemsize),
        "packed_read": after.read_chars - before.read_chars,
        "packed_written": after.write_chars - before.write_chars,
        "seconds_of_tasks": {name: spent for name, spent in of_task.items() if spent > 0.01},
    }


def rates(folder: Path, memory: str) -> dict[str, float]:
    """Megapixels a second of every part of both stages, on one block each."""
    import zarr

    from rwkernels.scale import blocks
    from rwkernels.scale.scratch import Scratch
    from rwkernels.scale.volumes import make_job

    labels = zarr.open_array(str(folder / "labels.zarr"), mode="r")
    scratch = Scratch.within(folder)
    job = make_job(labels, spacing=None, black_border=False, spatial_dims=None, memory=memory, scratch=scratch,
                   grain=labels.chunks)  # fmt: skip
    found: dict[str, float] = {}

    def timed(name: str, pixels: int, call: Any) -> Any:
        start = time.perf_counter()
        result = call()
        found[name] = pixels / (time.perf_counter() - start) / 1e6
        return result

    plan = job.plan
    scratch.create("field0", plan.shape, plan.tile, np.float32)
    scratch.create("result", plan.shape, labels.chunks, np.float32)
    field, result = scratch.open("field0"), scratch.open("result")
    for number, stage in enumerate(plan.stages):
        middle = tuple(n // 2 // b * b if n // 2 >= b else 0 for n, b in zip(plan.shape, stage.block, strict=True))
        region = tuple(slice(m, min(m + b, n)) for m, b, n in zip(middle, stage.block, plan.shape, strict=True))
        if number:
            field[region] = np.random.default_rng(0).integers(0, 9000, [s.stop - s.start for s in region]).astype("f4")
        here = labels[region]
        here = timed(f"stage {number}: read labels", here.size, lambda r=region: labels[r])
        block = np.zeros(here.shape, np.float32)
        if number:
            block = timed(f"stage {number}: read field", here.size, lambda r=region: field[r])
        else:
            blocks.passes(here, block, stage.steps, False, None)  # the first touch of fresh pages is not the pass's
        timed(f"stage {number}: passes", here.size,
              lambda h=here, b=block, s=stage: blocks.passes(h, b, s.steps, False, None))  # fmt: skip
        to = field if number < len(plan.stages) - 1 else result
        timed(f"stage {number}: write", here.size, lambda r=region, b=block, t=to: t.__setitem__(r, b))
    scratch.remove()
    return found


def compare(folder: Path) -> dict[str, Any]:
    """Counts pixels that differ from the in-memory transform, slab by slab."""
    import zarr

    import rwkernels as rw

    labels = zarr.open_array(str(folder / "labels.zarr"), mode="r")
    distances = zarr.open_array(str(folder / "distances.zarr"), mode="r")
    start = time.perf_counter()
    whole = labels[:]
    loaded = time.perf_counter()
    expected = rw.distance_transform(whole[None])[0]
    done = time.perf_counter()
    del whole
    differ = sum(int((distances[z : z + 64] != expected[z : z + 64]).sum()) for z in range(0, len(expected), 64))
    return {
        "pixels_that_differ": differ,
        "largest": float(expected.max()),
        "in_memory_seconds": done - loaded,
        "in_memory_load_seconds": loaded - start,
    }


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, from a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(folder: Path, size: int, limit: int, memory: str, workers: int) -> dict[str, Any]:
    """All three processes; the folder is left as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        make_labels(folder / "labels.zarr", size)
        found: dict[str, Any] = {"size": size, "limit_bytes": limit, "memory": memory, "workers": workers}
        found |= in_child(transform, folder, limit, memory, workers)
        found["left_behind"] = sorted(set(os.listdir(folder)) - {"labels.zarr", "distances.zarr"})
        found["rates"] = in_child(rates, folder, memory)
        return found | in_child(compare, folder)
    finally:
        for name in ("labels.zarr", "distances.zarr"):
            shutil.rmtree(folder / name, ignore_errors=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--limit", type=float, default=2, help="GiB of private memory")
    parser.add_argument("--memory", default="512 MiB")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    found = measure(given.folder, given.size, int(given.limit * 2**30), given.memory, given.workers)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
