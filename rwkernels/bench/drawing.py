"""How a chart looks, and how it becomes SVG whose colours are CSS variables: one drawing serves light and dark.

Every chart is drawn twice, wide and for a phone; the page shows the one that fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rwkernels import pages

# Placeholders that the drawing is made in, and the CSS variables they become.
TEXT, QUIET, GRID, OURS, PEER, THIRD, FOURTH, OTHER, PAPER = (
    "#010203", "#010204", "#010205", "#010206", "#010207", "#010208", "#010209", "#01020a", "#01020b",
)  # fmt: skip
VARIABLES = {
    TEXT: "--text", QUIET: "--quiet", GRID: "--grid", OURS: "--ours", PEER: "--peer", THIRD: "--third",
    FOURTH: "--fourth", OTHER: "--other", PAPER: "--paper",
}  # fmt: skip
# Okabe & Ito's palette (2008), told apart with any colour vision; light and dark.
COLOURS = {
    "--text": ("#1b242d", "#e8edf2"),
    "--quiet": ("#57636f", "#9fb0bf"),
    "--grid": ("#dde3e9", "#2f3b47"),
    "--ours": ("#0072b2", "#56b4e9"),
    "--peer": ("#d55e00", "#f0883e"),
    "--third": ("#009e73", "#2fc79a"),
    "--fourth": ("#a8568a", "#e08fc0"),
    "--other": ("#8794a0", "#7a8896"),
    "--paper": ("#ffffff", "#12181e"),
}


@dataclass(frozen=True)
class Page:
    """How wide a chart may be, in inches at 72 units an inch, and which of the two it is."""

    name: str
    width: float

    @property
    def narrow(self) -> bool:
        """For a phone."""
        return self.name == "narrow"


WIDE, NARROW = Page("wide", 12.6), Page("narrow", 4.9)


def subplots(page: Page, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A Matplotlib figure as wide as the page, and its axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, hspace=0.06, wspace=0.05)
    drawn = Figure(figsize=(page.width, height), layout=engine)
    return drawn, drawn.subplots(rows, columns, squeeze=False)


_STYLE: dict[Any, Any] = {
    "font.size": 11.5,
    "text.color": TEXT,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": GRID,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}


def svg(name: str, title: str, draw: Callable[[Page], Any], page: Page) -> str:
    """The SVG element of a chart, without a prologue."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        drawn = pages.svg(draw(page), f"{name}-{page.name}", fonttype="none")
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    for placeholder, variable in VARIABLES.items():
        drawn = drawn.replace(placeholder, f"var({variable})")
    drawn = re.sub(r"font: (bold |)([\d.]+)px [^;\"]*", r"font: \g<1>\2px var(--font)", drawn)
    drawn = re.sub(r"(\d+\.\d{2})\d+", r"\1", drawn)
    drawn = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg xmlns="http://www.w3.org/2000/svg" '
                   rf'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img" class="chart">'
                   rf"<title>{title}</title>", drawn, count=1)  # fmt: skip
    return re.sub(r"\n\s*", "\n", drawn)


def variables() -> tuple[str, str]:
    """The colours as declarations of CSS, light and dark."""
    light, dark = (";".join(f"{name}:{shades[i]}" for name, shades in COLOURS.items()) for i in (0, 1))
    return light, dark


def standalone(drawn: str) -> str:
    """A file of its own that follows the reader's colour scheme."""
    light, dark = variables()
    style = (
        f"<style>svg{{--font:system-ui,sans-serif;{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    return re.sub(r"(<svg [^>]*>)", rf"\1{style}", drawn, count=1) + "\n"
