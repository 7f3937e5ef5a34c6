"""Figures of what happened during training: Fig. 3, 5 and 6 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rwkernels.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (3.5, 2.4)
"""One column of a journal, in inches."""

Floats = npt.NDArray[np.float64]


def _series(name: str, given: Any, dims: Sequence[int], meaning: str) -> dict[str, Floats]:
    """`given` as float64 arrays of one of the numbers of axes `dims`, finite and not empty."""
    if not isinstance(given, Mapping) or not given:
        raise TypeError(f"{name}: expected a mapping from names to {meaning}, got {type(given).__name__}")
    found = {}
    for key, values in given.items():
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
        if array.ndim not in dims or array.size == 0:
            raise ValueError(f"{name}[{key!r}]: expected {meaning}, got an array of shape {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}[{key!r}]: expected finite numbers, got {array[~np.isfinite(array)][0]}")
        found[str(key)] = array
    return found


def _epochs(epochs: Any, count: int, name: str) -> Floats:
    if epochs is None:
        return np.arange(1.0, count + 1)
    found = np.asarray(epochs, dtype=np.float64)
    if found.shape != (count,):
        raise ValueError(f"epochs: expected {count}, as many as {name} has, got an array of shape {list(found.shape)}")
    return found


def _whole_epochs(axes: Axes, last: float) -> None:
    style.whole_ticks(axes)
    axes.set_xlim(0, last * 1.02)


def negative_counts(
    counts: Mapping[str, Any],
    *,
    epochs: Sequence[float] | None = None,
    xlabel: str = "Epoch",
    ylabel: str | None = None,
    axes: Axes | Sequence[Axes] | None = None,
) -> Figure:
    """Negative entries of the gradient vectors during training (Fig. 3).

    Args:
        counts: By name of the map, either the mean number of negative entries in every epoch, `[epochs]`: a line each
            in one panel. Or `[epochs, n]`, how many pixels (or which part of them) had 0, 1, 2, ... negative entries,
            the rows that `rwkernels.diagnostics.sign_histogram` gives: a panel each, with the shares stacked.
        epochs: Where the values are on the horizontal axis. Default 1, 2, ...
        xlabel: Text under the horizontal axis.
        ylabel: Text at the vertical axis; by default it says which of the two is shown.
        axes: Axes to draw into: one, or as many as there are names.

    Returns:
        The figure.

    Raises:
        TypeError: `counts` is no mapping.
        ValueError: An array has another number of axes, is empty, or holds what is not finite.

    Examples:
        >>> figure = negative_counts({"RW-Boundary": [1.6, 1.5, 1.5], "RRW": [1, 1, 1]})
    """
    series = _series("counts", counts, (1, 2), "numbers [epochs] or [epochs, n]")
    if len({array.ndim for array in series.values()}) > 1:
        raise ValueError("counts: expected either [epochs] or [epochs, n] for all names, got both")
    if next(iter(series.values())).ndim == 2:
        return _stacked(series, epochs, xlabel, ylabel or "Share of pixels", axes)
    figure, [[panel]] = style.panels(axes, 1, 1, _SIZE)
    last = 0.0
    for k, (name, values) in enumerate(series.items()):
        at = _epochs(epochs, len(values), f"counts[{name!r}]")
        panel.plot(at, values, label=name, **style.style(k))
        last = max(last, float(at[-1]))
    style.dress(panel, xlabel, ylabel or "Negative entries per pixel (mean)")
    _whole_epochs(panel, last)
    panel.margins(y=0.08)
    style.key(panel, loc="best")
    return figure


# Light to dark, told apart in grey too; one negative entry, what a rectified map gives, is the quiet one.
_SHARES = ("#F0F0F0", "#CFE3F1", "#F2A65A", "#B8500F", "#5B2405", "#1E0C02")


def _stacked(series: dict[str, Floats], epochs: Any, xlabel: str, ylabel: str, axes: Any) -> Figure:
    figure, [row] = style.panels(axes, 1, len(series), (2.3 * len(series) + 0.6, 2.5), sharey=True)
    most = max(array.shape[1] for array in series.values())
    for panel, (name, values) in zip(row, series.items(), strict=True):
        total = values.sum(1, keepdims=True)
        if (values < 0).any() or (total == 0).any():
            raise ValueError(f"counts[{name!r}]: expected numbers >= 0 with at least one pixel in every epoch")
        at = _epochs(epochs, len(values), f"counts[{name!r}]")
        shares = np.pad(values / total, ((0, 0), (0, most - values.shape[1])))
        shown = [min(n, len(_SHARES) - 1) for n in range(most)]
        panel.stackplot(
            at,
            shares.T,
            colors=[_SHARES[n] for n in shown],
            labels=[str(n) for n in range(most)],
            edgecolor="white",
            linewidth=0.4,
        )
        style.dress(panel, xlabel, ylabel if panel is row[0] else "")
        panel.set_xlim(float(at[0]), float(at[-1]) if len(at) > 1 else float(at[0]) + 1)
        panel.set_ylim(0, 1)
        panel.grid(visible=False)
        style.whole_ticks(panel)
    style.letters(row, list(series))
    present = [n for n in range(most) if any(array[:, n : n + 1].any() for array in series.values())]
    handles, labels = row[0].get_legend_handles_labels()
    row[-1].legend(
        [handles[n] for n in reversed(present)],
        [labels[n] for n in reversed(present)],
        title="negative\nentries",
        title_fontsize=style.SIZE - 0.5,
        fontsize=style.SIZE - 0.5,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        handlelength=1.2,
    )
    return figure


def convergence_cdf(
    values: Mapping[str, Any],
    *,
    xlabel: str = "Dice coefficient after training",
    ylabel: str = "Share of models",
    axes: Axes | None = None,
) -> Figure:
    """Empirical distribution of a result over models trained alike but for their seed (Fig. 5, Eq. 8).

    `F(x)` is the share of the models whose value is at most `x`: a curve that stays at the right and rises late belongs
    to a loss that converges with every seed.

    Args:
        values: By name of the loss, one number per model.
        xlabel: Text under the horizontal axis.
        ylabel: Text at the vertical axis.
        axes: Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: `values` is no mapping.
        ValueError: There is no number for a name, or one that is not finite: give a model that diverged the value that
            it scores, 0 for Dice.

    Examples:
        >>> figure = convergence_cdf({"RW-Boundary": [0.0, 0.0, 0.71], "RRW": [0.86, 0.88, 0.87]})
    """
    from rwkernels.diagnostics import empirical_cdf

    series = _series("values", values, (1,), "one number per model")
    figure, [[panel]] = style.panels(axes, 1, 1, _SIZE)
    lowest = min(float(array.min()) for array in series.values())
    highest = max(float(array.max()) for array in series.values())
    room = 0.04 * ((highest - lowest) or 1.0)
    for k, (name, array) in enumerate(series.items()):
        at, share = empirical_cdf(array)
        steps = np.concatenate([[lowest - room], at, [highest + room]])
        label = f"{name} (n = {len(array)})"
        panel.step(steps, np.concatenate([[0], share, [1]]), where="post", label=label, **style.style(k))
    style.dress(panel, xlabel, ylabel)
    panel.set_xlim(lowest - room, highest + room)
    panel.set_ylim(0, 1.02)
    style.key(panel, loc="best")
    return figure


def dice_curves(
    curves: Mapping[str, Any],
    *,
    epochs: Sequence[float] | None = None,
    band: str = "std",
    xlabel: str = "Epoch",
    ylabel: str = "Dice coefficient",
    axes: Axes | None = None,
) -> Figure:
    """Dice (or another score) during training: the mean over runs, and a band around it (Fig. 6).

    Args:
        curves: By name of the loss, `[runs, epochs]`, or `[epochs]` of a single run, which has no band.
        epochs: Where the values are on the horizontal axis. Default 1, 2, ...
        band: `"std"`, the standard deviation over the runs (divided by n - 1) to both sides; or `"range"`, from the
            least run to the greatest.
        xlabel: Text under the horizontal axis.
        ylabel: Text at the vertical axis.
        axes: Axes to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: `curves` is no mapping.
        ValueError: An array has another number of axes, is empty or holds what is not finite, or `band` is unknown.

    Examples:
        >>> figure = dice_curves({"RRW": [[0.2, 0.7, 0.85], [0.3, 0.72, 0.86]], "Dice": [[0.1, 0.6, 0.84]]})
    """
    if band not in ("std", "range"):
        raise ValueError(f"band: expected 'std' or 'range', got {band!r}")
    series = _series("curves", curves, (1, 2), "numbers [runs, epochs] or [epochs]")
    figure, [[panel]] = style.panels(axes, 1, 1, _SIZE)
    last = 0.0
    for k, (name, array) in enumerate(series.items()):
        runs = np.atleast_2d(array)
        at = _epochs(epochs, runs.shape[1], f"curves[{name!r}]")
        last = max(last, float(at[-1]))
        mean = runs.mean(0)
        look = style.style(k)
        if len(runs) > 1:
            spread = runs.std(0, ddof=1)
            low, high = (mean - spread, mean + spread) if band == "std" else (runs.min(0), runs.max(0))
            panel.fill_between(at, low, high, color=look["color"], alpha=0.18, linewidth=0)
        panel.plot(at, mean, label=name, **look)
    style.dress(panel, xlabel, ylabel)
    _whole_epochs(panel, last)
    bottom, top = panel.get_ylim()
    panel.set_ylim(max(bottom, 0.0) if min(float(a.min()) for a in series.values()) >= 0 else bottom, top)
    style.key(panel, loc="best")
    return figure
