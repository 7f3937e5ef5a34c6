"""Small configurations and hand-made finished runs for the tests of the experiments."""

from __future__ import annotations

from collections.abc import Sequence

from rwkernels.experiments.configuration import Data, Experiment, Loss, Run, Task, Training
from rwkernels.experiments.records import Record
from rwkernels.experiments.training import Result

HEARTS = Data("hearts", {"seed": 5, "subjects": 4, "slices": 2, "size": 32})
TINY = Training(epochs=2, batch_size=2, learning_rate=2e-3, features=(4, 4, 4, 4, 4, 4))
RRW = Loss("RRW", maps="rectified")
DICE = Loss("Dice", region="dice")
BOUNDARY = Loss("RW-Boundary", maps="boundary")
GRADUAL = Loss("Dice+RW-Boundary", region="dice", maps="boundary", schedule="gradual", alpha_step=0.5)


def experiment(
    kind: str = "comparison", losses: Sequence[Loss] = (RRW, DICE), seeds: Sequence[int] = (0, 1), **options: object
) -> Experiment:
    return Experiment(kind, kind, "By hand", (Task(HEARTS, TINY),), tuple(losses), tuple(seeds), **options)  # type: ignore[arg-type]


def record(loss: Loss, seed: int, dice: list[list[float]], hausdorff: list[list[float]], **result: object) -> Record:
    """A finished run of two foreground classes."""
    cases = len(dice)
    made = Result(
        cases=[f"case{i}" for i in range(cases)],
        dice=dice,
        hausdorff=hausdorff,
        diagonals=[100.0] * cases,
        epochs=[1, 2],
        dice_per_epoch=[[0.1, 0.2], [sum(row[k] for row in dice) / cases for k in range(2)]],
        loss_per_epoch=[1.0, 0.5],
        digest="same",
        seconds=1.0,
        about={
            "classes": ["background", "one", "two"],
            "title": "hand-made cases",
            "description": "Numbers.",
            "train_slices": 1,
            "validation_slices": cases,
            "shape": [1, 8, 8],
        },
    )
    for name, value in result.items():
        setattr(made, name, value)
    environment = {"rwkernels": "0", "torch": "0", "monai": "0", "device": "cpu", "threads": 1}
    return Record(Run(HEARTS, TINY, loss, seed), made, environment)
