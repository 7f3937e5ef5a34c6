"""Losses and steps that repeat: which launches they are, what lies where, and how levels share a launch.

A plan is made by going through `loss` and `fill_rectified` once on tensors without memory, with launches noted instead
of made. What a call is to give (the loss, gradients, maps) gets memory of its own each time. Scratch memory takes none
where it can lie in the gradient, which the last kernel alone writes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rwkernels.backends.problem import (
    Level,
    LossProblem,
    StepProblem,
    StepResult,
    scales_gradient_at_once,
)
from rwkernels.backends.triton import maps as map_passes
from rwkernels.backends.triton.launch import Call, noted
from rwkernels.backends.triton.levels import together
from rwkernels.backends.triton.losses import loss, scale_gradient
from rwkernels.backends.triton.replay import Place, Replay

_APART = 256  # bytes: where scratch memory may begin


def plan_loss(problem: LossProblem, *, with_grad: bool) -> LossPlan | None:
    """See `Backend`."""
    if problem.reduction == "none" or problem.groups or not _can_wait(problem.validate, problem.logits):
        return None
    with suppress(_NoPlan):
        return LossPlan(problem, with_grad)
    return None


def plan_step(problem: StepProblem) -> StepPlan | None:
    """See `Backend`."""
    levels = problem.levels
    alike = len({(len(level.logits), level.logits.dim()) for level in levels}) == 1
    fits = not any(map_passes.too_large(_flat(level)) for level in levels)
    # A weight reaches a kernel as float32.
    exact = problem.loss_dtype == torch.float32 or all(level.weight == 1 for level in levels)
    if not alike or not fits or not exact or not _can_wait(problem.validate, levels[0].logits):
        return None
    with suppress(_NoPlan):
        return StepPlan(problem)
    return None


def _can_wait(validate: bool, logits: Tensor) -> bool:
    """Whether nothing has to be read on the host, and there is something to launch."""
    return not validate and logits.numel() > 0


class _NoPlan(Exception):
    """A problem takes more than launches."""


def _flat(level: Level) -> Tensor:
    """Labels [B, *S] without memory, contiguous as kernels get them."""
    logits = level.logits
    return torch.empty((logits.shape[0], *logits.shape[2:]), dtype=level.labels.dtype, device="meta")


class _Dry(TorchDispatchMode):
    """Lets nothing through but what makes tensors and views of them: a plan could not repeat anything else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    HARMLESS = ("empty", "view", "slice", "alias", "detach", "reshape", "select")

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.name().partition("::")[2]
        if not any(part in name for part in self.HARMLESS) or "copy" in name:
            raise _NoPlan
        return function(*arguments, **(keywords or {}))


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


# --- what lies where ------------------------------------------------------------------------------------------


