"""What tests are parametrised by: the backends of this machine, and tables of pairs instead of whole products."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rwkernels.backends import NAMES, load, native

CPU = torch.device("cpu")

# Those that build maps; the tests of the loss choose theirs in loss_cases.py.
MAPPERS = [name for name in NAMES if hasattr(load(name), "fill_distance")]


def native_isas() -> list[str]:
    """The instruction sets of this machine that the core was built for."""
    return list(native.core().isas()) if native.can_run(CPU) is None else []


def _cpu_backends() -> list[Any]:
    found: list[Any] = []
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
            found += [pytest.param((name, isa), id=f"native-{isa}") for isa in native_isas()]
        else:
            found.append(pytest.param((name, None), id=name))
    return found


# Every backend that computes on the CPU, the native one with every instruction set: (name, instruction set or None).
CPU_BACKENDS = _cpu_backends()


def readable(value: object) -> str:
    """A value as part of the id of a test: float32, 3x19x35, 2.5."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (tuple, list, torch.Size)):
        return "x".join(map(str, value))
    return str(value)


def pairwise(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrises a test so that every two values of two arguments meet in some case, in about as few as that takes.

    Mistakes show at one value of an argument, or at two together: what the whole product adds is the same case again.
    The values of `backend`, as in `CPU_BACKENDS`, and of `device` go to the fixtures of these names.
    """
    values = [[v if hasattr(v, "marks") else pytest.param(v) for v in axis] for axis in axes.values()]
    product = {
        case: frozenset(itertools.combinations(enumerate(case), 2))
        for case in itertools.product(*(range(len(axis)) for axis in values))
    }
    missing, cases = frozenset().union(*product.values()), []
    while missing:
        case = max(product, key=lambda each: len(product[each] & missing))  # the first of the best: always the same
        missing -= product[case]
        chosen = [axis[place] for axis, place in zip(values, case, strict=True)]
        marks = [mark for one in chosen for mark in one.marks]
        name = "-".join(one.id or readable(one.values[0]) for one in chosen)
        cases.append(pytest.param(*[one.values[0] for one in chosen], id=name, marks=marks))
    return pytest.mark.parametrize(
        tuple(axes), cases, indirect=[name for name in axes if name in ("backend", "device")]
    )
