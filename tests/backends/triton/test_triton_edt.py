"""The compiled kernels of distances and maps, run instruction by instruction against SciPy and the reference.

The public functions launch on CPU tensors through Triton's own launcher and compiler for a device that is not there;
an emulator runs the PTX and checks every access for bounds and alignment.
"""

import ptx
import pytest
import torch
from choices import pairwise, readable
from samples import SCENES, assert_same, scene, scipy_class_distance, scipy_distance

import rwkernels as rw
from rwkernels.backends import reference, triton
from rwkernels.backends.triton import maps as triton_maps

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))

# Odd sizes; several blocks of rows and several strips of columns, along y and along z; axes of length 1.
SHAPES = [(131,), (1, 29), (13, 37), (43, 150), (67, 1), (19, 5, 29), (11, 4, 40)]
SPACING = (2.5, 0.4, 1.3)
FEW_SHAPES = [(43, 150), (19, 5, 29)]
few_shapes = pytest.mark.parametrize("shape", FEW_SHAPES, ids=readable)
only_sm_90 = pytest.mark.parametrize("device", [90], indirect=True, ids=["sm_90"])
LABEL_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


# sm_80 has no DPX instructions: the tests that give it and sm_90 their share of the cases show what it has instead.
@pytest.fixture(scope="module", params=[90, pytest.param(80, marks=pytest.mark.thorough)], ids=["sm_90", "sm_80"])
def device(request):
    from ptx.driver import emulated_device

    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", request.param) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        yield device


@pytest.fixture(autouse=True)
def _forget(device):
    device.launches.clear()


def _labels(name, shape, dtype=torch.uint8):
    if name != "corner":
        return scene(name, shape, dtype=dtype)
    labels = torch.zeros(2, *shape, dtype=dtype)
    labels.flatten(1)[:, 0] = torch.tensor([1, 2])
    return labels


def _distance(labels, **options):
    return rw.distance_transform(labels, spatial_dims=labels.dim() - 1, backend="triton", **options)


def _squares(labels, **options):
    """Squared distances in pixels, exact."""
    return scipy_distance(labels, **options).square().round().float()


@pairwise(name=[*SCENES, "corner"], shape=SHAPES)
def test_squared_distances_are_the_integers_of_scipy(name, shape, device):
    labels = _labels(name, shape)
    assert torch.equal(_distance(labels, squared=True), _squares(labels))
    assert {launch.name for launch in device.launches} >= {"row_pass", "column_pass"}


@pairwise(device=[80, 90], name=["random", "blobs", "one-odd-pixel", "uniform", "corner"], shape=FEW_SHAPES)
def test_anisotropic_distances_are_those_of_scipy(name, shape, device):
    labels, spacing = _labels(name, shape), SPACING[: len(shape)]
    assert_same(_distance(labels, spacing=spacing), scipy_distance(labels, spacing))


@only_sm_90
@pytest.mark.parametrize("scale", [0.37, 1e-3, 40.0])
def test_one_number_scales_the_distances(scale, device):
    labels = _labels("blobs", (43, 150))
    assert_same(_distance(labels, spacing=scale), scipy_distance(labels, scale))


@only_sm_90
@pytest.mark.parametrize("shape", [(26, 33), (26, 3, 5)], ids=["along-y", "along-z"])
def test_a_straight_edge_is_found_wherever_it_lies_among_the_blocks_of_rows(shape, device):
    edges = torch.arange(1, shape[0]).view(-1, *[1] * len(shape))
    rows = torch.arange(shape[0]).view(1, -1, *[1] * (len(shape) - 1))
    labels = (rows >= edges).expand(-1, *shape).to(torch.uint8)
    steps = torch.where(rows < edges, edges - rows, rows - edges + 1).expand(-1, *shape)
    assert torch.equal(_distance(labels, squared=True), steps.square().float())


@only_sm_90
@pytest.mark.parametrize("name", ["blobs", "uniform", "corner"])
def test_a_black_border_is_a_ring_of_another_label(name, device):
    labels = _labels(name, (43, 150))
    assert torch.equal(_distance(labels, squared=True, black_border=True), _squares(labels, black_border=True))
    labels = _labels(name, (19, 5, 29))
    found = _distance(labels, spacing=SPACING, black_border=True)
    assert_same(found, scipy_distance(labels, SPACING, black_border=True))
    labels = _labels(name, (131,))  # the axes that are not there have no border
    assert torch.equal(_distance(labels, squared=True, black_border=True), _squares(labels, black_border=True))
    labels = _labels(name, (1, 29))  # an axis of one pixel has
    assert torch.equal(_distance(labels, squared=True, black_border=True), _squares(labels, black_border=True))


@only_sm_90
@pytest.mark.parametrize("name", ["one-odd-pixel", "sparse", "corner"])
def test_rows_wider_than_a_tile_come_one_after_the_other(name, device):
    labels = _labels(name, (5, 2051))
    assert torch.equal(_distance(labels, squared=True), _squares(labels))
    assert device.launches[0].arguments["TILE"] == 1


