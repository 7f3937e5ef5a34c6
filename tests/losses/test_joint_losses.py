"""Dice, cross-entropy and focal loss as modules: against PyTorch, MONAI and nnU-Net, and joined with a map."""

import copy
import io
import itertools
import math

import pytest
import torch
from loss_cases import on_cpu_backends, random_labels, random_logits
from torch import nn

import rwkernels as rw

CLASSES = 4
SHAPE = (9, 11)
IGNORE = -1
WEIGHT = [0.5, 2.0, 1.0, 0.25]


def _logits(shape=SHAPE, classes=CLASSES, dtype=torch.float32):
    return random_logits((2, classes, *shape), dtype).requires_grad_()


def _labels(ignore_index=None, classes=CLASSES, shape=SHAPE):
    labels = random_labels((2, *shape), classes, ignore_index)
    labels[0][labels[0] == 2] = 1  # a class that one image lacks
    return labels


def both(loss, logits, *given):
    """Loss and gradient."""
    value = loss(logits, *given)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def assert_same(found, expected, *, minus=0.0, rtol=1e-5):
    torch.testing.assert_close(found[0] + minus, expected[0], rtol=rtol, atol=1e-6)
    largest = float(expected[1].abs().max())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=10 * rtol * largest)


# --- other libraries -------------------------------------------------------------------------------------------


@on_cpu_backends
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [None, IGNORE, 1])
@pytest.mark.parametrize(("weight", "smoothing"), [(None, 0.0), (WEIGHT, 0.0), (None, 0.3), (WEIGHT, 0.3)])
def test_cross_entropy_is_that_of_pytorch(weight, smoothing, ignore_index, reduction, backend):
    loss = rw.CrossEntropyLoss(
        weight, label_smoothing=smoothing, ignore_index=ignore_index, reduction=reduction, backend=backend
    )
    tensor = None if weight is None else torch.tensor(weight)
    beside = -100 if ignore_index is None else ignore_index
    theirs = nn.CrossEntropyLoss(tensor, label_smoothing=smoothing, ignore_index=beside, reduction=reduction)
    labels = _labels(ignore_index)
    if smoothing and ignore_index is not None and weight is not None:
        pytest.skip("PyTorch's mean then also divides by other numbers than the weights of what counts")
    assert_same(both(loss, _logits(), labels), both(theirs, _logits(), labels))


DICES = [
    {},
    {"include_background": False, "batch": True},
    {"squared_pred": True, "smooth_nr": 0.5, "smooth_dr": 2.0},
    {"jaccard": True, "include_background": False, "weight": WEIGHT[1:]},
    {"weight": WEIGHT, "reduction": "sum"},
    {"batch": True, "squared_pred": True, "jaccard": True, "weight": 3.0},
]


@on_cpu_backends
@pytest.mark.parametrize("options", DICES)
@pytest.mark.parametrize("ignore_index", [None, IGNORE])
def test_dice_is_that_of_monai(options, ignore_index, backend):
    monai = pytest.importorskip("monai.losses")
    try:
        theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=ignore_index, **options)
    except TypeError:  # before 1.6 it knows none
        theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, **options)
        ignore_index = None
    labels = _labels(ignore_index)
    ours = rw.DiceLoss(ignore_index=ignore_index, backend=backend, **options)
    assert_same(both(ours, _logits(), labels), both(theirs, _logits(), labels.unsqueeze(1)))


@on_cpu_backends
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include_background": False, "batch": True, "lambda_dice": 0.3, "lambda_ce": 2.0},
        {"weight": WEIGHT, "label_smoothing": 0.1},
        {"weight": WEIGHT, "include_background": False},
        {"squared_pred": True, "reduction": "sum"},
    ],
)
def test_dice_and_cross_entropy_are_those_of_monai(options, backend):
    monai = pytest.importorskip("monai.losses")
    given = {**options, "weight": torch.tensor(options["weight"])} if "weight" in options else options
    theirs = monai.DiceCELoss(softmax=True, to_onehot_y=True, **given)
    labels = _labels()
    assert_same(
        both(rw.DiceCELoss(backend=backend, **options), _logits(), labels),
        both(theirs, _logits(), labels.unsqueeze(1)),
        rtol=2e-5,
    )


@on_cpu_backends
@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5, "alpha": 0.3}, {"gamma": 3.0, "alpha": WEIGHT}, {"weight": WEIGHT}]
)
def test_focal_loss_is_that_of_monai(options, backend):
    monai = pytest.importorskip("monai.losses")
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, **options)
    labels = _labels()
    assert_same(
        both(rw.FocalLoss(backend=backend, **options), _logits(), labels), both(theirs, _logits(), labels.unsqueeze(1))
    )
    dice = monai.DiceLoss(softmax=True, to_onehot_y=True, batch=True)
    joined = rw.DiceFocalLoss(batch=True, lambda_dice=2.0, backend=backend, **options)
    expected = both(lambda x, y: 2 * dice(x, y) + theirs(x, y), _logits(), labels.unsqueeze(1))
    if "weight" not in options:  # it is Dice's too
        assert_same(both(joined, _logits(), labels), expected)


