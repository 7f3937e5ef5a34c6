"""`python -m benchmarks`: runs the rows and prints one table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.harness import copy_bandwidth
from benchmarks.rows import Case, cases
from rwkernels.backends import choose


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="EXPR", help='regular expression on "row task", e.g. "map.*T[12]"')
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer turns, one thread by default")
    parser.add_argument("--tiny", action="store_true", help="inputs too small to mean anything: does the suite run?")
    parser.add_argument("--threads", metavar="N,M", help="numbers of threads (default 1,2; quick 1)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="keep every number")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    return parser.parse_args()


def _thread_counts(text: str | None, scale: str) -> list[int]:
    if text is None:
        return [1, 2] if scale == "full" and (os.cpu_count() or 1) > 1 else [1]
    return [int(count) for count in text.split(",")]


def _measure(chosen: list[Case], threads: list[int], scale: str) -> tuple[list[report.Line], dict[str, float]]:
    """The lines of all cases, those so far if the run is interrupted; and the seconds each case took."""
    lines: list[report.Line] = []
    took: dict[str, float] = {}
    total = sum(case.effort for case in chosen) * len(threads)
    shown = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left"
    bar = tqdm(total=total, bar_format=shown, disable=None, file=sys.stderr)
    with bar as progress, contextlib.suppress(KeyboardInterrupt):
        for case in chosen:
            progress.set_description(case.id, refresh=True)
            start = time.perf_counter()
            contenders = case.make()
            for count in threads:
                lines += report.run(case, contenders, count, scale)
                progress.update(case.effort)
            took[case.id] = time.perf_counter() - start
    return lines, took


def main() -> int:
    options = _arguments()
    scale = "tiny" if options.tiny else "quick" if options.quick else "full"
    pattern = re.compile(options.only or "", re.IGNORECASE)
    chosen = [case for case in cases(scale) if pattern.search(case.id)]
    if options.list or not chosen:
        print(*[case.id for case in chosen] or [f"no case matches {options.only!r}"], sep="\n")
        return 0 if chosen else 2
    if choose(torch.device("cpu"), "loss").NAME == "reference" and scale != "tiny":
        print("the compiled backend cannot run here (see rwkernels.backends()); --tiny runs without", file=sys.stderr)
        return 2
    threads = _thread_counts(options.threads, scale)
    bandwidths = {count: copy_bandwidth(count) for count in threads}
    print(report.header(bandwidths, scale), end="\n\n", flush=True)
    lines, took = _measure(chosen, threads, scale)
    print(report.table(lines), end="\n\n")
    print(report.summary(lines))
    if options.save:
        kept = {
            "scale": scale,
            "machine": report.versions_of_machine(),
            "seconds_per_case": took,
            "copy_bytes_per_second": bandwidths,
            "lines": [line.record() for line in lines],
        }
        options.save.write_text(json.dumps(kept, indent=1) + "\n")
    missed = options.strict and any(line.met is False for line in lines)
    return 1 if missed or any(line.ours_fails for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