@only_sm_90
@pytest.mark.parametrize("name", ["blobs", "sparse", "one-odd-pixel", "corner", "uniform"])
@pytest.mark.parametrize("shape", [(399, 13), (9, 399), (350, 2, 19)], ids=["columns", "rows", "along-z"])
def test_results_that_16_bits_cannot_hold_are_found_in_32(shape, name, device):
    labels, spacing = _labels(name, shape), SPACING[: len(shape)]
    expected = _squares(labels)
    assert torch.equal(_distance(labels, squared=True), expected)
    if name in ("corner", "one-odd-pixel"):
        assert (expected > 2**15).any()
        assert ((expected < 2**15) & (expected > 2**14)).any()
    if len(shape) == 2:
        assert_same(_distance(labels, spacing=spacing), scipy_distance(labels, spacing))


@only_sm_90
@pytest.mark.parametrize("far", [165, 166, 167])
@pytest.mark.parametrize("axis", [1, 2])
def test_the_last_distance_of_16_bits_and_the_first_of_32_are_told_apart(axis, far, device):
    labels = torch.zeros(1, 1, far + 1, dtype=torch.uint8)
    labels[..., 0] = 1
    found = _distance(labels.transpose(1, axis), squared=True).flatten()
    assert torch.equal(found[1:], torch.arange(1, far + 1).square().float())


@only_sm_90
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "float64"])
@pytest.mark.parametrize("shape", [(13, 37), (19, 5, 29)], ids=["2d", "3d"])
def test_fields_of_rows_too_wide_for_codes_are_int32_or_float64(shape, wide, device, monkeypatch):
    monkeypatch.setattr(triton_maps, "_CODED", 0)
    if wide:
        monkeypatch.setattr(triton_maps, "_SQUARED", 0)
        monkeypatch.setattr(triton_maps, "_INT32_SQUARES", 0)
    for name in ("blobs", "one-odd-pixel", "uniform"):
        labels = _labels(name, shape)
        assert torch.equal(_distance(labels, squared=True), _squares(labels))
    assert device.launches[0].arguments["out"].dtype == (torch.float64 if wide else torch.int32)


@only_sm_90
@pytest.mark.parametrize("spacing", [(3.0, 1.3, 1.3), (0.4, 0.4, 1.3), (0.4, 1.3, 0.4)])
@pytest.mark.parametrize("name", ["blobs", "one-odd-pixel", "uniform"])
def test_axes_of_one_spacing_may_count_in_pixels_before_the_last(name, spacing, device):
    labels = _labels(name, (19, 5, 29))
    assert_same(_distance(labels, spacing=spacing), scipy_distance(labels, spacing))
    kinds = [launch.arguments["SQUARES"] for launch in device.launches if launch.name == "column_pass"]
    assert kinds == ["int32" if spacing[1] == spacing[2] else "float32", "float32"]


@only_sm_90
@pytest.mark.parametrize("shape", [(13, 37), (19, 5, 29)], ids=["2d", "3d"])
def test_squares_beyond_32_bits_are_kept_in_float64(shape, device, monkeypatch):
    monkeypatch.setattr(triton_maps, "_INT32_SQUARES", 0)
    for name in ("blobs", "one-odd-pixel", "uniform"):
        labels = _labels(name, shape)
        assert torch.equal(_distance(labels, squared=True), _squares(labels))
    assert device.launches[-1].arguments["SQUARES"] == "float64"
    if len(shape) == 3:
        return
    maps = rw.rectified_map(labels, 3, ignore_index=1, black_border=True, backend="triton")
    expected = reference.rectified(labels, 3, [1.0] * len(shape), ignore_index=1, black_border=True)
    assert_same(maps.foreground, expected)


