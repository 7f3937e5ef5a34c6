"""Means, deviations, tests and convergence of finished runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels.experiments.configuration import Experiment, Loss, Run, Task
from rwkernels.experiments.records import Record
from rwkernels.extras import needs

with needs("experiments", "scipy", "rwkernels.experiments"):
    from scipy.stats import permutation_test

Floats = npt.NDArray[np.float64]
METRICS = ("dice", "hausdorff")
SIGNIFICANT = 0.05
FOUND = 0.1


def paired_p(first: Sequence[float] | Floats, second: Sequence[float] | Floats, resamples: int = 10_000) -> float:
    """Two-sided p of the paired permutation test of two means: the signs of the differences are what is permuted.

    `scipy.stats.permutation_test`; exact where the pairs have no more than `resamples` sign patterns, else as many
    random ones from a fixed seed. Pairs with a number that is not finite are left out; `nan` with fewer than two pairs.

    Examples:
        >>> paired_p([1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.5, 3.0])  # 2 of 16 patterns are as far apart
        0.125
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    if len(one) < 2:
        return float("nan")
    generator: dict[str, Any] = {
        "rng" if "rng" in inspect.signature(permutation_test).parameters else "random_state": np.random.default_rng(0)
    }
    found = permutation_test(
        (one, two),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        **generator,
    )
    return float(found.pvalue)


@dataclass(frozen=True)
class Cell:
    """A metric of a loss and a class over all cases and seeds.

    Attributes:
        mean: Of all cases and seeds.
        deviation: Of the same numbers (n - 1).
        count: How many there are.
        missing: In how many only the prediction or only the labels had the class.
        p: Against the baseline; None for the baseline itself and where nothing is tested.
        by_seed: The mean over cases, for each seed.
    """

    mean: float
    deviation: float
    count: int
    missing: int
    p: float | None
    by_seed: tuple[float, ...]

    @property
    def starred(self) -> bool:
        """Whether it differs from the baseline at p < 0.05."""
        return self.p is not None and self.p < SIGNIFICANT


def runs_of(experiment: Experiment, task: Task, loss: Loss, found: Mapping[str, Record]) -> list[Record]:
    """The finished runs of a task and a loss, in the order of seeds."""
    keys = [Run(task.data, task.training, loss, seed).key for seed in experiment.seeds]
    return [found[key] for key in keys if key in found]


def values(records: Sequence[Record], metric: str, missing: str = "diagonal") -> Floats:
    """`[seeds, cases, classes]` of a metric. Distances that do not exist are the image's diagonal, or `nan`."""
    stacked = np.array([getattr(record.result, metric) for record in records], np.float64)
    if metric == "hausdorff":
        diagonals = np.array([record.result.diagonals for record in records], np.float64)[..., None]
        stacked = np.where(np.isinf(stacked), diagonals if missing == "diagonal" else np.nan, stacked)
    return stacked


