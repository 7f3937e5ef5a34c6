"""The losses that the paper compares with or builds on: active contours, Hausdorff, weighted cross-entropy."""

import numpy as np
import pytest
import torch
from loss_cases import generator, name, needs_native, random_labels, random_logits

import rwkernels as rw
from rwkernels import diagnostics

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
F64 = torch.float64


# --- length of contours -----------------------------------------------------------------------------------------


def slow_length(probabilities, spacing, counts=None, epsilon=0.0):
    """One pixel and class at a time."""
    p = probabilities.detach().double().numpy()
    total = np.zeros((p.shape[0], *p.shape[2:]))
    for b, k in np.ndindex(p.shape[:2]):
        for at in np.ndindex(p.shape[2:]):
            squared = 0.0
            for axis, step in enumerate(spacing):
                there = tuple(i + (a == axis) for a, i in enumerate(at))
                if there[axis] < p.shape[2 + axis] and (counts is None or (counts[b][at] and counts[b][there])):
                    squared += ((p[b, k][there] - p[b, k][at]) / step) ** 2
            total[(b, *at)] += 0.5 * np.sqrt(squared + epsilon)
    return torch.from_numpy(total * np.prod(spacing))


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((9,), (2.0,)), ((5, 7), (1.0, 1.0)), ((5, 7), (0.5, 3.0)), ((3, 4, 5), (2.0, 1.0, 0.7))],
    ids=name,
)
def test_the_length_is_half_the_summed_length_of_the_gradients_of_all_classes(shape, spacing, epsilon):
    logits = random_logits((2, 3, *shape), F64)
    found = rw.contour_length(logits, spacing=spacing, epsilon=epsilon, reduction="none")
    torch.testing.assert_close(found, slow_length(torch.softmax(logits, 1), spacing, epsilon=epsilon))
    total = rw.contour_length(logits, spacing=spacing, epsilon=epsilon, reduction="sum")
    torch.testing.assert_close(total, found.sum())
    mean = rw.contour_length(logits, spacing=spacing, epsilon=epsilon)
    torch.testing.assert_close(mean, found.sum() / (found.numel() * 3))


def crisp(labels, num_classes):
    return 200.0 * torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1).double()


def test_a_certain_segmentation_has_the_length_of_its_contours_in_units_of_the_spacing():
    labels = torch.zeros(1, 20, 30, dtype=torch.long)
    labels[:, :, 10:] = 1
    labels[:, :, 22:] = 2
    length = rw.contour_length(crisp(labels, 3), spacing=(0.5, 4.0), reduction="sum")
    torch.testing.assert_close(length, torch.tensor(2 * 20 * 0.5, dtype=F64))
    wall = torch.zeros(1, 6, 7, 8, dtype=torch.long)
    wall[:, 3:] = 1
    area = rw.contour_length(crisp(wall, 2), spacing=(3.0, 0.5, 2.0), reduction="sum")
    torch.testing.assert_close(area, torch.tensor(7 * 8 * 0.5 * 2.0, dtype=F64))


def test_of_two_classes_it_is_the_length_term_of_chen_et_al_for_one_probability():
    logits = random_logits((2, 2, 8, 9), F64)
    u = torch.softmax(logits, 1)[:, 1]
    down = torch.nn.functional.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    right = torch.nn.functional.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    expected = (down**2 + right**2 + 1e-8).sqrt().sum()
    torch.testing.assert_close(rw.contour_length(logits, epsilon=1e-8, reduction="sum"), expected)


@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3)], ids=name)
def test_first_and_second_derivatives_of_the_length_are_right(shape, epsilon):
    logits = random_logits((1, 3, *shape), F64).requires_grad_()
    spacing = (0.8, 1.5, 1.1)[: len(shape)]

    def length(x):
        return rw.contour_length(x, spacing=spacing, epsilon=epsilon, reduction="none")

    assert torch.autograd.gradcheck(length, logits)
    assert torch.autograd.gradgradcheck(length, logits)


