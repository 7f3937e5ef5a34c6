"""The results in words and numbers: the printed table and `results.json`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

import rwkernels as rw
from rwkernels.demo.evaluation import SCORED_CLASSES, UNLEARNED_DICE, Scores
from rwkernels.demo.speed import Speed
from rwkernels.demo.training import Training
from rwkernels.experiments import mni152
from rwkernels.experiments.configuration import Run
from rwkernels.experiments.images import Images

_FLAG = "!"


def introduction(images: Images, run: Run, device: torch.device) -> str:
    """Say what the data is and what is about to happen."""
    height, width = images.train.labels.shape[1:]
    train, validation, setting = mni152.TRAIN_Z_MM, mni152.VALIDATION_Z_MM, run.training
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    lines = [
        ("Data", mni152.DESCRIPTION),
        (
            "Training",
            f"{len(train)} axial slices of {height}x{width}, z = {train[0]:+d} to {train[-1]:+d} mm",
        ),
        (
            "Scoring",
            f"{len(validation)} axial slices, z = {validation[0]:+d} to {validation[-1]:+d} mm; a block "
            f"of its own, {validation[0] - train[-1]} mm away,\n"
            "because neighbouring slices are nearly the same",
        ),
        (
            "Network",
            f"2D U-Net, epochs per loss: {setting.epochs}, Adam at {setting.learning_rate:g}, batches of "
            f"{setting.batch_size}, seed {run.seed};\n"
            "the same initial weights and batches for every loss",
        ),
        ("Device", f"{device} ({machine})"),
    ]
    return "\n".join(f"{name:<10}" + text.replace("\n", "\n" + " " * 10) for name, text in lines) + "\n"


def table(trainings: list[Training]) -> str:
    """Return the comparison as aligned text; a class under Dice 0.1 carries a `!`."""
    names = " ".join(f"{name:>8}" for name in SCORED_CLASSES)
    span = len(names)
    rule = "-" * (17 + 3 * (span + 2) + 19 + 13 + 10)
    lines = [
        f"{'':<17}  {'Dice':>{span}}  {'Hausdorff, mm':>{span}}  {'same, 95 %':>{span}}"
        f"{'pixels with >1':>19}{'maps+loss,':>13}{'training':>10}",
        f"{'loss':<17}  {names}  {names}  {names}{'negative, %':>19}{'% of time':>13}{'seconds':>10}",
        rule,
    ]
    lines += [_row(training, final) for training, final in _finished(trainings)]
    lines += [rule, *_notes(trainings)]
    return "\n".join(lines)


def verdict(trainings: list[Training]) -> str:
    """Say in one line how RRW did against cross-entropy, whichever way it went."""
    final = {training.name: scores for training, scores in _finished(trainings)}
    rrw, cross_entropy = final["RRW"], final["cross-entropy"]
    parts = []
    for name, ours, theirs in zip(SCORED_CLASSES, rrw.dice, cross_entropy.dice, strict=True):
        word = "better" if ours > theirs else "worse" if ours < theirs else "the same"
        parts.append(f"{name} {ours - theirs:+.3f} ({word})")
    return (
        f"RRW against cross-entropy, Dice: {', '.join(parts)}.\n"
        "One seed on one averaged brain shows that the losses train and what they cost, not which is best."
    )


def speed_lines(speeds: list[Speed], trainings: list[Training]) -> str:
    """Say how long maps and loss take per batch in both ways, and what share of a step that makes."""
    lines = [
        "Maps + loss + gradient of one batch, medians of alternating runs (usual way: SciPy's distance",
        "transform per image and class, then eager PyTorch):",
    ]
    by_name = {training.name: training for training in trainings}
    for speed in speeds:
        training = by_name[speed.name]
        rest = (training.train_seconds - training.loss_seconds) / training.steps
        ours, usual = (_percent(s / (s + rest)) for s in (speed.fused_seconds, speed.usual_seconds))
        lines.append(
            f"  {speed.name:<12} usual {speed.usual_seconds * 1e3:6.2f} ms, rwkernels "
            f"{speed.fused_seconds * 1e3:6.2f} ms: {speed.ratio:.1f} times faster; of a training step "
            f"{ours} instead of {usual}"
        )
    apart = max(speed.gradient_difference for speed in speeds)
    lines.append(f"  Both ways give the same gradient to {apart:.0e} of its largest entry.")
    return "\n".join(lines)


def results(
    images: Images, run: Run, device: torch.device, trainings: list[Training], speeds: list[Speed]
) -> dict[str, Any]:
    """Return everything as one tree for JSON."""
    shown = ("epochs", "batch_size", "learning_rate", "features")
    return {
        "data": {
            "description": mni152.DESCRIPTION,
            "pixel_mm": mni152.PIXEL_MM,
            "train_z_mm": mni152.TRAIN_Z_MM,
            "validation_z_mm": mni152.VALIDATION_Z_MM,
            "slice_shape": tuple(images.train.labels.shape[1:]),
        },
        "settings": {"seed": run.seed, **{name: getattr(run.training, name) for name in shown}},
        "device": str(device),
        "versions": {"rwkernels": getattr(rw, "__version__", None), "torch": str(torch.__version__)},
        "losses": {training.name: _entry(training, final) for training, final in _finished(trainings)},
        "speed": {speed.name: {**asdict(speed), "ratio": speed.ratio} for speed in speeds},
    }


def _finished(trainings: list[Training]) -> list[tuple[Training, Scores]]:
    return [(training, training.final) for training in trainings if training.final is not None]


def _row(training: Training, final: Scores) -> str:
    first, last = training.several_negatives[0], training.several_negatives[-1]
    flagged = [
        f"{d:.3f}{_FLAG if n in final.unlearned else ' '}" for n, d in zip(SCORED_CLASSES, final.dice, strict=True)
    ]
    return (
        f"{training.name:<17}  {_cells(flagged)}"
        f"  {_cells(f'{mm:.1f} ' for mm in final.hausdorff_mm)}"
        f"  {_cells(f'{mm:.1f} ' for mm in final.hausdorff95_mm)}"
        f"{f'{100 * first:.1f} -> {100 * last:.1f}':>19}{100 * training.loss_share:>13.1f}"
        f"{training.train_seconds:>10.1f}"
    )


def _notes(trainings: list[Training]) -> list[str]:
    notes = [
        "Dice and Hausdorff distance (MONAI): mean over the scored slices. Pixels with >1 negative: training",
        "pixels whose gradient of the loss pushes more than one class up, in the first -> last epoch.",
    ]
    for training, final in _finished(trainings):
        if final.unlearned:
            notes.append(
                f"{_FLAG} {training.name}: {' and '.join(final.unlearned)} under Dice {UNLEARNED_DICE}, not learned"
            )
        for name, count in zip(SCORED_CLASSES, final.empty_slices, strict=True):
            if count:
                notes.append(f"{training.name}: no {name} predicted in {count} slices, hence Hausdorff inf")
    return notes


def _entry(training: Training, final: Scores) -> dict[str, Any]:
    def by_class(values: Iterable[float]) -> dict[str, float]:
        return dict(zip(SCORED_CLASSES, values, strict=True))

    return {
        "dice": by_class(final.dice),
        "hausdorff_mm": by_class(final.hausdorff_mm),
        "hausdorff95_mm": by_class(final.hausdorff95_mm),
        "empty_slices": by_class(final.empty_slices),
        "unlearned": final.unlearned,
        "dice_per_epoch": [by_class(epoch) for epoch in training.dice],
        "several_negatives_per_epoch": training.several_negatives,
        "train_seconds": training.train_seconds,
        "loss_seconds": training.loss_seconds,
        "loss_share": training.loss_share,
    }


def _cells(texts: Iterable[str]) -> str:
    return " ".join(f"{text:>8}" for text in texts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