@only_sm_90
@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_labels_of_every_integer_dtype_are_told_apart(dtype, device):
    limits = torch.iinfo(dtype)
    values = [limits.min, limits.max, limits.max // 2]
    if dtype == torch.int64:
        values = [-(2**63), 2**32, 0]  # equal in their low halves
    index = scene("blobs", (13, 37))
    labels = torch.tensor(values, dtype=dtype)[index]
    assert torch.equal(_distance(labels, squared=True), _squares(index))


@pairwise(
    device=[80, 90],
    name=["blobs", "without-class-one", "uniform", "random"],
    spacing=[None, SPACING],
    shape=FEW_SHAPES,
)
def test_rectified_map_is_the_reference_rounded(name, spacing, shape, device):
    labels, steps = _labels(name, shape), (spacing or (1.0, 1.0, 1.0))[: len(shape)]
    maps = rw.rectified_map(labels, 4, spacing=steps, spatial_dims=len(shape), backend="triton")
    assert_same(maps.foreground, reference.rectified(labels, 4, steps))


@only_sm_90
@pytest.mark.parametrize("ignore_index", [1, 3, 255, -1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=["uint8", "int64"])
def test_ignored_pixels_hold_zero_bound_regions_and_do_not_count(dtype, ignore_index, device):
    labels = _labels("blobs", (13, 37), dtype)
    stored = ignore_index if dtype == torch.int64 or ignore_index >= 0 else 9
    labels[:, 3:7, 5:30] = stored
    classes = 4 if stored == ignore_index else 10
    maps = rw.rectified_map(labels, classes, ignore_index=ignore_index, validate=False, backend="triton")
    assert_same(maps.foreground, reference.rectified(labels, classes, (1.0, 1.0), ignore_index=ignore_index))
    assert torch.equal(maps.image_count, labels.ne(ignore_index).sum((1, 2)))
    found = rw.boundary_map(labels, classes, ignore_index=ignore_index, validate=False, backend="triton")
    assert_same(found, reference.boundary(labels, classes, (1.0, 1.0), ignore_index=ignore_index))


@only_sm_90
def test_an_out_of_range_label_holds_nan_and_reads_nothing_else(device):
    labels = torch.tensor([[[0, 9, -5, 1, 2**40]]])
    maps = rw.rectified_map(labels, 2, validate=False, backend="triton")
    boundary = rw.boundary_map(labels, 2, validate=False, backend="triton")
    for dense in (maps.dense(backend="triton")[0, :, 0], boundary[0, :, 0]):
        assert dense.isnan().all(0).tolist() == [False, True, True, False, True]
        assert dense.isnan().any(0).tolist() == [False, True, True, False, True]


@only_sm_90
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)], ids=["isotropic", "anisotropic"])
def test_class_maxima_divide_and_the_ratio_stops_at_one(spacing, device):
    labels = _labels("blobs", (13, 37))
    labels[1] = 2
    maxima = torch.tensor([[2.0, 40.0, 3.5], [1.0, 1.0, 5.0]])
    found = rw.rectified_map(labels, 3, spacing=spacing, class_max=maxima, backend="triton").foreground
    assert_same(found, reference.rectified(labels, 3, spacing, maxima))


@only_sm_90
@few_shapes
@pytest.mark.parametrize("name", ["blobs", "sparse", "without-class-one", "uniform"])
def test_distances_to_every_class_are_those_of_scipy(name, shape, device):
    labels, options = _labels(name, shape), {"spatial_dims": len(shape), "backend": "triton"}
    found = rw.class_distance_transform(labels, 4, squared=True, **options)
    assert torch.equal(found, scipy_class_distance(labels, 4).square().round().float())
    spacing = SPACING[: len(shape)]
    found = rw.class_distance_transform(labels, 4, spacing=spacing, **options)
    assert_same(found, scipy_class_distance(labels, 4, spacing))


@only_sm_90
@few_shapes
@pytest.mark.parametrize("name", ["blobs", "without-class-one", "uniform"])
def test_boundary_map_is_the_reference_rounded(name, shape, device):
    labels, steps = _labels(name, shape), (1.0,) * len(shape)
    found = rw.boundary_map(labels, 4, spatial_dims=len(shape), backend="triton")
    assert_same(found, reference.boundary(labels, 4, steps))
    found = rw.boundary_map(
        labels, 4, spatial_dims=len(shape), absent=2.5, inside_offset=0.75, black_border=True, backend="triton"
    )
    expected = reference.boundary(labels, 4, steps, absent=2.5, inside_offset=0.75, black_border=True)
    assert_same(found, expected, rtol=2e-6, atol=1e-6)  # an inside distance may cancel the offset


@only_sm_90
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("per_pixel", [False, True], ids=["number-background", "pixel-background"])
def test_a_dense_map_is_written_in_every_dtype(per_pixel, dtype, device):
    labels = _labels("blobs", (13, 37), torch.int64)
    labels[:, 2] = -1
    foreground, background = torch.rand(2, *labels.shape, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([0.5, 2.0, 1.25])
    maps = rw.RectifiedMap(labels, foreground, background if per_pixel else 1.5, 3, scale, -1)
    found = maps.dense(dtype, backend="triton")
    torch.testing.assert_close(found, maps.dense(dtype, backend="reference"), rtol=2**-7, atol=1e-7)
    assert [launch.name for launch in device.launches] == ["write_dense"]


@only_sm_90
def test_runs_differ_in_nothing_and_used_memory_is_no_obstacle(device):
    labels = _labels("blobs", (19, 5, 29))
    first = rw.rectified_map(labels, 3, spacing=SPACING, backend="triton")
    again = rw.rectified_map(
        labels, 3, spacing=SPACING, out=first.foreground.clone().fill_(torch.nan), backend="triton"
    )
    assert torch.equal(first.foreground, again.foreground)
