"""`rwkernels precompute` on Dask distributed: real schedulers and workers, one of which is killed in mid-run."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import precompute_deadly
import pytest
from precompute_cases import contents, run, write_volumes

from rwkernels.data.store import Store
from rwkernels.precompute import items

pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
distributed = pytest.importorskip("distributed", reason="the extra `scale` is not installed")
import dask  # noqa: E402

VOLUMES = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    write_volumes(folder / "labels", VOLUMES, (40, 36, 30))
    assert run(folder / "labels", folder / "maps", "--num-classes", 4) == 0
    return folder / "labels", contents(folder / "maps")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
    ) as found:
        yield found


def test_a_worker_that_is_killed_in_mid_run_is_survived(made, cluster, tmp_path, capsys):
    source, expected = made
    statuses, target = [], tmp_path / "maps"
    command = threading.Thread(
        target=lambda: statuses.append(
            run(source, target, "--num-classes", 4, "--scheduler", cluster.scheduler_address)
        )
    )
    with distributed.Client(cluster) as client:
        processes = dict(client.run(os.getpid))
        command.start()
        while len(list(target.glob("*.npy"))) < 5:
            time.sleep(0.01)
        os.kill(next(iter(processes.values())), signal.SIGKILL)
        there = len(list(Store(target).items()))
        command.join(timeout=120)
        assert not command.is_alive()
        assert there < VOLUMES  # it was killed before the run was over
    assert statuses == [0]
    assert contents(target) == expected
    # A task whose result was lost with its worker finds the item that it has made, and skips it.
    built, kept = map(
        int, re.findall(r"(\d+) maps? built .*, (\d+) already there, 0 failed", capsys.readouterr().out)[0]
    )
    assert built + kept == VOLUMES


def test_a_source_that_kills_its_worker_is_reported_and_the_rest_is_made(made, cluster, tmp_path, capsys):
    source, _ = made
    few = tmp_path / "labels"
    few.mkdir()
    for index in range(8):
        (few / f"v{index}.npy").write_bytes((source / f"v00{index % 3}.npy").read_bytes())
    (few / "deadly.npy").write_bytes((source / "v000.npy").read_bytes())

    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 1))
        client.register_plugin(precompute_deadly.Armed("deadly.npy"))  # workers that are restarted are armed as well
        status = run(few, tmp_path / "maps", "--num-classes", 4, "--scheduler", cluster.scheduler_address)
        client.unregister_worker_plugin("armed")
    assert status == 1
    killed, _, others = capsys.readouterr().err.partition("deadly.npy: ")[2].partition("\n")
    assert killed == "every worker that had it died (killed, or out of memory)"
    # Dask may blame what waited beside it in the same worker as well; that is reported, or made.
    blamed = {line.split(":")[0].strip() for line in others.splitlines()}
    assert blamed | set(Store(tmp_path / "maps").items()) == {f"v{index}.npy" for index in range(8)}
    (few / "deadly.npy").unlink()
    assert run(few, tmp_path / "maps", "--num-classes", 4) == 0


def test_the_command_starts_a_cluster_of_its_own(made, tmp_path):
    source, expected = made
    command = [sys.executable, "-m", "rwkernels", "precompute", source, tmp_path / "maps", "--cluster", "local"]
    command += ["--include", "v00*", "--num-classes", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [*map(str, command), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {"zarr.json", "more/zarr.json", *(name for name in expected if "v00" in name)}
    assert contents(tmp_path / "maps") == {name: expected[name] for name in names}


def test_a_cluster_with_tls_is_reached_with_the_certificates_of_dasks_configuration(made, tmp_path):
    source, expected = made
    trustme = pytest.importorskip("trustme", reason="makes certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    tls = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": str(tmp_path / "authority.pem")}
    for role in ("scheduler", "worker", "client"):
        for what in ("cert", "key"):
            tls[f"distributed.comm.tls.{role}.{what}"] = str(tmp_path / "own.pem")
    options = ["--num-classes", 4, "--include", "v00[0-2].npy", "--scheduler"]
    with (
        dask.config.set(tls),
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            protocol="tls://",
            security=distributed.Security(),
            dashboard_address="127.0.0.1:0",
        ) as found,
    ):
        assert found.scheduler_address.startswith("tls://")
        assert run(source, tmp_path / "maps", *options, found.scheduler_address) == 0
    made_there = contents(tmp_path / "maps")
    assert len(made_there) > 3
    assert all(expected[name] == made_there[name] for name in made_there if name.startswith("v00"))


def test_trouble_that_passes_is_tried_again_and_bad_sources_are_not(made, tmp_path, monkeypatch, capsys):
    source, expected = made
    tries = []
    original = items.open_labels

    def troubled(path, options):
        tries.append(path.name)
        if path.name == "v001.npy" and tries.count(path.name) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        if path.name == "v002.npy":
            raise ValueError("labels: no such thing")
        return original(path, options)

    monkeypatch.setattr(items, "open_labels", troubled)
    options = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "processes": False,
        "dashboard_address": "127.0.0.1:0",
        "protocol": "tcp",
    }
    with distributed.LocalCluster(**options) as inside:
        arguments = ["--num-classes", 4, "--include", "v00[0-2].npy", "--scheduler", inside.scheduler_address]
        assert run(source, tmp_path / "maps", *arguments) == 1
    assert "v002.npy: labels: no such thing" in capsys.readouterr().err
    assert tries.count("v001.npy") == 3
    assert tries.count("v002.npy") == 1
    assert set(Store(tmp_path / "maps").items()) == {"v000.npy", "v001.npy"}
    assert len(expected) > 0


def test_a_scheduler_that_does_not_answer_is_an_error_of_the_options(made, tmp_path, capsys):
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        status = run(made[0], tmp_path / "maps", "--num-classes", 4, "--scheduler", "tcp://127.0.0.1:9")
    assert status == 2
    assert "rwkernels precompute: " in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
