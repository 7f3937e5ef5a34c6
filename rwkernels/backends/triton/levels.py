"""Several levels of deep supervision in one launch: how their launches are put together (see `kernels/levels.py`)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from rwkernels.backends.triton.launch import Call
from rwkernels.backends.triton.replay import Place

# Numbers and tensors that all levels of a launch share.
_SHARED = {"upstream", "batch", "classes", "images", "scale_run", "ignore_index", "background_value"}
_SHARED |= {"absent", "inside_offset"}


def together(levels: Sequence[Sequence[Call]], weights: Sequence[float] | None) -> list[Call]:
    """The launches of all levels: one for those whose kernels are compiled alike, pass by pass.

    With `weights` the kernels multiply by them, and the losses become their weighted sum.
    """
    calls = []
    for each in zip(*levels, strict=True):
        if each[0].kernel.fn.__name__ == "finish_loss":
            calls.append(_finish(each, weights or (1.0,) * len(each)))
            continue
        if weights is not None:
            each = tuple(_weighted(call, weight) for call, weight in zip(each, weights, strict=True))
        groups: dict[Any, list[Call]] = {}
        for call in each:
            groups.setdefault(_compiled_alike(call), []).append(call)
        calls += [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]
    return calls


def _names(call: Call) -> list[str]:
    return list(call.kernel.arg_names[: len(call.arguments)])


def _weighted(call: Call, weight: float) -> Call:
    names = _names(call)
    if "weight" not in names:
        return call
    at = names.index("weight")
    return call._replace(arguments=(*call.arguments[:at], float(weight), *call.arguments[at + 1 :]))


def _compiled_alike(call: Call) -> tuple[Any, ...]:
    """What has to be the same of launches that are to be one."""
    kinds = [
        value.dtype if isinstance(value, Place) else value if value is None or name in _SHARED else type(value)
        for name, value in zip(_names(call), call.arguments, strict=True)
    ]
    return call.kernel, call.threads, *sorted(call.constants.items()), *kinds


def _joined(group: Sequence[Call]) -> Call:
    """One launch of several levels."""
    firsts = [0]
    for call in group:
        firsts.append(firsts[-1] + call.programs)
    arguments = [
        values[0] if name in _SHARED else _of_levels(values)
        for name, *values in zip(_names(group[0]), *(call.arguments for call in group), strict=True)
        if name != "program"
    ]
    constants = {**group[0].constants, "LEVELS": len(group)}
    kernel = _kernel_of_levels(group[0])
    return Call(kernel, firsts[-1], group[0].threads, (_of_levels(firsts[:-1]), *arguments), constants)


def _finish(each: Sequence[Call], weights: Sequence[float]) -> Call:
    if len(each) == 1 and weights[0] == 1:
        return each[0]
    partials, results, counts, divisors, parts, images = zip(*(call.arguments for call in each), strict=True)
    numbers = map(_of_levels, (divisors, parts))
    arguments = (partials, results[0], _of_levels(counts), *numbers, images[0], tuple(map(float, weights)))
    kernel, constants = _kernel_of_levels(each[0]), {**each[0].constants, "LEVELS": len(each)}
    return Call(kernel, 1, each[0].threads, arguments, constants)


def _kernel_of_levels(call: Call) -> Any:
    kernels = importlib.import_module("rwkernels.backends.triton.kernels.levels")
    return getattr(kernels, f"{call.kernel.fn.__name__}_levels")


def _of_levels(values: Sequence[Any]) -> tuple[Any, ...] | None:
    """The argument of a kernel for several levels: see `kernels/levels.py` for integers."""
    if values[0] is None:
        return None
    return tuple(2 * value + 3 if isinstance(value, int) else value for value in values)
