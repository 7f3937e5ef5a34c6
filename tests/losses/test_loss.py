"""`region_wise_loss` against `(softmax(logits) * maps).mean()` in eager float64, and against the paper's numbers."""

import warnings

import pytest
import torch
from choices import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    FLOATS,
    KINDS,
    LAYOUTS,
    REDUCTIONS,
    assert_like_eager,
    either_kind,
    every_reduction,
    generator,
    loss_and_gradient,
    make_case,
    name,
    needs_native,
    on_cpu_backends,
    random_labels,
    random_logits,
    written_out,
)

import rwkernels as rw
from rwkernels.backends import native

# --- values and gradients ---------------------------------------------------------------------------------------


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 8, 9, 16, 17, 32, 118])
def test_any_number_of_classes_gives_the_loss_of_eager_pytorch(num_classes, kind, backend):
    case = make_case(kind, num_classes=num_classes, shape=(5, 9), ignore_index=-1, background="pixel")
    assert_like_eager(case, backend=backend)


@on_cpu_backends
@pairwise(kind=KINDS, reduction=REDUCTIONS, dtype=FLOATS)
def test_every_dtype_and_reduction_gives_the_loss_of_eager_pytorch(dtype, reduction, kind, backend):
    assert_like_eager(make_case(kind, dtype=dtype, num_classes=5, shape=(7, 11)), reduction=reduction, backend=backend)


@on_cpu_backends
@pairwise(
    kind=KINDS,
    reduction=REDUCTIONS,
    include_background=[True, False],
    class_scale=[False, True],
    ignore_index=[None, -7, 2, 255],
)
def test_every_pair_of_options_gives_the_loss_of_eager_pytorch(
    ignore_index, class_scale, include_background, reduction, kind, backend
):
    case = make_case(kind, num_classes=4, ignore_index=ignore_index, class_scale=class_scale)
    assert_like_eager(case, reduction=reduction, include_background=include_background, backend=backend)


@on_cpu_backends
@pytest.mark.parametrize("background", ["number", "pixel"])
@pytest.mark.parametrize("class_scale", [False, True], ids=["unscaled", "class-scale"])
def test_a_background_may_be_a_number_or_one_value_a_pixel(background, class_scale, backend):
    assert_like_eager(make_case(background=background, class_scale=class_scale), backend=backend)


@on_cpu_backends
@pytest.mark.parametrize("num_classes", [3, 4, 9])
def test_class_scale_follows_the_formula_for_a_map_that_is_no_longer_rectified(num_classes, backend):
    case = make_case(num_classes=num_classes, class_scale=True, background="pixel", dtype=torch.float64)
    w, m = case.maps.class_scale.double(), case.maps.labels
    y = torch.softmax(case.logits, 1)
    s = torch.einsum("bkhw,k->bhw", y, w)
    of_true_class = w[m] * (case.maps.foreground.double() - case.maps.background.double())
    expected = case.maps.background.double() * s + of_true_class * y.gather(1, m[:, None])[:, 0]
    loss = rw.region_wise_loss(case.logits, case.maps, reduction="none", backend=backend)
    torch.testing.assert_close(loss, expected)


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (17,), (33,), (1023,), (1025,)], ids=name)
def test_any_length_of_one_spatial_axis_works(shape, kind, backend):
    assert_like_eager(make_case(kind, shape=shape, background="pixel", ignore_index=-1), backend=backend)


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("shape", [(1, 1), (1, 19), (37, 61), (3, 5, 7), (1, 1, 1), (2, 31, 33)], ids=name)
def test_odd_sizes_in_two_and_three_dimensions_work(shape, kind, backend):
    assert_like_eager(make_case(kind, shape=shape, batch=3), backend=backend)


@on_cpu_backends
@either_kind
@every_reduction
def test_an_empty_batch_gives_loss_zero_and_an_empty_gradient(kind, reduction, backend):
    case = make_case(kind, batch=0)
    loss, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, reduction=reduction, backend=backend).sum(), case.logits
    )
    assert loss == 0
    assert gradient.shape == (0, 3, 5, 7)


@on_cpu_backends
@either_kind
def test_images_without_a_pixel_give_loss_zero(kind, backend):
    case = make_case(kind, shape=(0, 4))
    assert rw.region_wise_loss(case.logits, case.maps, backend=backend) == 0


