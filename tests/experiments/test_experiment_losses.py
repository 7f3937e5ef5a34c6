"""The losses and metrics of the experiments, against the formulas of the paper and of its published code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

pytest.importorskip("monai", reason='experiments need pip install "rwkernels[experiments]"')

import rwkernels as rw
from rwkernels.experiments import losses, metrics
from rwkernels.experiments.configuration import Loss

CLASSES = 4


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits far from uniform, labels of which one image lacks class 2."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, CLASSES, 9, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (2, 9, 7), generator=generator)
    labels[1][labels[1] == 2] = 1
    return logits, labels


def onehot(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).double()


def test_the_dice_loss_is_that_of_the_published_code(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    p, y = logits.softmax(1), onehot(labels)
    # 1 - mean over images and classes of 2 sum(p y) / (sum(p + y) + 1e-6), the background included
    expected = 1 - (2 * (p * y).sum((2, 3)) / ((p + y).sum((2, 3)) + 1e-6)).mean()
    torch.testing.assert_close(losses.build(Loss("Dice", region="dice"))(logits, labels), expected)


def test_the_focal_loss_is_that_of_the_published_code(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    p, y = logits.softmax(1), onehot(labels)
    for gamma in (2.0, 0.5):
        expected = -(y * (1 - p) ** gamma * p.log()).sum(1).mean()  # alpha 1; a mean over pixels, not over classes
        found = losses.build(Loss("Focal", region="focal", gamma=gamma))(logits, labels)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)  # MONAI's is float32


@pytest.mark.parametrize("region", ["dice", "cross_entropy"])
@pytest.mark.parametrize("maps", ["rectified", "boundary"])
def test_a_gradual_loss_weighs_both_by_the_alpha_of_its_epoch(
    case: tuple[torch.Tensor, torch.Tensor], region: str, maps: str
) -> None:
    logits, labels = case
    alone = losses.build(Loss("r", region=region))(logits, labels), rw.RegionWiseLoss(maps)(logits, labels)
    gradual = losses.build(Loss("g", region=region, maps=maps, schedule="gradual", alpha_step=0.4, alpha_min=0.05))
    for alpha in (1.0, 0.6, 0.2, 0.05, 0.05):
        torch.testing.assert_close(gradual(logits, labels), alpha * alone[0] + (1 - alpha) * alone[1])
        gradual.step()  # type: ignore[operator]
    equal = losses.build(Loss("e", region=region, maps=maps, schedule="equal"))
    torch.testing.assert_close(equal(logits, labels), alone[0] + alone[1])


def test_the_cross_entropy_is_the_mean_over_pixels(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    expected = -(onehot(labels) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses.build(Loss("CE", region="cross_entropy"))(logits, labels), expected)


def blobs(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    random = np.random.default_rng(seed)
    points = random.uniform(0, shape, (2 * CLASSES, len(shape)))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    nearest = np.argmin(((grid[..., None, :] - points) ** 2).sum(-1), -1)
    return torch.from_numpy(nearest % CLASSES)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask that touch one outside of it, or the edge of the image."""
    return np.argwhere(mask & ~binary_erosion(mask))


@pytest.mark.parametrize("shape", [(13, 18), (6, 11, 9)])
def test_dice_is_equation_6_and_hausdorff_is_equation_7_with_spacing(shape: tuple[int, ...]) -> None:
    spacing = (2.5, 0.7, 1.1)[-len(shape) :]
    prediction, labels = (torch.stack([blobs(seed + k, shape) for k in (0, 10)]) for seed in (1, 2))
    dice = metrics.dice(prediction, labels, CLASSES)
    distance = metrics.hausdorff(prediction, labels, CLASSES, spacing)
    for b in range(2):
        for k in range(1, CLASSES):
            a, y = (prediction[b] == k).numpy(), (labels[b] == k).numpy()
            assert dice[b, k - 1].item() == pytest.approx(2 * (a & y).sum() / (a.sum() + y.sum()), rel=1e-6)
            between = (boundary(a)[:, None] - boundary(y)[None]) * np.array(spacing)
            apart = np.sqrt((between**2).sum(-1))
            expected = max(apart.min(0).max(), apart.min(1).max())
            assert distance[b, k - 1].item() == pytest.approx(expected, rel=1e-5)


def test_a_class_that_only_one_of_the_two_has_scores_zero_and_infinity_and_one_that_neither_has_nothing() -> None:
    prediction, labels = torch.zeros(2, 1, 6, 6, dtype=torch.long)
    labels[0, 1:3, 1:3] = 1  # missed
    prediction[0, 4, 4] = 2  # invented
    dice, distance = metrics.dice(prediction, labels, CLASSES)[0], metrics.hausdorff(prediction, labels, CLASSES)[0]
    assert dice[:2].tolist() == [0, 0]
    assert distance[:2].tolist() == [math.inf, math.inf]
    assert math.isnan(dice[2])
    assert math.isnan(distance[2])
    assert metrics.hausdorff(prediction, labels, CLASSES, percentile=95.0)[0, :2].tolist() == [math.inf, math.inf]