@on_cpu_backends
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"w_type": "simple", "batch": True},
        {"w_type": "uniform", "include_background": False},
        {"include_background": False, "batch": True, "reduction": "sum"},
    ],
)
def test_generalised_dice_is_that_of_monai(options, backend):
    monai = pytest.importorskip("monai.losses")
    theirs = monai.GeneralizedDiceLoss(softmax=True, to_onehot_y=True, **options)
    labels = _labels()
    assert_same(
        both(rw.GeneralizedDiceLoss(backend=backend, **options), _logits(), labels),
        both(theirs, _logits(), labels.unsqueeze(1)),
    )


@on_cpu_backends
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3, "beta": 0.7}, {"alpha": 1.0, "beta": 0.2, "batch": True, "include_background": False}],
)
def test_tversky_is_that_of_monai(options, backend):
    monai = pytest.importorskip("monai.losses")
    theirs = monai.TverskyLoss(softmax=True, to_onehot_y=True, **options)
    labels = _labels()
    assert_same(
        both(rw.TverskyLoss(backend=backend, **options), _logits(), labels),
        both(theirs, _logits(), labels.unsqueeze(1)),
    )


@pytest.mark.nnunet
@pytest.mark.parametrize(("batch", "background"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("ignore_index", [None, IGNORE])
def test_dice_and_cross_entropy_are_those_of_nnunet(batch, background, ignore_index):
    compound = pytest.importorskip("nnunetv2.training.loss.compound_losses")
    dice = pytest.importorskip("nnunetv2.training.loss.dice").MemoryEfficientSoftDiceLoss
    kwargs = {"batch_dice": batch, "smooth": 1e-5, "do_bg": background, "ddp": False}
    theirs = compound.DC_and_CE_loss(
        kwargs, {}, weight_ce=0.7, weight_dice=1.2, ignore_label=ignore_index, dice_class=dice
    )
    ours = rw.DiceCELoss(
        background, batch=batch, lambda_ce=0.7, lambda_dice=1.2, complement=False, ignore_index=ignore_index
    )
    labels = _labels(ignore_index).unsqueeze(1).float()  # as nnU-Net's loader gives them
    assert_same(both(ours, _logits(), labels), both(theirs, _logits(), labels))
    smooth = rw.DiceLoss(background, batch=batch, smooth_nr=0, smooth_dr=0, complement=False)
    kwargs = {"batch_dice": batch, "smooth": 0, "do_bg": background, "ddp": False}
    plain = dice(apply_nonlin=lambda x: torch.softmax(x, 1), **kwargs)
    labels = torch.zeros(2, 1, *SHAPE)
    assert_same(both(smooth, _logits(), labels), both(plain, _logits(), labels))


# --- joined with a map -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "region", ["dice", "cross_entropy", "focal", "dice_ce", "dice_focal", "tversky", "generalized_dice"]
)
@pytest.mark.parametrize("maps", ["rectified", "boundary"])
def test_a_loss_by_name_is_the_sum_of_both(region, maps):
    fused = rw.CombinedLoss(region, rw.RegionWiseLoss(maps, ignore_index=IGNORE, class_weight=WEIGHT))
    assert fused.fused
    apart = rw.CombinedLoss(lambda x, y: fused.region_loss(x, y), fused.rw_loss)
    assert not apart.fused
    assert_same(both(fused, _logits(), _labels(IGNORE)), both(apart, _logits(), _labels(IGNORE)))


def test_what_a_named_loss_takes_of_the_other():
    for loss in (
        rw.CombinedLoss("dice", rw.RegionWiseLoss(ignore_index=3, reduction="sum", validate=False)),
        rw.CombinedLoss(rw.DiceLoss(ignore_index=3, reduction="sum", validate=False), "constant"),
    ):
        for part in (loss.region_loss, loss.rw_loss):
            assert (part.ignore_index, part.reduction, part.validate) == (3, "sum", False)
        assert loss.fused
        assert "fused=True" in repr(loss)
    assert not rw.CombinedLoss(rw.DiceLoss(), rw.RegionWiseLoss(ignore_index=3)).fused
    assert not rw.CombinedLoss(nn.CrossEntropyLoss(), "rectified").fused
    watched = rw.CombinedLoss("dice", "rectified")
    watched.rw_loss.register_forward_hook(lambda *_: None)
    assert not watched.fused


@pytest.mark.parametrize("kind", ["compact", "dense"])
def test_a_map_built_before_and_a_background_left_out(kind):
    labels = _labels(IGNORE)
    maps = rw.rectified_map(labels, CLASSES, ignore_index=IGNORE)
    region_wise = rw.RegionWiseLoss(ignore_index=IGNORE, include_background=False)
    given = maps if kind == "compact" else maps.dense()
    fused = rw.CombinedLoss("dice_ce", region_wise)
    apart = rw.CombinedLoss(lambda x, y: fused.region_loss(x, y), region_wise)
    assert_same(both(fused, _logits(), labels, given), both(apart, _logits(), labels, given))
    with pytest.raises(TypeError, match="labels: expected labels for the region loss, got a"):
        fused(_logits(), given)


def test_the_gradual_schedule_weighs_and_makes_no_new_graph():
    torch.compiler.reset()
    fused = rw.CombinedLoss("dice_ce", "rectified", schedule="gradual", alpha_step=0.25)
    parts = [both(loss, _logits(), _labels()) for loss in (rw.DiceCELoss(), rw.RegionWiseLoss())]
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fused, fullgraph=True, backend=counting)
    for alpha in (1.0, 0.75, 0.5):
        expected = [alpha * a + (1 - alpha) * b for a, b in zip(*parts, strict=True)]
        assert_same(both(fused, _logits(), _labels()), expected)
        assert_same(both(compiled, _logits(), _labels()), expected)
        fused.step()
    assert len(graphs) == 1


