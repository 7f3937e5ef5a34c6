"""Labels to codes in one go: bit for bit what map and `encode` give, with the largest distances of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from choices import CPU_BACKENDS, pairwise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import ROW, SCENES, SHAPES, SPACING, pairwise_distance, scene, scipy_distance

import rwkernels as rw
from rwkernels.backends import native
from rwkernels.backends.threads import limited_to
from rwkernels.data import class_max
from rwkernels.maps.quantised import encode, rectified_codes

both = pytest.mark.parametrize("bits", [8, 16])


def two_steps(labels, num_classes, bits, **options):
    return encode(rw.rectified_map(labels, num_classes, **options).foreground, bits)


def largest_of(distance, labels, num_classes):
    pairs = zip(distance, labels, strict=True)
    return torch.stack([torch.stack([d[v == k].amax() for k in range(num_classes)]) for d, v in pairs])


def assert_codes(found, expected):
    assert found.dtype == expected.dtype
    assert torch.equal(found.long(), expected.long())


def assert_codes_of_the_map(backend, name, shape, black_border, bits):
    labels = scene(name, shape, num_classes=4, batch=3)
    options = {"spacing": SPACING[: len(shape)], "black_border": black_border, "spatial_dims": len(shape)}
    found = rectified_codes(labels, 4, bits, backend=backend, **options)
    assert_codes(found.codes, two_steps(labels, 4, bits, backend=backend, **options))
    torch.testing.assert_close(found.class_max, class_max(labels, 4, **options), rtol=2.5e-7, atol=0)
    assert found.image_count is None


@pairwise(
    backend=[case for case in CPU_BACKENDS if case.values[0][0] == "native"],
    name=list(SCENES),
    shape=SHAPES,
    black_border=[False, True],
    bits=[8, 16],
)
def test_codes_are_those_of_the_map(backend, name, shape, black_border, bits):
    assert_codes_of_the_map(backend, name, shape, black_border, bits)


@both
@pytest.mark.parametrize("black_border", [False, True])
def test_a_backend_without_codes_of_its_own_encodes_its_map(backend, black_border, bits):
    """Then the map is encoded, so that one image shows that all arguments arrive."""
    if backend != "native":
        assert_codes_of_the_map(backend, "blobs", (9, 13), black_border, bits)


def test_the_largest_distances_are_the_truth_rounded_once(isa):
    labels = scene("blobs", (4, 9, 7), num_classes=4, batch=2)
    expected = largest_of(pairwise_distance(labels, (1, 1, 1)) * 0.7, labels, 4)
    assert torch.equal(rectified_codes(labels, 4, spacing=0.7).class_max, expected.float())
    assert torch.equal(rectified_codes(labels, 6, spacing=0.7).class_max[:, 4:], torch.zeros(2, 2))


@both
def test_codes_are_written_where_they_are_wanted(backend, bits):
    labels = scene("blobs", (9, 13), num_classes=4, batch=2)
    expected = two_steps(labels, 4, bits, backend=backend)
    out = torch.full_like(expected.int(), 77).to(expected.dtype)
    found = rectified_codes(labels, 4, bits, out=out, backend=backend)
    assert found.codes.data_ptr() == out.data_ptr()
    assert_codes(out, expected)
    for wrong in (out.int(), out[:1], out.mT):
        with pytest.raises(ValueError, match="out: expected"):
            rectified_codes(labels, 4, bits, out=wrong, backend=backend)


@both
@pytest.mark.parametrize("threads", [1, 2])
def test_every_image_is_divided_by_its_own_largest_distances(bits, threads):
    """So many images that each has a thread to itself, and one image whose slices are shared out."""
    given = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) * 20 + 20
    for shape, batch in (((9, 13), 9), ((5, 9, 13), 9), ((40, 50), 1)):
        labels = scene("blobs", shape, num_classes=4, batch=batch)
        with limited_to(threads):
            found = rectified_codes(labels, 4, bits, class_max=given[:batch])
        assert_codes(found.codes, two_steps(labels, 4, bits, class_max=given[:batch]))
        torch.testing.assert_close(found.class_max, class_max(labels, 4), rtol=2.5e-7, atol=0)  # not what was given


labels_of_any_kind = st.integers(1, 3).flatmap(
    lambda axes: hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.int64]),
        st.tuples(st.integers(0, 3), *[st.integers(1, 40)] * axes),
        elements=st.integers(0, 5),
        fill=st.integers(0, 5),
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    labels=labels_of_any_kind,
    bits=st.sampled_from([8, 16]),
    steps=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    black_border=st.booleans(),
    ignored=st.sampled_from([None, 0, 3, 5]),
    scale=st.none() | st.floats(0.01, 50),
    isa=st.sampled_from(native.core().isas() if native.can_run(torch.device("cpu")) is None else [""]),
)
def test_any_labels_have_the_codes_of_the_map(labels, bits, steps, black_border, ignored, scale, isa):
    axes = labels.ndim - 1
    options = {
        "spacing": steps[:axes],
        "black_border": black_border,
        "ignore_index": ignored,
        "spatial_dims": axes,
        "class_max": None if scale is None else np.full((len(labels), 6), scale, np.float32),
    }
    before = native.core().active_isa() if isa else ""
    try:
        if isa:
            native.core().force_isa(isa)
        found = rectified_codes(labels, 6, bits, **options)
        maps = rw.rectified_map(labels, 6, **options)
    finally:
        if isa:
            native.core().force_isa(before)
    assert found.codes.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(found.codes, encode(maps.foreground, bits))
    if ignored is not None:
        assert (found.codes[labels == ignored] == 0).all()
        np.testing.assert_array_equal(found.image_count, maps.image_count)
    del options["class_max"]
    np.testing.assert_allclose(found.class_max, class_max(labels, 6, **options), rtol=2.5e-7)


@both
def test_single_label_images_hold_the_ends_and_a_maximum_that_patches_can_use(backend, bits):
    labels = torch.zeros(4, 5, 37, dtype=torch.long)
    labels[0, :, 5:] = -1
    labels[1] = 2
    labels[2] = -1
    options = {"ignore_index": -1, "backend": backend}
    codes, largest, count = rectified_codes(labels, 3, bits, **options)
    assert_codes(codes, two_steps(labels, 3, bits, **options))
    assert codes[1].unique().tolist() == codes[3].unique().tolist() == [2**bits - 1]
    assert codes[2].unique().tolist() == [0]
    assert largest.tolist() == [[5.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert count.tolist() == [25, 185, 0, 185]
    bordered = rectified_codes(labels, 3, bits, black_border=True, **options)
    assert bordered.class_max[1].tolist() == [0.0, 0.0, 3.0]


@both
@pytest.mark.parametrize("num_classes", [1, 2, 3, 17, 254, 256, 300, 70_000])
def test_any_number_of_classes_and_dtype_of_labels_is_taken(isa, num_classes, bits):
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (2, 23, 41), generator=generator)
    expected = two_steps(labels, num_classes, bits)
    largest = class_max(labels, num_classes)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        if num_classes - 1 > torch.iinfo(dtype).max:
            continue
        found = rectified_codes(labels.to(dtype), num_classes, bits)
        assert_codes(found.codes, expected)
        assert torch.equal(found.class_max, largest)


@both
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(24, 67, 101), (2, 512, 301), (1, 31, 67, 101), (9, 17, 33, 41)], ids=str)
def test_codes_and_maxima_are_the_same_on_any_number_of_threads(shape, threads, bits):
    batch, *spatial = shape
    labels = scene("blobs", tuple(spatial), num_classes=5, batch=2).repeat(-(-batch // 2), *[1] * len(spatial))[:batch]
    labels[-1] = 3
    with limited_to(threads):
        found = rectified_codes(labels, 5, bits)
    assert_codes(found.codes, two_steps(labels, 5, bits))
    assert torch.equal(found.class_max, class_max(labels, 5))


@both
def test_given_maxima_divide_and_the_images_own_come_back(backend, bits):
    given_max = torch.tensor([[2.0, 8.0, float("nan"), 0.0]], dtype=torch.float64)
    labels = ROW.clamp(max=1)
    found = rectified_codes(labels, 4, bits, class_max=given_max, backend=backend)
    assert_codes(found.codes, two_steps(labels, 4, bits, class_max=given_max, backend=backend))
    assert found.class_max.tolist() == [[3.0, 3.0, 0.0, 0.0]]
    for bad in (0.0, -1.0, torch.inf, torch.nan):
        given_max[0, 1] = bad
        message = rf"^class_max: expected a positive, finite .*, got {bad} for class 1 of image 0$"
        with pytest.raises(ValueError, match=message):
            rectified_codes(labels, 4, bits, class_max=given_max, backend=backend)


def test_strides_and_arrays_are_taken_as_they_are():
    labels = scene("blobs", (9, 17, 12), num_classes=3, batch=2)
    turned = labels.movedim(1, 3)
    expected = two_steps(turned.contiguous(), 3, 16, spacing=SPACING)
    assert_codes(rectified_codes(turned, 3, spacing=SPACING).codes, expected)
    found = rectified_codes(turned.numpy(), 3, spacing=SPACING, ignore_index=2)
    assert [type(part) for part in found] == [np.ndarray] * 3
    assert found.codes.dtype == np.uint16
    assert rectified_codes(labels[:0], 3, ignore_index=1).codes.shape == (0, 9, 17, 12)


def test_working_memory_is_used_and_leaves_nothing_behind(backend):
    work = torch.full((5000,), torch.nan)
    for name in ("blobs", "uniform", "sparse"):
        labels = scene(name, (3, 19, 35), num_classes=4)
        found = rectified_codes(labels, 4, work=work, backend=backend)
        assert_codes(found.codes, two_steps(labels, 4, 16, backend=backend))
        assert torch.equal(found.codes.long(), rectified_codes(labels, 4, backend=backend).codes.long())
    assert not work[: 3 * 19 * 35].isnan().any()
    assert work[2 * 3 * 19 * 35 :].isnan().all()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (torch.empty(12), ValueError),
        (torch.empty(100, dtype=torch.float64), ValueError),
        (torch.empty(100)[::2], ValueError),
        (torch.empty(100, device="meta"), ValueError),
        (np.empty(100, np.float32), TypeError),
    ],
    ids=["small", "float64", "strides", "elsewhere", "array"],
)
def test_other_working_memory_is_refused(work, error):
    with pytest.raises(error, match=r"^work: expected a "):
        rectified_codes(torch.zeros(1, 4, 4, dtype=torch.uint8), 2, work=work)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_classes": 0}, ValueError),
        ({"num_classes": 2}, ValueError),
        ({"num_classes": 2, "ignore_index": -1}, ValueError),
        ({"labels": ROW.float()}, TypeError),
        ({"labels": ROW[0]}, ValueError),
        ({"spacing": (1, 0)}, ValueError),
        ({"spacing": (1, 2, 3)}, ValueError),
        ({"class_max": torch.ones(2, 3)}, ValueError),
        ({"class_max": torch.ones(1, 3, dtype=torch.int32)}, TypeError),
        ({"ignore_index": 0.5}, TypeError),
        ({"black_border": 1}, TypeError),
        ({"spatial_dims": 3}, ValueError),
        ({"backend": "nothing"}, ValueError),
        ({"backend": 3}, TypeError),
    ],
    ids=str,
)
def test_what_the_map_refuses_is_refused_in_its_words(options, error):
    arguments = {"labels": ROW, "num_classes": 3, **options}
    with pytest.raises(error) as expected:
        rw.rectified_map(**arguments)
    with pytest.raises(error) as found:
        rectified_codes(**arguments)
    assert str(found.value) == str(expected.value)
    with pytest.raises(ValueError, match="bits: expected 8 or 16, got 32"):
        rectified_codes(ROW, 3, 32)


def test_without_the_core_codes_are_the_same(monkeypatch):
    labels = scene("blobs", (9, 17), num_classes=3)
    labels[:, 2:4] = -1
    options = {"spacing": (0.7, 2.0), "ignore_index": -1}
    expected = rectified_codes(labels, 3, **options)
    monkeypatch.setattr(native, "can_run", lambda device: "not here")
    found = rectified_codes(labels, 3, **options)
    truth = largest_of(scipy_distance(labels, (0.7, 2.0)), labels, 3)
    for one in (expected, found):
        torch.testing.assert_close(one.class_max.double(), truth, rtol=1e-6, atol=0)
    assert int((found.codes.long() - expected.codes.long()).abs().max()) <= 1  # the reference rounds elsewhere
    assert torch.equal(found.image_count, expected.image_count)


@pytest.mark.gpu
def test_codes_on_a_gpu_are_those_of_its_map(gpu_backend):
    labels = scene("blobs", (9, 17, 33), num_classes=4, batch=3).cuda()
    found = rectified_codes(labels, 4, spacing=SPACING, backend=gpu_backend)
    assert found.codes.is_cuda
    assert_codes(found.codes, two_steps(labels, 4, 16, spacing=SPACING, backend=gpu_backend))
    torch.testing.assert_close(found.class_max, class_max(labels, 4, spacing=SPACING), rtol=2.5e-7, atol=0)
    with pytest.raises(ValueError, match=r"labels: expected integers in \[0, 3\)"):
        rectified_codes(labels, 3, backend=gpu_backend)
