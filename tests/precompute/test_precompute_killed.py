"""`kill -9` at random moments: nothing half-written, and the final store is that of an undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from precompute_cases import write_volumes

pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
pytest.importorskip("tqdm", reason="the extra `precompute` is not installed")

# So many kills of a run of several processes, each of which takes seconds to start; 20 for a thorough test.
KILLS = int(os.environ.get("RWKERNELS_KILLS", "2"))


@pytest.mark.parametrize(("workers", "kills", "volumes"), [(1, 20, 40), (2, KILLS, 40)])
def test_runs_that_are_killed_end_in_the_store_of_an_undisturbed_one(tmp_path, workers, kills, volumes):
    write_volumes(tmp_path / "labels", volumes)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    command = [sys.executable, here / "precompute_kills.py", tmp_path / "labels", tmp_path, kills, workers, 2022]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60 + 20 * kills, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["status"] == 0
    assert found["same"]
    assert not found["rest"]
    assert len(found["log"]) == kills
    assert any(0 < count < volumes for count in found["log"]) or kills < 5  # in the middle of the work
