"""What finished runs say: tables in the layout of the paper's Tables 2 to 4, figures, every seed, the configuration."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from rwkernels import pages
from rwkernels.experiments import configuration, records, scores
from rwkernels.experiments.configuration import Experiment, Task
from rwkernels.experiments.records import Record
from rwkernels.experiments.scores import METRICS, Cell, Floats
from rwkernels.files import write
from rwkernels.pages import Block, Code, Heading, Picture, Table, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND = "rwkernels experiment report"
NAME = "report"
_TITLES = {"dice": "Dice", "hausdorff": "HD"}
_BETTER = {"dice": max, "hausdorff": min}
_REGIONS = {"dice": "Dice", "cross_entropy": "cross-entropy", "focal": "Focal"}
_GROUPS = {"dice": ", with Dice", "cross_entropy": ", with cross-entropy"}
_DECIMALS = {"dice": 3, "hausdorff": 1}


class ReportError(ValueError):
    """There is nothing to report, or what there is does not belong together."""


def load(folder: Path) -> tuple[list[Experiment], dict[str, Record]]:
    """The experiments and finished runs of a folder.

    Raises:
        ReportError: It holds no experiment or no finished run.
        RecordError: Its file of runs is damaged.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ReportError(f"{folder}: expected an experiment's NAME.json, found none")
    found = records.load(folder)
    if not found:
        raise ReportError(f"{folder}: expected finished runs in {records.NAME}, found none")
    return [configuration.load(path) for path in files], found


def parts(experiments: Sequence[Experiment], found: Mapping[str, Record]) -> dict[str, list[Block]]:
    """The blocks of the report: `"data"`, then one part for each experiment under its name."""
    told: dict[str, list[Block]] = {"data": _data(experiments, found)}
    for experiment in experiments:
        told[experiment.name] = list(_experiment(experiment, found))
    return told


def save(experiments: Sequence[Experiment], found: Mapping[str, Record], folder: Path) -> list[Path]:
    """Writes report.md with its figures, and report.html that needs nothing else."""
    title = "Experiments of the region-wise loss"
    blocks: list[Block] = []
    told = parts(experiments, found)
    titles = {"data": "What was run on what", **{each.name: each.title for each in experiments}}
    for name, content in told.items():
        blocks += [Heading(titles[name]), *content]
    written = {
        folder / f"{NAME}.md": f"# {title}\n\n{pages.markdown(blocks, 'figures')}\n",
        folder / f"{NAME}.html": pages.page(title, blocks),
        **{folder / "figures" / f"{each.name}.svg": each.svg for each in blocks if isinstance(each, Picture)},
    }
    for path, text in written.items():
        write(path, text)
    return list(written)


def into(experiments: Sequence[Experiment], found: Mapping[str, Record], target: Path) -> list[Path]:
    """Writes every part between its markers in a document; figures, runs and configurations into a folder beside it.

    That folder has the document's name. From it the same parts can be written again.

    Raises:
        ValueError: A part's markers are missing; nothing is written then.
    """
    told = parts(experiments, found)
    pictures = target.with_suffix("")
    content = {name: pages.markdown(blocks, pictures.name) for name, blocks in told.items()}
    written: dict[Path, str | bytes] = {
        target: pages.replaced(target.read_text(encoding="utf-8"), content, COMMAND),
        pictures / records.PACKED: records.packed(_used(experiments, found)),
        **{pictures / f"{each.name}.json": configuration.dumped(each) for each in experiments},
    }
    for blocks in told.values():
        written |= {pictures / f"{each.name}.svg": each.svg for each in blocks if isinstance(each, Picture)}
    for path, text in written.items():
        write(path, text)
    return list(written)


def _used(experiments: Sequence[Experiment], found: Mapping[str, Record]) -> list[Record]:
    """The finished runs of the experiments, each once."""
    keys = dict.fromkeys(run.key for experiment in experiments for run in experiment.runs())
    return [found[key] for key in keys if key in found]


# --- parts -----------------------------------------------------------------------------------------------------


