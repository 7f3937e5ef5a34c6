"""Fixtures that every test file shares, and how a run is chosen. Label images are made in `samples.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import cupy_standin
import ptx
import pytest
import torch
from choices import CPU, CPU_BACKENDS, MAPPERS, native_isas
from packaging.requirements import Requirement

from rwkernels.backends import load, native


def _isas() -> list[object]:
    missing = native.can_run(CPU)
    if missing is None:
        return list(native_isas())
    return [pytest.param("none", marks=pytest.mark.skip(reason=f"no instruction set to choose: {missing}"))]


def _gpu_backends() -> list[object]:
    if not torch.cuda.is_available():
        return ["reference"]  # skipped by its marker
    found: list[object] = []
    for name in MAPPERS:
        reason = load(name).can_run(torch.device("cuda"))
        skip = () if reason is None else pytest.mark.skip(reason=f"backend {name!r} cannot run on CUDA: {reason}")
        found.append(pytest.param(name, marks=skip))
    return found


def _with_isa(isa: str) -> Iterator[str]:
    core = native.core()
    before = core.active_isa()
    core.force_isa(isa)
    try:
        yield isa
    finally:
        core.force_isa(before)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that computes on the CPU; the native one comes once for every instruction set.

    cuCIM does not: there the adapter runs over a stand-in for it.
    """
    name, isa = request.param
    if name == "cucim":
        with cupy_standin.installed():
            yield name
    elif isa is None:
        yield name
    else:
        for _ in _with_isa(isa):
            yield name


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set that the native backend is forced to use."""
    yield from _with_isa(request.param)


@pytest.fixture(params=_gpu_backends())
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that computes on CUDA."""
    return str(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Puts back the number of threads that a test changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- how a run is chosen ---------------------------------------------------------------------------------------

# What a marker keeps out of a run that does not name it.
ASKED_FOR = {
    "large": "takes minutes and gigabytes: python -m pytest -m large",
    "thorough": 'repeats others on more cases: python -m pytest -m "thorough or not thorough"',
}
MOST_WORKERS = 8  # each loads PyTorch, Triton and the integrations: 2 GB at the end of a run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-core", action="store_true", help="run although the compiled core is missing, and skip what needs it"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Shares whole folders out to a worker for each core; `-n` says otherwise.

    Single files stay in this process, where a debugger and `-s` work and no worker has to start.
    """
    options = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return  # a worker is never to start workers of its own
    if options.numprocesses is not None or options.usepdb:
        return
    folders = any(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if folders and cores > 1 and options.capture != "no":
        options.numprocesses = min(cores, MOST_WORKERS)
        options.dist = "worksteal"  # a worker keeps to its files, and to what they set up, as long as there is work
        # The threads of one worker are not to spin while they wait for cores on which the others compute.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _missing(requirements: list[str], extra: str = "") -> Iterator[str]:
    """Of the requirements of this package: what is not installed here, extras followed."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "rwkernels":
            for inner in requirement.extras:
                yield from _missing(requirements, inner)
            continue
        try:
            metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield str(requirement)


def _untested(config: pytest.Config) -> Iterator[str]:
    """What would be skipped silently: a run that passes must have tested what it seems to have tested."""
    core = native.can_run(CPU)
    if core is not None and not config.option.without_core:
        yield (
            f"no core: {core}. These tests import the package from {Path(native.__file__).parents[2]}, so build its "
            'core there (python -m pip install -e ".[test]"), or leave out what needs it: python -m pytest '
            "--without-core"
        )
    if os.environ.get("CI", "").lower() not in ("1", "true"):
        return
    absent = sorted(set(_missing(metadata.requires("rwkernels") or [], "test")))
    if absent:
        yield f"CI is set, and of the extra `test` there is no {', no '.join(absent)}"
    triton = ptx.missing()
    if sys.platform == "linux" and triton is not None and "TRITON_INTERPRET" not in os.environ:
        yield f"CI is set, and no Triton kernel can be compiled: {triton}"


def pytest_sessionstart(session: pytest.Session) -> None:
    reasons = list(_untested(session.config))
    if reasons:
        raise pytest.UsageError(*reasons)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name, reason in ASKED_FOR.items():
            if item.get_closest_marker(name) is not None and name not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=reason))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device is visible to torch"))
