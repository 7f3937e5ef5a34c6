"""The report: one HTML file that needs nothing else, no JavaScript, for wide and narrow screens, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rwkernels import pages
from rwkernels.bench import charts, drawing, table
from rwkernels.bench.compare import Change
from rwkernels.bench.harness import EFFORTS
from rwkernels.bench.registry import LINEAR
from rwkernels.bench.results import Row, Run, grouped, threads_text
from rwkernels.bench.summary import best_threads, bytes_text, caveats, goals, losing, sentence, told
from rwkernels.pages import counted


class Drawn(NamedTuple):
    """A chart in the page, drawn for wide and narrow ones."""

    name: str
    title: str
    note: str
    svgs: dict[str, str]  # by the name of the `drawing.Page`


NOTES = {
    "ratios": "Against the named peer, {threads}, on a logarithmic axis. The line across the end of a bar spans the "
    "quartiles. Of the hard cases the worst and the best are shown.",
    "times": "Median time of everyone on the same input, {threads}, on logarithmic axes. The copy is of as many bytes "
    "as must be read and written.",
    "scaling": "Time against size on logarithmic axes; an exponent of 1 means that twice as much takes twice as long, "
    "0 that it costs nothing more.",
    "roofline": "Nobody is faster than reading the inputs and writing the results. On the line: as fast as copying.",
}
TITLES = {
    "ratios": "Times faster", "times": "Who takes how long", "scaling": "How the cost grows",
    "roofline": "How close to the limit",
}  # fmt: skip


def _drawn(run: Run, device: str) -> list[Drawn]:
    where, tag = (" (GPU)", "-gpu") if device == "cuda" else ("", "")
    threads = threads_text(best_threads(run, device)) if device == "cpu" else "CUDA events"
    found = []
    for name, make in charts.CHARTS.items():
        draw, title = make(run, device), TITLES[name] + where
        if draw is not None:
            svgs = {page.name: drawing.svg(name + tag, title, draw, page) for page in (drawing.WIDE, drawing.NARROW)}
            found.append(Drawn(name + tag, title, NOTES[name].format(threads=threads), svgs))
    return found


def _about(rows: Sequence[Row]) -> str:
    first = rows[0]
    shape = "×".join(map(str, first.shape))
    return f"labels {shape}, {first.num_classes} classes, {first.dtype}, {first.layout}; ratios against {first.peer}"


def _families(run: Run) -> list[tuple[str, str, list[tuple[str, str, pages.Table]]]]:
    """Every row: a family, how many cases it has, and for each its name, its input and its table."""
    found = []
    for family, listed in grouped(run.rows, lambda row: "scaling" if row.curve else row.family).items():
        cases = table.by_case(listed)
        tables = [(charts.pretty(case), _about(rows), table.of_case(rows)) for case, rows in cases.items()]
        found.append((family, counted(len(cases), "case"), tables))
    return found


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


def page(run: Run, changes: Sequence[Change] = ()) -> str:
    """The whole file."""
    light, dark = drawing.variables()
    values: dict[str, Any] = {
        "light": light,
        "dark": dark,
        "sentence": sentence(run),
        "tiles": told(run, "tile"),
        "cases": len({row.case for row in run.rows}),
        "ranked": sum(row.ranked for row in run.rows),
        "goals": goals(run),
        "caveats": caveats(run),
        "charts": [
            drawn
            for device in ("cuda", "cpu")
            if any(row.device == device for row in run.rows)
            for drawn in _drawn(run, device)
        ],
        "curves": table.of_curves(run.curves),
        "compared": table.of_changes(changes),
        "slower": len(losing(run)),
        "lost": table.of_losses(run),
        "unranked": table.of_unranked(run),
        "families": _families(run),
        "method": method(),
        "machine": machine_lines(run),
        "version": run.machine["versions"]["rwkernels"],
        "when": run.when[:10],
        "counted": counted,
    }
    return pages.rendered("bench/page.html", **values)