class Shown:
    """What an experiment found on one of its tasks; at least one of its runs is finished."""

    def __init__(self, experiment: Experiment, task: Task, found: Mapping[str, Record]) -> None:
        self.experiment, self.task, self.found = experiment, task, found
        by_loss = {loss.name: scores.runs_of(experiment, task, loss, found) for loss in experiment.losses}
        self.records = {name: records_of for name, records_of in by_loss.items() if records_of}
        if not self.records:
            raise ReportError(f"{experiment.name}: expected a finished run on {task.data.name}, found none")
        self.any_result = next(iter(self.records.values()))[0].result

    @property
    def title(self) -> str:
        """The data set's, as a heading."""
        title = str(self.any_result.about["title"])
        return title[:1].upper() + title[1:]

    @property
    def classes(self) -> list[str]:
        """Their names, but the background's."""
        return [str(name) for name in self.any_result.about["classes"][1:]]

    @property
    def columns(self) -> list[str]:
        """Heads of the columns of both metrics."""
        return [f"{_TITLES[metric]} {name}" for metric in METRICS for name in self.classes]

    @cached_property
    def cells(self) -> dict[str, dict[str, list[Cell]]]:
        """See `scores.cells`."""
        return scores.cells(self.experiment, self.task, self.found)

    def picture_name(self, *what: str) -> str:
        """The name of a file."""
        slug = self.task.data.name.replace(":", "-").replace("/", "-")
        return "-".join([self.experiment.name, slug, *filter(None, what)])


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    svg = pages.svg(figure, name, bbox_inches="tight")
    return Picture(name, caption, re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


def _data(experiments: Sequence[Experiment], found: Mapping[str, Record]) -> list[Block]:
    total = len({run.key for experiment in experiments for run in experiment.runs()})
    done = _used(experiments, found)
    blocks: list[Block] = []
    for name in dict.fromkeys(task.data.name for experiment in experiments for task in experiment.tasks):
        records_of = [record for record in done if record.run.data.name == name]
        if not records_of:
            continue
        digests = {(record.result.digest, str(record.run.data.options)) for record in records_of}
        if len({options for _, options in digests}) != len(digests):
            raise ReportError(f"data {name}: finished runs of different images: {sorted(d for d, _ in digests)}")
        about = records_of[0].result.about
        *_, height, width = about["shape"]
        blocks.append(
            Text(
                f"**{about['title']}** (`{name}`). {about['description']} {about['train_slices']} slices train, "
                f"{about['validation_slices']} validate; {height} x {width} pixels."
            )
        )
    environments = {_environment(record) for record in done}
    hours = sum(record.result.seconds for record in done) / 3600
    blocks.append(
        Text(
            f"{len(done)} of {total} runs are finished; together they took {hours:.2f} hours of one process each. "
            f"Runs that experiments share were run once. {'; '.join(sorted(environments))}."
        )
    )
    return blocks


def _environment(record: Record) -> str:
    told = record.environment
    versions = f"rwkernels {told['rwkernels']}, torch {told['torch']}, MONAI {told['monai']}"
    return f"{versions}, {told['device']}, {pages.counted(told['threads'], 'thread')}"


def _experiment(experiment: Experiment, found: Mapping[str, Record]) -> Iterator[Block]:
    runs = experiment.runs()
    missing = sum(run.key not in found for run in runs)
    if missing:
        yield Text(f"**Not complete: {missing} of {len(runs)} runs are missing.**")
    for task in experiment.tasks:
        if any(scores.runs_of(experiment, task, loss, found) for loss in experiment.losses):
            shown = Shown(experiment, task, found)
            yield Heading(shown.title, 3)
            yield Text(_setting(task))
            yield from _PARTS[experiment.kind](shown)
    yield Code(f"Configuration: {experiment.name}.json", configuration.dumped(experiment).rstrip())


def _setting(task: Task) -> str:
    training = task.training
    steps = "" if training.steps_per_epoch is None else f" of {training.steps_per_epoch} steps"
    clip = "no clipping" if training.gradient_clip is None else f"gradients clipped at norm {training.gradient_clip:g}"
    return (
        f"{training.epochs} epochs{steps}, batches of {training.batch_size}, Adam at {training.learning_rate:g} "
        f"(weight decay {training.weight_decay:g}, {clip}), U-Net with {', '.join(map(str, training.features))} "
        "channels."
    )


def _comparison(shown: Shown) -> Iterator[Block]:
    yield scores_table(shown)
    yield seeds_table(shown)
    yield _curves(shown, "", list(shown.records))


def _strategies(shown: Shown) -> Iterator[Block]:
    yield scores_table(shown)
    yield maps_table(shown)
    yield seeds_table(shown)
    by_region: dict[str, list[str]] = {}
    for loss in shown.experiment.losses:
        by_region.setdefault(loss.region or "alone", []).append(loss.name)
    for region, names in by_region.items():
        yield _curves(shown, region, names)


def _convergence(shown: Shown) -> Iterator[Block]:
    from rwkernels import plots

    wanted = shown.experiment.converged_dice
    ended = {name: scores.convergence(records_of, wanted) for name, records_of in shown.records.items()}
    head = [
        "loss", "models", "converged", "median epoch", "all classes", "lowest Dice", "median", "highest", "not finite",
    ]  # fmt: skip
    rows = []
    for name, each in ended.items():
        epochs = [epoch for epoch in each.epochs if epoch is not None]
        spread = (min(each.final), statistics.median(each.final), max(each.final))
        rows.append(
            [
                name,
                str(len(each.final)),
                f"{len(epochs)} ({100 * each.share:.0f} %)",
                f"{statistics.median(epochs):g}" if epochs else "-",
                f"{sum(each.found)} ({100 * sum(each.found) / len(each.final):.0f} %)",
                *(f"{value:.3f}" for value in spread),
                str(each.diverged),
            ]
        )
    note = (
        f"Converged: validation Dice, averaged over cases and classes, of {wanted:g} or more after "
        "the last epoch. Median epoch: from which on it stayed there, over those that converged. All classes: Dice of "
        f"every class is at least {scores.FOUND:g}."
    )
    yield Table(head, rows, note)
    finals = {name: each.final for name, each in ended.items()}
    caption = f"{shown.title}: distribution of the final Dice over models that differ in their seed (Eq. 8, Fig. 5)"
    figure = plots.convergence_cdf(finals, xlabel="Validation Dice after the last epoch, mean of classes")
    yield _picture(shown.picture_name("cdf"), caption, figure)
    seeds = [str(seed) for seed in shown.experiment.seeds]
    if all(len(final) == len(seeds) for final in finals.values()):
        every = [[loss, *(f"{value:.3f}" for value in final)] for loss, final in finals.items()]
        yield Table(["final Dice, seed", *seeds], every)
    yield _curves(shown, "", list(ended), band="range")


_PARTS = {"comparison": _comparison, "strategies": _strategies, "convergence": _convergence}


def _curves(shown: Shown, group: str, names: Sequence[str], band: str = "std") -> Picture:
    from rwkernels import plots

    records_of = {name: shown.records[name] for name in names if name in shown.records}
    epochs = max((record.result.epochs for each in records_of.values() for record in each), key=len, default=[])
    # A loss whose runs all diverged early ends before the others.
    curves = {name: _as_long(scores.curves(each), len(epochs)) for name, each in records_of.items()}
    figure = plots.dice_curves(curves, epochs=epochs, band=band, ylabel="Validation Dice, mean of classes")
    about = "range" if band == "range" else "standard deviation"
    caption = f"{shown.title}{_GROUPS.get(group, '')}: validation Dice during training, mean and {about} over seeds"
    return _picture(shown.picture_name(group, "dice"), caption, figure)


def _as_long(curves: Floats, count: int) -> Floats:
    return np.pad(curves, ((0, 0), (0, count - curves.shape[1])), mode="edge")


# --- tables ----------------------------------------------------------------------------------------------------


def scores_table(shown: Shown) -> Table:
    """Losses as rows; Dice of every class, then Hausdorff distance of every class, as mean ± standard deviation.

    The best mean of a column is bold; a star marks p < 0.05 against the baseline.
    """
    lines = {loss: [(m, cell) for m in METRICS for cell in each[m]] for loss, each in shown.cells.items()}
    best = [_BETTER[column[0][0]](cell.mean for _, cell in column) for column in zip(*lines.values(), strict=True)]
    rows = [
        [loss, *(cell_text(cell, m, bold=cell.mean == top) for (m, cell), top in zip(line, best, strict=True))]
        for loss, line in lines.items()
    ]
    return Table(["loss", *shown.columns], rows, _note(shown))


def cell_text(cell: Cell, metric: str, bold: bool = False) -> str:
    """`0.912 ± 0.043 *`."""
    digits = _DECIMALS[metric]
    if not math.isfinite(cell.mean):
        return "-"
    mean = f"{cell.mean:.{digits}f}"
    return f"{f'**{mean}**' if bold else mean} ± {cell.deviation:.{digits}f}{' *' if cell.starred else ''}"


def seeds_table(shown: Shown) -> Table:
    """The mean over cases for every seed by itself: nothing is selected."""
    rows = []
    for loss, records_of in shown.records.items():
        for place, record in enumerate(records_of):
            cells = [(metric, cell) for metric in METRICS for cell in shown.cells[loss][metric]]
            values = [f"{cell.by_seed[place]:.{_DECIMALS[metric]}f}" for metric, cell in cells]
            rows.append([loss, str(record.run.seed), *values])
    return Table(["loss", "seed", *shown.columns], rows, "Mean over cases, every seed.")


def maps_table(shown: Shown) -> Table:
    """What the rectified map changes where all else is the same: its loss minus that of the boundary map."""
    experiment, rows = shown.experiment, []
    for one in experiment.losses:
        twins = [other for other in experiment.losses if other == replace(one, name=other.name, maps="boundary")]
        if one.maps != "rectified" or not twins:
            continue
        apart = scores.differences(experiment, shown.task, one, twins[0], shown.found)
        if apart:
            texts = [
                f"{each.mean:+.{_DECIMALS[metric]}f}{' *' if each.p < scores.SIGNIFICANT else ''}"
                for metric in METRICS
                for each in apart[metric]
            ]
            rows.append([f"{_REGIONS[one.region]}, {one.schedule}" if one.region else "alone", *texts])
    note = f"Mean difference; Dice above 0 and HD below 0 are in favour of RRW. * p < 0.05: {_test_text(experiment)}."
    return Table(["RRW minus RW-Boundary", *shown.columns], rows, note)


def _test_text(experiment: Experiment) -> str:
    pairs = "cases, seeds averaged" if experiment.pairs == "case" else "cases of every seed"
    return (
        f"paired permutation test over {pairs}, {experiment.resamples:,} resamples (exact where there are fewer sign "
        "patterns), not corrected for the number of tests"
    )


def _note(shown: Shown) -> str:
    experiment, cells = shown.experiment, shown.cells
    notes = [
        f"Mean ± standard deviation over {len(shown.any_result.cases)} cases and the seeds "
        f"{', '.join(map(str, experiment.seeds))}; HD in mm; best mean bold."
    ]
    if any(cell.p is not None for each in cells.values() for row in each.values() for cell in row):
        notes.append(f"* p < 0.05 against {experiment.baseline}: {_test_text(experiment)}.")
    treated = {
        "diagonal": "counts as the diagonal of its image",
        "ignore": "is left out",
    }[experiment.missing_hausdorff]
    lost = {loss: sum(cell.missing for cell in each["hausdorff"]) for loss, each in cells.items()}
    told = ", ".join(f"{loss} {number}" for loss, number in lost.items() if number)
    if told:
        notes.append(f"HD of a class that only labels or prediction have {treated}: {told} times.")
    return " ".join(notes)
