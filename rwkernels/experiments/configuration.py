"""What an experiment is, as data: tasks, losses and seeds, read from and written to JSON.

An experiment trains one network for every task, loss and seed. A `Run` is one of those; its `key`, a hash of all that
it depends on, is what finished runs are found by, so that two experiments share a run that both ask for.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rwkernels import checks

KINDS = ("comparison", "convergence", "strategies")
REGION_LOSSES = ("dice", "cross_entropy", "focal")
MAPS = ("rectified", "boundary")
SCHEDULES = ("equal", "gradual")
PAIRS = ("case", "case and seed")
MISSING_HAUSDORFF = ("diagonal", "ignore")

T = TypeVar("T")


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read from JSON as it is declared: what is missing, unknown or of another type is refused."""


class Loss(_Frozen, frozen=True):
    """A loss: a region loss, a region-wise one, or both joined by `rwkernels.CombinedLoss`.

    Attributes:
        name: How tables call it. Not part of a run's key.
        region: `"dice"`, `"cross_entropy"`, `"focal"` or None.
        maps: `"rectified"` (RRW), `"boundary"` or None.
        schedule: How to join them: `"equal"` or `"gradual"`; None where there is nothing to join.
        alpha_step: What an epoch takes off the weight of the region loss (gradual).
        alpha_min: Where that weight stops.
        gamma: Exponent of the focal loss.
    """

    name: str
    region: str | None = None
    maps: str | None = None
    schedule: str | None = None
    alpha_step: float = 0.01
    alpha_min: float = 0.01
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.region is None and self.maps is None:
            raise ValueError(f"losses: expected region or maps in {self.name!r}, got neither")
        for name, value, known in (
            ("region", self.region, REGION_LOSSES),
            ("maps", self.maps, MAPS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value is not None:
                checks.choice(name, value, known)
        both = self.region is not None and self.maps is not None
        if both != (self.schedule is not None):
            raise ValueError(
                f"schedule: expected {'equal or gradual' if both else 'none'} in {self.name!r} "
                f"({'two losses' if both else 'one loss'}), got {self.schedule!r}"
            )


class Data(_Frozen, frozen=True):
    """A data set by its name in `rwkernels.experiments.datasets`, with that loader's options.

    Where its files are is no part of it: `--data NAME=PATH` says so when it is run.
    """

    name: str
    options: dict[str, Any] = {}


class Training(_Frozen, frozen=True):
    """How a network is trained; the same for all losses of a task.

    Attributes:
        epochs: Passes over the training slices, or so many times `steps_per_epoch`.
        batch_size: Slices a step.
        steps_per_epoch: Steps of an epoch, as in nnU-Net (250); None for a pass.
        learning_rate: Of Adam, constant.
        weight_decay: Of Adam; 3e-5 is nnU-Net's.
        gradient_clip: Largest norm of the gradient of all weights; 12 is nnU-Net's. None leaves it alone.
        features: Channels of the five levels of MONAI's `BasicUNet`, and of its last.
        evaluate_every: Validation Dice is computed after each so many epochs, and after the last.
    """

    epochs: int
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 3e-5
    gradient_clip: float | None = 12.0
    steps_per_epoch: int | None = None
    features: tuple[int, ...] = (32, 32, 64, 128, 256, 32)
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch: expected at least 1 or none, got {self.steps_per_epoch}")
        if len(self.features) != 6:
            raise ValueError(f"features: expected six numbers of channels, got {len(self.features)}")


class Task(_Frozen, frozen=True):
    """A data set and how networks are trained on it."""

    data: Data
    training: Training


class Run(_Frozen, frozen=True):
    """One network: a task, a loss, a seed."""

    data: Data
    training: Training
    loss: Loss
    seed: int

    @property
    def key(self) -> str:
        """Hash of all that the run depends on, 16 hexadecimal digits."""
        told = tree(self)
        del told["loss"]["name"]
        return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.data.name}, {self.loss.name}, seed {self.seed}"


class Experiment(_Frozen, frozen=True):
    """One of the paper's three experiments.

    Attributes:
        name: Of its files.
        kind: `"comparison"` (section 4.1), `"convergence"` (4.2) or `"strategies"` (4.3): what the report shows.
        title: Its heading.
        tasks: Data sets.
        losses: What is compared.
        seeds: Of initial weights and the order of batches; each gives one network.
        baseline: Name of the loss that the others are tested against; None where strategies are compared.
        resamples: Of the permutation test.
        pairs: What a pair of the test is: `"case"` averages the seeds of a case first, `"case and seed"` takes each.
        missing_hausdorff: The Hausdorff distance of a class that only the prediction or only the labels have:
            `"diagonal"` of the image, or `"ignore"`, as the evaluation published with the paper does.
        converged_dice: A network whose validation Dice, averaged over classes, reaches this in its last epoch has
            converged (section 4.2).
    """

    name: str
    kind: str
    title: str
    tasks: tuple[Task, ...]
    losses: tuple[Loss, ...]
    seeds: tuple[int, ...]
    baseline: str | None = "RRW"
    resamples: int = 10_000
    pairs: str = "case"
    missing_hausdorff: str = "diagonal"
    converged_dice: float = 0.5

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, KINDS)
        checks.choice("pairs", self.pairs, PAIRS)
        checks.choice("missing_hausdorff", self.missing_hausdorff, MISSING_HAUSDORFF)
        names = [loss.name for loss in self.losses]
        for what, values in (("tasks", self.tasks), ("losses", names), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"{what}: expected at least one in {self.name!r}, got none")
        for what, given in (("losses", names), ("seeds", self.seeds), ("tasks", [t.data.name for t in self.tasks])):
            if len(set(given)) != len(given):
                raise ValueError(f"{what}: expected each name once in {self.name!r}, got {list(given)}")
        if self.kind == "comparison" and self.baseline not in names:
            raise ValueError(f"baseline: expected one of {names}, got {self.baseline!r}")

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that what is finished early compares all losses."""
        return [
            Run(task.data, task.training, loss, seed)
            for seed in self.seeds
            for task in self.tasks
            for loss in self.losses
        ]


def tree(value: Any) -> Any:
    """What JSON holds of a configuration."""
    return msgspec.to_builtins(value)


def dumped(experiment: Experiment) -> str:
    """The experiment as JSON text."""
    return json.dumps(tree(experiment), indent=2) + "\n"


def load(path: Path) -> Experiment:
    """An experiment from a JSON file.

    Raises:
        ValueError: The file is no JSON or no experiment; the message names the place in it.
    """
    try:
        return read(Experiment, json.loads(path.read_text(encoding="utf-8")), path.name)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got something else in line {error.lineno}: {error.msg}") from None


def read(kind: type[T], given: Any, where: str) -> T:
    """A `kind` from a tree of JSON. Raises `ValueError` that says where it is not what it should be."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_in_our_words(str(error), where)) from None


# msgspec's messages, and how the same is said here.
_WORDS = (
    (r"Object contains unknown field `(.*)`", r"expected none but the known fields, got '\1'"),
    (r"Object missing required field `(.*)`", r"expected '\1', which is missing"),
    (r"Expected `(.*)`, got `(.*)`", r"expected \1, got \2"),
)


def _in_our_words(message: str, where: str) -> str:
    """`Expected ..., got ... - at `$.losses[1]`` as `WHERE.losses[1]: expected ..., got ...`."""
    said, _, place = message.partition(" - at `$")
    for theirs, ours in _WORDS:
        said = re.sub(theirs, ours, said)
    return f"{where}{place.removesuffix('`')}: {said}"
