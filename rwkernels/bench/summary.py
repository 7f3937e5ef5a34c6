"""What a run says in few words: the headline comparisons, the sentence, the losses, the missing and the wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rwkernels.bench import harness, names
from rwkernels.bench.harness import COPIES, FAILED, MISSING, WRONG, Measured
from rwkernels.bench.results import Ratio, Row, Run, grouped, threads_text


@dataclass(frozen=True)
class Headline:
    """A comparison that everyone wants to know: `ours` against `peer` in a family of cases.

    `said` is what the sentence about a run says of it, `tile` what stands under its number in the report; "" for those
    that are told in tables and charts alone.
    """

    title: str
    families: tuple[str, ...]
    ours: str
    peer: str
    peer_text: str
    said: str = ""
    tile: str = ""


HEADLINES = (
    Headline(
        "rectified map from labels", ("rectified map",), names.COMPACT, names.SCIPY, "SciPy per image and class",
        "builds rectified maps {} times faster than SciPy per class",
        "maps from labels, against SciPy per class",
    ),
    Headline("dense rectified map, reused", ("rectified map",), names.DENSE_REUSED, names.EDT_FINISH, "`edt` + torch"),
    Headline("boundary map, reused buffer", ("boundary map",), names.REUSED, names.EDT_TWICE, "`edt` twice per class"),
    Headline("exact distances", ("distance",), names.OURS, names.EDT, "`edt`, as many threads"),
    Headline("exact distances, hard cases", ("hard distance",), names.OURS, names.EDT, "`edt`, as many threads"),
    Headline(
        "loss and gradient, dense map", ("loss",), names.DENSE, names.EAGER, "eager `(softmax * map).mean()`",
        "computes loss and gradient {} times faster than eager PyTorch",
        "loss and gradient, against eager PyTorch",
    ),
    Headline(
        "loss and gradient, dense map", ("loss",), names.DENSE, names.COMPILED, "`torch.compile` of it",
        tile="loss and gradient, against torch.compile",
    ),
    Headline(
        "loss and gradient, compact map", ("loss",), names.COMPACT, names.CROSS_ENTROPY, "`F.cross_entropy`"
    ),
    Headline(
        "labels to gradient, rectified", ("labels to gradient, rectified",), names.OURS, names.PAPER, "SciPy + eager",
        "goes from labels to the gradient of the logits {} times faster than SciPy with eager PyTorch",
    ),
    Headline(
        "labels to gradient, boundary", ("labels to gradient, boundary",), names.OURS, names.PAPER, "SciPy + eager",
        tile="labels to gradient, boundary maps, against SciPy + eager",
    ),
    Headline(
        "maps in a data loader", tuple(f"data loader, {n} workers" for n in (0, 1, 2)), names.OURS, names.SCIPY,
        "SciPy per class",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A headline comparison in one case at one number of threads."""

    headline: Headline
    row: Row
    ratio: Ratio


def against(row: Row, peer: str) -> Ratio | None:
    """How many times faster than `peer` a row is, if they raced."""
    for ratio in row.ratios:
        if ratio.peer == peer and ratio.kind == "faster":
            return ratio
    if row.peer == peer and row.ratio is not None and row.ratio_low is not None and row.ratio_high is not None:
        return Ratio(peer, row.ratio, row.ratio_low, row.ratio_high)
    return None


def found(run: Run, headline: Headline, device: str = "cpu") -> list[Found]:
    """All that a run says about a headline, in the order of measuring."""
    rows = [row for row in run.rows if row.family in headline.families and row.contender == headline.ours]
    if headline.families == ("loss",):
        rows = [row for row in rows if row.dtype == "float32" and row.layout == "contiguous" and not of_grid(row)]
    compared = [(row, against(row, headline.peer)) for row in rows if row.ranked and row.device == device]
    return [Found(headline, row, ratio) for row, ratio in compared if ratio]


def of_grid(row: Row) -> bool:
    """Whether a row is of the grid of the loss over types and layouts, whose labels are noise."""
    return row.family == "loss" and row.pattern == "random"


def best_threads(run: Run, device: str = "cpu") -> int:
    """The largest number of threads in the rows of `device`: all of them, as a rule."""
    return max((row.threads for row in run.rows if row.device == device and row.axis != "threads"), default=1)


def main_device(run: Run) -> str:
    """What is told first: the CPU, unless all rows are of a GPU."""
    return "cuda" if run.rows and all(row.device == "cuda" for row in run.rows) else "cpu"