@on_cpu_backends
@either_kind
def test_one_channel_gives_gradient_zero_and_a_warning_that_suggests_two(kind, backend):
    case = make_case(kind, num_classes=1)
    with pytest.warns(UserWarning, match="two channels"):
        loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, backend=backend), case.logits)
    torch.testing.assert_close(loss, case.dense.mean().float())
    assert torch.equal(gradient, torch.zeros_like(gradient))


@either_kind
def test_more_than_one_channel_gives_no_warning(kind):
    case = make_case(kind, num_classes=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rw.region_wise_loss(case.logits, case.maps)


@on_cpu_backends
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["compact", "dense"]),
    batch=st.integers(1, 3),
    num_classes=st.integers(2, 20),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from(FLOATS),
    background=st.sampled_from(["number", "pixel"]),
    class_scale=st.booleans(),
    ignore_index=st.sampled_from([None, -1, 0, 300]),
    include_background=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    recompute=st.booleans(),
    seed=st.integers(0, 100),
)
def test_whatever_the_problem_the_loss_is_that_of_eager_pytorch(
    backend, include_background, reduction, recompute, **problem
):
    assert_like_eager(
        make_case(**problem),
        include_background=include_background,
        reduction=reduction,
        recompute=recompute,
        backend=backend,
    )


@on_cpu_backends
@pytest.mark.parametrize(
    "label_dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool],
    ids=name,
)
def test_labels_of_every_integer_dtype_give_the_same_loss(label_dtype, backend):
    case = make_case(num_classes=2)
    maps = rw.RectifiedMap(case.labels.to(label_dtype), case.maps.foreground, 1.25, 2)
    assert_like_eager(case, maps=maps, backend=backend)


@on_cpu_backends
@pairwise(kind=KINDS, logits_dtype=[torch.float32, torch.float64, torch.bfloat16], map_dtype=FLOATS)
def test_map_and_logits_may_have_different_dtypes(kind, logits_dtype, map_dtype, backend):
    case = make_case(kind, dtype=logits_dtype, background="pixel")
    case.maps = case.maps.to(map_dtype)
    case.dense = case.maps.double() if kind == "dense" else written_out(case.maps)
    assert_like_eager(case, backend=backend)


@on_cpu_backends
def test_labels_of_a_map_may_have_a_channel_axis_of_one(backend):
    case = make_case(background="pixel")
    maps = case.maps
    with_axis = rw.RectifiedMap(maps.labels[:, None], maps.foreground[:, None], maps.background[:, None], 3)
    assert_like_eager(case, maps=with_axis, backend=backend)


@on_cpu_backends
def test_a_background_of_zero_dimensions_counts_as_a_number(backend):
    case = make_case()
    maps = rw.RectifiedMap(case.labels, case.maps.foreground, torch.tensor(1.25), 3)
    assert_like_eager(case, maps=maps, backend=backend)


@on_cpu_backends
def test_the_compact_and_the_written_out_map_give_the_same_loss(backend):
    labels = random_labels((2, 6, 9), 4)
    maps = rw.rectified_map(labels, 4)
    logits = random_logits((2, 4, 6, 9), torch.float64)
    compact = loss_and_gradient(lambda x: rw.region_wise_loss(x, maps, backend=backend), logits)
    dense = loss_and_gradient(lambda x: rw.region_wise_loss(x, maps.dense(), backend=backend), logits)
    torch.testing.assert_close(compact, dense)


# --- the same bits every time -----------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_repeated_runs_and_any_thread_count_give_the_same_bits(dtype, kind, backend, threads):
    case = make_case(kind, num_classes=6, shape=(61, 127), batch=6, dtype=dtype, ignore_index=-1)
    results = []
    for count in (1, 2, 3, 8, 1):
        threads(count)
        results.append(
            loss_and_gradient(
                lambda x: rw.region_wise_loss(x, case.maps, **case.options(), backend=backend), case.logits
            )
        )
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def _instruction_sets():
    if native.can_run(torch.device("cpu")) is not None:
        return [pytest.param("every", marks=needs_native)]
    return list(native.core().isas())


@pytest.fixture
def forced_isa(request):
    core = native.core()
    before = core.active_isa()
    core.force_isa(request.param)
    assert core.active_isa() == request.param
    yield request.param
    core.force_isa(before)


