"""Fixtures that every test file shares. Label images are made in `samples.py`."""

from __future__ import annotations

from collections.abc import Iterator

import cupy_standin
import pytest
import torch

from rwkernels.backends import NAMES, load, native

CPU = torch.device("cpu")


# Those that build maps; the tests of the loss choose theirs in loss_cases.py.
MAPPERS = [name for name in NAMES if hasattr(load(name), "fill_distance")]


def _native_isas() -> list[str]:
    return list(native.core().isas()) if native.can_run(CPU) is None else []


def _cpu_backends() -> list[object]:
    """Every backend that computes on the CPU, the native one with every instruction set of this machine."""
    found: list[object] = []
    for name in MAPPERS:
        if name == "cucim":
            found.append(pytest.param((name, None), id="cucim-over-scipy"))
            continue
        reason = load(name).can_run(CPU)
        if reason is not None and name == "triton":
            continue  # test_triton_interpreter.py runs it, in a process of its own
        if reason is not None:
            skip = pytest.mark.skip(reason=f"backend {name!r} cannot run on the CPU: {reason}")
            found.append(pytest.param((name, None), id=name, marks=skip))
        elif name == "native":
            found += [pytest.param((name, isa), id=f"native-{isa}") for isa in _native_isas()]
        else:
            found.append(pytest.param((name, None), id=name))
    return found


def _isas() -> list[object]:
    missing = native.can_run(CPU)
    if missing is None:
        return list(_native_isas())
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


@pytest.fixture(params=_cpu_backends())
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("large") is not None and "large" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes minutes and gigabytes: python -m pytest -m large"))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device is visible to torch"))