def number(value: float) -> str:
    """A ratio for a reader: three digits, no exponent."""
    if value != value:
        return "-"
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def short(value: float) -> str:
    """The same with two digits, as in a table of a README."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def span(values: Iterable[float]) -> str:
    """One number, or "5.6 to 12.9"."""
    listed = sorted(values)
    low, high = short(listed[0]), short(listed[-1])
    return low if low == high else f"{low} to {high}"


def sentence(run: Run) -> str:
    """One sentence: what was found on which machine."""
    device = main_device(run)
    count = best_threads(run, device)
    if device == "cuda":
        where = f"On {run.machine.get('gpu', {}).get('name', 'this GPU')}"
    else:
        machine = run.machine["cpu"].get("brand_raw") or run.machine.get("processor") or "this machine"
        where = f"On {machine} with {threads_text(count)}"
    parts = [text.format(times) for text, times in told(run, "said")]
    if not parts:
        return f"{where}, {len(run.rows)} rows were measured."
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{where}, rwkernels {listed}."


def told(run: Run, what: str) -> list[tuple[str, str]]:
    """The texts "said" or "tile" of the headlines that have one, each with the span of its ratios on all threads."""
    device = main_device(run)
    count = best_threads(run, device)
    texts = []
    for headline in HEADLINES:
        ratios = [each.ratio.value for each in found(run, headline, device) if each.row.threads == count]
        if ratios and getattr(headline, what):
            texts.append((getattr(headline, what), span(ratios)))
    return texts


def caveats(run: Run) -> list[str]:
    """What a reader has to know before believing a number."""
    listed = []
    if run.interrupted:
        listed.append("The run was interrupted: this is a part of it.")
    if run.scale != "full":
        listed.append(f"A {run.scale} run: inputs are smaller than those of a full one, and have no goals.")
    load, most = run.machine.get("load_average"), run.machine.get("processors", 1)
    if load is not None and load > 0.5 * most:
        listed.append(
            f"The machine was busy: {load:.1f} processes wanted to run on its {most} processors when it began. Ratios "
            "on one thread hold roughly; on several threads, who waits for a thread that is not running looks slow."
        )
    return listed


def raced(run: Run) -> list[tuple[Row, Row]]:
    """Every row of this package that raced somebody else, with the fastest of those.

    Copies are a floor and no rival; the reference backend is what the others are compared with, and meant to be slow.
    """
    ranked = [row for row in run.rows if row.ranked]
    listed = []
    for rows in grouped(ranked, lambda row: (row.case, row.threads, row.device)).values():
        others = [row for row in rows if not row.ours and row.contender not in COPIES]
        fastest = min(others, key=lambda row: row.median, default=None)
        if fastest is not None:
            listed += [(row, fastest) for row in rows if row.ours and "reference" not in row.contender]
    return listed


def losing(run: Run) -> list[tuple[Row, Ratio]]:
    """The rows of `raced` that are slower than the fastest other contender, each once."""
    listed = []
    for row, fastest in raced(run):
        above, below = Measured(fastest.contender, [*fastest.seconds]), Measured(row.contender, [*row.seconds])
        value, (low, high) = harness.ratio(above, below)
        if value < 1:
            listed.append((row, Ratio(fastest.contender, value, low, high)))
    return listed


def missed(run: Run) -> list[tuple[Row, Ratio]]:
    """The goals of rows that are not reached."""
    return [(row, ratio) for row in run.rows if row.ranked for ratio in row.ratios if ratio.met is False]


def goals(run: Run) -> tuple[int, int]:
    """How many goals were met, and how many there are."""
    verdicts = [ratio.met for row in run.rows for ratio in row.ratios if ratio.met is not None]
    verdicts += [curve.met for curve in run.curves if curve.met is not None]
    return sum(verdicts), len(verdicts)


def unranked(run: Run) -> list[tuple[str, str, list[Row]]]:
    """Contenders that were not timed: name, verdict with its reason, and where."""
    rows = [row for verdict in (WRONG, FAILED, MISSING) for row in run.rows if row.verdict == verdict]
    groups = grouped(rows, lambda row: (row.contender, f"{row.verdict}: {row.reason}"))
    return [(name, reason, rows) for (name, reason), rows in groups.items()]


def seconds_text(value: float) -> str:
    """A time with its unit."""
    if value != value:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:.0f} {unit}"
    return f"{value * 1e9:.3g} ns"


def bytes_text(value: float, digits: str = ".3g") -> str:
    """Bytes with their unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:{digits}} {unit}"
    return f"{value:.0f} B"