def test_where_probabilities_are_constant_the_gradient_is_zero_and_so_it_is_beside():
    logits = torch.zeros(1, 2, 6, 6, dtype=F64)
    logits[..., 3:, :] = torch.tensor([0.0, 1.0], dtype=F64).view(1, 2, 1, 1)  # two constant halves
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(rw.contour_length(logits, reduction="sum"), logits, create_graph=True)
    assert gradient.isfinite().all()
    assert (gradient[..., [0, 1, 4, 5], :] == 0).all()
    assert (gradient[..., 2:4, :] != 0).all()
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert second.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 2, 0, 5), (2, 2, 4, 0), (2, 2, 1, 1)], ids=name)
def test_nothing_has_no_length(shape):
    logits = torch.zeros(shape, dtype=F64, requires_grad=True)
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    for loss in (rw.contour_length(logits), rw.ActiveContourLoss()(logits, labels) - 0.25 * bool(logits.numel())):
        assert loss == 0
        assert torch.autograd.grad(loss, logits)[0].shape == shape


def test_pixels_that_are_ignored_have_no_length_and_their_logits_are_not_read():
    logits, labels = random_logits((2, 3, 6, 7), F64), random_labels((2, 6, 7), 3, ignore_index=-1)
    counts = labels != -1
    options = {"labels": labels, "ignore_index": -1, "spacing": (1.0, 2.0)}
    expected = slow_length(torch.softmax(logits, 1), (1.0, 2.0), counts.numpy()) * counts
    broken = logits.masked_fill(~counts.unsqueeze(1), torch.nan).requires_grad_()
    torch.testing.assert_close(rw.contour_length(broken, reduction="none", **options), expected)
    mean = rw.contour_length(broken, **options)
    torch.testing.assert_close(mean, expected.sum() / (counts.sum() * 3))
    (gradient,) = torch.autograd.grad(mean, broken)
    assert (gradient == 0)[(~counts).unsqueeze(1).expand_as(gradient)].all()
    assert gradient.isfinite().all()


def test_the_length_keeps_no_more_than_the_probabilities_for_the_backward():
    logits = random_logits((1, 4, 64, 64), torch.float32).requires_grad_()
    kept = set()

    def note(tensor):
        kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = rw.contour_length(logits)
    assert sum(size for _, size in kept) <= logits.nbytes + 100
    loss.backward()


def test_the_length_goes_through_vmap_half_precision_and_the_compiler():
    logits = random_logits((3, 2, 3, 5, 6), torch.float32)
    gradient = torch.func.grad(lambda x: rw.contour_length(x, reduction="sum"))
    torch.testing.assert_close(torch.vmap(gradient)(logits), torch.stack([gradient(x) for x in logits]))
    half = rw.contour_length(logits[0].bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, rw.contour_length(logits[0].bfloat16().float()))
    compiled = torch.compile(rw.contour_length, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits[0]), rw.contour_length(logits[0]))


# --- active contours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_active_contour_loss_of_two_classes_is_that_of_chen_et_al(backend):
    logits, labels = random_logits((2, 2, 9, 8), F64), random_labels((2, 9, 8), 2)
    u, v = torch.softmax(logits, 1)[:, 1], labels.double()
    region = (u * (1 - v) ** 2).sum() + ((1 - u) * (0 - v) ** 2).sum()
    length = rw.contour_length(logits, epsilon=1e-8, reduction="sum")
    loss = rw.ActiveContourLoss(length_weight=0.3, epsilon=1e-8, reduction="sum", backend=backend)
    torch.testing.assert_close(loss(logits, labels), region + 0.3 * length)


def test_the_region_term_of_all_classes_against_their_rest_is_twice_the_region_wise_loss():
    logits, labels = random_logits((2, 4, 6, 5), F64), random_labels((2, 6, 5), 4)
    u, v = torch.softmax(logits, 1), torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    chen = (u * (1 - v) + (1 - u) * v).sum()
    region = rw.region_wise_loss(logits, rw.active_contour_map(labels, 4), reduction="sum")
    torch.testing.assert_close(chen, 2 * region)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_active_contour_loss_is_the_sum_of_its_two_terms(reduction):
    logits, labels = random_logits((2, 3, 6, 5), F64), random_labels((2, 6, 5), 3, ignore_index=9)
    loss = rw.ActiveContourLoss(length_weight=2.0, spacing=(1.0, 2.0), ignore_index=9, reduction=reduction)
    maps = rw.active_contour_map(labels, 3, ignore_index=9)
    length = rw.contour_length(logits, spacing=(1.0, 2.0), labels=labels, ignore_index=9, reduction=reduction)
    expected = rw.region_wise_loss(logits, maps, reduction=reduction) + 2 * length
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, maps), expected)
    torch.testing.assert_close(loss(logits, labels.unsqueeze(1)), expected)
    assert "length_weight=2.0" in repr(loss)


