"""What finished runs say: tables in the layout of the paper's Tables 2 to 4, figures, every seed, the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rwkernels.experiments import configuration, document, records
from rwkernels.experiments import scores as statistics
from rwkernels.experiments.configuration import Experiment, Task
from rwkernels.experiments.document import Block, Code, Heading, Picture, Table, Text
from rwkernels.experiments.records import Record
from rwkernels.experiments.scores import METRICS, Cell
from rwkernels.files import write

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
        told[experiment.name] = _experiment(experiment, found)
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
        folder / f"{NAME}.md": f"# {title}\n\n{document.markdown(blocks, 'figures')}\n",
        folder / f"{NAME}.html": document.page(title, blocks),
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
    content = {name: document.markdown(blocks, pictures.name) for name, blocks in told.items()}
    written: dict[Path, str | bytes] = {
        target: document.replaced(target.read_text(encoding="utf-8"), content, COMMAND),
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


def _data(experiments: Sequence[Experiment], found: Mapping[str, Record]) -> list[Block]:
    total = len({run.key for experiment in experiments for run in experiment.runs()})
    done = _used(experiments, found)
    tasks = {task.data.name: task for experiment in experiments for task in experiment.tasks}
    blocks: list[Block] = []
    for name in tasks:
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
    threads = "1 thread" if told["threads"] == 1 else f"{told['threads']} threads"
    return f"rwkernels {told['rwkernels']}, torch {told['torch']}, MONAI {told['monai']}, {told['device']}, {threads}"


def _experiment(experiment: Experiment, found: Mapping[str, Record]) -> list[Block]:
    runs = experiment.runs()
    missing = sum(run.key not in found for run in runs)
    blocks: list[Block] = []
    if missing:
        blocks.append(Text(f"**Not complete: {missing} of {len(runs)} runs are missing.**"))
    for task in experiment.tasks:
        if any(statistics.runs_of(experiment, task, loss, found) for loss in experiment.losses):
            blocks.append(Heading(_task_title(experiment, task, found), 3))
            blocks.append(Text(_setting(task)))
            blocks += _PARTS[experiment.kind](experiment, task, found)
    blocks.append(Code(f"Configuration: {experiment.name}.json", configuration.dumped(experiment).rstrip()))
    return blocks


def _task_title(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> str:
    for loss in experiment.losses:
        for record in statistics.runs_of(experiment, task, loss, found):
            title = str(record.result.about["title"])
            return title[:1].upper() + title[1:]
    return task.data.name


def _setting(task: Task) -> str:
    training = task.training
    steps = "" if training.steps_per_epoch is None else f" of {training.steps_per_epoch} steps"
    clip = "no clipping" if training.gradient_clip is None else f"gradients clipped at norm {training.gradient_clip:g}"
    return (
        f"{training.epochs} epochs{steps}, batches of {training.batch_size}, Adam at {training.learning_rate:g} "
        f"(weight decay {training.weight_decay:g}, {clip}), U-Net with {', '.join(map(str, training.features))} "
        "channels."
    )


def _comparison(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> list[Block]:
    return [
        scores_table(experiment, task, found),
        seeds_table(experiment, task, found),
        *_curve_pictures(experiment, task, found, {"": [loss.name for loss in experiment.losses]}),
    ]


def _strategies(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> list[Block]:
    by_region: dict[str, list[str]] = {}
    for loss in experiment.losses:
        by_region.setdefault(loss.region or "alone", []).append(loss.name)
    return [
        scores_table(experiment, task, found),
        maps_table(experiment, task, found),
        seeds_table(experiment, task, found),
        *_curve_pictures(experiment, task, found, by_region),
    ]


def _convergence(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> list[Block]:
    from rwkernels import plots

    ended = {}
    for loss in experiment.losses:
        records_of = statistics.runs_of(experiment, task, loss, found)
        if records_of:
            ended[loss.name] = statistics.convergence(records_of, experiment.converged_dice)
    head = [
        "loss",
        "models",
        "converged",
        "median epoch",
        "all classes",
        "lowest Dice",
        "median",
        "highest",
        "not finite",
    ]
    rows = []
    for name, each in ended.items():
        epochs = sorted(epoch for epoch in each.epochs if epoch is not None)
        ordered = sorted(each.final)
        rows.append(
            [
                name,
                str(len(ordered)),
                f"{len(epochs)} ({100 * each.share:.0f} %)",
                f"{_median(epochs):g}" if epochs else "-",
                f"{sum(each.found)} ({100 * sum(each.found) / len(ordered):.0f} %)",
                *(f"{value:.3f}" for value in (ordered[0], _median(ordered), ordered[-1])),
                str(each.diverged),
            ]
        )
    note = (
        f"Converged: validation Dice, averaged over cases and classes, of {experiment.converged_dice:g} or more after "
        "the last epoch. Median epoch: from which on it stayed there, over those that converged. All classes: Dice of "
        f"every class is at least {statistics.FOUND:g}."
    )
    finals = {name: each.final for name, each in ended.items()}
    figure = plots.convergence_cdf(finals, xlabel="Validation Dice after the last epoch, mean of classes")
    name = f"{experiment.name}-{_slug(task)}-cdf"
    title = _task_title(experiment, task, found)
    caption = f"{title}: distribution of the final Dice over models that differ in their seed (Eq. 8, Fig. 5)"
    every = [[loss, *(f"{value:.3f}" for value in each.final)] for loss, each in ended.items()]
    seeds = [str(seed) for seed in experiment.seeds]
    blocks: list[Block] = [
        Table(head, rows, note),
        Picture(name, caption, document.svg(figure, name)),
    ]
    if all(len(row) - 1 == len(seeds) for row in every):
        blocks.append(Table(["final Dice, seed", *seeds], every))
    return [*blocks, *_curve_pictures(experiment, task, found, {"": list(ended)}, band="range")]


_PARTS = {"comparison": _comparison, "strategies": _strategies, "convergence": _convergence}


# --- tables ----------------------------------------------------------------------------------------------------


def scores_table(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> Table:
    """Losses as rows; Dice of every class, then Hausdorff distance of every class, as mean ± standard deviation.

    The best mean of a column is bold; a star marks p < 0.05 against the baseline.
    """
    cells = statistics.cells(experiment, task, found)
    classes = _classes(experiment, task, found)
    head = ["loss", *(f"{_TITLES[metric]} {name}" for metric in METRICS for name in classes)]
    best = {
        (metric, k): _BETTER[metric](each[metric][k].mean for each in cells.values())
        for metric in METRICS
        for k in range(len(classes))
    }
    rows = [
        [
            loss,
            *(
                cell_text(cell, metric, bold=cell.mean == best[metric, k])
                for metric in METRICS
                for k, cell in enumerate(by_metric[metric])
            ),
        ]
        for loss, by_metric in cells.items()
    ]
    return Table(head, rows, _note(experiment, cells, task, found))


def cell_text(cell: Cell, metric: str, bold: bool = False) -> str:
    """`0.912 ± 0.043 *`."""
    digits = _DECIMALS[metric]
    if not math.isfinite(cell.mean):
        return "-"
    mean = f"{cell.mean:.{digits}f}"
    return f"{f'**{mean}**' if bold else mean} ± {cell.deviation:.{digits}f}{' *' if cell.starred else ''}"


def seeds_table(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> Table:
    """The mean over cases for every seed by itself: nothing is selected."""
    cells = statistics.cells(experiment, task, found)
    classes = _classes(experiment, task, found)
    head = ["loss", "seed", *(f"{_TITLES[metric]} {name}" for metric in METRICS for name in classes)]
    rows = []
    for loss in experiment.losses:
        for place, record in enumerate(statistics.runs_of(experiment, task, loss, found)):
            values = [
                f"{cell.by_seed[place]:.{_DECIMALS[metric]}f}"
                for metric in METRICS
                for cell in cells[loss.name][metric]
            ]
            rows.append([loss.name, str(record.run.seed), *values])
    return Table(head, rows, "Mean over cases, every seed.")


def maps_table(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> Table:
    """What the rectified map changes where all else is the same: its loss minus that of the boundary map."""
    classes = _classes(experiment, task, found)
    head = ["RRW minus RW-Boundary", *(f"{_TITLES[metric]} {name}" for metric in METRICS for name in classes)]
    rows = []
    for one in experiment.losses:
        twins = [other for other in experiment.losses if other == replace(one, name=other.name, maps="boundary")]
        if one.maps != "rectified" or not twins:
            continue
        apart = statistics.differences(experiment, task, one, twins[0], found)
        if apart:
            texts = [
                f"{each.mean:+.{_DECIMALS[metric]}f}{' *' if each.p < statistics.SIGNIFICANT else ''}"
                for metric in METRICS
                for each in apart[metric]
            ]
            rows.append([f"{_REGIONS[one.region]}, {one.schedule}" if one.region else "alone", *texts])
    note = f"Mean difference; Dice above 0 and HD below 0 are in favour of RRW. * p < 0.05: {_test_text(experiment)}."
    return Table(head, rows, note)


def _test_text(experiment: Experiment) -> str:
    pairs = "cases, seeds averaged" if experiment.pairs == "case" else "cases of every seed"
    return (
        f"paired permutation test over {pairs}, {experiment.resamples:,} resamples (exact where there are fewer sign "
        "patterns), not corrected for the number of tests"
    )


def _note(
    experiment: Experiment, cells: Mapping[str, Mapping[str, list[Cell]]], task: Task, found: Mapping[str, Record]
) -> str:
    count = len(_any_record(experiment, task, found).result.cases)
    notes = [
        f"Mean ± standard deviation over {count} cases and the seeds {', '.join(map(str, experiment.seeds))}; HD in "
        "mm; best mean bold."
    ]
    if any(cell.p is not None for each in cells.values() for row in each.values() for cell in row):
        notes.append(f"* p < 0.05 against {experiment.baseline}: {_test_text(experiment)}.")
    treated = {
        "diagonal": "counts as the diagonal of its image",
        "ignore": "is left out",
    }[experiment.missing_hausdorff]
    lost = {
        loss: sum(cell.missing for cell in each["hausdorff"])
        for loss, each in cells.items()
        if any(cell.missing for cell in each["hausdorff"])
    }
    if lost:
        told = ", ".join(f"{loss} {number}" for loss, number in lost.items())
        notes.append(f"HD of a class that only labels or prediction have {treated}: {told} times.")
    return " ".join(notes)


def _any_record(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> Record:
    for loss in experiment.losses:
        for record in statistics.runs_of(experiment, task, loss, found):
            return record
    raise ReportError(f"{experiment.name}: expected a finished run on {task.data.name}, found none")


def _classes(experiment: Experiment, task: Task, found: Mapping[str, Record]) -> list[str]:
    return [str(name) for name in _any_record(experiment, task, found).result.about["classes"][1:]]


def _curve_pictures(
    experiment: Experiment,
    task: Task,
    found: Mapping[str, Record],
    groups: Mapping[str, Sequence[str]],
    band: str = "std",
) -> list[Picture]:
    from rwkernels import plots

    by_name = {loss.name: loss for loss in experiment.losses}
    pictures = []
    for group, names in groups.items():
        curves: dict[str, statistics.Floats] = {}
        epochs: list[int] = []
        for name in names:
            records_of = statistics.runs_of(experiment, task, by_name[name], found)
            if records_of:
                epochs = max([epochs, *(record.result.epochs for record in records_of)], key=len)
                curves[name] = statistics.curves(records_of)
        # A loss whose runs all diverged early ends before the others.
        curves = {name: _as_long(each, len(epochs)) for name, each in curves.items()}
        label = f"{experiment.name}-{_slug(task)}{f'-{group}' if group else ''}-dice"
        figure = plots.dice_curves(curves, epochs=epochs, band=band, ylabel="Validation Dice, mean of classes")
        about = "range" if band == "range" else "standard deviation"
        title = _task_title(experiment, task, found)
        caption = f"{title}{_GROUPS.get(group, '')}: validation Dice during training, mean and {about} over seeds"
        pictures.append(Picture(label, caption, document.svg(figure, label)))
    return pictures


def _as_long(curves: statistics.Floats, count: int) -> statistics.Floats:
    import numpy as np

    return np.pad(curves, ((0, 0), (0, count - curves.shape[1])), mode="edge")


def _slug(task: Task) -> str:
    return task.data.name.replace(":", "-").replace("/", "-")


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
