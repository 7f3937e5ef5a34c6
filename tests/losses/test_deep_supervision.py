"""DeepSupervisionLoss: nnU-Net's weights and labels, and the map of every level's own labels and spacing."""

import numpy as np
import pytest
import torch
from loss_cases import MetaLike, eager_loss
from samples import scene
from torch import nn

import rwkernels as rw
from rwkernels.losses.supervision import resample_labels

CLASSES = 3
SHAPE = (9, 24, 20)
SHAPES = [SHAPE, (9, 12, 10), (5, 6, 5), (3, 3, 3)]
SPACING = (2.5, 0.8, 1.2)
LABELS = scene("blobs", SHAPE, CLASSES)


def logits_of(shapes=SHAPES, dtype=torch.float32):
    g = torch.Generator().manual_seed(2)
    return [torch.randn(2, CLASSES, *shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def nearest_exact(labels, shape):
    return nn.functional.interpolate(labels[:, None].double(), tuple(shape), mode="nearest-exact")[:, 0].long()


def written_out_loss(family, weights, logits, labels, ignore_index=None):
    """The sum of all levels in float64: labels by interpolate, maps by the reference, the loss by eager PyTorch."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, found in zip(weights, logits, strict=True):
        own = nearest_exact(labels, found.shape[2:])
        spacing = [s * fine / size for s, fine, size in zip(SPACING, SHAPE, found.shape[2:], strict=True)]
        make = {"rectified": rw.rectified_map, "boundary": rw.boundary_map}[family]
        maps = make(own, CLASSES, spacing=spacing, ignore_index=ignore_index, backend="reference")
        dense = maps.dense(torch.float64) if isinstance(maps, rw.RectifiedMap) else maps.double()
        total = total + weight * eager_loss(found.double(), dense, own, ignore_index)
    return total


def gradients(loss, logits):
    return torch.autograd.grad(loss, logits, allow_unused=True, retain_graph=True)


def assert_same_step(found, expected, logits):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-7)
    for a, b in zip(gradients(found, logits), gradients(expected, logits), strict=True):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if a is None else b)


@pytest.mark.parametrize("ignore_index", [None, -1], ids=["none-ignored", "some-ignored"])
@pytest.mark.parametrize("family", ["rectified", "boundary"])
def test_every_level_has_the_map_of_its_own_labels_and_spacing(family, ignore_index):
    labels = LABELS.clone()
    if ignore_index is not None:
        labels[:, :4, 5:9] = -1
    weights = [0.4, 0.3, 0.2, 0.1]
    logits = logits_of()
    loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(family, spacing=SPACING, ignore_index=ignore_index), weights)
    expected = written_out_loss(family, weights, logits, labels, ignore_index)
    for given in (labels, labels[:, None], labels[:, None].float(), labels.as_subclass(MetaLike)):
        assert_same_step(loss_fn(logits, given), expected, logits)


def test_without_a_spacing_only_the_ratio_of_the_grids_counts():
    logits = logits_of([SHAPE, (9, 12, 5)])
    found = rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [0.0, 1.0])(logits, LABELS)
    own = nearest_exact(LABELS, (9, 12, 5))
    expected = rw.region_wise_loss(logits[1], rw.rectified_map(own, CLASSES, spacing=(1.0, 2.0, 4.0)))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, rw.RegionWiseLoss()(logits[1], own), rtol=1e-3)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_the_default_weights_are_those_of_nnunet(levels):
    weights = np.array([1 / 2**i for i in range(levels)])  # nnUNetTrainer._build_loss
    if levels > 1:
        weights[-1] = 0
    weights = weights / weights.sum()
    logits = logits_of([(12 - i, 12) for i in range(levels)])
    own = [nearest_exact(LABELS[:, 0], level.shape[2:]) for level in logits]
    cross_entropy = nn.CrossEntropyLoss()
    expected = sum(w * cross_entropy(a, b) for w, a, b in zip(weights, logits, own, strict=True))
    found = rw.DeepSupervisionLoss(cross_entropy)(logits, LABELS[:, 0])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("length", range(1, 40))
def test_labels_are_resampled_as_nnunet_does(length):
    labels = torch.randint(1000, (1, length, 3), generator=torch.Generator().manual_seed(length))
    for size in range(1, 40):
        # interpolate rounds some places of other ratios the wrong way, in float32; those are compared in exact terms
        expected = [(2 * i + 1) * length // (2 * size) for i in range(size)]
        assert torch.equal(resample_labels(labels, (size, 3)), labels[:, expected])
        if length % size == 0 or size % length == 0:
            assert torch.equal(resample_labels(labels, (size, 3)), nearest_exact(labels, (size, 3)))


def test_large_labels_of_every_dtype_survive_resampling():
    labels = torch.tensor([[[2**40 + 1, 5, 7, 2**53 + 1]]])
    assert resample_labels(labels, (1, 2)).tolist() == [[[5, 2**53 + 1]]]
    assert resample_labels(labels.to(torch.uint8), (1, 2)).dtype == torch.uint8


def test_a_level_of_weight_zero_is_not_computed():
    logits = logits_of()
    asked = []

    def loss(x, labels):
        asked.append(tuple(x.shape[2:]))
        return x.sum()

    rw.DeepSupervisionLoss(loss, [0.5, 0.0, 0.5, 0.0])(logits, LABELS)
    assert asked == [SHAPES[0], SHAPES[2]]
    broken = [logits[0], *(x.detach() * torch.nan for x in logits[1:])]
    assert torch.isfinite(rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [1.0, 0, 0, 0])(broken, LABELS))


def test_a_combined_loss_gets_labels_and_spacing_of_the_level():
    logits = logits_of()
    combined = rw.CombinedLoss(nn.CrossEntropyLoss(ignore_index=-1), rw.BoundaryLoss(spacing=SPACING, ignore_index=-1))
    labels = LABELS.clone()
    labels[:, :, :3] = -1
    weights = [0.5, 0.25, 0.25, 0.0]
    found = rw.DeepSupervisionLoss(combined, weights)(logits, labels)
    expected = written_out_loss("boundary", weights, logits, labels, -1)
    for weight, x in zip(weights, logits, strict=True):
        own = nearest_exact(labels, x.shape[2:])
        expected = expected + weight * nn.functional.cross_entropy(x.double(), own, ignore_index=-1)
    assert_same_step(found, expected, logits)


def test_lists_of_labels_and_of_maps_are_taken_as_they_are():
    logits = logits_of()
    own = [nearest_exact(LABELS, shape) for shape in SHAPES]
    loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(spacing=SPACING))
    expected = loss_fn(logits, LABELS)
    assert torch.equal(loss_fn(logits, own), expected)
    assert torch.equal(loss_fn(logits, [labels[:, None].float() for labels in own]), expected)
    maps = [
        rw.rectified_map(x, CLASSES, spacing=[s * f / n for s, f, n in zip(SPACING, SHAPE, shape, strict=True)])
        for x, shape in zip(own, SHAPES, strict=True)
    ]
    torch.testing.assert_close(loss_fn(logits, maps), expected)
    dense = rw.DeepSupervisionLoss(rw.RegionWiseLoss())(logits, [m.dense() for m in maps])
    torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "combined"])
@pytest.mark.parametrize("dense", [False, True], ids=["compact", "dense"])
def test_maps_built_before_go_with_the_labels_of_their_level(dense, joined):
    labels = LABELS.clone()
    labels[:, :4, 5:9] = -1
    logits = logits_of()
    loss = rw.RegionWiseLoss(ignore_index=-1, class_weight=[1.0, 2.0, 3.0], spacing=SPACING)
    if joined:
        loss = rw.CombinedLoss(nn.CrossEntropyLoss(ignore_index=-1), loss)
    loss_fn = rw.DeepSupervisionLoss(loss, [0.4, 0.3, 0.2, 0.1])
    maps = []
    for shape in SHAPES:
        steps = [s * f / n for s, f, n in zip(SPACING, SHAPE, shape, strict=True)]
        found = rw.rectified_map(nearest_exact(labels, shape), CLASSES, spacing=steps, ignore_index=-1)
        maps.append(found.dense() if dense else found)
    torch.testing.assert_close(loss_fn(logits, labels, maps), loss_fn(logits, labels))
    torch.testing.assert_close(loss_fn(logits[0], labels, maps), loss_fn(logits[0], labels))
    with pytest.raises(ValueError, match="maps: expected one entry for each of 4 levels, got 3"):
        loss_fn(logits, labels, maps[:3])
    with pytest.raises(TypeError, match="maps: expected a list with the map of every level"):
        loss_fn(logits, labels, maps[0])


def test_a_lone_tensor_is_one_level_of_weight_one():
    (logits,) = logits_of([SHAPE])
    loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(spacing=SPACING), [0.3, 0.2])
    expected = rw.RegionWiseLoss(spacing=SPACING)(logits, LABELS)
    assert torch.equal(loss_fn(logits, LABELS), expected)
    assert torch.equal(loss_fn(logits, [LABELS, LABELS[:, :, ::2]]), expected)


def test_it_compiles_into_one_graph():
    logits = logits_of()
    loss_fn = rw.DeepSupervisionLoss(rw.RegionWiseLoss(spacing=SPACING))
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    assert_same_step(compiled(logits, LABELS), loss_fn(logits, LABELS), logits)


def test_the_loss_inside_keeps_its_state():
    inner = rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(class_weight=[1.0, 2.0, 3.0]), schedule="gradual")
    loss_fn = rw.DeepSupervisionLoss(inner, [1.0])
    assert {"loss.alpha", "loss.rw_loss.class_weight"} == set(loss_fn.state_dict())
    assert "weights=[1.0]" in repr(loss_fn)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rw.DeepSupervisionLoss(3), TypeError, "loss: expected a loss called with logits and labels, got int"),
        (lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(reduction="none")), ValueError, "loss: expected a loss that"),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [1.0, -1.0]),
            ValueError,
            "weights: expected numbers >= 0",
        ),
        (lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [0.0]), ValueError, "weights: expected numbers >= 0"),
        (lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(), []), ValueError, "weights: expected numbers >= 0"),
        (lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(), ["a"]), TypeError, "weights: expected a number, got str"),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss(), [1.0])(logits_of(), LABELS),
            ValueError,
            "logits: expected as many levels as weights, 1, got 4",
        ),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss())([], LABELS),
            ValueError,
            "logits: expected at least one level, got 0",
        ),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss())(logits_of(), [LABELS]),
            ValueError,
            "labels: expected one entry for each of 4 levels, got 1",
        ),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss())(logits_of(), LABELS[0]),
            ValueError,
            r"labels: expected \[B, \*S\] or \[B, 1, \*S\] with 3 spatial axes",
        ),
        (
            lambda: rw.DeepSupervisionLoss(rw.RegionWiseLoss())(logits_of(), LABELS + 1),
            ValueError,
            r"labels: expected integers in \[0, 3\), got 3",
        ),
    ],
)
def test_bad_input_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