def test_deep_supervision_measures_contours_with_the_spacing_of_each_level():
    loss = rw.DeepSupervisionLoss(rw.ActiveContourLoss(spacing=(3.0, 1.0)), weights=[1.0, 0.5])
    labels = random_labels((1, 8, 8), 2)
    levels = [random_logits((1, 2, 8 >> level, 8 >> level), torch.float32) for level in range(2)]
    coarse = rw.losses.supervision.resample_labels(labels, (4, 4))
    expected = rw.ActiveContourLoss(spacing=(3.0, 1.0))(levels[0], labels)
    expected += 0.5 * rw.ActiveContourLoss(spacing=(6.0, 2.0))(levels[1], coarse)
    torch.testing.assert_close(loss(levels, labels), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_the_losses_on_a_gpu_are_those_on_the_cpu(threshold):
    logits, labels = random_logits((2, 4, 33, 40), torch.float32), random_labels((2, 33, 40), 4)
    weight = torch.rand(2, 33, 40, generator=generator(3))

    def losses(x, labels, weight):
        yield rw.hausdorff_loss(x, labels, threshold=threshold, spacing=(1.0, 2.0))
        yield rw.ActiveContourLoss(spacing=(1.0, 2.0))(x, labels)
        yield rw.weighted_cross_entropy(x, labels, weight)

    found = []
    for device in ("cpu", "cuda"):
        x = logits.to(device, copy=True).requires_grad_()
        values = list(losses(x, labels.to(device), weight.to(device)))
        gradients = [torch.autograd.grad(value, x)[0].cpu() for value in values]
        found.append([value.detach().cpu() for value in values] + gradients)
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-5, rtol=1e-4)


# --- weighted cross-entropy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weighted_cross_entropy_is_the_weighted_sum_of_pytorchs(reduction):
    logits, labels = random_logits((2, 4, 5, 6), F64), random_labels((2, 5, 6), 4, ignore_index=-7)
    weight = torch.rand(2, 5, 6, dtype=F64, generator=generator(1))
    counts = labels != -7
    broken = logits.masked_fill(~counts.unsqueeze(1), torch.nan).requires_grad_()
    found = rw.weighted_cross_entropy(broken, labels, weight.unsqueeze(1), ignore_index=-7, reduction=reduction)
    values = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-7, reduction="none") * weight
    expected = {"none": values, "sum": values.sum(), "mean": values.sum() / counts.sum()}[reduction]
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), broken)
    assert (gradient[(~counts).unsqueeze(1).expand_as(gradient)] == 0).all()


def test_weighted_cross_entropy_goes_through_the_compiler_and_transforms_with_its_check_of_labels():
    logits, labels = random_logits((2, 3, 4, 5)), random_labels((2, 4, 5), 3)
    weight = torch.rand(2, 4, 5, dtype=F64, generator=generator(1))
    expected = rw.weighted_cross_entropy(logits, labels, weight)
    compiled = torch.compile(rw.weighted_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels, weight), expected)
    with pytest.raises(ValueError, match=r"got 8 at \(1, 2, 3\)"):
        compiled(logits, torch.where(torch.arange(40).view(2, 4, 5) == 33, 8, labels), weight)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rw.weighted_cross_entropy(leaf, labels, weight), leaf)
    torch.testing.assert_close(torch.func.grad(rw.weighted_cross_entropy)(logits, labels, weight), gradient)
    pairs = torch.vmap(rw.weighted_cross_entropy)(
        torch.stack([logits, 2 * logits]), torch.stack([labels, labels]), torch.stack([weight, weight])
    )
    torch.testing.assert_close(pairs, torch.stack([expected, rw.weighted_cross_entropy(2 * logits, labels, weight)]))


def test_weighted_cross_entropy_takes_whole_numbers_in_floats_as_the_other_losses_do():
    logits, labels = random_logits((2, 3, 4, 5)), random_labels((2, 4, 5), 3)
    weight = torch.rand(2, 4, 5, dtype=F64, generator=generator(1))
    expected = rw.weighted_cross_entropy(logits, labels, weight)
    assert rw.weighted_cross_entropy(logits, labels.unsqueeze(1).float(), weight) == expected
    with pytest.raises(ValueError, match=r"labels: expected whole numbers, got 0\.5"):
        rw.weighted_cross_entropy(logits, torch.full((2, 4, 5), 0.5), weight)


