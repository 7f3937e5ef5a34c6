"""What the launcher of the Triton backend makes of a call: which specialisation, and how few binaries serve all.

A binary that was looked at in `test_triton_binaries.py` proves something only if a real call gets that very binary.
"""

from __future__ import annotations

from collections.abc import Callable

import ptx
import pytest
import torch
from torch import Tensor

if (reason := ptx.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

from ptx.driver import Device, Launch, emulated_device
from triton_launches import Variant, compiled

import rwkernels as rw
from rwkernels.backends import triton

F32, BF16 = torch.float32, torch.bfloat16
# Sizes, strides, counts and the label to ignore: whatever they are, the same binary takes them.
NUMBERS = {
    "logits_image", "logits_class", "maps_image", "maps_class", "grad_image", "grad_class", "scale_run", "pixels",
    "blocks", "images", "divisor", "ignore_index", "parts", "size",
}  # fmt: skip


@pytest.fixture(autouse=True)
def on_cpu_tensors(monkeypatch):
    monkeypatch.setattr(triton, "can_run", lambda device: None)


@pytest.fixture
def device():
    with emulated_device("cuda", 90, run=False) as found:
        yield found


def step(device: Device, logits: Tensor, maps: Tensor | rw.RectifiedMap, **options: object) -> list[Launch]:
    """The launches of a forward and a backward."""
    before = len(device.launches)
    x = logits.detach().requires_grad_()
    rw.region_wise_loss(x, maps, backend="triton", validate=False, **options).backward()
    return device.launches[before:]


def one_pass(device: Device, logits: Tensor, maps: Tensor | rw.RectifiedMap, **options: object) -> Launch:
    return next(launch for launch in step(device, logits, maps, **options) if launch.name == "region_wise")


def compact_map(logits: Tensor, label_dtype: torch.dtype = torch.uint8, **options: object) -> rw.RectifiedMap:
    pixels = logits[:, 0].shape
    return rw.RectifiedMap(torch.zeros(pixels, dtype=label_dtype), torch.zeros(pixels), 1.0, logits.shape[1], **options)


def unaligned(shape: tuple[int, ...]) -> Tensor:
    """Zeros whose address is 4 bytes past a multiple of 16."""
    count = torch.Size(shape).numel()
    return torch.zeros(count + 1)[1:].view(shape)


def last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


# The logits, the UNIT in which sizes and strides come, and the strides of image and class in it.
LAYOUTS: dict[str, tuple[Callable[[], Tensor], int, tuple[int, int]]] = {
    "pixels_divisible_by_16": (lambda: torch.zeros(2, 3, 4, 12), 16, (9, 3)),
    "pixels_divisible_by_8": (lambda: torch.zeros(2, 3, 4, 6), 8, (9, 3)),
    "pixels_divisible_by_4": (lambda: torch.zeros(2, 3, 4, 5), 4, (15, 5)),
    "pixels_divisible_by_2": (lambda: torch.zeros(2, 3, 2, 5), 2, (15, 5)),
    "odd_pixels": (lambda: torch.zeros(2, 3, 3, 5), 1, (45, 15)),
    "volume": (lambda: torch.zeros(2, 3, 2, 4, 4), 16, (6, 2)),
    "channels_last": (lambda: last(torch.zeros(2, 3, 4, 4)), 16, (3, 0)),
    "one_class": (lambda: torch.zeros(2, 1, 4, 4), 16, (1, 0)),
    "one_image_with_an_odd_stride": (lambda: torch.zeros(97).as_strided((1, 3, 4, 4), (97, 16, 4, 1)), 16, (0, 1)),
    "some_channels": (lambda: torch.zeros(2, 8, 4, 4)[:, 2:5], 16, (8, 1)),
    "expanded_batch": (lambda: torch.zeros(1, 3, 4, 4).expand(2, 3, 4, 4), 16, (0, 1)),
    "crop": (lambda: torch.zeros(2, 3, 4, 9)[..., :8], 16, (6, 2)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:logits. softmax over one channel")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_and_strides_come_in_the_largest_unit_that_divides_them(device, layout):
    make, unit, (image, channel) = LAYOUTS[layout]
    logits = make()
    launch = one_pass(device, logits, compact_map(logits))
    assert launch.constants["UNIT"] == unit
    assert (launch.arguments["logits_image"], launch.arguments["logits_class"]) == (image, channel)
    assert launch.arguments["pixels"] * unit == logits[0, 0].numel()
    assert launch.constants["LOGITS_LAST"] == (layout == "channels_last")
    copied = launch.arguments["logits"].data_ptr() != logits.data_ptr()
    assert copied == (layout == "crop")


def test_strides_of_a_dense_map_bound_the_unit_too(device):
    logits = torch.zeros(2, 3, 4, 4)
    maps = torch.zeros(1000).as_strided((2, 3, 4, 4), (100, 20, 4, 1))
    launch = one_pass(device, logits, maps)
    assert launch.constants["UNIT"] == 4
    assert [launch.arguments[name] for name in ("maps_image", "maps_class")] == [25, 5]


def test_a_pointer_counts_as_aligned_only_if_it_is(device):
    shape = (2, 3, 4, 4)
    aligned = one_pass(device, torch.zeros(shape), torch.zeros(shape))
    assert aligned.divisible >= {"logits", "maps", "grad", "loss"}
    of_logits = one_pass(device, unaligned(shape), torch.zeros(shape))
    assert of_logits.divisible == aligned.divisible - {"logits"}
    of_maps = one_pass(device, torch.zeros(shape), unaligned(shape))
    assert of_maps.divisible == aligned.divisible - {"maps"}
    assert len({aligned.compiled.hash, of_logits.compiled.hash, of_maps.compiled.hash}) == 3


def test_an_unaligned_pointer_gets_a_binary_with_narrow_accesses_of_it_alone(device):
    shape = (2, 3, 4, 4)
    launch = one_pass(device, unaligned(shape), torch.zeros(shape))
    assert launch.sass.count("LDG.E.128") == 3  # the map
    assert launch.sass.count("STG.E.128") == 3


def test_numbers_are_never_specialised_and_absent_tensors_are(device):
    for batch, size, ignored in ((1, 1, 1), (2, 16, 16), (3, 15, -1)):
        logits = torch.zeros(batch, 2, size, size)
        for launch in step(device, logits, compact_map(logits, ignore_index=ignored)):
            assert not NUMBERS & launch.constants.keys()
            assert not NUMBERS & launch.divisible
            assert {launch.signature[name] for name in NUMBERS & launch.signature.keys()} <= {"i32", "i64"}
            assert launch.divisible <= {*launch.signature} - NUMBERS
    launch = one_pass(device, logits, torch.zeros_like(logits))
    absent = {name for name, value in launch.constants.items() if value is None}
    tensors = {"labels", "background", "class_scale", "pixel_scale", "upstream", "count"}
    assert absent == {*tensors, "weight", "program"}


def test_other_sizes_with_the_same_divisors_get_the_same_binary(device):
    shapes = [(1, 3, 4, 4), (2, 3, 8, 6), (5, 3, 16, 16), (2, 3, 64, 1), (3, 3, 1, 112), (1, 3, 32, 33)]
    binaries = [[launch.compiled for launch in step(device, x, compact_map(x))] for x in map(torch.zeros, shapes)]
    for found in binaries[1:]:
        assert len(found) == 3
        assert all(one is other for one, other in zip(binaries[0], found, strict=True))


def test_a_sweep_of_sizes_needs_five_binaries(device):
    hashes = set()
    for height in range(1, 9):
        for width in range(1, 9):
            x = torch.zeros(1 + height % 3, 3, height, width)
            hashes |= {(launch.name, launch.compiled.hash) for launch in step(device, x, compact_map(x))}
    assert len([name for name, _ in hashes if name == "region_wise"]) == 5  # UNIT of 16, 8, 4, 2, 1
    assert len([name for name, _ in hashes if name == "scale_gradient"]) == 5
    assert len([name for name, _ in hashes if name == "finish_loss"]) == 1


@pytest.mark.parametrize("num_classes", [4, 16, 118])
def test_the_binaries_of_a_training_step_are_those_that_were_checked(device, num_classes):
    """16 images of 256 x 256 have the divisors of 3 images of 16 x 32."""
    for dtype in (F32, BF16):
        logits = torch.zeros(3, num_classes, 16, 32, dtype=dtype)
        cases = {
            Variant("dense", num_classes, dtype): (torch.zeros(logits.shape), {}),
            Variant("compact", num_classes, dtype): (compact_map(logits), {}),
        }
        for variant, (maps, options) in cases.items():
            ((_, checked),) = compiled([variant])
            assert one_pass(device, logits, maps, **options).compiled.hash == checked.compiled.hash


def test_the_binaries_of_calls_with_options_are_those_that_were_checked(device):
    logits = torch.zeros(3, 4, 16, 32)
    ignoring = compact_map(logits, ignore_index=255, image_count=torch.full((3,), 512))
    everything = rw.RectifiedMap(
        ignoring.labels, ignoring.foreground, torch.zeros(3, 16, 32), 4, torch.ones(4), 255, torch.full((3,), 512)
    )
    calls = {
        "ignore": (ignoring, {}),
        "no_background": (compact_map(logits), {"include_background": False}),
        "everything": (everything, {"include_background": False}),
    }
    for option, (maps, options) in calls.items():
        ((_, checked),) = compiled([Variant("compact", 4, option=option)])
        assert one_pass(device, logits, maps, **options).compiled.hash == checked.compiled.hash
    forward, backward = [
        launch for launch in step(device, logits, compact_map(logits), recompute=True) if launch.name == "region_wise"
    ]
    for launch, option in ((forward, "loss_only"), (backward, "recompute")):
        ((_, checked),) = compiled([Variant("compact", 4, option=option)])
        assert launch.compiled.hash == checked.compiled.hash


def test_another_dtype_gets_another_binary(device):
    logits = torch.zeros(2, 3, 4, 4)
    hashes = {
        one_pass(device, logits.to(t), torch.zeros_like(logits)).compiled.hash for t in (F32, BF16, torch.float16)
    }
    hashes |= {one_pass(device, logits, compact_map(logits, t)).compiled.hash for t in (torch.uint8, torch.int64)}
    assert len(hashes) == 5


@pytest.mark.parametrize(("pixels", "wide"), [(2**31 - 16, False), (2**31, True)])
def test_images_of_2_to_the_31_elements_get_offsets_of_64_bits(device, pixels, wide):
    logits = torch.empty(1, 1, pixels, device="meta")  # nothing runs, so nothing of it is touched
    problem = Variant("dense", 1).problem()._replace(logits=logits, maps=logits)
    triton.loss(problem, with_loss=True, grad=None, upstream=None, divide=True, validate=False)
    assert device.launches[0].constants["WIDE"] == wide
