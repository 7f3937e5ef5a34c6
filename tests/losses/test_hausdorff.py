"""The Hausdorff loss: its distances are SciPy's, its values MONAI's, on every backend."""

import numpy as np
import ptx
import pytest
import torch
from loss_cases import name, needs_native, random_labels, random_logits
from scipy import ndimage

import rwkernels as rw
from rwkernels.backends import triton

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
F64 = torch.float64


def slow_field(mask, spacing):
    """Distance to the nearest pixel on the other side, by SciPy; 0 without a boundary."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    inside, outside = (ndimage.distance_transform_edt(m, sampling=spacing) for m in (mask, ~mask))
    return inside + outside


def slow_hausdorff(logits, labels, alpha, threshold, spacing):
    p = torch.softmax(logits.double(), 1).detach().numpy()
    total = np.zeros(p.shape)
    for b, k in np.ndindex(p.shape[:2]):
        truth = (labels[b] == k).numpy()
        predicted = p[b].argmax(0) == k if threshold is None else p[b, k] > threshold
        fields = slow_field(truth, spacing) ** alpha + slow_field(predicted, spacing) ** alpha
        total[b, k] = (p[b, k] - truth) ** 2 * fields
    return torch.from_numpy(total)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [None, 0.5, 0.3])
@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.7])
@pytest.mark.parametrize(("shape", "spacing"), [((9, 11), (1.0, 1.0)), ((5, 6, 7), (2.0, 1.0, 0.6))], ids=name)
def test_the_hausdorff_loss_is_that_of_scipys_distances(shape, spacing, alpha, threshold, backend):
    logits, labels = random_logits((2, 4, *shape), torch.float32), random_labels((2, *shape), 4)
    labels[labels == 2] = 1  # a class that is absent from the labels and not from the prediction
    expected = slow_hausdorff(logits, labels, alpha, threshold, spacing)
    options = {"alpha": alpha, "threshold": threshold, "spacing": spacing, "backend": backend}
    torch.testing.assert_close(rw.hausdorff_loss(logits, labels, **options).double(), expected.mean())
    pixels = rw.hausdorff_loss(logits, labels, reduction="none", **options)
    torch.testing.assert_close(pixels.double(), expected.sum(1), atol=1e-4, rtol=1e-5)
    no_background = rw.hausdorff_loss(logits, labels, include_background=False, **options)
    torch.testing.assert_close(no_background.double(), expected[:, 1:].mean())


def test_the_hausdorff_loss_takes_its_distances_from_every_backend_of_the_cpu(backend):
    logits, labels = random_logits((2, 3, 7, 9), torch.float32), random_labels((2, 7, 9), 3)
    for threshold in (None, 0.4):
        expected = slow_hausdorff(logits, labels, 2.0, threshold, (1.5, 1.0)).mean()
        found = rw.hausdorff_loss(logits, labels, threshold=threshold, spacing=(1.5, 1.0), backend=backend)
        torch.testing.assert_close(found.double(), expected)


@pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
def test_the_hausdorff_loss_takes_its_distances_from_the_kernels_of_the_gpu(monkeypatch):
    from ptx.driver import emulated_device

    logits, labels = random_logits((2, 3, 7, 9), torch.float32), random_labels((2, 7, 9), 3)
    expected = slow_hausdorff(logits, labels, 2.0, None, (1.0, 1.0)).mean()
    monkeypatch.setattr(triton, "can_run", lambda device: None)
    with emulated_device("cuda", 90) as device:
        found = rw.hausdorff_loss(logits, labels, validate=False, backend="triton")
    assert device.launches
    torch.testing.assert_close(found.double(), expected)


@pytest.mark.parametrize(("num_classes", "threshold"), [(2, None), (2, 0.5), (3, 0.5), (5, 0.5)])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("alpha", [2.0, 1.5])
def test_the_hausdorff_loss_is_monais(num_classes, threshold, include_background, alpha):
    losses = pytest.importorskip("monai.losses", reason="MONAI (the extra `monai`) is missing")
    logits, labels = random_logits((2, num_classes, 12, 13), torch.float32), random_labels((2, 12, 13), num_classes)
    logits.requires_grad_()
    theirs = losses.HausdorffDTLoss(alpha=alpha, softmax=True, to_onehot_y=True, include_background=include_background)(
        logits, labels.unsqueeze(1)
    )
    ours = rw.HausdorffLoss(alpha=alpha, threshold=threshold, include_background=include_background)(logits, labels)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_the_gradient_of_the_hausdorff_loss_holds_the_distances_fixed(threshold):
    logits, labels = random_logits((1, 3, 5, 6), F64).requires_grad_(), random_labels((1, 5, 6), 3)
    assert torch.autograd.gradcheck(lambda x: rw.hausdorff_loss(x, labels, threshold=threshold), logits)


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_pixels_bound_the_distances_of_the_hausdorff_loss_and_nothing_else(backend, threshold):
    logits, labels = random_logits((2, 3, 8, 9), torch.float32), random_labels((2, 8, 9), 3, ignore_index=255)
    counts = labels != 255
    broken = logits.masked_fill(~counts.unsqueeze(1), torch.nan).requires_grad_()
    options = {"threshold": threshold, "ignore_index": 255, "backend": backend}
    pixels = rw.hausdorff_loss(broken, labels, reduction="none", **options)
    assert (pixels[~counts] == 0).all()
    p = torch.softmax(logits, 1)
    field = rw.boundary_map(labels, 3, ignore_index=255).square()
    for k in range(3):
        sides = (p.argmax(1) == k if threshold is None else p[:, k] > threshold).long()
        predicted = p.argmax(1).masked_fill(~counts, 255) if threshold is None else None
        if predicted is not None:
            other = rw.boundary_map(predicted, 3, ignore_index=255)[:, k]
        else:
            other = rw.boundary_map(sides.masked_fill(~counts, 2), 2, ignore_index=2)[:, 1]
        field[:, k] += other.square()
    expected = ((p - torch.nn.functional.one_hot(labels.masked_fill(~counts, 0), 3).movedim(-1, 1)) ** 2 * field).sum(1)
    torch.testing.assert_close(pixels[counts], expected[counts])
    mean = rw.hausdorff_loss(broken, labels, **options)
    torch.testing.assert_close(mean, expected[counts].sum() / (3 * counts.sum()))
    (gradient,) = torch.autograd.grad(mean, broken)
    assert gradient.isfinite().all()
    assert (gradient[(~counts).unsqueeze(1).expand_as(gradient)] == 0).all()


def test_a_class_without_a_boundary_in_labels_and_prediction_costs_nothing():
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    logits = torch.zeros(1, 3, 6, 6)
    logits[:, 0] = 2
    assert rw.hausdorff_loss(logits, labels) == 0
    logits[:, 2, 1, 1] = 5  # a pixel that is wrong costs by its distance: 1 there and in both channels
    p = torch.softmax(logits, 1)
    field = torch.from_numpy(slow_field((p.argmax(1)[0] == 0).numpy(), (1, 1))).square()
    error = (p[0, 0] - 1) ** 2 + p[0, 2] ** 2
    torch.testing.assert_close(rw.hausdorff_loss(logits, labels, reduction="sum").double(), (error * field).sum())


def test_the_hausdorff_loss_joins_dice_or_another_loss_and_deep_supervision():
    loss = rw.CombinedLoss(torch.nn.CrossEntropyLoss(), rw.HausdorffLoss(spacing=(2.0, 1.0)))
    logits, labels = random_logits((2, 3, 8, 8), torch.float32), random_labels((2, 8, 8), 3)
    expected = torch.nn.functional.cross_entropy(logits, labels) + rw.hausdorff_loss(logits, labels, spacing=(2.0, 1.0))
    torch.testing.assert_close(loss(logits, labels), expected)
    deep = rw.DeepSupervisionLoss(rw.HausdorffLoss(), weights=[1.0, 1.0])
    small = random_logits((2, 3, 4, 4), torch.float32)
    coarse = rw.losses.supervision.resample_labels(labels, (4, 4))
    expected = rw.hausdorff_loss(logits, labels) + rw.hausdorff_loss(small, coarse, spacing=2.0)
    torch.testing.assert_close(deep([logits, small], labels), expected)


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_that_is_ignored_costs_as_much_as_a_label_that_is_none(backend, threshold):
    logits, labels = random_logits((2, 3, 8, 9), torch.float32), random_labels((2, 8, 9), 3)
    options = {"threshold": threshold, "reduction": "none", "backend": backend}
    expected = rw.hausdorff_loss(logits, labels.masked_fill(labels == 0, 255), ignore_index=255, **options)
    predicted = logits.argmax(1)
    assert ((predicted == 0) & (labels != 0)).any()
    torch.testing.assert_close(rw.hausdorff_loss(logits, labels, ignore_index=0, **options), expected)
