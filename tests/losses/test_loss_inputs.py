"""What logits, labels and pixels may be: any layout, ignored, not finite, no class, subclasses of a tensor."""

import math

import pytest
import torch
from choices import pairwise
from loss_cases import (
    FLOATS,
    KINDS,
    LAYOUTS,
    REDUCTIONS,
    MetaLike,
    assert_like_eager,
    eager_loss,
    either_kind,
    loss_and_gradient,
    make_case,
    needs_native,
    on_cpu_backends,
    random_labels,
    random_logits,
    written_out,
)

import rwkernels as rw

# --- memory layouts ---------------------------------------------------------------------------------------------


@on_cpu_backends
@either_kind
def test_logits_cut_out_of_a_volume_give_what_a_copy_gives(kind, backend):
    case = make_case(kind, shape=(4, 5, 6), ignore_index=1)
    cut = torch.nn.functional.pad(case.logits, (1, 2, 2, 1, 1, 1))[:, :, 1:-1, 2:-1, 1:-2]
    assert not cut.is_contiguous()
    options = {**case.options(), "backend": backend}
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **options), case.logits)
    found, of_cut = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **options), cut)
    torch.testing.assert_close((found, of_cut), (loss, gradient))


@on_cpu_backends
@pairwise(kind=KINDS, layout=list(LAYOUTS), dtype=[torch.float32, torch.bfloat16])
def test_logits_of_any_layout_give_the_same_loss(layout, dtype, kind, backend):
    case = make_case(kind, num_classes=5, shape=(6, 35), dtype=dtype, ignore_index=-1)
    relaid = LAYOUTS[layout](case.logits)
    assert torch.equal(relaid, case.logits)
    case.logits = relaid
    for reduction in ("mean", "none"):
        assert_like_eager(case, reduction=reduction, backend=backend)


@on_cpu_backends
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dense_map_of_any_layout_gives_the_same_loss(layout, backend):
    case = make_case("dense", num_classes=5, shape=(6, 35))
    case.maps = LAYOUTS[layout](case.maps)
    assert_like_eager(case, backend=backend)


@on_cpu_backends
@either_kind
def test_volumes_in_channels_last_3d_give_the_same_loss(kind, backend):
    case = make_case(kind, num_classes=5, shape=(3, 4, 19))
    case.logits = case.logits.contiguous(memory_format=torch.channels_last_3d)
    assert_like_eager(case, backend=backend)


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["batch", "classes", "rows", "columns"])
def test_expanded_logits_give_the_same_loss(axis, kind, backend):
    case = make_case(kind, num_classes=5)
    case.logits = case.logits.narrow(axis, 0, 1).expand_as(case.logits)
    assert_like_eager(case, backend=backend)


@on_cpu_backends
@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["batch", "classes", "rows", "columns"])
def test_the_gradient_of_expanded_logits_is_summed_into_what_was_expanded(axis, backend):
    case = make_case(num_classes=5, dtype=torch.float64)
    small = case.logits.narrow(axis, 0, 1)
    ours = loss_and_gradient(lambda x: rw.region_wise_loss(x.expand_as(case.logits), case.maps, backend=backend), small)
    torch.testing.assert_close(
        ours, loss_and_gradient(lambda x: eager_loss(x.expand_as(case.logits), case.dense), small)
    )


@on_cpu_backends
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("layout", ["channels-last", "transposed-space", "batch-inside"])
def test_the_gradient_has_the_strides_of_the_logits(layout, recompute, backend):
    case = make_case(num_classes=5)
    logits = LAYOUTS[layout](case.logits)
    _, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, recompute=recompute, backend=backend), logits
    )
    assert gradient.stride() == logits.stride()


@on_cpu_backends
def test_labels_and_values_of_a_map_may_be_strided(backend):
    case = make_case(background="pixel", num_classes=4, shape=(6, 9), ignore_index=-1)
    maps = case.maps._map(lambda t: torch.stack([t, t + 1], -1).flatten(2)[..., ::2])
    assert not maps.labels.is_contiguous()
    assert_like_eager(case, maps=maps, backend=backend)


@needs_native
def test_channels_more_than_two_to_the_31_elements_apart_are_found():
    gap = 2**31 + 4096
    memory = torch.empty(gap + 64, dtype=torch.bfloat16)  # pages that are never touched take no memory
    logits = memory.as_strided((1, 2, 8, 8), (1, gap, 8, 1))
    case = make_case(batch=1, num_classes=2, shape=(8, 8), dtype=torch.bfloat16)
    case.logits = logits.copy_(case.logits)
    assert_like_eager(case, backend="native")


