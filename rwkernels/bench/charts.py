"""The charts of a run, drawn by Matplotlib."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rwkernels.bench.drawing import FOURTH, OTHER, OURS, PAPER, PEER, QUIET, TEXT, THIRD, Page, subplots
from rwkernels.bench.harness import COPIES
from rwkernels.bench.names import COMPACT, COMPACT_REUSED, CUCIM, DENSE, EAGER, EDT_FINISH, REUSED, SCIPY
from rwkernels.bench.results import Row, Run, grouped, threads_text
from rwkernels.bench.summary import HEADLINES, best_threads, bytes_text, found, number, seconds_text


def _logarithmic_ratios(axes: Any, low: float, high: float, page: Page) -> None:
    axes.set_xscale("log")
    steps = (0.1, 1, 10, 100, 1000, 10000) if page.narrow else (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_xlim(low, high)
    _without_y(axes)


def _without_y(axes: Any) -> None:
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _seconds(value: float, _: Any) -> str:
    return seconds_text(value)


# --- bars of ratios --------------------------------------------------------------------------------------------


def ratio_bars(run: Run, device: str = "cpu") -> Callable[[Page], Any] | None:
    """How many times faster than its named peer, for every headline and case, on all threads."""
    count = best_threads(run, device)
    groups = []
    for headline in HEADLINES:
        listed = [f for f in found(run, headline, device) if f.row.threads == count]
        if headline.title.endswith("hard cases"):
            listed = sorted(listed, key=lambda f: f.ratio.value)[:: max(len(listed) - 1, 1)]  # the worst and the best
        if listed:
            groups.append((headline, listed))
    if not groups:
        return None
    top = 2.6 * max(f.ratio.value for _, listed in groups for f in listed)
    low = min(0.8, 0.8 * min(f.ratio.value for _, listed in groups for f in listed))

    def draw(page: Page) -> Any:
        from matplotlib.transforms import blended_transform_factory

        lines = sum(len(listed) + 1.25 for _, listed in groups)
        step = 0.335 if not page.narrow else 0.46
        figure, ((axes,),) = subplots(page, step * lines + 0.5)
        beside = blended_transform_factory(axes.transAxes, axes.transData)
        at = 0.0
        for headline, listed in groups:
            peer = headline.peer_text.replace("`", "")
            title = f"{headline.title}, against {peer}"
            if page.narrow:
                title = f"{headline.title}\nagainst {peer}"
                at += 0.35
            style = {"weight": "bold", "va": "center", "fontsize": 11.5, "bbox": _PLATE, "zorder": 1}
            axes.text(0, at + 0.12, title, transform=beside, **style)
            at += 1.0 if not page.narrow else 1.15
            for each in listed:
                _bar(axes, beside, at, each.ratio.value, (each.ratio.low, each.ratio.high), _label(each.row), page)
                at += 1
            at += 0.25
        axes.set_ylim(at - 0.3, -0.8)
        axes.set_yticks([])
        left = low if page.narrow else low / (top / low) ** 0.42
        _logarithmic_ratios(axes, left, top, page)
        axes.set_xticks([t for t in axes.get_xticks() if t >= low])
        axes.axvline(1, color=QUIET, linewidth=1)
        return figure

    return draw


# Keeps grid lines out of words.
_PLATE: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}


def _label(row: Row) -> str:
    return row.family.removeprefix("data loader, ") if row.family.startswith("data loader") else pretty(row.task)


def pretty(text: str) -> str:
    """Sizes like 2x128^3 with the signs of print."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text).replace("^2", "²").replace("^3", "³")


def _bar(axes: Any, beside: Any, at: float, value: float, spread: tuple[float, float], label: str, page: Page) -> None:
    good = value >= 1
    height = 0.62 if not page.narrow else 0.4
    middle = at + (0.16 if page.narrow else 0)
    axes.barh(middle, value - 1, left=1, height=height, color=OURS if good else PEER, zorder=2)
    axes.plot(spread, [middle, middle], color=TEXT, linewidth=1.3)
    where = max(value, spread[1], 1)
    axes.text(where * 1.06, middle, f"{number(value)}×", va="center", ha="left", fontsize=11, color=TEXT)
    if page.narrow:
        axes.text(0, at - 0.27, label, transform=beside, va="center", fontsize=10, color=QUIET, bbox=_PLATE, zorder=1)
    else:
        axes.text(0.012, at, label, transform=beside, va="center", fontsize=11, color=QUIET)


# --- who takes how long ----------------------------------------------------------------------------------------


