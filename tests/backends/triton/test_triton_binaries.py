"""The binaries of the Triton backend, compiled ahead of time: registers, spills and accesses that were promised.

The launcher compiles them, for devices that are not there. `test_triton_launcher.py` shows that its specialisations
are the ones that are looked at here.
"""

from __future__ import annotations

import re
from collections import Counter

import ptx
import pytest
import torch

if (reason := ptx.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

from loss_cases import name
from ptx.driver import Launch
from triton_launches import (
    OPTIONS,
    Variant,
    bytes_in_flight,
    compiled,
    early_bytes,
    on_target,
    resident,
    sass,
    width,
    widths,
)

from rwkernels.backends import triton

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
KINDS = ("dense", "compact")
KIB = 1024

on_both_kinds = pytest.mark.parametrize("kind", KINDS)


def values_of_a_thread(variant: Variant) -> int:
    """What is promised: so many pixels next to each other, of every row of classes that a thread holds.

    float32 is then read 128 bits at a time for up to 4 classes (8 of a rectified map) and from 33 on, 64 bits for up to
    16 (32), and 32 bits in between; of 16-bit logits half as many.
    """
    if variant.num_classes > 32:
        return 4
    each_4, each_2 = (8, 32) if variant.rectified else (4, 16)
    return 4 if variant.num_classes <= each_4 else 2 if variant.num_classes <= each_2 else 1


def expected_accesses(variant: Variant, launch: Launch) -> tuple[Counter[int], Counter[int]]:
    """Loads and stores of a thread by width, for a variant without options: one for every row of classes it holds."""
    values, rows = values_of_a_thread(variant), launch.constants["PARTS"]
    loads, stores = Counter({values * variant.dtype.itemsize: rows}), Counter({values * variant.dtype.itemsize: rows})
    loads[values * variant.map_dtype.itemsize] += rows if variant.dense else 1
    if variant.labelled:
        labels = values * variant.label_dtype.itemsize
        loads[min(labels, 16)] += max(labels // 16, 1)
    stores[4] += 1  # the sum of the program
    return loads, stores


def assert_nothing_spilled(launch: Launch) -> None:
    """On AMD scalar registers may be kept in lanes of a vector register: that touches no memory."""
    used = launch.resources
    assert (used.stack_bytes, used.local_bytes) == (0, 0)
    assert "cubin" in launch.asm or re.search(r"\.vgpr_spill_count: +0\n", launch.asm["amdgcn"])


def assert_every_row_once(variant: Variant, launch: Launch) -> None:
    loads, stores = expected_accesses(variant, launch)
    assert widths(launch, "LDG") == loads
    assert widths(launch, "STG") == stores


def assert_room_for_others(variant: Variant, launch: Launch) -> None:
    """Registers and loads in flight on sm_90.

    The compiler may read a map only after the logits have come. That leaves 24 KiB in the first wait, of 48 and more,
    for 2 classes of 16 bits; elsewhere it leaves enough.
    """
    registers = launch.resources.registers
    assert registers <= (64 if variant.num_classes <= 6 else 96 if variant.num_classes <= 16 else 255)
    least = 24 if variant.num_classes == 2 and variant.dtype.itemsize == 2 else 32
    if variant.num_classes <= 16 or not variant.options:
        assert bytes_in_flight(variant, launch) >= least * KIB


# The ends of what `values_of_a_thread` tells apart, and 118 classes. What lies between differs in counts alone.
FEW, SOME, MANY = (1, 2, 4, 6), (8, 16), (17, 32, 118)
GROUPS = {
    **{
        f"{kind}-float32-{ks[0]}to{ks[-1]}": [Variant(kind, k) for k in ks]
        for kind in KINDS
        for ks in (FEW, SOME, MANY)
    },
    **{f"{kind}-bfloat16": [Variant(kind, k, BF16) for k in (2, 6, 16, 118)] for kind in KINDS},
    "compact-float16": [Variant("compact", k, F16) for k in (6, 64)],
    "compact-int64-labels": [Variant("compact", k, label_dtype=torch.int64) for k in (1, 6, 16)],
    "dense-bfloat16-map": [Variant("dense", k, BF16, map_dtype=BF16) for k in (2, 6, 17)],
}
BETWEEN = {
    **{f"{kind}-float32": [Variant(kind, k) for k in (3, 5, 10, 14, 19, 64, 256)] for kind in KINDS},
    **{f"{kind}-bfloat16": [Variant(kind, k, BF16) for k in (1, 3, 4, 5, 8, 17)] for kind in KINDS},
    "compact-float16": [Variant("compact", k, F16) for k in (2, 16)],
    "dense-float16": [Variant("dense", k, F16) for k in (2, 6, 16, 64)],
    "compact-int64-labels": [Variant("compact", k, label_dtype=torch.int64) for k in (4, 17)],
    "dense-bfloat16-map": [Variant("dense", k, BF16, map_dtype=BF16) for k in (4, 16, 118)],
}


@pytest.mark.parametrize(
    "group",
    [
        *[pytest.param(group, id=name) for name, group in GROUPS.items()],
        *[pytest.param(group, id=f"between-{name}", marks=pytest.mark.thorough) for name, group in BETWEEN.items()],
    ],
)
def test_on_sm_90_nothing_spills_and_there_is_room_for_other_programs_and_every_row_is_read_once(group):
    for variant, launch in compiled(group):
        assert_nothing_spilled(launch)
        assert_room_for_others(variant, launch)
        assert_every_row_once(variant, launch)


@pytest.mark.parametrize("option", OPTIONS)
@on_both_kinds
@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["", "more"])
def test_on_sm_90_an_option_spills_nothing_and_leaves_room_too(more, kind, option):
    cases = [(2, BF16), (6, F32)] if more else [(4, F32)]
    if option in (["ignore"] if more else ["class_scale", "everything"]):  # what takes the most registers
        cases += [(16, F32), (118, BF16)]
    for variant, launch in compiled(Variant(kind, k, dtype, option=option) for k, dtype in cases):
        assert_nothing_spilled(launch)
        assert_room_for_others(variant, launch)
        row = values_of_a_thread(variant) * variant.dtype.itemsize
        assert widths(launch, "LDG")[row] >= launch.constants["PARTS"]
        if OPTIONS[option].get("with_grad", True):
            assert widths(launch, "STG")[row] >= launch.constants["PARTS"]


@on_both_kinds
def test_float64_spills_nothing(kind):
    for variant, launch in compiled(Variant(kind, k, F64) for k in (3, 32, 118)):
        assert_nothing_spilled(launch)
        narrow = (4 if kind == "compact" else 2) * 4 < variant.num_classes <= 32
        assert widths(launch, "STG")[8 if narrow else 16] >= launch.constants["PARTS"]


@pytest.mark.parametrize("option", [None, pytest.param("ignore", marks=pytest.mark.thorough), "everything"])
@on_both_kinds
def test_classes_next_to_each_other_are_read_together_without_a_spill(kind, option):
    cases = [(2, F32), (3, BF16), (8, BF16), (118, F32)]
    for variant, launch in compiled(Variant(kind, k, t, channels_last=True, option=option) for k, t in cases):
        assert_nothing_spilled(launch)
        assert launch.resources.registers <= 72
        together = min((variant.num_classes & -variant.num_classes) * variant.dtype.itemsize, 16)
        stored = widths(launch, "STG")[together] * together * 32 * launch.num_warps
        assert stored >= launch.constants["BLOCK"] * variant.num_classes * variant.dtype.itemsize


@pytest.mark.parametrize("last", ["logits", "maps"])
@pytest.mark.parametrize("num_classes", [3, 118])
def test_logits_and_maps_of_different_layouts_spill_nothing(num_classes, last):
    problem = Variant("dense", num_classes).problem()
    problem = problem._replace(**{last: getattr(problem, last).to(memory_format=torch.channels_last)})
    grad = torch.empty_like(problem.logits)
    with on_target(90) as device:
        triton.loss(problem, with_loss=True, grad=grad, upstream=None, divide=True, validate=False)
    assert_nothing_spilled(device.launches[0])


@pytest.mark.parametrize(
    ("shape", "float32", "bfloat16"),
    [((4, 4), 16, 8), ((3, 8), 16, 8), ((3, 4), 16, 8), ((3, 6), 8, 4), ((3, 5), 4, 2)],
    ids=["16", "8", "4", "2", "odd"],
)
def test_the_accesses_are_as_wide_as_what_divides_the_pixels(shape, float32, bfloat16):
    variants = [Variant("dense", 4, shape=shape), Variant("compact", 4, BF16, shape=shape)]
    for variant, launch in compiled(variants):
        widest = float32 if variant.dtype == F32 else bfloat16
        assert_nothing_spilled(launch)
        stores = widths(launch, "STG") - Counter({4: 1})
        assert stores == {widest: 4 * 4 * variant.dtype.itemsize // widest}


@on_both_kinds
def test_an_odd_number_of_pixels_spills_nothing(kind):
    cases = [(1, None), (6, "everything"), (17, None), (118, None)]
    for _, launch in compiled(Variant(kind, k, shape=(15, 17), option=option) for k, option in cases):
        assert_nothing_spilled(launch)


@pytest.mark.parametrize("arch", [80, 100, 120], ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["", "more"])
def test_on_other_architectures_nothing_spills_and_every_row_is_read_once(more, arch):
    plain = [Variant("dense", 6), Variant("compact", 3), Variant("compact", 118), Variant("dense", 4, BF16)]
    optional = [Variant("compact", 16, option="everything")]
    if more:
        plain = [*(Variant("dense", k) for k in (3, 16)), Variant("compact", 16), Variant("compact", 17, BF16)]
        optional = [Variant("dense", 6, option="ignore")]
    for variant, launch in compiled(plain, arch):
        assert f"sm_{arch}" in sass(launch)
        assert_nothing_spilled(launch)
        assert_every_row_once(variant, launch)
    for _, launch in compiled(optional, arch):
        assert_nothing_spilled(launch)


@pytest.mark.parametrize("group", [FEW, SOME, MANY], ids=str)
def test_on_gfx942_nothing_spills_and_rows_are_read_as_wide(group):
    kinds = {3: "dense", 6: "dense", 16: "dense", 118: "dense"}
    for variant, launch in compiled((Variant(kinds.get(k, "compact"), k) for k in group), "gfx942"):
        assert launch.metadata.target.warp_size == 64
        assert_nothing_spilled(launch)
        words = {4: "dwordx4", 2: "dwordx2", 1: "dword"}[values_of_a_thread(variant)]
        loads = re.findall(rf"\b(?:global|buffer)_load_{words}\b", launch.asm["amdgcn"])
        assert len(loads) >= launch.constants["PARTS"] * (2 if variant.dense else 1)


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [(80, BF16), (90, F32), (90, BF16), (90, F64), (100, F32), (120, BF16), ("gfx942", F32)],
    ids=name,
)
def test_the_small_kernels_spill_nothing_and_stream_in_16_bytes(arch, dtype):
    problem = Variant("compact", 4, dtype, option="ignore").problem()._replace(image_count=None)
    grad = torch.empty_like(problem.logits)
    with on_target(arch) as device:
        triton.loss(problem, with_loss=True, grad=None, upstream=None, divide=False, validate=False)
        triton.scale_gradient(problem, grad, torch.ones(1), divide=True, in_place=True)
        triton.scale_gradient(problem, grad, torch.ones(1), divide=False, in_place=False)
    counting, _, finishing, _, *scaling = device.launches
    assert [counting.name, finishing.name] == ["count_pixels", "finish_loss"]
    assert [launch.name for launch in scaling] == ["scale_gradient", "scale_gradient"]
    for launch in (counting, finishing, *scaling):
        assert_nothing_spilled(launch)
    if arch != "gfx942":
        assert streamed(counting, "LDG") == counting.constants["BLOCK"]  # one byte a label
        for opcode in ("LDG", "STG"):
            assert streamed(scaling[1], opcode) == scaling[1].constants["BLOCK"] * dtype.itemsize
        assert streamed(scaling[0], "STG") == scaling[0].constants["BLOCK"] * dtype.itemsize


def streamed(launch: Launch, opcode: str) -> int:
    """What a program moves in accesses of 16 bytes or more."""
    accesses = widths(launch, opcode)
    return 32 * launch.num_warps * sum(size * count for size, count in accesses.items() if size >= 16)


def test_what_is_computed_from_machine_code_is_right():
    assert [width(opcode) for opcode in ("LDG.E", "LDG.E.U8", "STG.E.U16", "LDG.E.64", "STG.E.128")] == [4, 1, 2, 8, 16]
    assert width("LDG.E.ENL2.256") == 32
    (_, four), (_, eight) = compiled([Variant("dense", 4), Variant("dense", 8)])
    assert resident(four) == 65536 // (128 * four.resources.registers)
    assert 4 * 16 <= early_bytes(four) <= 8 * 16  # at least the logits, at most the map too
    assert early_bytes(eight) == 2 * 8 * 8  # all of both
