"""The command line: doctor's verdict, help, unknown commands."""

import subprocess
import sys

import pytest
import torch

from rwkernels import cli, doctor
from rwkernels.backends import native


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkernels", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_doctor_finds_every_backend_of_the_cpu_right(capsys: pytest.CaptureFixture[str]) -> None:
    if native.can_run(torch.device("cpu")) is not None:
        pytest.skip(f"native: {native.can_run(torch.device('cpu'))}")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "native on cpu: can run" in printed
    assert "reference on cpu: can run" in printed
    assert "BAD" not in printed
    assert "All is well." in printed


def test_doctor_says_why_a_backend_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    cli.main(["doctor"])
    assert "native on cuda: no CUDA device is visible to torch" in capsys.readouterr().out


def test_doctor_fails_when_a_backend_computes_something_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = doctor.distance_transform
    monkeypatch.setattr(doctor, "distance_transform", lambda *a, **k: original(*a, **k) * 1.001)
    assert cli.main(["doctor"]) == 1
    assert "BAD distance" in capsys.readouterr().out


def test_doctor_fails_when_a_backend_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(doctor, "boundary_map", broken)
    assert cli.main(["doctor"]) == 1
    assert "BAD RuntimeError: no such kernel" in capsys.readouterr().out


def test_the_module_is_the_command() -> None:
    shown = run("--version")
    assert shown.returncode == 0
    assert shown.stdout.startswith("rwkernels ")


def test_help_names_the_commands() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "demo" in shown.stdout
    assert "doctor" in shown.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    shown = run("diagnose")
    assert shown.returncode == 2
    assert "diagnose" in shown.stderr
