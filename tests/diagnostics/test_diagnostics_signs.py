"""Signs of the gradient: the counts of every backend, what counts as wrong, and the principle of rectified maps."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import FAMILIES, LAYOUTS, either_kind, generator, make_case, name, on_cpu_backends, random_labels

import rwkernels as rw
from rwkernels import diagnostics
from rwkernels.backends import native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def counted(logits, maps, labels=None, ignored=None, wrong=False):
    """Counts of a dense map, one pixel at a time, by rational arithmetic on the probabilities that float64 gives."""
    y = torch.softmax(logits.double(), 1)
    out = torch.full((logits.shape[0], *logits.shape[2:]), -1, dtype=torch.int32)
    for place in product(*map(range, out.shape)):
        at = (place[0], slice(None), *place[1:])
        label = None if labels is None else int(labels[place])
        if label is not None and label == ignored:
            continue
        p, z = [Fraction(v) for v in y[at].tolist()], [Fraction(v) for v in maps[at].tolist()]
        mean = sum(a * b for a, b in zip(p, z, strict=True)) / sum(p)
        entries = [a * (b - mean) for a, b in zip(p, z, strict=True)]
        if wrong:
            out[place] = sum(g > 0 if k == label else g < 0 for k, g in enumerate(entries))
        else:
            out[place] = sum(g < 0 for g in entries)
    return out


def options(case):
    return {} if isinstance(case.maps, rw.RectifiedMap) else {"labels": case.labels, "ignore_index": case.ignore_index}


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("wrong", [False, True], ids=["negative", "wrong"])
@pytest.mark.parametrize("num_classes", [2, 3, 4, 9, 20])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "class_scale"])
def test_the_counts_are_those_of_rational_arithmetic(backend, kind, wrong, num_classes, scaled):
    case = make_case(kind, num_classes=num_classes, shape=(5, 7), class_scale=scaled, ignore_index=-1)
    count = diagnostics.wrong_signs if wrong else diagnostics.negative_gradients
    found = count(case.logits, case.maps, backend=backend, **options(case))
    assert found.dtype == torch.int32
    assert torch.equal(found, counted(case.logits, case.dense, case.labels, -1, wrong))
    assert (found == -1).any()
    assert found.unique().numel() > (2 if num_classes > 2 and (kind == "dense" or scaled) else 1)


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_dtype_gives_the_counts_of_the_values_it_holds(backend, kind, dtype):
    case = make_case(kind, num_classes=4, shape=(6, 11), dtype=dtype, background="pixel")
    found = diagnostics.negative_gradients(case.logits, case.maps, backend=backend)
    assert torch.equal(found, counted(case.logits, case.dense))


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_change_the_counts(backend, kind, layout):
    case = make_case(kind, num_classes=5, shape=(9, 33), batch=3)
    expected = diagnostics.negative_gradients(case.logits, case.maps, backend="reference")
    maps = case.maps if kind == "compact" else LAYOUTS[layout](case.maps)
    assert torch.equal(diagnostics.negative_gradients(LAYOUTS[layout](case.logits), maps, backend=backend), expected)


@on_cpu_backends
@pytest.mark.parametrize("shape", [(1,), (700,), (3, 5, 7)], ids=name)
def test_one_and_three_spatial_axes_and_more_than_a_tile(backend, shape):
    case = make_case("dense", num_classes=3, shape=shape)
    found = diagnostics.negative_gradients(case.logits, case.maps, backend=backend)
    assert torch.equal(found, diagnostics.negative_gradients(case.logits, case.maps, backend="reference"))
    assert found.shape == (2, *shape)


def test_every_instruction_set_gives_the_counts_of_the_reference(isa):
    for kind, num_classes in product(("compact", "dense"), (3, 9)):
        case = make_case(kind, num_classes=num_classes, shape=(13, 37))
        found = diagnostics.wrong_signs(case.logits, case.maps, backend="native", **options_with_labels(case))
        expected = diagnostics.wrong_signs(case.logits, case.maps, backend="reference", **options_with_labels(case))
        assert torch.equal(found, expected)


def options_with_labels(case):
    return {} if isinstance(case.maps, rw.RectifiedMap) else {"labels": case.labels}


@on_cpu_backends
def test_probabilities_are_taken_as_they_are(backend):
    case = make_case("dense", num_classes=3, shape=(8, 9))
    y = torch.softmax(case.logits, 1)
    found = diagnostics.negative_gradients(5 * y, case.maps, probabilities=True, backend=backend)
    assert torch.equal(found, counted(case.logits, case.dense))


@on_cpu_backends
@pytest.mark.parametrize("confident", [False, True], ids=["even", "confident"])
@pytest.mark.parametrize("family", ["rectified", "active_contour", "constant"])
@pytest.mark.parametrize("form", ["compact", "dense"])
def test_a_rectified_map_has_one_negative_entry_however_certain_the_network_is(backend, confident, family, form):
    labels = random_labels((2, 16, 17), 4, seed=3)
    maps = getattr(rw, f"{family}_map")(labels, 4)
    logits = (10 if confident else 1) * torch.randn(2, 4, 16, 17, generator=generator(5))
    given = maps if form == "compact" else maps.dense()
    counts = diagnostics.negative_gradients(logits, given, backend=backend)
    assert torch.equal(counts, torch.ones_like(counts))
    known = {} if form == "compact" else {"labels": labels}
    assert diagnostics.wrong_sign_fraction(logits, given, backend=backend, **known) == 0


@on_cpu_backends
def test_a_boundary_map_of_four_classes_has_pixels_with_two_and_three_negative_entries(backend):
    labels = random_labels((1, 24, 24), 4, seed=2)
    labels = labels.repeat_interleave(3, 1).repeat_interleave(3, 2)
    logits = torch.randn(1, 4, 72, 72, generator=generator(1))
    maps = rw.boundary_map(labels, 4)
    counts = diagnostics.negative_gradients(logits, maps, backend=backend)
    assert set(counts.unique().tolist()) == {1, 2, 3}
    histogram = diagnostics.sign_histogram(counts, 4)
    assert histogram.sum() == counts.numel()
    assert histogram[2] == (counts == 2).sum()


@on_cpu_backends
def test_the_fraction_of_wrong_signs_is_over_the_entries_of_pixels_that_count(backend):
    y = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 1, 5)
    maps = torch.tensor([12.0, 4.0, -3.0]).view(1, 3, 1, 1).expand_as(y)  # entries: +, -, -
    labels = torch.tensor([[[2, 2, 0, -1, -1]]])  # one, one and three are wrong
    options = {"labels": labels, "ignore_index": -1, "probabilities": True, "backend": backend}
    torch.testing.assert_close(diagnostics.wrong_sign_fraction(y, maps, **options).item(), 5 / 9)
    options["labels"] = torch.full_like(labels, -1)
    assert diagnostics.wrong_sign_fraction(y, maps, **options) == 0


@on_cpu_backends
def test_entries_that_underflow_and_gradients_that_are_zero_are_not_negative(backend):
    maps = torch.tensor([-1.0, 1, 1]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    logits = torch.tensor([[-200.0, 0, 0], [200, 0, 0], [0, -200, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 4)
    counts = diagnostics.negative_gradients(logits, maps, backend=backend)
    assert counts.tolist() == [[[0, 0, 1, 1]]]
    for true in range(3):  # entries of the second pixel are all zero: they move nothing, whichever its class
        labels = torch.full((1, 1, 4), true)
        assert diagnostics.wrong_signs(logits, maps, labels=labels, backend=backend)[0, 0, 1] == 0
    assert diagnostics.negative_gradients(logits.double(), maps, backend=backend).tolist() == [[[1, 1, 1, 1]]]


@on_cpu_backends
def test_a_pixel_whose_gradient_is_no_number_has_no_count(backend):
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, 1, 0, 0] = torch.nan
    logits[0, 2, 0, 1] = torch.inf
    logits[0, 0, 0, 2] = -torch.inf
    maps = torch.tensor([-1.0, 1, 1]).view(1, 3, 1, 1).expand_as(logits)
    assert diagnostics.negative_gradients(logits, maps, backend=backend).tolist() == [[[-1, -1, 0, 1]]]


@on_cpu_backends
@either_kind
def test_what_an_ignored_pixel_holds_does_not_matter(backend, kind):
    case = make_case(kind, num_classes=3, shape=(4, 5), ignore_index=255)
    ignored = case.labels == 255
    expected = diagnostics.negative_gradients(case.logits, case.maps, backend=backend, **options(case))
    logits = case.logits.masked_fill(ignored.unsqueeze(1), torch.nan)
    assert torch.equal(diagnostics.negative_gradients(logits, case.maps, backend=backend, **options(case)), expected)
    assert torch.equal(expected == -1, ignored)


@on_cpu_backends
@either_kind
def test_leaving_out_the_background_is_a_first_channel_of_zeros(backend, kind):
    case = make_case(kind, num_classes=4, shape=(6, 7))
    dense = case.dense.clone()
    dense[:, 0] = 0
    found = diagnostics.negative_gradients(case.logits, case.maps, include_background=False, backend=backend)
    assert torch.equal(found, counted(case.logits, dense))


@on_cpu_backends
@either_kind
def test_bad_labels_are_refused_or_have_no_count(backend, kind):
    case = make_case(kind, num_classes=3, shape=(4, 5))
    labels = case.labels.clone()
    labels[1, 2, 3] = 7
    maps = case.maps if kind == "dense" else case.maps._with(labels=labels)
    known = {"labels": labels} if kind == "dense" else {}
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\), got 7 at \(1, 2, 3\)"):
        diagnostics.wrong_signs(case.logits, maps, backend=backend, **known)
    found = diagnostics.wrong_signs(case.logits, maps, validate=False, backend=backend, **known)
    assert (found == -1).nonzero().tolist() == [[1, 2, 3]]


@on_cpu_backends
def test_vmap_gives_the_counts_of_a_loop(backend):
    logits = torch.randn(3, 2, 4, 5, 6, generator=generator(0))
    maps = torch.randn(2, 4, 5, 6, generator=generator(1))

    def count(x):
        return diagnostics.negative_gradients(x, maps, backend=backend)

    assert torch.equal(torch.vmap(count)(logits), torch.stack([count(x) for x in logits]))
    y, labels = torch.softmax(logits, 2), random_labels((2, 5, 6), 4)

    def wrong(x):
        return diagnostics.wrong_signs(x, maps, labels=labels, probabilities=True, backend=backend)

    assert torch.equal(torch.vmap(wrong)(y), torch.stack([wrong(x) for x in y]))


def test_the_operator_passes_the_checks_of_torch():
    case = make_case("compact", ignore_index=-1)
    maps = case.maps
    arguments = (case.logits, maps.foreground, maps.labels, None, None, None, 1.0, -1, True, "none", True, None, 0)
    torch.library.opcheck(torch.ops.rwkernels.negatives.default, (*arguments, False, True))


def test_counts_compile_whole():
    case = make_case("compact", ignore_index=-1)
    count = torch.compile(diagnostics.negative_gradients, fullgraph=True, backend="aot_eager")
    assert torch.equal(count(case.logits, case.maps), diagnostics.negative_gradients(case.logits, case.maps))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_the_counts(threads, restore_threads):
    if native.can_run(torch.device("cpu")) is not None:
        pytest.skip("no native backend")
    case = make_case("dense", num_classes=6, shape=(150, 170))
    torch.set_num_threads(threads)
    found = diagnostics.negative_gradients(case.logits, case.maps, backend="native")
    assert torch.equal(found, diagnostics.negative_gradients(case.logits, case.maps, backend="reference"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels: expected the labels of the map"),
        ({"maps": torch.zeros(2, 3, 5, 8)}, "maps: expected shape"),
        ({"logits": torch.zeros(2, 3)}, "logits: expected"),
        ({"backend": "none"}, "backend: expected one of"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    case = make_case("dense", num_classes=3, shape=(5, 7))
    given = {"logits": case.logits, "maps": case.maps, "labels": case.labels, **change}
    with pytest.raises(ValueError, match=message):
        diagnostics.wrong_signs(given.pop("logits"), given.pop("maps"), **given)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (torch.tensor([0.5, 1.0]), TypeError, "counts: expected integers, got a float32 tensor"),
        (torch.tensor([1, 4]), ValueError, r"counts: expected integers in \[-1, 3\], got 4"),
        (torch.tensor([1, -2]), ValueError, r"counts: expected integers in \[-1, 3\], got -2"),
    ],
)
def test_a_histogram_is_made_of_counts_only(counts, error, message):
    with pytest.raises(error, match=message):
        diagnostics.sign_histogram(counts, 3)


@pytest.mark.gpu
@either_kind
@pytest.mark.parametrize("num_classes", [2, 4, 20, 118])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_gpu_counts_what_the_reference_counts(kind, num_classes, dtype):
    case = make_case(kind, num_classes=num_classes, shape=(63, 65), dtype=dtype, ignore_index=-1)
    on_gpu = case.to("cuda")
    for count in (diagnostics.negative_gradients, diagnostics.wrong_signs):
        found = count(on_gpu.logits, on_gpu.maps, **options(on_gpu)).cpu()
        expected = count(case.logits, case.maps, backend="reference", **options(case))
        assert (found != expected).float().mean() < 1e-3  # exp is not that of the CPU: ties alone may differ


# --- the principle of rectified maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_but_the_boundary_map_satisfy_the_principle(family):
    labels = random_labels((2, 12, 13), 3, seed=4)
    maps = getattr(rw, f"{family}_map")(labels, 3)
    found = diagnostics.rectification(maps, None if isinstance(maps, rw.RectifiedMap) else labels)
    assert found.holds == (family != "boundary")
    if isinstance(maps, rw.RectifiedMap):
        assert diagnostics.rectification(maps.dense(), labels).holds


def test_a_boundary_map_of_two_classes_is_rectified_and_rectify_makes_any_so():
    labels = random_labels((1, 9, 9), 2)
    assert diagnostics.rectification(rw.boundary_map(labels, 2), labels).holds
    labels = random_labels((1, 9, 9), 4)
    maps = rw.boundary_map(labels, 4)
    found = diagnostics.rectification(maps, labels)
    assert not found.holds
    assert diagnostics.rectification(rw.rectify(maps, labels), None).holds
    others = [sorted(set(range(4)) - {int(k)}) for k in labels.flatten()]
    values = maps[0].flatten(1).T
    unequal = torch.tensor([len(set(values[i, rest].tolist())) > 1 for i, rest in enumerate(others)]).view(1, 9, 9)
    assert torch.equal(found.unequal, unequal)
    assert not found.not_lowest.any()
    assert found.where().tolist() == unequal.nonzero().tolist()
    assert found.fraction == unequal.double().mean().item()


def test_scaling_channels_breaks_the_principle_and_scaling_labels_keeps_it():
    labels = random_labels((1, 9, 9), 3)
    maps = rw.rectified_map(labels, 3)
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert diagnostics.rectification(rw.scale_classes(maps, weight, by="label")).holds
    found = diagnostics.rectification(rw.scale_classes(maps, weight, by="channel"))
    assert found.unequal.all()
    assert str(found).startswith("not rectified at 81 of 81 pixels, the first at (0, 0, 0)")


def test_ignored_pixels_and_values_within_the_tolerance_are_no_violations():
    labels = torch.tensor([[[0, 1, -1]]])
    maps = torch.tensor([[[[-1.0, 1, 5]], [[1, -1, 6]], [[1 + 1e-3, 1, 7]]]])
    assert diagnostics.rectification(maps, labels, ignore_index=-1).where().tolist() == [[0, 0, 0]]
    assert diagnostics.rectification(maps, labels, ignore_index=-1, tolerance=1e-2).holds
    flat = torch.ones(1, 3, 1, 3)
    assert diagnostics.rectification(flat, labels, ignore_index=-1).not_lowest.tolist() == [[[True, True, False]]]
    with pytest.raises(ValueError, match="labels: expected integers"):
        diagnostics.rectification(maps, labels)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=5), st.data())
def test_the_principle_is_just_what_makes_all_signs_right_on_the_whole_simplex(z, data):
    true = data.draw(st.integers(0, len(z) - 1))
    maps = torch.tensor(z, dtype=torch.float64).view(1, -1, 1, 1)
    holds = diagnostics.rectification(maps, torch.tensor([[[true]]])).holds
    # Exactly: entry k is negative on a part of the simplex unless z_k is the largest, and on all of it but its edge
    # only if z_k is the smallest and all others are larger and equal.
    highest = max(z)
    others = [value for k, value in enumerate(z) if k != true]
    assert holds == (all(value == highest for value in others) and z[true] < highest)
    # And at the points where a violation shows: nearly all probability at one class.
    points = torch.full((len(z), len(z)), 1e-6, dtype=torch.float64) + torch.eye(len(z), dtype=torch.float64)
    spread = maps.expand(len(z), -1, 1, 1)
    labels = torch.full((len(z), 1, 1), true)
    y = points.view(len(z), -1, 1, 1)
    wrong = diagnostics.wrong_signs(y, spread, labels=labels, probabilities=True)
    silent = diagnostics.negative_gradients(y, spread, probabilities=True) == 0
    assert holds == (not wrong.any() and not silent.any())
