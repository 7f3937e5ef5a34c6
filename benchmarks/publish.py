"""README's table, docs/benchmarks.md and its pictures, made from the kept run.

    python -m benchmarks.publish              # from benchmarks/results/rwkernels-bench.json.gz
    python -m benchmarks.publish --measure    # measure everything first, on a quiet machine
    python -m benchmarks.publish --again "^distance"    # measure these cases anew, keep the others

A run that is not a full one is refused, unless `--quick-anyway` says that it is wanted. Only what lies between the
markers of a document is written.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rwkernels.bench import charts, command, drawing, results, session, summary, table
from rwkernels.bench import page as html
from rwkernels.bench.names import COMPACT, COMPILED, CROSS_ENTROPY, DENSE, DENSE_REUSED, EAGER
from rwkernels.bench.results import Run, threads_text
from rwkernels.bench.summary import HEADLINES, Found, number
from rwkernels.files import write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KEPT = RESULTS / f"{command.NAME}.json.gz"  # the JSON in a tenth of the room
README, DOCUMENT, PICTURES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
DRAWN = {
    "ratios": ("Times faster than the named peer", charts.ratio_bars),
    "times": ("Who takes how long", charts.time_bars),
    "scaling": ("How the cost grows", charts.curves),
    "roofline": ("How close to the speed of a copy", charts.roofline),
}


def replaced(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers called `name`."""
    begin, end = f"<!-- {name}: made by python -m benchmarks.publish -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected one {begin!r} ... {end!r}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table."""
    rule = ["---:" if index in right else "---" for index in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _by_threads(found: Sequence[Found]) -> dict[int, list[Found]]:
    groups: dict[int, list[Found]] = {}
    for each in found:
        groups.setdefault(each.row.threads, []).append(each)
    return dict(sorted(groups.items()))


# From so many classes on a row is told apart: SciPy's time grows with them, ours does not.
_MANY = 17


def _inputs(found: Sequence[Found]) -> str:
    inputs = list(dict.fromkeys(charts.pretty(f.row.task) for f in found))
    if len(inputs) <= 2:
        return "; ".join(inputs)
    return f"{len(inputs)} inputs of {max(f.row.num_classes for f in found)} classes and fewer"


def readme_table(run: Run) -> str:
    """One line for every headline, few classes and many: times faster with one thread and with all."""
    counts = sorted({row.threads for row in run.rows if row.axis != "threads"})
    rows = []
    for headline in HEADLINES:
        listed = summary.found(run, headline, summary.main_device(run))
        for many in (False, True):
            groups = _by_threads([f for f in listed if (f.row.num_classes >= _MANY) == many])
            if groups:
                spans = [summary.span(f.ratio.value for f in group) for group in groups.values()]
                inputs = _inputs([f for group in groups.values() for f in group])
                shown = " / ".join(spans) if len(groups) == len(counts) else f"- / {spans[0]}"
                rows.append([f"{headline.title}: {inputs}", headline.peer_text, shown])
    head = ["", "against", f"times faster, {' / '.join(threads_text(count) for count in counts)}"]
    return markdown(head, rows)


def readme_part(run: Run) -> str:
    """What stands between README's markers."""
    machine = run.machine
    met, goals = summary.goals(run)
    about = (
        f"Medians of contenders that take turns, on {machine['processors']} cores of an "
        f"{machine['cpu'].get('brand_raw') or machine['processor']} ({machine['instruction_set']}), torch "
        f"{machine['versions']['torch'].split('+')[0]}."
    )
    about = " ".join([about, *summary.caveats(run)])
    began = f"{met} of {goals} goals are met; in" if goals else "In"
    honest = (
        f"{began} {len(summary.losing(run))} of the {len(summary.raced(run))} rows in which it raced somebody else it "
        "is slower than the fastest of them ([which](docs/benchmarks.md#where-it-loses))."
    )
    honest = " ".join([honest, *_least(run), *_memory(run), took(run)])
    return f"{about}\n\n{readme_table(run)}\n\n{honest}"


def took(run: Run) -> str:
    """How long it took to measure, and what was measured twice."""
    again = f" {len(run.renewed)} of its {len(run.took)} cases were measured again later." if run.renewed else ""
    return f"This {run.scale} run took {sum(run.took.values()) / 60:.1f} minutes.{again}"


def _least(run: Run) -> list[str]:
    """Where it gains least of all headlines, and what a dense map of many classes costs."""
    listed = [each for headline in HEADLINES for each in summary.found(run, headline, summary.main_device(run))]
    if not listed:
        return []
    least = min(listed, key=lambda each: each.ratio.value)
    said = [
        f"It gains least in “{least.headline.title}” of {charts.pretty(least.row.task)} on "
        f"{threads_text(least.row.threads)}: {number(least.ratio.value)} times faster than {least.headline.peer_text}."
    ]
    dense = [row for row in run.rows if row.contender == DENSE_REUSED and row.share and row.num_classes >= _MANY]
    if dense:
        classes = dense[0].num_classes
        cost = summary.span(1 / row.share for row in dense if row.share)
        said.append(
            f"From labels to a dense map of {classes} classes it takes {cost} times as long as copying as many bytes: "
            "keep such maps compact."
        )
    return said


def _memory(run: Run) -> list[str]:
    """The peak of forward and backward, in gradients."""
    found: dict[str, list[float]] = {}
    for row in run.rows:
        if row.family == "loss" and row.peak and row.pattern != "random" and row.dtype == "float32":
            gradient = 4 * row.num_classes * math.prod(row.shape)
            found.setdefault(row.contender, []).append(row.peak / gradient)
    if not {DENSE, EAGER} <= set(found):
        return []
    ours, eager = summary.span(found[DENSE]), summary.span(found[EAGER])
    return [f"Beyond its inputs, forward and backward need the memory of {ours} gradients (eager PyTorch: {eager})."]


def _machine(run: Run) -> str:
    return markdown(["", ""], [[name, value] for name, value in html.machine_lines(run)])


def _losing(run: Run) -> str:
    lost = summary.losing(run) + summary.missed(run)
    if not lost:
        return "Nowhere in this run."
    rows = []
    for row, ratio in lost:
        goal = "" if ratio.goal is None else f"{table.SIGNS[ratio.kind]} {ratio.goal:g}"
        rows.append([charts.pretty(row.case), row.contender, str(row.threads), table.ratio_text(ratio), goal])
    return markdown(["case", "contender", "threads", "found", "goal"], rows, right=(2,))


def _unranked(run: Run) -> str:
    rows = []
    for name, reason, listed in summary.unranked(run):
        cases = sorted({charts.pretty(row.case) for row in listed})
        rows.append([name, reason, cases[0] + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")])
    return markdown(["contender", "why", "where"], rows) if rows else "Everyone was."


def _curves(run: Run) -> str:
    most = summary.best_threads(run, summary.main_device(run))
    rows = [
        [
            curve.curve,
            curve.contender,
            f"{curve.exponent:.2f}" + ("" if curve.error is None else f" ± {curve.error:.2f}"),
            str(curve.points),
            "" if curve.limit is None else f"≤ {curve.limit:g}{'' if curve.met else ', missed'}",
        ]
        for curve in run.curves
        if curve.threads in (0, most)
    ]
    return markdown(["curve", "contender", "exponent", "points", "goal"], rows, right=(2, 3))


def _all(run: Run) -> str:
    """Every case but those of the curves and of the grid, on all threads; the rest is in the JSON and the report."""
    most, parts = summary.best_threads(run, summary.main_device(run)), []
    by_case: dict[str, list[results.Row]] = {}
    for row in run.rows:
        if not row.curve and row.threads == most and not (row.family == "loss" and row.pattern == "random"):
            by_case.setdefault(row.case, []).append(row)
    for case, rows in by_case.items():
        lines = []
        for row in rows:
            cells = table.cells(row)
            lines.append([cells[0], *cells[2:]] if row.ranked else [row.contender, row.verdict, *[""] * 6])
        faster = f"times faster than {rows[0].peer}"
        head = ["contender", "median", "quartiles", faster, "quartiles", "of copy", "peak", "result"]
        parts.append(f"**{charts.pretty(case)}**\n\n{markdown(head, lines, right=range(1, 7))}")
    return "\n\n".join(parts)


def _grid(run: Run) -> str:
    """The loss over types, layouts and shapes, one line a case: all threads."""
    most, rows = summary.best_threads(run, summary.main_device(run)), []
    cases: dict[str, dict[str, results.Row]] = {}
    for row in run.rows:
        if row.family == "loss" and row.pattern == "random" and row.threads == most:
            cases.setdefault(row.case, {})[row.contender] = row
    for case, found in cases.items():
        dense, compact = found.get(DENSE), found.get(COMPACT)
        if dense is None or compact is None or not dense.ranked or not compact.ranked:
            continue
        ratios = [
            summary.against(dense, EAGER),
            summary.against(dense, COMPILED),
            summary.against(compact, CROSS_ENTROPY),
        ]
        rows.append(
            [
                charts.pretty(case.removeprefix("loss: ")),
                summary.seconds_text(dense.median),
                summary.seconds_text(compact.median),
                *("" if ratio is None else number(ratio.value) for ratio in ratios),
            ]
        )
    head = ["case", "dense", "compact", "dense: eager", "dense: torch.compile", "compact: cross_entropy"]
    return markdown(head, rows, right=range(1, 6)) if rows else "Not in this run."


def document_parts(run: Run) -> dict[str, str]:
    """What stands between the markers of docs/benchmarks.md."""
    return {
        "sentence": "\n\n".join([f"**{summary.sentence(run)}**", *summary.caveats(run), took(run)]),
        "machine": _machine(run),
        "losing": _losing(run),
        "unranked": _unranked(run),
        "exponents": _curves(run),
        "grid": _grid(run),
        "rows": _all(run),
    }


def pictures(run: Run) -> dict[str, str]:
    """The charts as files that follow the reader's colour scheme."""
    found = {}
    for name, (title, make) in DRAWN.items():
        draw = make(run)
        if draw is not None:
            found[f"{name}.svg"] = drawing.standalone(drawing.svg(f"docs-{name}", title, draw, drawing.WIDE))
    return found


def publish(run: Run) -> list[Path]:
    """Writes everything; returns the files."""
    document = DOCUMENT.read_text()
    for name, content in document_parts(run).items():
        document = replaced(document, name, content)
    written = {README: replaced(README.read_text(), "benchmark table", readme_part(run)), DOCUMENT: document}
    written |= {PICTURES / name: drawn for name, drawn in pictures(run).items()}
    for path, text in written.items():
        write(path, text)
    return list(written)


def _measured(*more: str, folder: Path = RESULTS) -> int:
    from rwkernels import cli

    return cli.main(["bench", "--save", str(folder), *more])


def _keep(text: str) -> None:
    write(KEPT, gzip.compress(text.encode(), mtime=0))


def _refused(what: str) -> int:
    print(f"publish: expected a full run, got one that is {what}; --quick-anyway publishes it", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__.split("\n\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure everything first")
    parser.add_argument("--again", metavar="EXPR", help="measure the cases that match EXPR anew, and keep the others")
    parser.add_argument("--quick", action="store_true", help="with --measure: a quick run, to try this out")
    parser.add_argument("--quick-anyway", action="store_true", help="publish a run that is not a full one")
    options = parser.parse_args(arguments)
    if options.quick and not options.quick_anyway:
        return _refused("quick")
    if options.measure:
        status = _measured(*(["--quick"] if options.quick else []))
        if status:
            return status
        _keep((RESULTS / f"{command.NAME}.json").read_text())
    if options.again is not None:
        with tempfile.TemporaryDirectory() as folder:
            status = _measured("--only", options.again, folder=Path(folder))
            if status:
                return status
            _keep(results.dumped(results.with_renewed(results.load(KEPT), results.load(Path(folder)))))
    run = results.load(KEPT)
    if (run.scale != "full" or run.interrupted) and not options.quick_anyway:
        return _refused("interrupted" if run.interrupted else run.scale)
    for path in publish(run):
        print(f"wrote {path.relative_to(ROOT)}")
    return 1 if session.failures(run) else 0


if __name__ == "__main__":
    sys.exit(main())