# --- ignored pixels ---------------------------------------------------------------------------------------------


@on_cpu_backends
@pairwise(kind=KINDS, reduction=REDUCTIONS, ignore_index=[-1, 1, 255], junk=[math.nan, math.inf, -math.inf])
def test_logits_of_ignored_pixels_are_never_read(junk, ignore_index, reduction, kind, backend):
    case = make_case(kind, ignore_index=ignore_index, shape=(5, 17))
    ignored = (case.labels == ignore_index).unsqueeze(1).expand_as(case.logits)
    case.logits = case.logits.masked_fill(ignored, junk)
    assert_like_eager(case, reduction=reduction, backend=backend)
    options = {**case.options(), "reduction": reduction, "backend": backend}
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **options).sum(), case.logits)
    assert torch.isfinite(loss)
    assert torch.equal(gradient[ignored], torch.zeros_like(gradient[ignored]))


@on_cpu_backends
@pytest.mark.parametrize("junk", [math.nan, math.inf], ids=str)
def test_map_values_of_ignored_pixels_are_never_read(junk, backend):
    for kind in ("compact", "dense"):
        case = make_case(kind, ignore_index=-1, background="pixel")
        ignored = case.labels == -1
        if kind == "dense":
            case.maps = case.maps.masked_fill(ignored.unsqueeze(1), junk)
        else:
            case.maps.foreground[ignored] = junk
            case.maps.background[ignored] = junk
        assert_like_eager(case, backend=backend)


@on_cpu_backends
@pairwise(kind=KINDS, reduction=REDUCTIONS, dtype=FLOATS)
def test_a_batch_with_nothing_left_gives_loss_and_gradient_zero(dtype, reduction, kind, backend):
    case = make_case(kind, ignore_index=-1, dtype=dtype)
    case.labels.fill_(-1)
    case.logits[0] = math.nan
    options = {**case.options(), "reduction": reduction, "backend": backend}
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **options).sum(), case.logits)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@on_cpu_backends
def test_the_mean_counts_pixels_of_the_whole_batch_and_not_image_by_image(backend):
    case = make_case(ignore_index=-1, batch=3)
    case.labels[0] = -1
    case.labels[1, 0] = -1
    assert_like_eager(case, backend=backend)


@on_cpu_backends
def test_the_count_that_a_map_was_built_with_is_the_divisor(backend):
    labels = random_labels((2, 6, 9), 3, ignore_index=255, dtype=torch.uint8)
    maps = rw.rectified_map(labels, 3, ignore_index=255)
    assert maps.count == (labels != 255).sum()
    logits = random_logits((2, 3, 6, 9))
    total = rw.region_wise_loss(logits, maps, reduction="sum", backend=backend)
    mean = rw.region_wise_loss(logits, maps, backend=backend)
    torch.testing.assert_close(mean, total / (3 * maps.count))


@on_cpu_backends
def test_a_crop_of_a_map_counts_its_own_pixels(backend):
    labels = random_labels((2, 8, 9), 3, ignore_index=255)
    maps = rw.rectified_map(labels, 3, ignore_index=255)[:, 2:7, 1:]
    logits = random_logits((2, 3, 5, 8))
    expected = eager_loss(logits.double(), written_out(maps), maps.labels, 255)
    torch.testing.assert_close(rw.region_wise_loss(logits, maps, backend=backend).double(), expected)


@on_cpu_backends
def test_ignore_index_may_be_given_for_a_map_that_was_built_without(backend):
    case = make_case()
    expected = eager_loss(case.logits.double(), case.dense, case.labels, 1)
    loss = rw.region_wise_loss(case.logits, case.maps, ignore_index=1, backend=backend)
    torch.testing.assert_close(loss.double(), expected)


# --- values that are not finite, labels that are none ---------------------------------------------------------------


def _same_pattern(ours, eager):
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(ours), kind(eager))


