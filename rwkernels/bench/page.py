"""The report: one HTML file that needs nothing else, no JavaScript, for wide and narrow screens, light and dark."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Callable, Sequence
from string import Template
from typing import Any

from rwkernels.bench import charts, drawing
from rwkernels.bench.compare import Change
from rwkernels.bench.harness import EFFORTS
from rwkernels.bench.registry import LINEAR
from rwkernels.bench.results import Row, Run, threads_text
from rwkernels.bench.summary import (
    best_threads,
    bytes_text,
    caveats,
    counted,
    goals,
    losing,
    missed,
    seconds_text,
    sentence,
    told,
    unranked,
)
from rwkernels.bench.table import COLUMNS, SIGNS, cells, ratio_text

Draw = Callable[[drawing.Page], Any]


def escape(text: object) -> str:
    """Text for HTML."""
    return html.escape(str(text))


def _chart(name: str, title: str, note: str, draw: Draw | None) -> str:
    if draw is None:
        return ""
    drawn = [
        f'<div class="{page.name}">{drawing.svg(name, title, draw, page)}</div>'
        for page in (drawing.WIDE, drawing.NARROW)
    ]
    return f'<section id="{name}"><h2>{escape(title)}</h2><p class="note">{note}</p>{"".join(drawn)}</section>'


def _tiles(run: Run) -> str:
    """A few large numbers."""
    tiles = [
        f"<li><b>{times.replace(' to ', '–')}×</b><span>{escape(text)}</span></li>" for text, times in told(run, "tile")
    ]
    return f'<ul class="tiles">{"".join(tiles)}</ul>' if tiles else ""


def _honest(run: Run) -> str:
    met, all_goals = goals(run)
    lost = losing(run)
    words = [f"{len({row.case for row in run.rows})} cases, {sum(row.ranked for row in run.rows)} rows."]
    if all_goals:
        words.append(f"{met} of {all_goals} goals met.")
    words.append(f'<a href="#losing">{counted(len(lost), "row")} slower than somebody else</a>.' if lost else "")
    names = unranked(run)
    words.append(
        f'<a href="#unranked">{counted(len(names), "contender")} not ranked</a>: missing, or wrong.' if names else ""
    )
    words += [f"<strong>{escape(text)}</strong>" for text in caveats(run)]
    return " ".join(word for word in words if word)


# --- tables ----------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: Sequence[int] = (0,)) -> str:
    """A table; every row comes with its class, cells are HTML already."""

    def line(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{'' if i in left else ' class=n'}>{value}</{tag}>" for i, value in enumerate(values))

    body = "".join(f"<tr{f' class={kind}' if kind else ''}>{line('td', values)}</tr>" for kind, values in rows)
    return f'<div class="scroll"><table><thead><tr>{line("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _case_table(case: str, rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = []
    for row in rows:
        kind = "ours" if row.ours else "" if row.ranked else "bad"
        values = [escape(value) for value in cells(row)]
        marks = [
            f'{escape(ratio_text(r))} <b class="{"yes" if r.met else "no"}">{SIGNS[r.kind]} {r.goal:g} '
            f'{"✓" if r.met else "missed"}</b>'
            for r in row.ratios
            if r.goal is not None
        ]  # fmt: skip
        lines.append((kind, [*values, "<br>".join(marks) if row.ranked else escape(row.reason)]))
    shape = "×".join(map(str, first.shape))
    about = f"labels {shape}, {first.num_classes} classes, {first.dtype}, {first.layout}; ratios against {first.peer}"
    head = [*COLUMNS, "goal"]
    table = _table(head, lines, (0, len(COLUMNS) - 1, len(COLUMNS)))
    return f"<h3>{escape(charts.pretty(case))}</h3><p class=note>{escape(about)}</p>{table}"


def _tables(run: Run) -> str:
    families: dict[str, dict[str, list[Row]]] = {}
    for row in run.rows:
        family = "scaling" if row.curve else row.family
        families.setdefault(family, {}).setdefault(row.case, []).append(row)
    parts = []
    for family, by_case in families.items():
        inner = "".join(_case_table(case, rows) for case, rows in by_case.items())
        head = f"{escape(family)} <span>{counted(len(by_case), 'case')}</span>"
        parts.append(f"<details><summary>{head}</summary>{inner}</details>")
    return "".join(parts)


def _curves(run: Run) -> str:
    if not run.curves:
        return ""
    lines = []
    for curve in run.curves:
        error = "" if curve.error is None else f" ± {curve.error:.2f}"
        met = "" if curve.met is None else " ✓" if curve.met else " missed"
        limit = "" if curve.limit is None else f"≤ {curve.limit:g}{met}"
        reach = f"{curve.first:,} to {curve.last:,}".replace(",", " ")
        values = [
            curve.curve,
            curve.contender,
            curve.threads or "all",
            f"{curve.exponent:.2f}{error}",
            limit,
            curve.points,
            reach,
        ]
        lines.append(("ours" if limit else "", [escape(value) for value in values]))
    head = ("curve", "contender", "threads", "exponent", "limit", "points", "fitted from")
    table = _table(head, lines, (0, 1))
    return f"<details><summary>all fitted exponents <span>{len(run.curves)}</span></summary>{table}</details>"


def _losing(run: Run) -> str:
    lost = losing(run) + missed(run)
    if not lost:
        return ""
    lines = []
    for row, ratio in lost:
        goal = "" if ratio.goal is None else f"{SIGNS[ratio.kind]} {ratio.goal:g}"
        cell = [row.case, row.contender, threads_text(row.threads), ratio_text(ratio), goal]
        lines.append(("bad", [escape(value) for value in cell]))
    table = _table(("case", "contender", "threads", "found", "goal"), lines, (0, 1, 2, 3, 4))
    if len(lines) > 12:
        table = f"<details><summary>all of them <span>{len(lines)}</span></summary>{table}</details>"
    note = (
        "Every row of this package that is slower than somebody it raced, once, against the fastest of them; then the "
        "goals that are missed. Small inputs lose to the cost of the call itself."
    )
    return f'<section id="losing"><h2>Where it loses, or misses a goal</h2><p class="note">{note}</p>{table}</section>'


def _unranked(run: Run) -> str:
    groups = unranked(run)
    if not groups:
        return ""
    lines = []
    for name, reason, rows in groups:
        where = sorted({row.case for row in rows})
        text = where[0] + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        lines.append(("", [escape(name), escape(reason), escape(text)]))
    note = "Every answer is checked before it is timed. A wrong one is named, and takes no part in the race."
    table = _table(("contender", "why", "where"), lines, (0, 1, 2))
    return f'<section id="unranked"><h2>Not ranked</h2><p class="note">{note}</p>{table}</section>'


def _compared(changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    lines = [(change.verdict, [escape(cell) for cell in change.cells()]) for change in changes]
    head = ("row", "before", "now", "time", "faster before", "faster now", "ratio")
    note = "Slower and faster ones first: those whose quartiles do not overlap and that differ by 10 % or more."
    return f'<section><h2>Against the earlier run</h2><p class="note">{note}</p>{_table(head, lines)}</section>'


def machine_lines(run: Run) -> list[tuple[str, str]]:
    """The machine and the versions, name by name."""
    machine = run.machine
    cpu = machine["cpu"]
    copies = ", ".join(f"{speed / 1e9:.1f} GB/s on {threads_text(n)}" for n, speed in run.bandwidth.items())
    versions = {name: version for name, version in machine["versions"].items() if version}
    listed = [
        ("processor", f"{cpu.get('brand_raw') or machine['processor']}, {machine['processors']} usable"),
        ("instruction set of the C++ core", machine.get("instruction_set") or "the compiled core is missing"),
        ("system", f"{machine['system']} {machine['release']}, Python {machine['python_version']}"),
        ("a large copy reads and writes", copies),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("not installed", ", ".join(name for name, version in machine["versions"].items() if not version) or "nothing"),
    ]
    if "gpu" in machine:
        gpu = machine["gpu"]
        clocks = ", ".join(
            f"{k} {gpu[k]}" for k in ("sm_clock_mhz", "sm_clock_max_mhz", "memory_clock_mhz") if k in gpu
        )
        listed.insert(1, ("GPU", f"{gpu['name']}, {bytes_text(gpu['memory'])}; {clocks}"))
        if "copy_bytes_per_second" in gpu:
            listed.insert(2, ("a large copy on the GPU", f"{gpu['copy_bytes_per_second'] / 1e9:.0f} GB/s"))
    else:
        listed.insert(1, ("GPU", "none, so there are no rows of one"))
    took = sum(run.took.values())
    listed.append(
        ("this run", f"{run.when[:10]}, {run.scale}, {took / 60:.1f} minutes (estimated {run.estimated / 60:.0f})")
    )
    return listed


def _machine(run: Run) -> str:
    lines = [("", [escape(name), escape(value)]) for name, value in machine_lines(run)]
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for _, (name, value) in lines)
    return f"<dl>{body}</dl>"


METHOD = (
    "Contenders of a case take turns (A B C, A B C, …) in one process, so whatever else the machine does hits them "
    "all. A turn is one run, or the median of as many as fit into {turn:g} ms. A ratio is the median of the ratios "
    "turn by turn, its spread their quartiles. Slow ones take three turns (from {slow} s) or one (from {once} s): "
    "“once”. SciPy's run that gives the truth is not repeated if it takes {once} s: “once, for the truth”. On a CPU "
    "everyone else runs twice before the turns, once checked and once to warm up.",
    "Every answer is checked before it is timed: distances and maps against SciPy or a closed form, or against an "
    "independent implementation where SciPy would take minutes; losses and gradients against float64.",
    "What a library needs in another form (one-hot masks, its own image type, labels + 1) is made before and not "
    "timed. All libraries are set to the same number of threads; SciPy has one only. OpenCV, SimpleITK and "
    "DIPlib are asked "
    "for exact distances and for a border that is no boundary.",
    "“Of copy”: the least that must be read and written, over the time, as a share of the speed of a copy of as "
    "many bytes that takes turns with the others. “Peak”: memory at the peak of a run beyond its inputs, in a "
    "process of its own. Fresh and reused buffers are separate rows.",
    "float16 losses are scaled by 65536 for everyone, as in training. Maps are float32, labels of the loss rows int64.",
    "Exponents are fitted by least squares on logarithms to sizes from 60 000 pixels on; below, the call itself costs. "
    "The limit for ours is {linear}, and is kept if the exponent less twice its standard error is no more.",
    "On a GPU times are CUDA events after the checked and 3 warm-up runs, with the L2 cache overwritten before every "
    "run.",
)


def method() -> list[str]:
    """How it is measured, paragraph by paragraph."""
    full = EFFORTS["full"]
    return [
        text.format(turn=1e3 * full.turn, slow=f"{full.slow:g}", once=f"{full.once:g}", linear=LINEAR)
        for text in METHOD
    ]


def _device_charts(run: Run, device: str) -> str:
    where = " (GPU)" if device == "cuda" else ""
    tag = "" if device == "cpu" else "-gpu"
    threads = threads_text(best_threads(run, device)) if device == "cpu" else "CUDA events"
    return "".join(
        (
            _chart(
                f"ratios{tag}", f"Times faster{where}",
                f"Against the named peer, {threads}, on a logarithmic axis. The line across the end of a bar spans the "
                "quartiles. Of the hard cases the worst and the best are shown.",
                charts.ratio_bars(run, device),
            ),
            _chart(
                f"times{tag}", f"Who takes how long{where}",
                f"Median time of everyone on the same input, {threads}, on logarithmic axes. The copy is of "
                f"as many bytes "
                "as must be read and written.",
                charts.time_bars(run, device),
            ),
            _chart(
                f"scaling{tag}", f"How the cost grows{where}",
                "Time against size on logarithmic axes; an exponent of 1 means that twice as much takes twice as long, "
                "0 that it costs nothing more.",
                charts.curves(run, device),
            ),
            _chart(
                f"roofline{tag}", f"How close to the limit{where}",
                "Nobody is faster than reading the inputs and writing the results. On the line: as fast as copying.",
                charts.roofline(run, device),
            ),
        )
    )  # fmt: skip


def page(run: Run, changes: Sequence[Change] = ()) -> str:
    """The whole file."""
    template = Template(importlib.resources.files("rwkernels.bench").joinpath("page.html").read_text(encoding="utf-8"))
    devices = [device for device in ("cuda", "cpu") if any(row.device == device for row in run.rows)]
    light, dark = (";".join(f"{name}:{c[i]}" for name, c in drawing.COLOURS.items()) for i in (0, 1))
    return template.substitute(
        light=light,
        dark=dark,
        sentence=escape(sentence(run)),
        tiles=_tiles(run),
        honest=_honest(run),
        charts="".join(_device_charts(run, device) for device in devices),
        curves=_curves(run),
        compared=_compared(changes),
        losing=_losing(run),
        unranked=_unranked(run),
        tables=_tables(run),
        method="".join(f"<p>{escape(text)}</p>" for text in method()),
        machine=_machine(run),
        version=escape(run.machine["versions"]["rwkernels"]),
        when=escape(run.when[:10]),
        slowest=escape(seconds_text(max(run.took.values(), default=0.0))),
    )
