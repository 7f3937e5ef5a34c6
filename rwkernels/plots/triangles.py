"""Gradients over the softmax simplex of three classes: Fig. 2 and 4 of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from rwkernels import checks
from rwkernels.diagnostics import cross_entropy_gradient, negative_shares, simplex_grid
from rwkernels.diagnostics import simplex_gradient as gradient
from rwkernels.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Class 0 at the lower left, 1 at the lower right, 2 at the top.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
_STEPS = 60
_LEVELS = 15
_COUNT_COLOURS = ("#F0F0F0", "#CFE3F1", "#F2A65A")

Points = npt.NDArray[np.float64]


def simplex_gradient(
    z: Sequence[float],
    *,
    true_class: int | None = None,
    against: str | None = None,
    class_names: Sequence[str] | None = None,
    axes: Axes | Iterable[Any] | None = None,
) -> Figure:
    """The gradient of one pixel with map values `z`, over all its softmax probabilities (Fig. 2).

    A triangle per gradient entry, and one that says how many entries are negative, with the exact part of the simplex.
    With `against="cross_entropy"` a second row shows the same of cross-entropy (Fig. 4), on a scale of its own: the
    gradient of cross-entropy is largest where the true class has no probability, and that of the region-wise loss is 0
    there.

    Args:
        z: Map values of the pixel, three numbers.
        true_class: The pixel's class, for the titles and for cross-entropy. Default the class of the least value.
        against: None or `"cross_entropy"`.
        class_names: A name for every class. Default 1, 2, 3, as in the paper.
        axes: Axes to draw into: 4, or 8 in two rows.

    Returns:
        The figure. Purple is negative, which gradient descent answers by raising the class's logit; the thin line is 0.

    Raises:
        ValueError: `z` is not three finite numbers, or another argument is not one of those expected.

    Examples:
        >>> figure = simplex_gradient([12, 4, -3])
        >>> figure = simplex_gradient([-1, 1, 1], against="cross_entropy")
    """
    numbers = [float(value) for value in z]
    if len(numbers) != 3:
        raise ValueError(f"z: expected 3 numbers, got {len(numbers)}: {z!r}")
    if against is not None:
        checks.choice("against", against, ("cross_entropy",))
    true = int(np.argmin(numbers)) if true_class is None else checks.integer("true_class", true_class)
    if not 0 <= true < 3:
        raise ValueError(f"true_class: expected 0, 1 or 2, got {true}")
    names = ["1", "2", "3"] if class_names is None else [str(name) for name in class_names]
    if len(names) != 3:
        raise ValueError(f"class_names: expected 3, got {len(names)}")
    rows = 1 if against is None else 2
    figure, grid = style.panels(axes, rows, 4, (7.2, 1.75 * rows))
    y = simplex_grid(_STEPS)
    shown = ", ".join(f"{value:g}".replace("-", "−") for value in numbers)
    _entries(figure, grid[0], y, gradient(numbers, y), names, true, f"region-wise, z = ({shown})")
    _counts(grid[0][3], numbers, names)
    if against is not None:
        _entries(figure, grid[1], y, cross_entropy_gradient(true, y), names, true, "cross-entropy")
        _cross_entropy_counts(grid[1][3], names)
    return figure


def _entries(
    figure: Figure,
    panels: Sequence[Axes],
    y: torch.Tensor,
    values: torch.Tensor,
    names: Sequence[str],
    true: int,
    what: str,
) -> None:
    """The three entries of one gradient, on one scale."""
    at = y.numpy() @ _CORNERS
    reach = float(values.abs().max()) or 1.0
    levels = np.linspace(-reach, reach, 2 * _LEVELS + 1)
    drawn: Any = None
    for k in range(3):
        panel, entry = panels[k], values[:, k].numpy()
        drawn = panel.tricontourf(at[:, 0], at[:, 1], entry, levels=levels, cmap=style.diverging())
        drawn.set_edgecolor("face")  # viewers show seams between areas that only touch
        drawn.set_linewidth(0.2)
        if entry.min() < 0 < entry.max():
            panel.tricontour(at[:, 0], at[:, 1], entry, levels=[0.0], colors=style.TEXT, linewidths=0.6)
        _frame(panel, names)
        mark = " (true)" if k == true else ""
        panel.set_title(f"class {names[k]}{mark}", size=style.SIZE, color=style.TEXT, pad=9)
    bar = figure.colorbar(drawn, ax=list(panels[:3]), location="left", shrink=0.72, aspect=12, pad=0.02)
    style.bar_of(bar, f"gradient\n{what}", [-reach, -reach / 2, 0.0, reach / 2, reach])


def _frame(panel: Axes, names: Sequence[str]) -> None:
    """The triangle's edge and its corners' names; no other axes."""
    panel.set_axis_off()
    panel.set_aspect("equal")
    panel.set_xlim(-0.12, 1.12)
    panel.set_ylim(-0.13, 0.98)
    closed = np.vstack([_CORNERS, _CORNERS[:1]])
    panel.plot(closed[:, 0], closed[:, 1], color=style.TEXT, linewidth=0.6, solid_joinstyle="miter")
    for k, (dx, dy, across, up) in enumerate(
        ((-0.02, -0.03, "center", "top"), (0.02, -0.03, "center", "top"), (0, 0.02, "center", "bottom"))
    ):
        x, y = _CORNERS[k] + (dx, dy)
        text = f"$y_{{{names[k]}}} = 1$" if names[k].isdigit() else names[k]
        panel.text(x, y, text, ha=across, va=up, size=style.SIZE - 1.5, color=style.QUIET)


def _above(z: Sequence[float], threshold: float) -> Points:
    """The corners, as probabilities, of the part of the simplex where `sum y z > threshold`."""
    kept: list[Points] = []
    for k in range(3):
        here, there = z[k] - threshold, z[(k + 1) % 3] - threshold
        a, b = np.eye(3)[k], np.eye(3)[(k + 1) % 3]
        if here >= 0:
            kept.append(a)
        if here * there < 0:
            kept.append(a + (b - a) * here / (here - there))
    return np.array(kept).reshape(-1, 3)


def _counts(panel: Axes, z: Sequence[float], names: Sequence[str]) -> None:
    """How many entries are negative: the part with at least n of them lies on one side of a straight line."""
    shares = negative_shares(z)
    panel.fill(*_CORNERS.T, color=_COUNT_COLOURS[0], linewidth=0)
    for n, threshold in enumerate(sorted(z)[:2], start=1):
        corners = _above(z, threshold)
        if sum(shares[n:]) > 0 and len(corners) >= 3:
            panel.fill(*(corners @ _CORNERS).T, color=_COUNT_COLOURS[n], linewidth=0)
    _frame(panel, names)
    _tell(panel, shares, _centres(z, shares))


def _cross_entropy_counts(panel: Axes, names: Sequence[str]) -> None:
    panel.fill(*_CORNERS.T, color=_COUNT_COLOURS[1], linewidth=0)
    _frame(panel, names)
    _tell(panel, [Fraction(0), Fraction(1), Fraction(0)], [_CORNERS.mean(0)] * 3)


def _centres(z: Sequence[float], shares: Sequence[Fraction]) -> list[Points]:
    """The centre of gravity of the part of the triangle with 0, 1 and 2 negative entries."""
    ordered = sorted(z)
    areas, moments = [1.0], [_CORNERS.mean(0)]
    for threshold in ordered:
        area, centre = _gravity(_above(z, threshold) @ _CORNERS)
        areas.append(area)
        moments.append(area * centre)
    return [
        (moments[n] - moments[n + 1]) / max(areas[n] - areas[n + 1], 1e-9) if shares[n] else _CORNERS.mean(0)
        for n in range(3)
    ]


def _gravity(corners: Points) -> tuple[float, Points]:
    """Area, as a part of the triangle's, and centre of gravity of a convex polygon."""
    area, moment = 0.0, np.zeros(2)
    for k in range(1, len(corners) - 1):
        a, b, c = corners[0], corners[k], corners[k + 1]
        part = abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])) / (np.sqrt(3) / 2)
        area, moment = area + part, moment + part * (a + b + c) / 3
    return area, moment / area if area else moment


def _tell(panel: Axes, shares: Sequence[Fraction], centres: Sequence[Points]) -> None:
    """Writes into every part how many entries are negative there, and how large it is; beside it where it is small."""
    panel.set_title("negative entries", size=style.SIZE, color=style.TEXT, pad=9)
    small = []
    for n, share in enumerate(shares):
        text = f"{n}\neverywhere" if share == 1 else f"{n}\non {_share_text(share)}"
        if share > Fraction(1, 8):
            x, y = centres[n]
            panel.text(x, y, text, ha="center", va="center", size=style.SIZE - 1, color=style.TEXT)
        elif share:
            small.append(text.replace("\n", " "))
    if small:
        panel.text(0.86, 0.62, "\n".join(small), ha="center", va="center", size=style.SIZE - 1, color=style.TEXT)


def _share_text(share: Fraction) -> str:
    return str(share) if share.denominator < 1000 else f"{float(share):.3g}"
