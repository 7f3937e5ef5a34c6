"""What the terminal shows: the table, the progress of a run, and the comparison with an earlier one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rwkernels.bench.compare import Change
from rwkernels.bench.registry import Case
from rwkernels.bench.results import Ratio, Row, Run, threads_text
from rwkernels.bench.summary import (
    bytes_text,
    caveats,
    goals,
    losing,
    missed,
    number,
    seconds_text,
    sentence,
    unranked,
)

SIGNS = {"faster": "≥", "within": "≤", "memory": "≤"}


def _goal(row: Row) -> str:
    from rich.markup import escape

    texts = []
    for ratio in row.ratios:
        if ratio.goal is not None:
            word = "[green]yes[/]" if ratio.met else "[bold red]NO[/]"
            texts.append(f"{escape(ratio_text(ratio))} {SIGNS[ratio.kind]} {ratio.goal:g} {word}")
    return "; ".join(texts)


def ratio_text(ratio: Ratio) -> str:
    """A ratio with the peer's name."""
    what = {"faster": "×", "within": "× the time of", "memory": "×"}[ratio.kind]
    return f"{number(ratio.value)}{what} {ratio.peer}"


def cells(row: Row) -> list[str]:
    """A row of the table: contender, threads, median, quartiles, ratio, its quartiles, share, peak, where
    the result goes or how many of them a second.
    """
    if not row.ranked:
        return [row.contender, str(row.threads), row.verdict, "", "", "", "", "", ""]
    low, high = row.quartiles
    once = "once, for the truth" if row.of_truth else "once"
    ratio = "" if row.ratio is None else f"{number(row.ratio)}×"
    spread = (
        "" if row.ratio_low is None or row.ratio_high is None else f"{number(row.ratio_low)}–{number(row.ratio_high)}"
    )
    return [
        row.contender,
        str(row.threads),
        seconds_text(row.median),
        f"{seconds_text(low)}–{seconds_text(high)}" if len(row.seconds) > 1 else once,
        ratio,
        spread if len(row.seconds) > 1 else "",
        "" if row.share is None else f"{100 * row.share:.0f} %",
        "" if row.peak is None else bytes_text(row.peak),
        row.buffer if row.per_second is None else f"{row.per_second:,.0f} a second".replace(",", " "),
    ]


COLUMNS = ("contender", "threads", "median", "quartiles", "faster", "quartiles", "of copy", "peak", "result")


def show(run: Run, console: Any) -> None:
    """The whole table, family by family, then curves, goals and who is missing."""
    from rich.markup import escape
    from rich.table import Table

    by_case: dict[str, list[Row]] = {}
    for row in run.rows:
        if not row.curve:
            by_case.setdefault(row.case, []).append(row)
    for case, rows in by_case.items():
        title = f"{escape(case)}  [dim](against {escape(rows[0].peer)})[/]"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for index, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if index in (0, 8) else "right", no_wrap=index != 0)
        table.add_column("goal", overflow="fold")
        for row in rows:
            style = "bold" if row.ours else "" if row.ranked else "red"
            last = _goal(row) if row.ranked else escape(row.reason)
            table.add_row(*map(escape, cells(row)), last, style=style)
        console.print(table)
        console.print()
    _show_curves(run, console)
    _show_ends(run, console)


def _show_curves(run: Run, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not run.curves:
        return
    table = Table(title="scaling: time ~ axis ^ exponent", title_justify="left", box=None, pad_edge=False)
    for column in ("curve", "contender", "threads", "exponent", "error", "points", "from", "to", "limit"):
        table.add_column(column, justify="left" if column in ("curve", "contender") else "right")
    for curve in run.curves:
        verdict = "" if curve.met is None else " [green]yes[/]" if curve.met else " [bold red]NO[/]"
        table.add_row(
            escape(curve.curve),
            escape(curve.contender),
            str(curve.threads or "all of them"),
            f"{curve.exponent:.2f}",
            "" if curve.error is None else f"±{curve.error:.2f}",
            str(curve.points),
            f"{curve.first:,}".replace(",", " "),
            f"{curve.last:,}".replace(",", " "),
            "" if curve.limit is None else f"{curve.limit:g}{verdict}",
        )
    console.print(table)
    console.print()


def _show_ends(run: Run, console: Any) -> None:
    from rich.markup import escape

    for name, reason, rows in unranked(run):
        cases = sorted({row.case for row in rows})
        where = cases[0] + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")
        console.print(f"[red]not ranked[/] {escape(f'{name}: {reason} ({where})')}")
    for row, ratio in losing(run):
        console.print(f"[red]loses[/] {escape(f'{row.name}: {ratio_text(ratio)}')}")
    for row, ratio in missed(run):
        goal = f"goal {SIGNS[ratio.kind]} {ratio.goal:g}"
        console.print(f"[red]misses[/] {escape(f'{row.name}: {ratio_text(ratio)}')}, {goal}")
    met, all_goals = goals(run)
    if all_goals:
        console.print(f"{met} of {all_goals} goals met")
    for threads, speed in run.bandwidth.items():
        console.print(f"a large copy reads and writes {speed / 1e9:.1f} GB/s on {threads_text(threads)}")
    for text in caveats(run):
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    console.print(f"[bold]{escape(sentence(run))}[/]", soft_wrap=True)


def show_changes(earlier: Run, changes: Sequence[Change], console: Any) -> None:
    """Before and after, the ratios to the peers first: they depend least on how busy the machine was."""
    from rich.markup import escape
    from rich.table import Table

    cpu = earlier.machine.get("cpu", {}).get("brand_raw")
    console.print(f"earlier run: {earlier.scale}, {earlier.when[:16]}, {cpu}", soft_wrap=True, markup=False)
    if not changes:
        console.print("the two runs have no row in common (is one of them quick?)")
        return

    table = Table(title="compared with the earlier run", title_justify="left", box=None, pad_edge=False)
    for column in ("row", "before", "now", "time", "faster before", "faster now", "ratio"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for change in changes:
        style = {"slower": "red", "faster": "green"}.get(change.verdict, "")
        table.add_row(*map(escape, change.cells()), style=style)
    console.print(table)


class Bar:
    """A progress bar with an estimate of the time left; where nobody looks, a line now and then."""

    def __init__(self, total: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self.total, self.done, self.start, self.said = max(total, 1e-9), 0.0, time.perf_counter(), 0.0
        console = Console(stderr=True)
        self.live = console.is_terminal
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.description}"),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.progress.add_task("", total=self.total, left="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def left(self) -> float:
        """Seconds that are left: what is to be done at the pace so far, at the estimated pace in the beginning."""
        gone = time.perf_counter() - self.start
        pace = (gone + 10.0) / (self.done + 10.0)
        return (self.total - self.done) * pace

    def __call__(self, case: Case, threads: int, done: float) -> None:
        """A part of a case that was estimated at `done` seconds is done."""
        self.done = min(self.done + done, self.total)
        left = self.left()
        text = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
        what = f"{case.id}, {threads_text(threads)}"
        self.progress.update(self.task, completed=self.done, description=what, left=text)
        now = time.perf_counter()
        if not self.live and now - self.said > 20:
            self.said = now
            print(f"{100 * self.done / self.total:3.0f} %, {text}: {what}", file=sys.stderr, flush=True)