@on_cpu_backends
@pairwise(kind=KINDS, num_classes=[2, 5, 19], dtype=FLOATS)
def test_inf_and_nan_logits_give_the_non_finite_pattern_of_eager_pytorch(num_classes, dtype, kind, backend):
    case = make_case(kind, num_classes=num_classes, shape=(4, 21), dtype=dtype)
    logits = case.logits
    for column, (channels, value) in enumerate(
        [
            ([0], math.inf),
            ([1], -math.inf),
            ([0, 1], math.inf),
            ([-1], math.nan),
            (range(num_classes), -math.inf),
            (range(num_classes), math.inf),
            (range(num_classes), math.nan),
            ([0], torch.finfo(dtype).max),
            ([1], torch.finfo(dtype).min),
            (range(num_classes), torch.finfo(dtype).max),
        ]
    ):
        logits[0, list(channels), 1, 2 * column] = value
    logits[1, 0, 2, 5], logits[1, 1, 2, 5] = math.inf, -math.inf

    def eager(x):
        return (torch.softmax(x, 1) * case.dense).sum(1)

    upstream = torch.ones(2, 4, 21)
    loss, gradient = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, reduction="none", backend=backend), logits, upstream
    )
    eager_value, eager_gradient = loss_and_gradient(eager, logits.double(), upstream)
    _same_pattern(loss, eager_value)
    _same_pattern(gradient, eager_gradient)
    finite = torch.isfinite(eager_value)
    torch.testing.assert_close(loss.double()[finite], eager_value[finite], rtol=1e-5, atol=1e-5)
    assert rw.region_wise_loss(logits, case.maps, backend=backend).isnan()
    _, kept = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, backend=backend), logits)
    _same_pattern(kept, eager_gradient)


BAD_LABELS = [-1, 3, 200, 2**31, 2**32 + 1, -(2**32) + 1, -(2**63), 2**63 - 1]


@on_cpu_backends
@either_kind
@pytest.mark.parametrize("bad", BAD_LABELS)
def test_a_bad_label_that_is_not_checked_poisons_the_loss_with_nan(bad, kind, backend):
    case = make_case(kind, shape=(4, 19), ignore_index=7)
    case.labels[1, 2, 18] = bad
    options = {**case.options(), "validate": False, "backend": backend}
    loss, gradient = loss_and_gradient(lambda x: rw.region_wise_loss(x, case.maps, **options), case.logits)
    assert loss.isnan()
    assert gradient.shape == case.logits.shape
    per_pixel = rw.region_wise_loss(case.logits, case.maps, reduction="none", **options)
    assert per_pixel.isnan().nonzero().tolist() == [[1, 2, 18]]
    case = make_case(kind, shape=(4, 19), ignore_index=7)
    case.labels[0, 0, 0] = bad
    assert rw.region_wise_loss(case.logits, case.maps, **{**options, **case.options(), "validate": False}).isnan()


@on_cpu_backends
@pytest.mark.parametrize("bad", BAD_LABELS)
@either_kind
def test_a_bad_label_is_named_with_its_place(kind, bad, backend):
    case = make_case(kind, shape=(4, 19))
    case.labels[1, 2, 18] = bad
    options = {"labels": case.labels} if kind == "dense" else {}
    with pytest.raises(ValueError, match=rf"labels: expected integers in \[0, 3\), got {bad} at \(1, 2, 18\)"):
        rw.region_wise_loss(case.logits, case.maps, backend=backend, **options)


@on_cpu_backends
def test_of_several_bad_labels_the_first_is_named(backend):
    case = make_case(shape=(80, 90), batch=2)  # more pixels than the core takes at once
    case.labels[1, 3, 4] = 8
    case.labels[0, 79, 49] = 9
    case.labels[1, 30, 40] = 10
    with pytest.raises(ValueError, match=r"got 9 at \(0, 79, 49\)"):
        rw.region_wise_loss(case.logits, case.maps, backend=backend)


@on_cpu_backends
def test_the_ignored_label_is_no_bad_label_but_its_neighbour_is(backend):
    case = make_case(ignore_index=-1)
    case.labels[0, 0, 0] = -2
    with pytest.raises(ValueError, match=r"\[0, 3\) or -1 \(ignore_index\), got -2 at \(0, 0, 0\)"):
        rw.region_wise_loss(case.logits, case.maps, backend=backend)


# --- tensors that only carry metadata -----------------------------------------------------------------------------


@on_cpu_backends
def test_a_tensor_with_metadata_is_taken_as_the_tensor_that_it_is(backend):
    case = make_case("dense", ignore_index=-1)
    plain = loss_and_gradient(
        lambda x: rw.region_wise_loss(x, case.maps, **case.options(), backend=backend), case.logits
    )
    logits = case.logits.clone().requires_grad_()
    loss = rw.region_wise_loss(
        MetaLike(logits), MetaLike(case.maps), labels=MetaLike(case.labels), ignore_index=-1, backend=backend
    )
    assert type(loss) is torch.Tensor
    loss.backward()
    torch.testing.assert_close((loss.detach(), logits.grad.as_subclass(torch.Tensor)), plain)
