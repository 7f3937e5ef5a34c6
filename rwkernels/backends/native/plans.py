"""Losses and steps that repeat, by the C++ core: one call of it does a whole step.

Small images spend their time in Python otherwise: what a call needs beside the addresses of its tensors is worked out
when the plan is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkernels.backends.native.compiled import (
    FLOAT_CODES,
    LABEL_CODES,
    address,
    advise_huge_pages,
    checked,
    core,
    described,
    gets_huge_pages,
)
from rwkernels.backends.native.loss import described_loss, times
from rwkernels.backends.problem import (
    Level,
    LossProblem,
    MapProblem,
    StepProblem,
    StepResult,
    scales_gradient_at_once,
)
from rwkernels.backends.threads import threads


def plan_loss(problem: LossProblem, *, with_grad: bool) -> _LossPlan | None:
    """See `Backend`."""
    logits, maps, labels, background, scale, count = problem[:6]
    handed_over_as_they_are = (
        logits.dtype in FLOAT_CODES
        and (maps.dtype in FLOAT_CODES and (not problem.compact or maps.dtype in (torch.float32, torch.float64)))
        and (maps.is_contiguous() or not problem.compact)
        and (labels is None or (labels.dtype in LABEL_CODES and labels.is_contiguous()))
        and (background is None or (background.dtype == maps.dtype and background.is_contiguous()))
        and scale is None
        and (problem.ignore_index is None or (count is not None and count.is_contiguous()))
    )
    if not handed_over_as_they_are or logits.numel() == 0 or problem.reduction == "none" or problem.groups:
        return None
    return _LossPlan(problem, None, 1.0, with_grad)


def plan_step(problem: StepProblem) -> _LossPlan | _StepPlan:
    """See `Backend`."""
    return _level(problem, problem.levels[0]) if len(problem.levels) == 1 else _StepPlan(problem)


class _LossPlan:
    """The loss of one grid: of a map that is given, or of the rectified one of the labels."""

    def __init__(self, problem: LossProblem, maps: MapProblem | None, weight: float, with_grad: bool) -> None:
        logits = problem.logits
        described_problem, (*_, self._scale) = described_loss(problem, problem.validate and maps is None)
        self._makes_map, self._with_grad = maps is not None, with_grad
        self._counts = maps is not None and maps.ignore_index is not None
        self._huge_grad, self._huge_map = gets_huge_pages(logits), maps is not None and gets_huge_pages(problem.maps)
        self.loss_dtype = problem.loss_dtype
        self._shape, self._pixels = problem.maps.shape, logits[:, 0].numel()
        self._unfinished = not scales_gradient_at_once(logits.dtype)
        self._weight, self._mean, self._channels = weight, problem.reduction == "mean", problem.channels
        self._run = (
            core()
            .LossPlan(
                described_problem,
                maps=None if maps is None else described(maps),
                grad_strides=torch.empty_like(logits).stride() if with_grad else None,
                mean=self._mean,
                divide=not self._unfinished,
                channels=self._channels,
                weight=weight,
            )
            .run
        )

    def __call__(self, logits: Sequence[Tensor], others: Sequence[Tensor | None]) -> StepResult:
        loss = logits[0].new_empty((), dtype=self.loss_dtype)
        if self._makes_map:
            _, grad, foreground, count = self.step(logits[0], others[0], loss)
            return StepResult(loss, () if grad is None else (grad,), (foreground,), () if count is None else (count,))
        maps, labels, background, _, count = others
        grad = self._fresh_grad(logits[0])
        self._fill(logits[0], maps, labels, background, count, grad, loss, 0.0)
        return StepResult(loss, () if grad is None else (grad,), (), () if count is None else (count,))

    def step(
        self, logits: Tensor, labels: Tensor | None, loss: Tensor, before: float = 0.0
    ) -> tuple[float, Tensor | None, Tensor, Tensor | None]:
        """Loss, with `before` added to it, gradient, foreground and count of labels [B, *S] or [B, 1, *S]."""
        assert labels is not None
        foreground = logits.new_empty(self._shape, dtype=torch.float32)
        if self._huge_map:
            advise_huge_pages(foreground)
        count = logits.new_empty(self._shape[0], dtype=torch.int64) if self._counts else None
        grad = self._fresh_grad(logits)
        total = self._fill(logits, foreground, labels.contiguous(), None, count, grad, loss, before)
        return total, grad, foreground, count

    def _fresh_grad(self, logits: Tensor) -> Tensor | None:
        if not self._with_grad:
            return None
        grad = torch.empty_like(logits)
        if self._huge_grad:
            advise_huge_pages(grad)
        return grad

    def _fill(
        self,
        logits: Tensor,
        maps: Tensor | None,
        labels: Tensor | None,
        background: Tensor | None,
        count: Tensor | None,
        grad: Tensor | None,
        loss: Tensor,
        before: float,
    ) -> float:
        total: float = checked(
            self._run,
            logits.data_ptr(),
            address(maps),
            address(labels),
            address(background),
            address(self._scale),
            address(count),
            address(grad),
            loss.data_ptr(),
            before,
            threads(),
        )
        return total

    def scale(
        self, upstream: Tensor, grads: Sequence[Tensor], counts: Sequence[Tensor | None], *, in_place: bool
    ) -> Sequence[Tensor]:
        """See `Plan`."""
        return (self.scaled(float(upstream), grads[0], counts[0] if counts else None, in_place),)

    def scaled(self, factor: float, grad: Tensor, count: Tensor | None, in_place: bool) -> Tensor:
        """A gradient of this grid times a factor, finished."""
        if self._unfinished:
            factor *= self._weight
            if self._mean:
                pixels = self._pixels if count is None else int(count.sum())
                factor /= max(pixels * self._channels, 1)
        return times(grad, factor, in_place=in_place)


class _StepPlan:
    """Several levels, one after the other."""

    def __init__(self, problem: StepProblem) -> None:
        self._levels = [_level(problem, level) for level in problem.levels]

    def __call__(self, logits: Sequence[Tensor], others: Sequence[Tensor | None]) -> StepResult:
        loss = logits[0].new_empty((), dtype=self._levels[0].loss_dtype)
        grads, foregrounds, counts = [], [], []
        total = 0.0
        for plan, of_level, labels in zip(self._levels, logits, others, strict=True):
            total, grad, foreground, count = plan.step(of_level, labels, loss, total)
            foregrounds.append(foreground)
            if grad is not None:
                grads.append(grad)
            if count is not None:
                counts.append(count)
        return StepResult(loss, grads, foregrounds, counts)

    def scale(
        self, upstream: Tensor, grads: Sequence[Tensor], counts: Sequence[Tensor | None], *, in_place: bool
    ) -> Sequence[Tensor]:
        """See `Plan`."""
        factor = float(upstream)
        levels = zip(self._levels, grads, counts or (None,) * len(grads), strict=True)
        return [plan.scaled(factor, grad, count, in_place) for plan, grad, count in levels]


def _level(problem: StepProblem, level: Level) -> _LossPlan:
    logits = level.logits
    labels = level.labels.reshape(logits.shape[0], *logits.shape[2:]).contiguous()
    count = None if problem.ignore_index is None else labels.new_empty(len(labels), dtype=torch.int64)
    foreground = logits.new_empty(labels.shape, dtype=torch.float32)
    maps = problem.of_map(labels, logits.shape[1], level.spacing)
    return _LossPlan(problem.of_loss(logits, labels, foreground, count), maps, level.weight, problem.with_grad)
