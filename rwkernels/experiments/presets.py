"""The paper's three experiments as configurations, in its own size and scaled down.

| scale | data | what it is for |
|---|---|---|
| `paper` | ACDC17, BraTS18, KiTS19 as `rwkernels experiment prepare ... --format slices` writes them | a GPU and days |
| `small` | generated hearts, one CT, the MNI152 template | two cores and an hour: `docs/experiments.md` |
| `tiny` | four generated hearts | trying it out, in seconds |
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from rwkernels.experiments.configuration import Data, Experiment, Loss, Task, Training

SCALES = ("paper", "small", "tiny")
NAMES = ("comparison", "convergence", "strategies")

# The code published with the paper; its text says 1e-5. Both are a matter of `learning_rate`.
_PAPER = Training(
    epochs=300, batch_size=20, learning_rate=1e-4, features=(32, 64, 128, 256, 512, 32), steps_per_epoch=250
)
_PAPER_SETS = {"acdc17": [224, 224], "brats18": [192, 160], "kits19": [256, 256]}

_FEATURES = (8, 16, 32, 64, 64, 8)
# Options of the data, slices a step, steps an epoch.
_SMALL: dict[str, tuple[dict[str, Any], int, int]] = {
    "hearts": ({"seed": 0, "subjects": 24, "slices": 6, "size": 64}, 2, 36),
    "totalsegmentator-ct": ({"first": 60, "block": 8, "gap": 2}, 1, 70),
    "mni152": ({"step": 2}, 2, 20),
}
_TINY = Training(epochs=2, batch_size=4, learning_rate=2e-3, features=(4, 4, 4, 4, 4, 4))


def experiment(name: str, scale: str) -> Experiment:
    """One of the three experiments at a scale.

    Args:
        name: `"comparison"` (section 4.1), `"convergence"` (4.2) or `"strategies"` (4.3).
        scale: `"paper"`, `"small"` or `"tiny"`.

    Examples:
        >>> [loss.name for loss in experiment("comparison", "small").losses]
        ['RRW', 'Dice', 'Focal', 'Dice+RW-Boundary, gradual']
    """
    if name not in NAMES:
        raise ValueError(f"experiment: expected one of {', '.join(NAMES)}, got {name!r}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    return {"comparison": _comparison, "convergence": _convergence, "strategies": _strategies}[name](scale)


def _comparison(scale: str) -> Experiment:
    """Section 4.1, Tables 2 to 4."""
    tasks = _tasks(scale)
    step = _alpha_step(tasks)
    losses = (
        Loss("RRW", maps="rectified"),
        Loss("Dice", region="dice"),
        Loss("Focal", region="focal", gamma=2.0),
        _joined("dice", "boundary", "gradual", step),
    )
    title = "Comparison of losses (section 4.1)"
    return Experiment("comparison", "comparison", title, tasks, losses, _seeds(scale))


def _convergence(scale: str) -> Experiment:
    """Section 4.2, Fig. 5. The published code trains 50 epochs here and scores the last; it does not say how many."""
    tasks = _tasks(scale)
    if scale == "paper":
        shorter = replace(_PAPER, epochs=50)
        tasks = tuple(Task(task.data, shorter) for task in tasks)
    elif scale == "small":
        tasks = tasks[:1]
    seeds = tuple(range({"paper": 50, "small": 20, "tiny": 3}[scale]))
    losses = (Loss("RRW", maps="rectified"), Loss("RW-Boundary", maps="boundary"))
    title = "Stability of the optimisation (section 4.2)"
    return Experiment("convergence", "convergence", title, tasks, losses, seeds)


def _strategies(scale: str) -> Experiment:
    """Section 4.3, Fig. 6: on ACDC17 in the published code."""
    tasks = _tasks(scale)[:1]
    step = _alpha_step(tasks)
    losses = tuple(
        _joined(region, maps, schedule, step)
        for region in ("dice", "cross_entropy")
        for maps in ("rectified", "boundary")
        for schedule in ("equal", "gradual")
    )
    title = "Equal and gradual strategies (section 4.3)"
    return Experiment("strategies", "strategies", title, tasks, losses, _seeds(scale), baseline=None)


_REGIONS = {"dice": "Dice", "cross_entropy": "CE"}
_MAPS = {"rectified": "RRW", "boundary": "RW-Boundary"}


def _joined(region: str, maps: str, schedule: str, alpha_step: float) -> Loss:
    name = f"{_REGIONS[region]}+{_MAPS[maps]}, {schedule}"
    if schedule == "equal":
        return Loss(name, region=region, maps=maps, schedule=schedule)
    return Loss(name, region=region, maps=maps, schedule=schedule, alpha_step=alpha_step)


def _alpha_step(tasks: tuple[Task, ...]) -> float:
    """The paper's 0.01 an epoch is over after a third of its 300 epochs; so it is in a shorter training."""
    return round(min(0.01 * _PAPER.epochs / min(task.training.epochs for task in tasks), 1.0), 6)


def _tasks(scale: str) -> tuple[Task, ...]:
    if scale == "paper":
        return tuple(Task(Data(f"slices:{name}", {"size": size}), _PAPER) for name, size in _PAPER_SETS.items())
    if scale == "tiny":
        return (Task(Data("hearts", {"seed": 0, "subjects": 4, "slices": 2, "size": 32}), _TINY),)
    return tuple(
        Task(
            Data(name, dict(options)),
            Training(
                epochs=24,
                batch_size=batch_size,
                learning_rate=2e-3,
                features=_FEATURES,
                steps_per_epoch=steps,
                evaluate_every=2,
            ),
        )
        for name, (options, batch_size, steps) in _SMALL.items()
    )


def _seeds(scale: str) -> tuple[int, ...]:
    return (0,) if scale == "tiny" else (0, 1, 2)
