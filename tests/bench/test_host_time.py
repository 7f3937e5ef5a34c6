"""`benchmarks/host_time.py` runs, and its driver lets Triton's own launcher through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

empty_driver = pytest.importorskip("benchmarks.empty_driver", reason="benchmarks/ is not beside the tests")
ROOT = Path(__file__).parents[2]


def test_host_time_measures_a_step_on_cuda_without_a_gpu_and_says_where_it_goes(tmp_path):
    if (reason := empty_driver.why_not()) is not None:
        pytest.skip(reason)
    kept = tmp_path / "host.json"
    command = [sys.executable, "-m", "benchmarks.host_time", "--tiny", "--parts", "--section", "cuda", "--json", kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())["cuda"]["here"]
    assert all(len(turns) == 1 and turns[0] > 0 for turns in found["seconds"].values())
    levels = found["parts"]["3D, five levels"]
    assert {part for part in levels if part.startswith("launch ")} == {
        f"launch {kernel}_levels"
        for kernel in (
            *("row_pass", "column_pass", "block_minima", "rectify", "region_wise", "finish_loss", "scale_gradient"),
        )
    }
    assert "five levels take" in done.stdout