def _faces(run: Run, device: str) -> list[tuple[str, list[Row]]]:
    """The cases that are shown contender by contender."""
    wanted = (("rectified map", 2), ("boundary map", 1), ("loss", 2), ("labels to gradient, boundary", 1))
    shown = []
    for family, most in wanted:
        rows = [row for row in run.of_family(family) if row.threads == best_threads(run, device)]
        rows = [row for row in rows if row.device == device and row.pattern != "random"]
        shown += list(grouped(rows, lambda row: row.case).items())[:most]
    return shown


def time_bars(run: Run, device: str = "cpu") -> Callable[[Page], Any] | None:
    """The time of every contender of some cases, those that were not ranked with the reason."""
    faces = _faces(run, device)
    if not faces:
        return None

    def draw(page: Page) -> Any:
        columns = 1 if page.narrow else 2
        lines = math.ceil(len(faces) / columns)
        longest = [max(len(rows) for _, rows in faces[i * columns : (i + 1) * columns]) for i in range(lines)]
        figure, panels = subplots(page, sum((0.46 if page.narrow else 0.3) * n + 0.95 for n in longest), lines, columns)
        for axes in panels.flat[len(faces) :]:
            axes.set_visible(False)
        for axes, (case, rows) in zip(panels.flat, faces, strict=False):
            _contenders(axes, case, rows, page)
        return figure

    return draw


def _contenders(axes: Any, case: str, rows: Sequence[Row], page: Page) -> None:
    from matplotlib.ticker import LogLocator

    timed = sorted((row for row in rows if row.ranked), key=lambda row: row.median)
    listed = [*timed, *(row for row in rows if not row.ranked)]
    least = timed[0].median / 2.5 if timed else 1e-4
    for at, row in enumerate(listed):
        middle = at + (0.2 if page.narrow else 0)
        if row.ranked:
            colour = OURS if row.ours else QUIET if row.contender in COPIES else OTHER
            axes.barh(middle, row.median, height=0.62 if not page.narrow else 0.4, color=colour, zorder=2)
            axes.plot(row.quartiles, [middle, middle], color=TEXT, linewidth=1.3)
            end = max(row.median, row.quartiles[1])
            axes.text(end * 1.12, middle, seconds_text(row.median), va="center", fontsize=10.5)
        else:
            axes.text(least * 1.1, middle, row.verdict, va="center", fontsize=10.5, color=PEER, weight="bold")
        if page.narrow:
            colour = TEXT if row.ours else QUIET
            axes.text(0, at - 0.27, row.contender, transform=axes.get_yaxis_transform(), va="center", fontsize=10,
                      color=colour, bbox=_PLATE, zorder=1)  # fmt: skip
    axes.set_yticks([] if page.narrow else range(len(rows)))
    if not page.narrow:
        axes.set_yticklabels([row.contender for row in listed], fontsize=10.5)
        for tick, row in zip(axes.get_yticklabels(), listed, strict=True):
            tick.set_color(TEXT if row.ours else QUIET)
    axes.set_xscale("log")
    axes.set_xlim(least, (timed[-1].median if timed else 1e-3) * 6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(LogLocator(numticks=5 if page.narrow else 6))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(_seconds)
    _without_y(axes)
    title = pretty(case)
    axes.set_title(title if len(title) < 36 else title.replace(": ", ":\n"), loc="left", fontsize=11.5)


# --- scaling ---------------------------------------------------------------------------------------------------

_LINES: dict[str, tuple[str, str, str]] = {
    COMPACT_REUSED: (OURS, "o", "-"),
    REUSED: (OURS, "o", "-"),
    COMPACT: (OURS, "o", "-"),
    DENSE: (THIRD, "^", "-"),
    EDT_FINISH: (FOURTH, "s", "--"),
    CUCIM: (FOURTH, "s", "--"),
    SCIPY: (PEER, "D", ":"),
    EAGER: (PEER, "D", ":"),
}
PANELS = (
    "map, pixels, 2D", "map, pixels, 3D", "loss, pixels, 2D", "loss, pixels, 3D", "map, classes", "loss, classes",
    "map, batch", "loss, batch", "map, threads", "loss, threads",
)  # fmt: skip


def curves(run: Run, device: str = "cpu") -> Callable[[Page], Any] | None:
    """Time against pixels, classes, images and threads on logarithmic axes, with the fitted exponents."""
    count = best_threads(run, device)
    shown: dict[str, dict[str, list[Row]]] = {}
    for row in run.rows:
        wanted = row.curve in PANELS and row.ranked and row.contender in _LINES and row.device == device
        if wanted and (row.threads == count or row.axis == "threads"):
            shown.setdefault(row.curve, {}).setdefault(row.contender, []).append(row)
    panels_shown = [panel for panel in PANELS if panel in shown]
    if not panels_shown:
        return None

    def draw(page: Page) -> Any:
        columns = 1 if page.narrow else 3 if len(panels_shown) > 4 else 2
        lines = math.ceil(len(panels_shown) / columns)
        figure, panels = subplots(page, 3.35 * lines, lines, columns)
        for axes in panels.flat[len(panels_shown) :]:
            axes.set_visible(False)
        for axes, panel in zip(panels.flat, panels_shown, strict=False):
            _curve(axes, panel, shown[panel])
        return figure

    return draw


def _curve(axes: Any, panel: str, lines: dict[str, list[Row]]) -> None:
    from matplotlib.ticker import LogLocator

    for contender, rows in lines.items():
        colour, marker, style = _LINES[contender]
        points = sorted(rows, key=lambda row: row.axis_value)
        exponent = points[-1].exponent
        name = contender.removesuffix(", reused buffer")
        label = name if exponent is None else f"{name}: exponent {exponent:.2f}".replace("-", "−")
        xs, ys = [row.axis_value for row in points], [row.median for row in points]
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=style, linewidth=1.7, markersize=5, label=label)
    axes.set_xscale("log", base=2 if rows[0].axis != "pixels" else 10)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * (high / low) ** (0.12 + 0.1 * len(lines)))
    if rows[0].axis != "pixels":
        values = sorted({row.axis_value for listed in lines.values() for row in listed})
        axes.set_xticks(values if len(values) < 7 else values[::2])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_seconds)
    family, axis, *rest = panel.split(", ")
    axes.set_title(
        f"{'rectified map' if family == 'map' else 'loss and gradient'}, {axis}{' ' + rest[0] if rest else ''}"
    )
    axes.legend(loc="upper left", fontsize=9.5, labelcolor=QUIET, handlelength=2.2, borderaxespad=0.1)