def test_deep_supervision_over_a_fused_loss():
    loss = rw.DeepSupervisionLoss(rw.CombinedLoss("dice_ce", rw.RegionWiseLoss(spacing=(2.0, 1.0))), weights=[0.7, 0.3])
    logits = [_logits((12, 8)), _logits((6, 8))]
    labels = _labels(shape=(12, 8))
    coarse = labels[:, 1::2]
    found = loss(logits, labels)
    expected = 0
    for weight, level, own, spacing in zip((0.7, 0.3), logits, (labels, coarse), ((2.0, 1.0), (4.0, 1.0)), strict=True):
        both_losses = rw.DiceCELoss()(level, own) + rw.RegionWiseLoss(spacing=spacing)(level, own)
        expected = expected + weight * both_losses
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


# --- autograd --------------------------------------------------------------------------------------------------

EVERY = {
    "dice": lambda **more: rw.DiceLoss(squared_pred=True, ignore_index=IGNORE, **more),
    "focal": lambda **more: rw.FocalLoss(gamma=1.5, alpha=0.3, ignore_index=IGNORE, **more),
    "all": lambda **more: rw.CombinedLoss(
        rw.DiceCELoss(label_smoothing=0.1, weight=WEIGHT, batch=True, ignore_index=IGNORE, **more), "boundary"
    ),
}
every = pytest.mark.parametrize("loss", EVERY)


@every
def test_first_and_second_derivatives_are_right(loss):
    loss_fn, labels = EVERY[loss](), _labels(IGNORE, shape=(2, 3))
    logits = _logits((2, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, labels), logits)
    assert torch.autograd.gradgradcheck(lambda x: loss_fn(x, labels), logits)


@every
def test_any_way_to_ask_for_the_gradient(loss):
    loss_fn, labels = EVERY[loss](), _labels(IGNORE)
    _, expected = both(loss_fn, _logits(), labels)
    logits = _logits()
    value = loss_fn(logits, labels)
    (first,) = torch.autograd.grad(value, logits, torch.tensor(2.0), retain_graph=True)
    torch.testing.assert_close(first, 2 * expected)
    first.zero_()
    (again,) = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(again, expected)
    vectors = torch.tensor([1.0, -3.0])
    (batched,) = torch.autograd.grad(value, logits, vectors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack([expected, -3 * expected]), rtol=1e-4, atol=1e-7)
    value.backward()
    torch.testing.assert_close(logits.grad, expected)


@every
def test_compiled_it_is_one_graph_and_the_same(loss):
    torch.compiler.reset()
    loss_fn, labels = EVERY[loss](), _labels(IGNORE)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    assert_same(both(compiled, _logits(), labels), both(loss_fn, _logits(), labels))