@pytest.mark.parametrize("forced_isa", _instruction_sets(), indirect=True)
@pairwise(layout=["contiguous", "channels-last", "class-slice"], kind=KINDS, dtype=FLOATS)
def test_every_instruction_set_gives_the_loss_of_eager_pytorch(layout, kind, dtype, forced_isa):
    for num_classes, reduction in ((2, "none"), (4, "mean"), (17, "mean")):
        case = make_case(kind, num_classes=num_classes, shape=(5, 131), dtype=dtype, ignore_index=-1)
        if layout != "contiguous":
            case.logits = LAYOUTS[layout](case.logits)
        assert_like_eager(case, reduction=reduction, backend="native")


# --- the paper's numbers -----------------------------------------------------------------------------------------


def _at(softmax, values, backend):
    """Loss of one pixel divided by K, and its gradient un-normalised, as section 3.3 writes them."""
    logits = torch.tensor(softmax, dtype=torch.float64).log().view(1, -1, 1, 1)
    maps = torch.tensor(values).view(1, -1, 1, 1)
    mean = rw.region_wise_loss(logits, maps, backend=backend)
    _, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, maps, reduction="sum", backend=backend), logits)
    return mean.item(), gradient.flatten().tolist()


@on_cpu_backends
@pytest.mark.parametrize(
    ("values", "loss", "gradient"),
    [
        ([0, 0, 0, -0.6], -0.0375, [0.0375, 0.0375, 0.0375, -0.1125]),
        ([1, 1, 1, -0.6], 0.15, [0.1, 0.1, 0.1, -0.3]),
    ],
    ids=["background-0", "background-1"],
)
def test_the_example_of_section_3_3_gives_the_papers_numbers(values, loss, gradient, backend):
    found_loss, found_gradient = _at([0.25] * 4, values, backend)
    assert found_loss == pytest.approx(loss, abs=1e-7)  # -0.6 is a float32
    assert found_gradient == pytest.approx(gradient, abs=1e-7)


@on_cpu_backends
@pytest.mark.parametrize(("values", "fraction"), [([12, 4, -3], 8 / 15), ([10, 10, -3], 0)], ids=["plain", "rectified"])
def test_two_negative_gradients_cover_the_papers_share_of_the_simplex(values, fraction, backend):
    # The centroids of n^2 equal triangles that tile the simplex: the share's border crosses about n of them.
    n = 120
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    upright, inverted = (i + j < n), (i + j < n - 1)
    first = torch.cat([(i + 1 / 3)[upright], (i + 2 / 3)[inverted]]).double() / n
    second = torch.cat([(j + 1 / 3)[upright], (j + 2 / 3)[inverted]]).double() / n
    softmax = torch.stack([first, second, 1 - first - second])
    assert softmax.shape[1] == n * n
    maps = torch.tensor(values, dtype=torch.float64).view(1, 3, 1).expand(1, 3, n * n)
    _, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, maps, reduction="sum", backend=backend), softmax.log()[None]
    )
    two_negative = ((gradient < 0).sum(1) == 2).double().mean().item()
    assert two_negative == pytest.approx(fraction, abs=2 / n if fraction else 0)


@on_cpu_backends
@pytest.mark.parametrize("num_classes", [2, 3, 8])
def test_a_rectified_map_pulls_up_the_true_class_alone_and_its_gradient_sums_to_zero(num_classes, backend):
    labels = random_labels((2, 8, 9), num_classes)
    logits = random_logits((2, num_classes, 8, 9), torch.float64)
    maps = rw.rectified_map(labels, num_classes)
    _, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, maps, reduction="sum", backend=backend), logits)
    assert torch.equal((gradient < 0).sum(1), torch.ones_like(labels))
    assert torch.equal(gradient.argmin(1), labels)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, 8, 9, dtype=torch.float64), atol=1e-14, rtol=0)


@on_cpu_backends
def test_adding_a_constant_to_the_logits_of_a_pixel_changes_nothing(backend):
    case = make_case(num_classes=4)
    shift = 50 * torch.randn(2, 1, 5, 7, generator=generator(5))
    loss = rw.region_wise_loss(case.logits, case.maps, reduction="none", backend=backend)
    shifted = rw.region_wise_loss(case.logits + shift, case.maps, reduction="none", backend=backend)
    # Logits of about 150 carry an error of 150 * 2^-24 each.
    torch.testing.assert_close(loss, shifted, rtol=0, atol=8 * 150 * 2**-24)