# --- roofline --------------------------------------------------------------------------------------------------


def roofline(run: Run, device: str = "cpu") -> Callable[[Page], Any] | None:
    """Bytes that have to be moved against time: whoever lies on the line runs at the speed of a copy."""
    count = best_threads(run, device)
    kinds = (
        ("rwkernels: loss", OURS, "o", ("loss", "loss kernel"), True),
        ("rwkernels: maps", THIRD, "^", ("distance", "rectified map", "boundary map", "hard distance"), True),
        ("rwkernels: labels to gradient", FOURTH, "s",
         ("labels to gradient, rectified", "labels to gradient, boundary"), True),
        ("everyone else", OTHER, "x", ("loss", "distance", "rectified map", "boundary map", "hard distance",
                                       "labels to gradient, rectified", "labels to gradient, boundary"), False),
    )  # fmt: skip
    rows = [
        r for r in run.rows if r.ranked and r.threads == count and r.device == device and "reference" not in r.contender
    ]
    rows = [row for row in rows if row.contender not in COPIES and any(row.family in kind[3] for kind in kinds)]
    copies = _copies([r for r in run.rows if r.contender in COPIES and r.threads == count and r.device == device])
    if not rows or not copies:
        return None

    def draw(page: Page) -> Any:
        figure, ((axes,),) = subplots(page, 5.6 if not page.narrow else 5.4)
        axes.plot(
            *zip(*copies, strict=True), color=TEXT, linewidth=1.6, label="a copy of as many bytes, measured in turns"
        )
        for label, colour, marker, families, own in kinds:
            points = [(row.moved, row.median) for row in rows if row.family in families and row.ours == own]
            if points:
                axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=24, label=label, alpha=0.85,
                             linewidths=1.1 if marker == "x" else 0)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.28)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: bytes_text(value, "g"))
        axes.yaxis.set_major_formatter(_seconds)
        axes.set_xlabel("bytes that have to be read and written")
        axes.set_title(f"time, {threads_text(count)}" if device == "cpu" else "time")
        axes.legend(loc="upper left", fontsize=10, labelcolor=QUIET)
        return figure

    return draw


def _copies(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Copies of similarly many bytes, four groups a decade, each as its median."""
    groups = grouped([row for row in rows if row.ranked], lambda row: round(4 * math.log10(row.moved)))
    return [
        (statistics.median(row.moved for row in group), statistics.median(row.median for row in group))
        for _, group in sorted(groups.items())
    ]


CHARTS = {"ratios": ratio_bars, "times": time_bars, "scaling": curves, "roofline": roofline}
"""By the name of their section and file: what draws them, or None where a run has nothing to show."""
