"""`torch.func`, `torch.compile`, `torch.export` and the operators' own contract, each against eager PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_cases import (
    eager_loss,
    either_kind,
    every_reduction,
    loss_and_gradient,
    make_case,
    on_cpu_backends,
    random_labels,
    random_logits,
    written_out,
)
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.library import opcheck

import rwkernels as rw

BATCH, CLASSES = 2, 3
every_option = pytest.mark.parametrize("ignore_index", [None, -1], ids=["none-ignored", "ignore-1"])


def _case(kind="compact", ignore_index=None, **options):
    return make_case(kind, shape=(2, 3), dtype=torch.float64, ignore_index=ignore_index, **options)


def _pair(case, reduction="mean", **options):
    """The loss of the package and of eager PyTorch, as functions of the logits."""

    def ours(x):
        return rw.region_wise_loss(x, case.maps, reduction=reduction, **case.options(), **options)

    def eager(x):
        return eager_loss(x, case.dense, case.labels, case.ignore_index, reduction=reduction)

    return ours, eager


def _stack(size=4):
    """Several [B, K, *S] at once, the vmapped axis first."""
    return random_logits((size, BATCH, CLASSES, 2, 3), torch.float64, seed=20)


# --- torch.func ---------------------------------------------------------------------------------------------------


@on_cpu_backends
@either_kind
@every_option
def test_func_grad_is_that_of_eager_pytorch(ignore_index, kind, backend):
    case = _case(kind, ignore_index)
    ours, eager = _pair(case, backend=backend)
    torch.testing.assert_close(grad(ours)(case.logits), grad(eager)(case.logits))


@on_cpu_backends
@either_kind
@every_reduction
def test_jvp_and_vjp_are_those_of_eager_pytorch(reduction, kind, backend):
    case = _case(kind, -1, class_scale=True)
    ours, eager = _pair(case, reduction, backend=backend)
    tangent = random_logits(case.logits.shape, torch.float64, seed=30)
    torch.testing.assert_close(jvp(ours, (case.logits,), (tangent,)), jvp(eager, (case.logits,), (tangent,)))
    (value, ours_back), (expected, eager_back) = vjp(ours, case.logits), vjp(eager, case.logits)
    torch.testing.assert_close(value, expected)
    cotangent = random_logits(value.shape, torch.float64, seed=31)
    torch.testing.assert_close(ours_back(cotangent), eager_back(cotangent))


@on_cpu_backends
@either_kind
@every_option
def test_hessians_by_every_composition_are_those_of_eager_pytorch(ignore_index, kind, backend):
    case = _case(kind, ignore_index)
    ours, eager = _pair(case, backend=backend)
    expected = hessian(eager)(case.logits)
    for composed in (hessian(ours), jacrev(jacrev(ours)), jacrev(jacfwd(ours)), jacfwd(jacfwd(ours))):
        torch.testing.assert_close(composed(case.logits), expected)


@on_cpu_backends
@every_reduction
def test_forward_mode_inside_forward_mode_is_not_silently_zero(reduction, backend):
    case = _case(ignore_index=-1, class_scale=True)
    ours, eager = _pair(case, reduction, backend=backend)
    first, second = (random_logits(case.logits.shape, torch.float64, seed=seed) for seed in (40, 41))

    def twice(function):
        return jvp(lambda x: jvp(function, (x,), (first,))[1], (case.logits,), (second,))

    torch.testing.assert_close(twice(ours), twice(eager))
    third = jacfwd(jacfwd(jacrev(lambda x: ours(x).sum())))(case.logits)
    expected = jacfwd(jacfwd(jacrev(lambda x: eager(x).sum())))(case.logits)
    torch.testing.assert_close(third, expected)


@on_cpu_backends
@either_kind
@every_reduction
@every_option
def test_vmap_over_logits_is_a_loop_over_them(ignore_index, reduction, kind, backend):
    ours, eager = _pair(_case(kind, ignore_index), reduction, backend=backend)
    torch.testing.assert_close(vmap(ours)(_stack()), torch.stack([eager(x) for x in _stack()]))


@on_cpu_backends
def test_vmap_takes_any_axis(backend):
    ours, eager = _pair(_case(), backend=backend)
    moved = _stack().movedim(0, 3)
    torch.testing.assert_close(vmap(ours, in_dims=3)(moved), torch.stack([eager(x) for x in _stack()]))


@on_cpu_backends
@either_kind
@every_reduction
def test_gradients_inside_and_outside_of_vmap_are_those_of_a_loop(reduction, kind, backend):
    ours, eager = _pair(_case(kind, -1), reduction, backend=backend)
    expected = torch.stack([grad(lambda x: eager(x).sum())(x) for x in _stack()])
    torch.testing.assert_close(vmap(grad(lambda x: ours(x).sum()))(_stack()), expected)
    torch.testing.assert_close(grad(lambda stack: vmap(ours)(stack).sum())(_stack()), expected)
    _, gradient = loss_and_gradient(lambda stack: vmap(ours)(stack).sum(), _stack())
    torch.testing.assert_close(gradient, expected)


@on_cpu_backends
@every_option
@every_reduction
@pytest.mark.parametrize("background", ["number", "pixel"])
def test_vmap_over_a_rectified_map_takes_it_apart_image_by_image(background, reduction, ignore_index, backend):
    case = _case(ignore_index=ignore_index, background=background)

    def ours(x, maps):
        return rw.region_wise_loss(x[None], maps[None], reduction=reduction, backend=backend)

    expected = [
        eager_loss(case.logits[b : b + 1], case.dense[b : b + 1], case.labels[b : b + 1], ignore_index, True, reduction)
        for b in range(BATCH)
    ]
    torch.testing.assert_close(vmap(ours)(case.logits, case.maps), torch.stack(expected))


@on_cpu_backends
@every_reduction
def test_every_call_inside_vmap_has_its_own_divisor_and_incoming_gradient(reduction, backend):
    cases = [_case(ignore_index=-1, background="pixel", seed=seed) for seed in (0, 100, 200)]
    assert len({int((case.labels != -1).sum()) for case in cases}) == 3
    fields = ("labels", "foreground", "background")
    stacked = {field: torch.stack([getattr(case.maps, field) for case in cases]) for field in fields}
    maps = rw.RectifiedMap(**stacked, num_classes=CLASSES, ignore_index=-1)
    weights = random_logits((3, 1), torch.float64, seed=70)

    def total(loss_of_all):
        x = torch.stack([case.logits for case in cases])
        return loss_and_gradient(lambda x: (weights * loss_of_all(x).flatten(1)).sum(), x)

    def ours(stack):
        return vmap(lambda x, m: rw.region_wise_loss(x, m, reduction=reduction, backend=backend).view(-1))(stack, maps)

    def eager(stack):
        losses = (_pair(case, reduction)[1](x) for case, x in zip(cases, stack, strict=True))
        return torch.stack([loss.view(-1) for loss in losses])

    torch.testing.assert_close(total(ours), total(eager))
    both = vmap(grad(lambda x, m: rw.region_wise_loss(x, m, reduction=reduction, backend=backend).sum()))
    expected = [grad(lambda x, c=case: _pair(c, reduction)[1](x).sum())(case.logits) for case in cases]
    torch.testing.assert_close(both(torch.stack([case.logits for case in cases]), maps), torch.stack(expected))


@on_cpu_backends
@pytest.mark.parametrize("background", ["number", "pixel"])
def test_vmap_of_vmap_is_a_loop_of_loops(background, backend):
    case = _case(background=background)

    def ours(x, maps):
        return rw.region_wise_loss(x[None], maps[None], backend=backend)

    expected = [[eager_loss(x[b : b + 1], case.dense[b : b + 1]) for b in range(BATCH)] for x in _stack()]
    found = vmap(vmap(ours), in_dims=(0, None))(_stack(), case.maps)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@on_cpu_backends
def test_vmap_over_class_scales_is_a_loop_over_them(backend):
    case = _case()
    scales = 0.5 + torch.rand(4, CLASSES, dtype=torch.float64)

    def ours(scale):
        return rw.region_wise_loss(case.logits, rw.scale_classes(case.maps, scale), backend=backend)

    expected = [eager_loss(case.logits, case.dense * scale.view(1, -1, 1, 1)) for scale in scales]
    torch.testing.assert_close(vmap(ours)(scales), torch.stack(expected))


def test_vmap_over_the_module_takes_logits_and_labels():
    labels = random_labels((4, BATCH, 4, 5), CLASSES)
    logits = random_logits((4, BATCH, CLASSES, 4, 5), torch.float64)
    loss_fn = rw.RegionWiseLoss(validate=False)
    found = vmap(loss_fn)(logits, labels)
    torch.testing.assert_close(found, torch.stack([loss_fn(x, t) for x, t in zip(logits, labels, strict=True)]))


def test_functional_call_over_stacked_weights_gives_a_gradient_for_every_sample():
    weight = random_logits((CLASSES, 2, 1, 1), torch.float64, seed=5)
    images = random_logits((3, 2, 4, 5), torch.float64, seed=6)
    labels = random_labels((3, 4, 5), CLASSES)

    def loss(w, image, target, family):
        logits = torch.nn.functional.conv2d(image[None], w)
        return rw.region_wise_loss(logits, family(target[None], CLASSES, validate=False))

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0, None))(weight, images, labels, rw.rectified_map)
    for image, target, found in zip(images, labels, per_sample, strict=True):
        maps = written_out(rw.rectified_map(target[None], CLASSES))
        expected = grad(lambda w, i=image, m=maps: eager_loss(torch.nn.functional.conv2d(i[None], w), m))(weight)
        torch.testing.assert_close(found, expected)


def test_forward_mode_through_a_map_is_refused_and_not_silently_zero():
    case = _case("dense")
    with pytest.raises((NotImplementedError, ValueError), match=r"maps: .*(no derivative|no gradient)"):
        jvp(lambda maps: rw.region_wise_loss(case.logits, maps), (case.maps,), (torch.ones_like(case.maps),))


def test_a_gradient_through_a_map_is_refused_and_not_silently_zero():
    case = _case("dense")
    with pytest.raises((NotImplementedError, ValueError), match=r"maps: .*(no derivative|no gradient)"):
        grad(lambda maps: rw.region_wise_loss(case.logits, maps))(case.maps)


# --- torch.compile and torch.export -------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def compiled():
    """Labels to loss in one graph; compiled once for the tests below."""
    return torch.compile(lambda x, labels: rw.RegionWiseLoss()(x, labels), fullgraph=True)


def test_labels_to_loss_to_gradient_compile_into_one_graph(compiled):
    labels, logits = random_labels((BATCH, 5, 6), CLASSES), random_logits((BATCH, CLASSES, 5, 6))
    maps = written_out(rw.rectified_map(labels, CLASSES))
    found = loss_and_gradient(lambda x: compiled(x, labels), logits)
    torch.testing.assert_close(found, loss_and_gradient(lambda x: eager_loss(x, maps.float()), logits))


def test_a_bad_label_raises_in_a_compiled_graph_as_it_does_in_eager_mode(compiled):
    labels, logits = random_labels((BATCH, 5, 6), CLASSES), random_logits((BATCH, CLASSES, 5, 6))
    labels[1, 2, 3] = 7
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 7 at \(1, 2, 3\)"):
        compiled(logits.requires_grad_(), labels)


def test_a_compiled_half_precision_loss_with_a_scaled_backward_is_that_of_eager_mode():
    case = make_case(dtype=torch.float16, ignore_index=-1)
    upstream = torch.tensor(64.0)

    def loss(x, maps):
        return rw.region_wise_loss(x, maps)

    step = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = loss_and_gradient(lambda x: loss(x, case.maps), case.logits, upstream)
    torch.testing.assert_close(loss_and_gradient(lambda x: step(x, case.maps), case.logits, upstream), eager)


@either_kind
def test_a_compiled_loss_has_the_gradient_of_eager_mode_for_every_reduction(kind):
    for reduction in ("sum", "none"):
        case = make_case(kind, ignore_index=-1)
        ours, _ = _pair(case, reduction)
        upstream = torch.rand(BATCH, 5, 7) if reduction == "none" else torch.tensor(2.0)
        found = loss_and_gradient(torch.compile(ours, fullgraph=True, backend="aot_eager"), case.logits, upstream)
        torch.testing.assert_close(found, loss_and_gradient(ours, case.logits, upstream))


def test_a_compiled_loss_takes_batches_of_several_sizes():
    step = torch.compile(lambda x, m: rw.region_wise_loss(x, m), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, shape in ((2, (5, 7)), (3, (6, 9)), (4, (8, 5))):
        case = make_case(batch=batch, shape=shape)
        found = loss_and_gradient(lambda x, c=case: step(x, c.maps), case.logits)
        torch.testing.assert_close(
            found, loss_and_gradient(lambda x, c=case: eager_loss(x, c.dense.float()), case.logits)
        )


def test_a_rectified_map_goes_into_and_comes_out_of_a_compiled_function():
    maps = rw.rectified_map(random_labels((BATCH, 5, 6), CLASSES), CLASSES)

    def crop_and_scale(m):
        return rw.scale_classes(m[:, 1:], [1.0, 2.0, 3.0])

    found = torch.compile(crop_and_scale, fullgraph=True, backend="aot_eager")(maps)
    assert isinstance(found, rw.RectifiedMap)
    torch.testing.assert_close(found.dense(), crop_and_scale(maps).dense())


class _OfLabels(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = rw.RegionWiseLoss(ignore_index=-1)

    def forward(self, logits, labels):
        return self.loss(logits, labels)


class _OfMaps(torch.nn.Module):
    def forward(self, logits, maps):
        return rw.region_wise_loss(logits, maps)


def test_a_module_that_takes_labels_can_be_exported():
    logits, labels = random_logits((BATCH, CLASSES, 5, 6)), random_labels((BATCH, 5, 6), CLASSES, -1)
    exported = torch.export.export(_OfLabels(), (logits, labels)).module()
    other = random_labels((BATCH, 5, 6), CLASSES, -1, seed=50)
    torch.testing.assert_close(exported(logits, other), _OfLabels()(logits, other))
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\)"):
        exported(logits, other + 3)


def test_a_module_that_takes_a_rectified_map_can_be_exported(tmp_path):
    case = make_case(ignore_index=-1, class_scale=True)
    exported = torch.export.export(_OfMaps(), (case.logits, case.maps))
    torch.export.save(exported, tmp_path / "loss.pt2")
    loaded = torch.export.load(tmp_path / "loss.pt2").module()
    other = make_case(ignore_index=-1, class_scale=True, seed=60)
    expected = eager_loss(other.logits.double(), other.dense, other.labels, -1)
    torch.testing.assert_close(loaded(other.logits, other.maps).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_map_written_with_torch_save_is_read_back_without_being_trusted_by_hand(tmp_path):
    maps = make_case(ignore_index=-1, background="pixel", class_scale=True).maps
    torch.save({"maps": maps}, tmp_path / "maps.pt")
    read = torch.load(tmp_path / "maps.pt")["maps"]
    assert isinstance(read, rw.RectifiedMap)
    assert (read.num_classes, read.ignore_index) == (CLASSES, -1)
    torch.testing.assert_close(written_out(read), written_out(maps))


# --- the operators ------------------------------------------------------------------------------------------------


def _operator_calls():
    labels = random_labels((BATCH, 3, 4), CLASSES, ignore_index=-1)
    steps, pixels, channels = [1.0, 0.5], torch.empty(BATCH, 3, 4), torch.empty(BATCH, CLASSES, 3, 4)
    count = torch.empty(BATCH, dtype=torch.int64)
    checked = (-1, True, None)
    plain = (labels, CLASSES, steps, None, False, *checked)
    largest = torch.full((BATCH, CLASSES), 2.0)
    compact = make_case(shape=(3, 4), ignore_index=-1, background="pixel", class_scale=True)
    dense = make_case("dense", shape=(3, 4), dtype=torch.bfloat16)
    m = compact.maps
    written = (m.labels, m.foreground, None, 1.0, m.class_scale, CLASSES, -1, None)
    calls = {
        "distance": (labels, 0, steps, None, True, None, False, None, False),
        "class_distance": (*plain, False),
        "boundary": (*plain, 0.0, 1.0),
        "constant": (*plain, -1.0),
        "rectified": (labels, CLASSES, steps, largest, False, *checked),
        "dense": (*written, torch.bfloat16),
    }
    for operator, arguments in calls.items():
        yield operator, operator, arguments
    outputs = {"class_distance": [channels], "boundary": [channels], "rectified": [pixels, count], "dense": [channels]}
    for operator, arguments in calls.items():
        inputs = written if operator == "dense" else arguments
        yield f"{operator}_out", f"{operator}_out", (*inputs, *outputs.get(operator, [pixels]))
    for reduction in ("mean", "none"):
        shared = (None, 0.0, -1, True, reduction, True, None, 0)
        problem = (m.foreground, m.labels, m.background, m.class_scale, *shared)
        logits = compact.logits.clone().requires_grad_()
        yield f"region_wise-{reduction}", "region_wise", (logits, *problem, reduction == "mean")
        upstream = torch.tensor(2.0) if reduction == "mean" else torch.rand(BATCH, 3, 4)
        yield f"region_wise_gradient-{reduction}", "region_wise_gradient", (upstream, logits, *problem, None)
    problem = (dense.maps, None, None, None, None, 0.0, None, False, "mean", True, None, 0)
    logits = dense.logits.clone().requires_grad_()
    yield "region_wise-dense", "region_wise", (logits, *problem, True)
    yield "negatives", "negatives", (dense.logits, *problem, False, False)
    kept = torch.rand(dense.logits.shape).bfloat16()
    yield "region_wise_gradient-kept", "region_wise_gradient", (torch.tensor(2.0), dense.logits, *problem, kept)
    of_losses = torch.tensor([0.5, 1.0, 0.25, 2.0], dtype=torch.float64)
    for dice in (False, True):
        overlap = [2.0, 0.0, 1.0, 1.0, 1e-5, 1e-5, 1.0]
        terms = (True, 0.1, True, 2.0, dice, True, False, False, "", overlap, "mean", True, None)
        shared = (m.labels, of_losses, m.foreground, m.background, m.class_scale, *[None] * 4, 0.0, -1, True, *terms)
        logits = compact.logits.clone().requires_grad_()
        yield f"joint-{dice}", "joint", (logits, *shared, not dice)
        sums = torch.ops.rwkernels.joint(compact.logits, *shared, False)[1]
        yield f"joint_gradient-{dice}", "joint_gradient", (torch.tensor(2.0), sums, compact.logits, *shared)


@pytest.mark.parametrize(
    ("operator", "arguments"), [pytest.param(op, args, id=label) for label, op, args in _operator_calls()]
)
def test_the_operator_keeps_pytorchs_contract(operator, arguments):
    results = opcheck(getattr(torch.ops.rwkernels, operator), arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_every_operator_of_the_package_is_among_those_checked():
    defined = {schema.split("::")[1] for schema in torch._C._dispatch_get_all_op_names() if "rwkernels::" in schema}
    assert {op for op in defined if "rwk" not in op} == {op for _, op, _ in _operator_calls()}


# --- import -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["triton", "torch._inductor", "torch._dynamo", "cupy", "cucim", "monai", "scipy"])
def test_importing_the_package_imports_no(module, imported):
    loaded = {loaded for loaded in imported.stdout.split() if loaded == module or loaded.startswith(f"{module}.")}
    assert not loaded


def test_importing_the_package_prints_nothing(imported):
    assert imported.stderr == ""


@pytest.fixture(scope="module")
def imported():
    """What a fresh interpreter has loaded after `import rwkernels` beyond what `import torch` brings."""
    script = "import sys, torch; before = set(sys.modules); import rwkernels; print(*set(sys.modules) - before)"
    root = Path(rw.__file__).parents[1]
    command = [sys.executable, "-W", "error::DeprecationWarning:rwkernels", "-c", script]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    assert "rwkernels.losses.functional" in result.stdout
    return result
