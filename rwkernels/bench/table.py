"""A run as tables, for reports and documents, and what the terminal shows of it and while it is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rwkernels.bench.charts import pretty
from rwkernels.bench.compare import Change
from rwkernels.bench.registry import Case
from rwkernels.bench.results import Curve, Ratio, Row, Run, grouped, threads_text
from rwkernels.bench.summary import bytes_text, caveats, goals, losing, missed, number, seconds_text, sentence, unranked
from rwkernels.pages import Mark, Table

SIGNS = {"faster": "≥", "within": "≤", "memory": "≤"}
COLUMNS = ("contender", "threads", "median", "quartiles", "faster", "quartiles", "of copy", "peak", "result")


def ratio_text(ratio: Ratio) -> str:
    """A ratio with the peer's name."""
    what = {"faster": "×", "within": "× the time of", "memory": "×"}[ratio.kind]
    return f"{number(ratio.value)}{what} {ratio.peer}"


def goal_text(ratio: Ratio) -> str:
    """What a ratio should be; "" without a goal."""
    return "" if ratio.goal is None else f"{SIGNS[ratio.kind]} {ratio.goal:g}"


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


def by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their case."""
    return grouped(rows, lambda row: row.case)


def of_case(rows: Sequence[Row]) -> Table:
    """Every contender of a case, with the verdicts on its goals, or why it was not timed."""
    kinds = ["ours" if row.ours else "" if row.ranked else "bad" for row in rows]
    lines: list[list[Any]] = []
    for row in rows:
        marks = [Mark(ratio_text(r), goal_text(r), bool(r.met)) for r in row.ratios if r.goal is not None]
        lines.append([*cells(row), marks if row.ranked else row.reason])
    return Table([*COLUMNS, "goal"], lines, right=range(1, len(COLUMNS) - 1), kinds=kinds)


def of_curves(curves: Sequence[Curve]) -> Table:
    """The fitted exponents."""
    lines = [
        [
            curve.curve,
            curve.contender,
            str(curve.threads or "all"),
            f"{curve.exponent:.2f}" + ("" if curve.error is None else f" ± {curve.error:.2f}"),
            "" if curve.limit is None else f"≤ {curve.limit:g}{'' if curve.met else ', missed'}",
            str(curve.points),
            f"{curve.first:,} to {curve.last:,}".replace(",", " "),
        ]
        for curve in curves
    ]
    head = ("curve", "contender", "threads", "exponent", "goal", "points", "fitted from")
    kinds = ["" if curve.limit is None else "ours" if curve.met else "bad" for curve in curves]
    return Table(head, lines, right=(2, 3, 5, 6), kinds=kinds)


def of_losses(run: Run) -> Table:
    """Where this package is slower than the fastest that it raced, then where it misses a goal."""
    lines = [
        [pretty(row.case), row.contender, str(row.threads), ratio_text(ratio), goal_text(ratio)]
        for row, ratio in losing(run) + missed(run)
    ]
    return Table(("case", "contender", "threads", "found", "goal"), lines, right=(2,), kinds=["bad"] * len(lines))


def of_unranked(run: Run) -> Table:
    """Who was not timed, why, and where."""
    lines = []
    for name, reason, rows in unranked(run):
        cases = sorted({pretty(row.case) for row in rows})
        lines.append([name, reason, cases[0] + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")])
    return Table(("contender", "why", "where"), lines, right=())


def of_changes(changes: Sequence[Change]) -> Table:
    """Before and after, the ratios to the peers too: they depend least on how busy the machine was."""
    head = ("row", "before", "now", "time", "faster before", "faster now", "ratio")
    return Table(head, [change.cells() for change in changes], kinds=[change.verdict for change in changes])


# --- the terminal ----------------------------------------------------------------------------------------------

_STYLES = {"ours": "bold", "bad": "red", "slower": "red", "faster": "green"}


def _printed(console: Any, title: str, table: Table) -> None:
    from rich import markup
    from rich import table as rich_table

    def text(cell: Any) -> str:
        if isinstance(cell, str):
            return markup.escape(cell)
        words = {True: "[green]yes[/]", False: "[bold red]NO[/]"}
        return "; ".join(f"{markup.escape(mark.found)} {mark.wanted} {words[mark.met]}" for mark in cell)

    shown = rich_table.Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, (name, right) in enumerate(zip(table.head, table.numeric, strict=True)):
        last = index == len(table.head) - 1
        shown.add_column(name, justify="right" if right else "left", no_wrap=index > 0 and not last, overflow="fold")
    for row, kind in zip(table.rows, table.kinds or [""] * len(table.rows), strict=True):
        shown.add_row(*map(text, row), style=_STYLES.get(kind, ""))
    console.print(shown)
    console.print()


def show(run: Run, console: Any) -> None:
    """The whole table, family by family, then curves, goals and who is missing."""
    from rich.markup import escape

    for case, rows in by_case(row for row in run.rows if not row.curve).items():
        _printed(console, f"{escape(case)}  [dim](against {escape(rows[0].peer)})[/]", of_case(rows))
    if run.curves:
        _printed(console, "scaling: time ~ axis ^ exponent", of_curves(run.curves))
    for name, reason, where in of_unranked(run).rows:
        console.print(f"[red]not ranked[/] {escape(f'{name}: {reason} ({where})')}")
    for row, ratio in losing(run):
        console.print(f"[red]loses[/] {escape(f'{row.name}: {ratio_text(ratio)}')}")
    for row, ratio in missed(run):
        console.print(f"[red]misses[/] {escape(f'{row.name}: {ratio_text(ratio)}')}, goal {goal_text(ratio)}")
    met, all_goals = goals(run)
    if all_goals:
        console.print(f"{met} of {all_goals} goals met")
    for threads, speed in run.bandwidth.items():
        console.print(f"a large copy reads and writes {speed / 1e9:.1f} GB/s on {threads_text(threads)}")
    for text in caveats(run):
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    console.print(f"[bold]{escape(sentence(run))}[/]", soft_wrap=True)


def show_changes(earlier: Run, changes: Sequence[Change], console: Any) -> None:
    """The comparison with an earlier run."""
    cpu = earlier.machine.get("cpu", {}).get("brand_raw")
    console.print(f"earlier run: {earlier.scale}, {earlier.when[:16]}, {cpu}", soft_wrap=True, markup=False)
    if changes:
        _printed(console, "compared with the earlier run", of_changes(changes))
    else:
        console.print("the two runs have no row in common (is one of them quick?)")


class Bar:
    """A progress bar with an estimate of the time left; where nobody looks, a line now and then."""

    def __init__(self, total: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self.total, self.done, self.start, self.said = max(total, 1e-9), 0.0, time.perf_counter(), 0.0
        console = Console(stderr=True)
        self.live = console.is_terminal
        columns = ("{task.percentage:3.0f}%", BarColumn(bar_width=24), TextColumn("[dim]{task.description}"))
        self.progress = Progress(SpinnerColumn(), *columns, console=console, transient=True, disable=not self.live)
        self.task = self.progress.add_task("", total=self.total)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def left(self) -> float:
        """Seconds that are left: what is to be done at the pace so far, at the estimated pace in the beginning."""
        gone = time.perf_counter() - self.start
        return (self.total - self.done) * (gone + 10.0) / (self.done + 10.0)

    def __call__(self, case: Case, threads: int, done: float) -> None:
        """A part of a case that was estimated at `done` seconds is done."""
        self.done = min(self.done + done, self.total)
        left = self.left()
        text = f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"
        what = f"{text}: {case.id}, {threads_text(threads)}"
        self.progress.update(self.task, completed=self.done, description=what)
        now = time.perf_counter()
        if not self.live and now - self.said > 20:
            self.said = now
            print(f"{100 * self.done / self.total:3.0f} %, {what}", file=sys.stderr, flush=True)
