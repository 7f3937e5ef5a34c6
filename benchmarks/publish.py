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
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rwkernels.bench import charts, command, drawing, page, results, session, summary, table
from rwkernels.bench.names import COMPACT, COMPILED, CROSS_ENTROPY, DENSE, DENSE_REUSED, EAGER
from rwkernels.bench.results import Run, threads_text
from rwkernels.bench.summary import HEADLINES, Found, number
from rwkernels.files import write
from rwkernels.pages import Block, Table, Text, markdown, replaced

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KEPT = RESULTS / f"{command.NAME}.json.gz"  # the JSON in a tenth of the room
README, DOCUMENT, PICTURES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
COMMAND = "python -m benchmarks.publish"
TITLES = {**page.TITLES, "ratios": "Times faster than the named peer", "roofline": "How close to the speed of a copy"}


def _by_threads(found: Sequence[Found]) -> dict[int, list[Found]]:
    return dict(sorted(results.grouped(found, lambda each: each.row.threads).items()))


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
    return markdown([Table(head, rows, right=())])


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
        if row.family == "loss" and row.peak and not summary.of_grid(row) and row.dtype == "float32":
            gradient = 4 * row.num_classes * math.prod(row.shape)
            found.setdefault(row.contender, []).append(row.peak / gradient)
    if not {DENSE, EAGER} <= set(found):
        return []
    ours, eager = summary.span(found[DENSE]), summary.span(found[EAGER])
    return [f"Beyond its inputs, forward and backward need the memory of {ours} gradients (eager PyTorch: {eager})."]


def _all(run: Run) -> str:
    """Every case but those of the curves and of the grid, on all threads; the rest is in the JSON and the report."""
    most = summary.best_threads(run, summary.main_device(run))
    shown = [row for row in run.rows if not row.curve and row.threads == most and not summary.of_grid(row)]
    blocks: list[Block] = []
    for case, rows in table.by_case(shown).items():
        found = table.of_case(rows).columns(0, 2, 3, 4, 5, 6, 7, 8)
        faster = f"times faster than {rows[0].peer}"
        blocks.append(Text(f"**{charts.pretty(case)}**"))
        blocks.append(replace(found, head=["contender", "median", "quartiles", faster, *found.head[4:]]))
    return markdown(blocks)


def _grid(run: Run) -> str:
    """The loss over types, layouts and shapes, one line a case: all threads."""
    most, rows = summary.best_threads(run, summary.main_device(run)), []
    shown = table.by_case(row for row in run.rows if summary.of_grid(row) and row.threads == most)
    for case, raced in shown.items():
        found = {row.contender: row for row in raced}
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
    return markdown([Table(head, rows)]) if rows else "Not in this run."


def document_parts(run: Run) -> dict[str, str]:
    """What stands between the markers of docs/benchmarks.md."""
    most = summary.best_threads(run, summary.main_device(run))
    lost, unranked = table.of_losses(run), table.of_unranked(run)
    curves = table.of_curves([curve for curve in run.curves if curve.threads in (0, most)])
    return {
        "sentence": "\n\n".join([f"**{summary.sentence(run)}**", *summary.caveats(run), took(run)]),
        "machine": markdown([Table(["", ""], page.machine_lines(run), right=())]),
        "losing": markdown([lost]) if lost.rows else "Nowhere in this run.",
        "unranked": markdown([unranked]) if unranked.rows else "Everyone was.",
        "exponents": markdown([curves.columns(0, 1, 3, 5, 4)]),
        "grid": _grid(run),
        "rows": _all(run),
    }


def pictures(run: Run) -> dict[str, str]:
    """The charts as files that follow the reader's colour scheme."""
    found = {}
    for name, make in charts.CHARTS.items():
        draw = make(run)
        if draw is not None:
            found[f"{name}.svg"] = drawing.standalone(drawing.svg(f"docs-{name}", TITLES[name], draw, drawing.WIDE))
    return found


def publish(run: Run) -> list[Path]:
    """Writes everything; returns the files."""
    written = {
        README: replaced(README.read_text(), {"benchmark table": readme_part(run)}, COMMAND),
        DOCUMENT: replaced(DOCUMENT.read_text(), document_parts(run), COMMAND),
    }
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