def test_the_contrast_of_section_3_2_one_weight_a_pixel_against_one_a_class():
    """A region-wise map with other values at the wrong classes is another loss; cross-entropy cannot see them."""
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    logits = torch.tensor([1.0, 3.0, 2.0], dtype=F64).view(1, 3, 1, 1)
    maps = torch.tensor([[-1.0, 1.0, 1.0], [-1.0, 1.0, 5.0]], dtype=F64).view(2, 3, 1, 1)
    losses = [float(rw.region_wise_loss(logits, one[None])) for one in maps]
    assert losses[0] != losses[1]
    # -sum_k w_k [k = m] log y_k, with the same numbers as weights: only that of the true class is left.
    log_y = torch.log_softmax(logits, 1)
    truth = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    entropies = [-(one.abs() * truth * log_y).sum() for one in maps]
    assert entropies[0] == entropies[1]
    torch.testing.assert_close(rw.weighted_cross_entropy(logits, labels, torch.ones(1, 1, 1)), entropies[0])


def test_its_gradient_is_strongest_where_that_of_a_region_wise_loss_fades():
    logits = torch.tensor([-20.0, 5, 5], dtype=F64).view(1, 3, 1, 1).requires_grad_()
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    cross = rw.weighted_cross_entropy(logits, labels, torch.full((1, 1, 1), 2.0))
    region = rw.region_wise_loss(logits, rw.constant_map(labels, 3), reduction="sum")
    entropy_gradient, region_gradient = (torch.autograd.grad(loss, logits)[0].flatten() for loss in (cross, region))
    torch.testing.assert_close(entropy_gradient, 2 * torch.tensor([-1.0, 0.5, 0.5], dtype=F64), atol=1e-9, rtol=0)
    assert region_gradient.abs().max() < 1e-10
    assert region_gradient[0] < 0 < region_gradient[1]
    y = torch.softmax(logits.detach(), 1).flatten()
    torch.testing.assert_close(entropy_gradient, 2 * diagnostics.cross_entropy_gradient(0, y))


# --- bad input --------------------------------------------------------------------------------------------------

LOGITS, LABELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
BAD = LABELS.clone()
BAD[1, 2, 3] = 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rw.contour_length(LOGITS, spacing=(1.0,)), ValueError, "spacing: expected one number or 2"),
        (lambda: rw.contour_length(LOGITS, epsilon=-1), ValueError, "epsilon: expected a number >= 0, got -1"),
        (lambda: rw.contour_length(LOGITS, ignore_index=1), ValueError, "labels: expected labels, which ignore_index"),
        (lambda: rw.contour_length(LOGITS, reduction="max"), ValueError, "reduction: expected one of"),
        (lambda: rw.contour_length(LOGITS, labels=LABELS[1:]), ValueError, "labels: expected shape"),
        (lambda: rw.ActiveContourLoss(epsilon=-1), ValueError, "epsilon: expected a number >= 0"),
        (lambda: rw.hausdorff_loss(LOGITS, LABELS, alpha=0), ValueError, "alpha: expected a number > 0, got 0"),
        (lambda: rw.hausdorff_loss(LOGITS, LABELS, threshold=1), ValueError, "threshold: expected None or a number"),
        (lambda: rw.hausdorff_loss(LOGITS[:, :1], LABELS), ValueError, "logits: expected at least two channels"),
        (lambda: rw.hausdorff_loss(LOGITS, BAD), ValueError, r"labels: expected integers in \[0, 3\), got 8 at"),
        (lambda: rw.hausdorff_loss(LOGITS, LABELS[:, 1:]), ValueError, "labels: expected shape"),
        (lambda: rw.weighted_cross_entropy(LOGITS, LABELS, LABELS), TypeError, "weight: expected float32"),
        (lambda: rw.weighted_cross_entropy(LOGITS, LABELS, LOGITS), ValueError, "weight: expected shape"),
        (lambda: rw.weighted_cross_entropy(LOGITS, BAD, torch.ones(2, 4, 5)), ValueError, "got 8 at"),
    ],
)
def test_bad_input_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_unchecked_bad_labels_make_the_losses_nan():
    weight = torch.ones(2, 4, 5)
    assert rw.weighted_cross_entropy(LOGITS, BAD, weight, validate=False).isnan()
    assert rw.hausdorff_loss(LOGITS, BAD, validate=False).isnan()
