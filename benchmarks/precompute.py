"""How fast a folder of label maps becomes a store of maps, against SciPy per class: files read, maps written.

`python -m benchmarks.precompute` writes volumes like T2 (128^3, 4 classes) as NIfTI, and times three ways in one run,
each with as many processes as there are cores and one thread each:

- SciPy, as the paper's code does it: a distance transform for every class, divided by its maximum, saved with `np.save`
  as a dense float32 map, or as labels and float16 foreground, which is as small as what this package writes;
- `rwkernels precompute`, the whole command from its start to its end, written through to the disk;
- the same without what it takes to start, from a run on a tenth of the volumes.

All are timed in turns, and medians are shown: what a volume takes once started is a difference, which is noisy. SciPy's
processes are started before their clock is. A sample of the maps is compared with SciPy's after the clock has
stopped. `--tiny` runs small, `--source npy` reads NPY instead of NIfTI.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from rwkernels.bench.inputs import Task, labels
from rwkernels.bench.truth import paper_map
from rwkernels.commands import processors

CLASSES = 4


def write_volumes(folder: Path, count: int, side: int, suffix: str) -> list[Path]:
    """Volumes with smooth regions of every class; beyond the first eight they are mirrored and turned."""
    folder.mkdir()
    drawn = labels(Task("T2", "blobs", (min(count, 8), side, side, side), CLASSES)).numpy()
    paths = []
    for index in range(count):
        volume = np.rot90(drawn[index % 8], index // 8 % 4, axes=(0, 1))
        volume = np.ascontiguousarray(volume if index // 32 % 2 == 0 else volume[:, :, ::-1])
        path = folder / f"v{index:04}{suffix}"
        if suffix == ".npy":
            np.save(path, volume)
        else:
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
        paths.append(path)
    return paths


def read(path: Path) -> npt.NDArray[np.uint8]:
    return np.load(path) if path.suffix == ".npy" else np.asarray(nibabel.load(path).dataobj)


def by_scipy(path: Path, target: Path, dense: bool) -> None:
    volume = np.ascontiguousarray(read(path))
    truth = np.stack([volume == k for k in range(CLASSES)])[None]
    maps = paper_map(truth, None)[0][0]
    if dense:
        np.save(target / f"{path.name}.npy", maps)
        return
    foreground = np.take_along_axis(maps, volume[None].astype(np.int64), 0)[0].astype(np.float16)
    np.savez(target / f"{path.name}.npz", labels=volume, foreground=foreground)


def time_scipy(pool: Any, paths: list[Path], target: Path, dense: bool) -> float:
    target.mkdir()
    start = time.perf_counter()
    pool.map(partial(by_scipy, target=target, dense=dense), paths, chunksize=1)
    os.sync()
    return (time.perf_counter() - start) / len(paths)


def time_command(source: Path, target: Path, workers: int, *options: str) -> float:
    command = [sys.executable, "-m", "rwkernels", "precompute", str(source), str(target), "--num-classes", str(CLASSES)]
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(workers), *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def warm(_: int) -> None:
    """What a process of SciPy has done before its clock starts: imported everything."""
    distance_transform_edt(np.eye(3))


def measure(
    folder: Path, count: int, peer_count: int, side: int, suffix: str, workers: int, turns: int
) -> dict[str, float]:
    """Medians of `turns`, each of which times all ways one after the other."""
    paths = write_volumes(folder / "labels", count, side, suffix)
    few = folder / "few"
    few.mkdir()
    for path in paths[: max(count // 10, workers)]:
        shutil.copy(path, few)
    number = len(list(few.iterdir()))
    os.sync()
    took: dict[str, list[float]] = {
        name: [] for name in ("scipy_dense", "scipy_compact", "command", "running", "start")
    }
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(warm, range(4 * workers))
        for turn in range(turns):
            out = folder / f"turn {turn}"
            out.mkdir()
            took["scipy_dense"].append(time_scipy(pool, paths[:peer_count], out / "dense", True))
            took["scipy_compact"].append(time_scipy(pool, paths[:peer_count], out / "compact", False))
            short = time_command(few, out / "few", workers)
            whole = time_command(folder / "labels", out / "maps", workers)
            running = (whole - short) / (count - number)
            took["command"].append(whole / count)
            took["running"].append(running)
            took["start"].append(max(short - number * running, 0.0))
            if turn < turns - 1:
                shutil.rmtree(out)
    found: dict[str, float] = {"volumes": count, "side": side, "workers": workers, "turns": turns}
    found |= {name: statistics.median(seconds) for name, seconds in took.items()}
    for name in ("command", "running"):
        ratios = [peer / own for peer, own in zip(took["scipy_compact"], took[name], strict=True)]
        found[f"{name}_times_scipy"] = statistics.median(ratios)
    found["bytes"] = size_of(out / "maps") / count
    found["scipy_dense_bytes"] = size_of(out / "dense") / peer_count
    found["scipy_compact_bytes"] = size_of(out / "compact") / peer_count
    time_command(folder / "labels", out / "maps", workers, "--verify", str(min(4, count)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=240, help="for the command")
    parser.add_argument("--peer-volumes", type=int, default=12, help="for SciPy, which is asked for a part of them")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3, help="of all ways, one after the other; medians are shown")
    parser.add_argument("--source", choices=("nii.gz", "nii", "npy"), default="nii.gz")
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--folder", type=Path, help="on which disk (default: that of temporary files)")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.tiny:
        given.volumes, given.peer_volumes, given.side, given.turns = 12, 2, 24, 1
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        sizes = (given.volumes, given.peer_volumes, given.side)
        found = measure(Path(folder), *sizes, f".{given.source}", given.workers, given.turns)
    print(f"{given.volumes} volumes of {given.side}^3 and {CLASSES} classes, {given.source}, {given.workers} processes")
    print(f"{'':34} {'ms a volume':>12} {'MB a volume':>12} {'times SciPy':>12}")
    peer = found["scipy_compact"]
    for name, seconds, size, times in (
        ("SciPy per class, dense", found["scipy_dense"], found["scipy_dense_bytes"], peer / found["scipy_dense"]),
        ("SciPy per class, compact", peer, found["scipy_compact_bytes"], 1.0),
        ("rwkernels precompute, whole command", found["command"], found["bytes"], found["command_times_scipy"]),
        ("rwkernels precompute, once started", found["running"], found["bytes"], found["running_times_scipy"]),
    ):
        print(f"{name:35} {seconds * 1e3:11.1f} {size / 1e6:12.2f} {times:12.1f}")
    print(f"started in {found['start']:.1f} s; medians of {given.turns} turns; a sample was compared with SciPy")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