class _Layout:
    """Which buffer a tensor without memory stands for, and from which byte on; the last buffer is scratch memory."""

    def __init__(self) -> None:
        self._starts: dict[int, tuple[int, int]] = {}
        self._alive: list[Tensor] = []  # a storage that is gone could lend its key to another
        self.buffers = 0
        self.scratch = 0  # bytes

    def add(self, *tensors: Tensor | None) -> None:
        """Makes each of these a buffer; None keeps a place free."""
        for tensor in tensors:
            if tensor is not None:
                self._put(tensor, self.buffers, 0)
            self.buffers += 1

    def _put(self, tensor: Tensor, buffer: int, start: int) -> None:
        self._starts[_storage(tensor)] = (buffer, start)
        self._alive.append(tensor)

    def place_scratch(self, calls: Sequence[Call], grad: Tensor | None) -> None:
        """Finds room for what calls use beside the buffers: in the gradient before it is written, else behind it."""
        used: dict[int, list[int]] = {}
        tensors: dict[int, Tensor] = {}
        for index, call in enumerate(calls):
            for tensor in call.arguments:
                if isinstance(tensor, Tensor):
                    used.setdefault(_storage(tensor), []).append(index)
                    tensors[_storage(tensor)] = tensor
        room = taken = 0
        if grad is not None:
            buffer, room = self._starts[_storage(grad)][0], grad.untyped_storage().nbytes()
        for key, tensor in tensors.items():
            if key in self._starts:
                continue
            size = -(-tensor.untyped_storage().nbytes() // _APART) * _APART
            if grad is not None and used[key][-1] < used[_storage(grad)][0] and taken + size <= room:
                self._put(tensor, buffer, taken)
                taken += size
            else:
                self._put(tensor, -1, self.scratch)
                self.scratch += size

    def place(self, value: Any) -> Any:
        """The place of a tensor; any other value as it is."""
        if not isinstance(value, Tensor):
            return value
        buffer, start = self._starts[_storage(value)]
        offset = start + value.storage_offset() * value.element_size()
        buffer = self.buffers if buffer < 0 else buffer
        return Place(buffer, int(offset), tuple(value.shape), value.stride(), value.dtype)

    def placed(self, calls: Sequence[Call]) -> list[Call]:
        """Calls with places for tensors."""
        return [call._replace(arguments=tuple(map(self.place, call.arguments))) for call in calls]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# --- plans ----------------------------------------------------------------------------------------------------


class _Plan:
    """What plans of a loss have in common: launches, and how their gradients are finished."""

    def __init__(self, problems: Sequence[LossProblem], weights: Sequence[float]) -> None:
        self._problems, self._weights = problems, weights  # tensors without memory
        self._loss_dtype = problems[0].loss_dtype
        self._unfinished = not scales_gradient_at_once(problems[0].logits.dtype)
        self._scales: dict[bool, Replay] = {}

    def _loss(self, like: Tensor) -> Tensor:
        return torch.empty_strided((), (), dtype=self._loss_dtype, device=like.device)

    def scale(
        self, upstream: Tensor, grads: Sequence[Tensor], counts: Sequence[Tensor | None], *, in_place: bool
    ) -> Sequence[Tensor]:
        """See `Plan`. A factor of 1 is seen on the device, where it costs a launch that touches nothing."""
        run = self._scales.get(in_place)
        if run is None:
            run = self._scales[in_place] = self._plan_scale(in_place, bool(counts))
        results = grads if in_place else [torch.empty_like(grad) for grad in grads]
        run((upstream, *grads, *(() if in_place else results), *counts))  # type: ignore[arg-type]
        return results

    def _plan_scale(self, in_place: bool, counted: bool) -> Replay:
        upstream = torch.empty((), dtype=self._loss_dtype, device="meta")
        grads = [torch.empty_like(problem.logits) for problem in self._problems]
        layout, levels = _Layout(), []
        layout.add(upstream, *grads)
        with _Dry(), noted() as calls:
            results = []
            for problem, grad in zip(self._problems, grads, strict=True):
                divide = self._unfinished and problem.reduction == "mean"
                results.append(scale_gradient(problem, grad, upstream, divide=divide, in_place=in_place))
                levels.append(calls[:])
                calls.clear()
        if not in_place:
            layout.add(*results)
        if counted:
            layout.add(*(problem.image_count for problem in self._problems))
        weighted = self._weights if self._unfinished and set(self._weights) != {1.0} else None
        return Replay(together([layout.placed(level) for level in levels], weighted))


class LossPlan(_Plan):
    """The loss of a map that was built before."""

    def __init__(self, problem: LossProblem, with_grad: bool) -> None:
        tensors = [None if tensor is None else _without_memory(tensor) for tensor in problem[:6]]
        problem = LossProblem._make((*tensors, *problem[6:]))
        super().__init__([problem], (1.0,))
        self._with_grad = with_grad
        grad = torch.empty_like(problem.logits) if with_grad else None
        with _Dry(), noted() as calls:
            result = _note_loss(problem, grad)
        layout = _Layout()
        layout.add(*tensors, grad, result)
        layout.place_scratch(calls, grad)
        self._scratch = layout.scratch
        self._run = Replay(layout.placed(calls))

    def __call__(self, logits: Sequence[Tensor], others: Sequence[Tensor | None]) -> StepResult:
        """See `Plan`."""
        first, count = logits[0], others[4]
        result = self._loss(first)
        grad = torch.empty_like(first) if self._with_grad else None
        scratch = torch.empty(self._scratch, dtype=torch.uint8, device=first.device)
        buffers = (first, *others, grad, result, scratch)
        self._run([first if buffer is None else buffer for buffer in buffers])
        return StepResult(result, () if grad is None else (grad,), (), () if count is None else (count,))


class _Noted(NamedTuple):
    """The launches of one level, and the tensors without memory that they are about."""

    calls: list[Call]
    problem: LossProblem
    grad: Tensor | None
    result: Tensor
    counted: Tensor


class StepPlan(_Plan):
    """One level, or several at once, from labels on."""

    def __init__(self, problem: StepProblem) -> None:
        width = max(level.logits.shape[-1] for level in problem.levels)
        found = [_note_level(problem, level, width) for level in problem.levels]
        weights = tuple(level.weight for level in problem.levels)
        super().__init__([level.problem for level in found], weights)
        self._with_grad = problem.with_grad
        # The shapes and strides of what a call gives.
        self._grids = [(tuple(level.problem.maps.shape), level.problem.maps.stride()) for level in found]
        self._images = (tuple(found[0].counted.shape), (1,))
        self._counted = range(len(found)) if problem.ignore_index is not None else ()
        layout = _Layout()
        layout.add(*(level.problem.logits for level in found))
        layout.add(*(level.problem.labels for level in found))
        if problem.with_grad:
            layout.add(*(level.grad for level in found))
        layout.add(*(level.problem.maps for level in found))
        layout.add(*(found[level].counted for level in self._counted))
        layout.add(found[0].result)
        for level in found:
            layout.place_scratch(level.calls, level.grad)
        self._scratch = layout.scratch
        weighted = None if set(weights) == {1.0} else weights
        self._run = Replay(self._passes([layout.placed(level.calls) for level in found], weighted))

    def _passes(self, levels: Sequence[Sequence[Call]], weights: Sequence[float] | None) -> list[Call]:
        *passes, last = zip(*levels, strict=True)
        at_once = None if self._unfinished or not self._with_grad else weights
        return [*together(list(zip(*passes, strict=True)), at_once), *together([(call,) for call in last], weights)]

    def __call__(self, logits: Sequence[Tensor], others: Sequence[Tensor | None]) -> StepResult:
        """See `Plan`."""
        first = logits[0]
        labels = [own if own.is_contiguous() else own.contiguous() for own in others if own is not None]
        result = self._loss(first)
        grads = [torch.empty_like(of_level) for of_level in logits] if self._with_grad else ()
        device = first.device
        # Of all functions that allocate, this one is the fastest.
        foregrounds = [
            torch.empty_strided(shape, stride, dtype=torch.float32, device=device) for shape, stride in self._grids
        ]
        counts = [torch.empty_strided(*self._images, dtype=torch.int64, device=device) for _ in self._counted]
        scratch = torch.empty_strided((self._scratch,), (1,), dtype=torch.uint8, device=device)
        self._run((*logits, *labels, *grads, *foregrounds, *counts, result, scratch))
        return StepResult(result, grads, foregrounds, counts)


def _note_level(problem: StepProblem, level: Level, width: int) -> _Noted:
    logits, labels = _without_memory(level.logits), _flat(level)
    grad = torch.empty_like(logits) if problem.with_grad else None
    foreground = torch.empty(labels.shape, dtype=torch.float32, device="meta")
    count = torch.empty(len(labels), dtype=torch.int64, device="meta")
    of_map = problem.of_map(labels, logits.shape[1], level.spacing)
    of_loss = problem.of_loss(logits, labels, foreground, None if problem.ignore_index is None else count)
    with _Dry(), noted() as calls:
        map_passes.fill_rectified(foreground, count, of_map, width=width)
        result = _note_loss(of_loss, grad)
    return _Noted(calls, of_loss, grad, result, count)


def _note_loss(problem: LossProblem, grad: Tensor | None) -> Tensor:
    divide = scales_gradient_at_once(problem.logits.dtype)
    return loss(problem, with_loss=True, grad=grad, upstream=None, divide=divide, validate=False)
