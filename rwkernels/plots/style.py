"""What all figures share: colours, sizes, fonts, and how they are made without pyplot and saved."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkernels import checks
from rwkernels.extras import needs
from rwkernels.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette (2008), told apart with any colour vision; line styles and markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
TEXT, QUIET, FRAME, GRID = "#1A1F24", "#4A5560", "#8B96A1", "#DDE2E7"
SIZE = 8.0
"""Points of all text but what is smaller on purpose: what journals ask for."""

FORMATS = ("svg", "pdf", "eps", "png")


def panels(
    axes: Axes | Iterable[Any] | None, rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """`rows` times `columns` axes: new ones in a figure of `size` inches, or those that were given."""
    with needs("plot", "matplotlib", "rwkernels.plots"):
        import matplotlib  # noqa: F401

    if axes is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        made = figure.subplots(rows, columns, squeeze=False, **options)
        return figure, [list(row) for row in made]
    flat = _flattened(axes)
    if len(flat) != rows * columns:
        raise ValueError(f"axes: expected {rows * columns} ({rows} rows of {columns}), got {len(flat)}")
    figure = flat[0].figure
    return figure, [flat[row * columns : (row + 1) * columns] for row in range(rows)]


def _flattened(axes: Any) -> list[Any]:
    from matplotlib.axes import Axes

    if isinstance(axes, Axes):
        return [axes]
    if not isinstance(axes, Iterable) or isinstance(axes, str):
        raise TypeError(f"axes: expected matplotlib axes, or an array or a sequence of them, got {type(axes).__name__}")
    return [one for part in axes for one in _flattened(part)]


def style(k: int) -> dict[str, Any]:
    """Colour and dashes of the k-th line."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % len(DASHES)], "linewidth": 1.4}


def diverging() -> Any:
    """Purple for negative, white for zero, orange for positive (ColorBrewer's PuOr without its darkest ends)."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["PuOr_r"](np.linspace(0.1, 0.9, 255)))


def bar_of(bar: Any, text: str, ticks: Sequence[float]) -> None:
    """Ticks, frame and label of a colour bar."""
    bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
    bar.outline.set(edgecolor=FRAME, linewidth=0.6)
    bar.ax.tick_params(labelsize=SIZE - 1, labelcolor=TEXT, color=FRAME, width=0.6, length=2)
    bar.set_label(text, size=SIZE - 1, color=QUIET, labelpad=2)


def number(value: float) -> str:
    """Three digits, with a real minus."""
    return f"{value:.3g}".replace("-", "−")


def whole_ticks(axes: Axes) -> None:
    """Ticks of the horizontal axis at round whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))


def dress(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, and a frame that stays behind the data."""
    axes.set_xlabel(xlabel, size=SIZE, color=TEXT)
    axes.set_ylabel(ylabel, size=SIZE, color=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=FRAME, linewidth=0.6)
    axes.tick_params(labelsize=SIZE - 1, labelcolor=TEXT, color=FRAME, width=0.6, length=2.5)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)


def key(axes: Axes, **options: Any) -> None:
    """The legend."""
    axes.legend(frameon=False, fontsize=SIZE - 0.5, labelcolor=TEXT, handlelength=2.6, borderaxespad=0.3, **options)


def letters(axes: Sequence[Axes], titles: Sequence[str]) -> None:
    """Titles with the letters that a caption refers to, where there is more than one."""
    for k, (one, title) in enumerate(zip(axes, titles, strict=True)):
        text = f"({chr(ord('a') + k)}) {title}" if len(axes) > 1 else title
        one.set_title(text, size=SIZE, color=TEXT, pad=4)


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: float = 300) -> Path:
    """Writes a figure; SVG, PDF and EPS are vectors, with text that stays text.

    Args:
        figure: What a function of `rwkernels.plots` returned, or any other figure.
        path: The file; its ending is the format: `.svg`, `.pdf`, `.eps` or `.png`.
        dpi: Dots per inch of what is a picture, that is of maps, and of a PNG as a whole.

    Returns:
        The path. The file is there as a whole or not at all.

    Raises:
        ValueError: The ending is none of these, or `dpi` is no number above 0.
        OSError: The folder does not exist, or cannot be written.
    """
    with needs("plot", "matplotlib", "rwkernels.plots"):
        import matplotlib

    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(f"path: expected a name that ends in {', '.join('.' + one for one in FORMATS)}, got {path}")
    if not checks.number("dpi", dpi) > 0:
        raise ValueError(f"dpi: expected a number > 0, got {dpi}")
    buffer = io.BytesIO()
    # Without a date the same figure gives the same file.
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rwkernels", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata=undated)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent}")
    write(path, buffer.getvalue())
    return path