def cells(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> dict[str, dict[str, list[Cell]]]:
    """By loss and metric, a `Cell` for every class. Losses without a finished run are not in it.

    Against the baseline a loss is tested on the seeds that both have.
    """
    result: dict[str, dict[str, list[Cell]]] = {}
    by_loss = {loss.name: runs_of(experiment, task, loss, found) for loss in experiment.losses}
    base = by_loss.get(experiment.baseline, []) if experiment.baseline is not None else []
    for name, records in by_loss.items():
        if not records:
            continue
        result[name] = {}
        for metric in METRICS:
            tested = base if name != experiment.baseline else []
            ours, theirs = _same_seeds(records, tested)
            all_of_it = values(records, metric, experiment.missing_hausdorff)
            raw = np.array([record.result.hausdorff for record in records], np.float64)
            paired = [values(each, metric, experiment.missing_hausdorff) for each in (ours, theirs) if each]
            result[name][metric] = [
                _cell(all_of_it[..., k], raw[..., k], [each[..., k] for each in paired], experiment)
                for k in range(all_of_it.shape[2])
            ]
    return result


@dataclass(frozen=True)
class Difference:
    """A metric of one loss minus that of another, of a class: the mean over what both have, and p as in `Cell`."""

    mean: float
    p: float


def differences(
    experiment: Experiment, task: Task, first: Loss, second: Loss, found: Mapping[str, Record]
) -> dict[str, list[Difference]]:
    """By metric, the `Difference` of two losses for every class; empty if they have no seed in common."""
    one, two = _same_seeds(*(runs_of(experiment, task, loss, found) for loss in (first, second)))
    if not one:
        return {}
    result = {}
    for metric in METRICS:
        values_of = [values(each, metric, experiment.missing_hausdorff) for each in (one, two)]
        apart = values_of[0] - values_of[1]
        result[metric] = [
            Difference(float(np.nanmean(apart[..., k])), _paired([each[..., k] for each in values_of], experiment))
            for k in range(apart.shape[2])
        ]
    return result


def _paired(values_of: Sequence[Floats], experiment: Experiment) -> float:
    one, two = (_mean(each, 0) if experiment.pairs == "case" else each.ravel() for each in values_of)
    return paired_p(one, two, experiment.resamples)


def _same_seeds(first: Sequence[Record], second: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    seeds = {r.run.seed for r in first} & {r.run.seed for r in second}
    return [r for r in first if r.run.seed in seeds], [r for r in second if r.run.seed in seeds]


def _cell(given: Floats, raw: Floats, paired: list[Floats], experiment: Experiment) -> Cell:
    finite = given[np.isfinite(given)]
    p = _paired(paired, experiment) if len(paired) == 2 else None
    return Cell(
        mean=float(finite.mean()) if len(finite) else float("nan"),
        deviation=float(finite.std(ddof=1)) if len(finite) > 1 else float("nan"),
        count=len(finite),
        missing=int(np.isinf(raw).sum()),
        p=p,
        by_seed=tuple(_mean(given, 1).tolist()),
    )


def _mean(given: Floats, axis: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but nan: the mean is nan
        return np.asarray(np.nanmean(given, axis=axis), np.float64)


@dataclass(frozen=True)
class Converged:
    """How the networks of one loss ended (section 4.2).

    Attributes:
        final: Validation Dice after the last epoch, averaged over classes, of each network.
        epochs: From which epoch on each stayed at the wanted Dice; None where it did not end there.
        found: Whether each found every class: its Dice is at least 0.1 after the last epoch.
        diverged: How many had a loss that was not finite.
    """

    final: tuple[float, ...]
    epochs: tuple[int | None, ...]
    found: tuple[bool, ...]
    diverged: int

    @property
    def share(self) -> float:
        """Of the networks that converged."""
        return sum(epoch is not None for epoch in self.epochs) / len(self.epochs)


def convergence(records: Sequence[Record], wanted: float) -> Converged:
    """Which networks reached a Dice of `wanted` by the last epoch, and when for good."""
    final, epochs, found = [], [], []
    for record in records:
        # A class that no case could be scored for counts as not found.
        by_class = np.nan_to_num(np.array(record.result.dice_per_epoch, np.float64))
        found.append(bool((by_class[-1] >= FOUND).all()))
        curve = by_class.mean(axis=1)
        final.append(float(curve[-1]))
        below = np.flatnonzero(curve < wanted)
        after = int(below[-1]) + 1 if len(below) else 0
        reached = after < len(curve) and record.result.diverged is None
        epochs.append(record.result.epochs[after] if reached else None)
    diverged = sum(record.result.diverged is not None for record in records)
    return Converged(tuple(final), tuple(epochs), tuple(found), diverged)


def curves(records: Sequence[Record]) -> Floats:
    """`[runs, epochs]`: validation Dice averaged over classes; the last value goes on for a run that diverged."""
    rows = [np.nan_to_num(np.array(record.result.dice_per_epoch, np.float64)).mean(axis=1) for record in records]
    longest = max(map(len, rows))
    return np.array([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