@every
def test_transforms_of_torch_func_and_forward_mode(loss):
    loss_fn, labels = EVERY[loss](), _labels(IGNORE)
    logits = _logits().detach()
    value, expected = both(loss_fn, _logits(), labels)
    torch.testing.assert_close(torch.func.grad(lambda x: loss_fn(x, labels))(logits), expected, rtol=1e-4, atol=1e-7)
    several = torch.func.vmap(lambda x: loss_fn(x, labels))(torch.stack([logits, logits]))
    torch.testing.assert_close(several, value.expand(2))
    direction = random_logits(logits.shape, seed=3)
    _, along = torch.func.jvp(lambda x: loss_fn(x, labels), (logits,), (direction,))
    torch.testing.assert_close(along, (direction * expected).sum(), rtol=1e-4, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(loss_fn(dual, labels)).tangent
    torch.testing.assert_close(tangent, along)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    loss_fn, labels = EVERY[loss](), _labels(IGNORE)
    logits = _logits().detach().to(dtype).requires_grad_()
    wide = logits.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss_fn(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss_fn(wide, labels))
    scale = 65536.0  # as a gradient scaler has it: without, half of float16 would be flushed to 0
    (found,) = torch.autograd.grad(value * scale, logits)
    (expected,) = torch.autograd.grad(loss_fn(wide, labels) * scale, wide)
    torch.testing.assert_close(found, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_the_derivative_by_a_weight_is_refused_by_name():
    loss_fn, logits = rw.DiceCELoss(weight=torch.tensor(WEIGHT)), _logits()
    loss_fn.entropy_weight.requires_grad_()
    with pytest.raises(NotImplementedError, match="weights: a joint loss has no derivative"):
        loss_fn(logits, _labels()).backward()


# --- the rest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("region", "recompute"), [("dice_ce", False), ("cross_entropy", True)])
def test_the_forward_of_dice_or_to_recompute_keeps_nothing_of_the_size_of_the_logits(region, recompute):
    logits, labels = _logits(), _labels()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rw.CombinedLoss(region, rw.RegionWiseLoss(recompute=recompute))(logits, labels)
    assert [t.data_ptr() for t in kept if t.numel() == logits.numel()] == [logits.data_ptr()]


def test_a_pickled_copied_and_saved_loss_is_the_same():
    loss_fn = rw.DiceFocalLoss(weight=WEIGHT, alpha=0.25)
    expected = loss_fn(_logits(), _labels())
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    loaded = rw.DiceFocalLoss(weight=[1.0] * 4, alpha=0.25)
    loaded.load_state_dict(torch.load(file))
    for again in (copy.deepcopy(loss_fn), loaded):
        assert torch.equal(again(_logits(), _labels()), expected)


def test_one_channel_has_no_gradient_and_earns_a_warning():
    logits = _logits(classes=1)
    with pytest.warns(UserWarning, match="softmax over one channel"):
        value = rw.DiceCELoss()(logits, torch.zeros(2, 1, *SHAPE, dtype=torch.long))
    value.backward()
    assert not logits.grad.any()


def test_labels_of_every_kind():
    expected = rw.DiceCELoss()(_logits(), _labels())
    for labels in (_labels().unsqueeze(1), _labels().float(), _labels().to(torch.uint8), _labels().to(torch.uint16)):
        torch.testing.assert_close(rw.DiceCELoss()(_logits(), labels), expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rw.DiceLoss(reduction="none"), ValueError, "reduction: expected one of 'mean', 'sum'"),
        (lambda: rw.DiceLoss(batch=1), TypeError, "batch: expected True or False"),
        (lambda: rw.DiceLoss(smooth_nr=math.nan), ValueError, "smooth_nr: expected a finite number"),
        (lambda: rw.DiceLoss(weight=[1.0, -1.0]), ValueError, "weight: expected numbers >= 0"),
        (lambda: rw.DiceLoss(process_group="world"), ValueError, "process_group: expected None without batch=True"),
        (lambda: rw.DiceCELoss(lambda_ce=-1), ValueError, "lambda_ce: expected a number >= 0, got -1"),
        (lambda: rw.CrossEntropyLoss(label_smoothing=2), ValueError, r"label_smoothing: expected a number in \[0, 1\]"),
        (lambda: rw.FocalLoss(-1.0), ValueError, "gamma: expected a number >= 0"),
        (lambda: rw.FocalLoss(alpha=1.5), ValueError, r"alpha: expected a number in \[0, 1\] or one per class"),
        (lambda: rw.GeneralizedDiceLoss(w_type=""), ValueError, "w_type: expected one of 'square', "),
        (lambda: rw.CombinedLoss("bce", "rectified"), ValueError, "region_loss: expected one of 'dice', "),
        (lambda: rw.CombinedLoss("dice", "dense"), ValueError, "rw_loss: expected one of 'rectified'"),
        (lambda: rw.DiceLoss()(_logits(), _labels()[:1]), ValueError, r"labels: expected shape \[2, 9, 11\]"),
        (lambda: rw.DiceLoss()(_logits(), _labels() + 1), ValueError, r"labels: expected integers in \[0, 4\), got 4"),
        (lambda: rw.DiceLoss()(_logits(), _labels() + 0.5), ValueError, "labels: expected whole numbers"),
        (lambda: rw.DiceLoss(weight=[1.0] * 3)(_logits(), _labels()), ValueError, r"weight: expected shape \[4\]"),
        (lambda: rw.DiceLoss(backend="triton")(_logits(), _labels()), ValueError, "backend: 'triton' cannot run"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
