"""The emulator of PTX, one instruction at a time: each result follows from the manual of PTX (the ISA, chapter 9)."""

from __future__ import annotations

import math

import pytest
import torch
from ptx.faults import Diverged, Endless, Misaligned, OutOfBounds, Uninitialised, Unsupported
from ptx.memory import Counts
from ptx.run import run_ptx

INF, NAN = math.inf, math.nan
WIDTHS = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
SMALLEST = 2.0**-126  # of normal float32 numbers

MODULE = """
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry sample({parameters})
.reqntid {threads}
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %t<16>;
    .reg .b64 %l<8>;
    {registers}
    mov.u32 %t15, %tid.x;
    {body}
    ret;
}}
"""


def run(
    code: str, arguments: dict[str, torch.Tensor | int], threads: int = 32, registers: str = "", **options
) -> Counts:
    """Runs lines of PTX; `%NAME` holds the address of each tensor; a number is a parameter of 32 bits."""
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    kinds = {name: ".u64 .ptr .global .align 1" if name in tensors else ".u32" for name in arguments}
    parameters = ", ".join(f".param {kind} {name}" for name, kind in kinds.items())
    registers += "".join(f" .reg .b64 %{name};" for name in tensors)
    loads = "".join(f"ld.param.b64 %{name}, [{name}]; " for name in tensors)
    text = MODULE.format(parameters=parameters, threads=threads, registers=registers, body=loads + code)
    return run_ptx(text, list(arguments.items()), **options)


def compute(code: str, inputs: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """What each thread's `code` makes of its elements `%x0`, `%x1`, ... of the inputs, in `%d`."""
    registers, body = f".reg .{WIDTHS[dtype.itemsize]} %d;", ""
    padded = {}
    for place, values in enumerate(inputs):
        size = values.element_size()
        registers += f" .reg .{WIDTHS[size]} %x{place};"
        body += f"mad.wide.u32 %l0, %t15, {size}, %in{place}; ld.global.b{8 * size} %x{place}, [%l0];\n"
        padded[f"in{place}"] = torch.cat([values, values.new_zeros(32 - len(values))])
    out = torch.zeros(32, dtype=dtype)
    body += f"{code}\nmad.wide.u32 %l0, %t15, {dtype.itemsize}, %out; st.global.b{8 * dtype.itemsize} [%l0], %d;"
    run(body, {**padded, "out": out}, registers=registers)
    return out[: len(inputs[0])]


def tensor(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def ints(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def words(*values: int) -> torch.Tensor:
    """Unsigned numbers of 32 bits, as torch's signed ones."""
    return torch.tensor(values).to(torch.int32)


HALF, BRAIN, DOUBLE, LONG, SHORT = torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int16
A, B = tensor(1.0, -2.5, INF, NAN, 0.0), tensor(3.0, -2.5, 1.0, 1.0, NAN)
M, N = ints(7, -7, 7, -7, -(2**31), 2**31 - 1), ints(3, 3, -3, -3, -1, 2)
LANES = ints(*range(32))

CASES = {
    # floats
    "add.f32 %d, %x0, %x1;": ([A, B], A + B),
    "sub.f32 %d, %x0, 0f3F800000;": ([A], A - 1),
    "min.f32 %d, %x0, %x1;": ([A, B], tensor(1, -2.5, 1, 1, 0)),
    "max.f32 %d, %x0, %x1;": ([A, B], tensor(3, -2.5, INF, 1, 0)),
    "min.NaN.f32 %d, %x0, %x1;": ([A, B], tensor(1, -2.5, 1, NAN, NAN)),
    "max.NaN.f32 %d, %x0, %x1;": ([A, B], tensor(3, -2.5, INF, NAN, NAN)),
    "max.f32 %d, %x0, %x1, 0f40000000;": ([A, B], tensor(3, 2, INF, 2, 2)),
    "fma.rn.f32 %d, %x0, %x1, %x2;": ([tensor(1 + 2**-23), tensor(1 - 2**-23), tensor(-1.0)], tensor(-(2.0**-46))),
    "fma.rn.f64 %d, %x0, %x1, %x2;": (
        [tensor(1 + 2**-52, dtype=DOUBLE), tensor(1 - 2**-52, dtype=DOUBLE), tensor(-1.0, dtype=DOUBLE)],
        tensor(-(2.0**-104), dtype=DOUBLE),
    ),
    "add.ftz.f32 %d, %x0, 0f00000000;": (
        [tensor(SMALLEST, SMALLEST / 2, -SMALLEST / 2, NAN)],
        tensor(SMALLEST, 0, 0, NAN),
    ),
    "add.f32 %d, %x0, 0f00000000;": ([tensor(SMALLEST / 2)], tensor(SMALLEST / 2)),
    "mul.sat.f32 %d, %x0, 0f40000000;": ([tensor(0.25, 3, -1, NAN)], tensor(0.5, 1, 0, 0)),
    "ex2.approx.f32 %d, %x0;": ([tensor(3, -INF, 200, 0)], tensor(8, 0, INF, 1)),
    "lg2.approx.f32 %d, %x0;": ([tensor(8, 0, -1)], tensor(3, -INF, NAN)),
    "rcp.approx.ftz.f32 %d, %x0;": ([tensor(4, INF, 0)], tensor(0.25, 0, INF)),
    "div.full.f32 %d, %x0, %x1;": ([tensor(1, 0, 1), tensor(4, 0, 0)], tensor(0.25, NAN, INF)),
    "neg.f32 %d, %x0;": ([tensor(1, -INF)], tensor(-1, INF)),
    "abs.f32 %d, %x0;": ([tensor(-1, -INF)], tensor(1, INF)),
    "copysign.f32 %d, %x0, %x1;": ([tensor(-1, 1), tensor(3, -3)], tensor(-3, 3)),
    "add.bf16 %d, %x0, %x1;": ([tensor(256, dtype=BRAIN), tensor(1, dtype=BRAIN)], tensor(256, dtype=BRAIN)),
    "fma.rn.bf16 %d, %x0, %x1, %x1;": ([tensor(3, dtype=BRAIN), tensor(0.5, dtype=BRAIN)], tensor(2, dtype=BRAIN)),
    "mul.f16 %d, %x0, %x1;": ([tensor(300, dtype=HALF), tensor(300, dtype=HALF)], tensor(INF, dtype=HALF)),
    "sub.rn.f32.bf16 %d, %x0, %x1;": ([tensor(1, dtype=BRAIN), tensor(2.0**-20)], tensor(1 - 2.0**-20)),
    "fma.rn.f32x2 %d, %x0, %x0, %x0;": ([tensor(2, 3).view(LONG)], tensor(6, 12).view(LONG)),
    # conversions
    "cvt.f32.bf16 %d, %x0;": ([tensor(1.5, NAN, dtype=BRAIN)], tensor(1.5, NAN)),
    "cvt.f64.f16 %d, %x0;": ([tensor(0.1, dtype=HALF)], tensor(0.1, dtype=HALF).double()),
    "cvt.rn.bf16.f32 %d, %x0;": ([tensor(1 + 2**-8, 1 + 3 * 2**-8, NAN)], tensor(1, 1 + 2**-6, NAN, dtype=BRAIN)),
    "cvt.rn.f16.f32 %d, %x0;": ([tensor(65520, 1 + 2**-11)], tensor(INF, 1, dtype=HALF)),
    "cvt.rn.bf16x2.f32 %d, %x0, %x1;": ([tensor(1), tensor(2)], tensor(2, 1, dtype=BRAIN).view(torch.int32)),
    "cvt.rn.f16x2.f32 %d, %x0, %x1;": ([tensor(1), tensor(2)], tensor(2, 1, dtype=HALF).view(torch.int32)),
    "cvt.rzi.s32.f32 %d, %x0;": ([tensor(2.7, -2.7, 1e20, -INF, NAN)], ints(2, -2, 2**31 - 1, -(2**31), 0)),
    "cvt.rni.s32.f32 %d, %x0;": ([tensor(2.5, 3.5)], ints(2, 4)),
    "cvt.rmi.f32.f32 %d, %x0;": ([tensor(2.7, -2.7)], tensor(2, -3)),
    "cvt.rpi.f32.f32 %d, %x0;": ([tensor(2.2, -2.7)], tensor(3, -2)),
    "cvt.rzi.u64.f64 %d, %x0;": ([tensor(2.0**40 + 0.5, -3, dtype=DOUBLE)], ints(2**40, 0, dtype=LONG)),
    "cvt.rn.f32.s32 %d, %x0;": ([ints(2**24 + 1, -5)], tensor(2.0**24, -5)),
    "cvt.rn.f32.u64 %d, %x0;": ([ints(-1, dtype=LONG)], tensor(2.0**64)),
    "cvt.s64.s32 %d, %x0;": ([ints(-3)], ints(-3, dtype=LONG)),
    "cvt.u64.u32 %d, %x0;": ([ints(-3)], ints(2**32 - 3, dtype=LONG)),
    "cvt.u32.u16 %d, %x0;": ([ints(-1, dtype=SHORT)], ints(65535)),
    "cvt.s32.s8 %d, %x0;": ([ints(0x17F, 0x180)], ints(127, -128)),
    "cvt.s16.s8 %d, %x0;": ([ints(0x80, dtype=SHORT)], ints(-128, dtype=SHORT)),
    "cvt.u32.u64 %d, %x0;": ([ints(2**32 + 5, dtype=LONG)], ints(5)),
    "cvt.sat.u8.s32 %d, %x0;": ([ints(-3, 300, 30)], ints(0, 255, 30)),
    # integers
    "add.s32 %d, %x0, %x1;": ([M, N], M + N),
    "sub.s32 %d, %x0, %x1;": ([M, N], M - N),
    "mul.lo.s32 %d, %x0, %x1;": ([M, N], M * N),
    "mad.lo.s32 %d, %x0, %x1, 5;": ([M, N], M * N + 5),
    "mul.hi.s32 %d, %x0, %x1;": ([M, N], (M.long() * N >> 32).int()),
    "mul.hi.u32 %d, %x0, %x1;": ([words(2**32 - 1), words(2**32 - 1)], words(2**32 - 2)),
    "mul.hi.s64 %d, %x0, %x1;": ([ints(-(2**62), dtype=LONG), ints(8, dtype=LONG)], ints(-2, dtype=LONG)),
    "mul.wide.s32 %d, %x0, %x1;": ([M, N], M.long() * N),
    "mad.wide.u32 %d, %x0, 4, %x1;": ([words(2**31), ints(1, dtype=LONG)], ints(2**33 + 1, dtype=LONG)),
    "div.s32 %d, %x0, %x1;": ([M[:4], N[:4]], ints(2, -2, -2, 2)),
    "rem.s32 %d, %x0, %x1;": ([M[:4], N[:4]], ints(1, -1, 1, -1)),
    "div.u32 %d, %x0, 16;": ([words(2**32 - 1)], words(2**28 - 1)),
    "min.s32 %d, %x0, %x1;": ([M, N], torch.minimum(M, N)),
    "max.u32 %d, %x0, %x1;": ([ints(-1), ints(5)], ints(-1)),
    "neg.s32 %d, %x0;": ([M], -M),
    "abs.s32 %d, %x0;": ([M[:4]], M[:4].abs()),
    "not.b32 %d, %x0;": ([M], ~M),
    "xor.b32 %d, %x0, %x1;": ([M, N], M ^ N),
    "shl.b32 %d, %x0, %x1;": ([ints(3, 3, 3), ints(4, 31, 32)], ints(48, -(2**31), 0)),
    "shr.u32 %d, %x0, %x1;": ([ints(-1, -1), ints(28, 40)], ints(15, 0)),
    "shr.s32 %d, %x0, %x1;": ([ints(-64, -64), ints(4, 40)], ints(-4, -1)),
    "shr.u64 %d, %x0, 32;": ([ints(-1, dtype=LONG)], ints(2**32 - 1, dtype=LONG)),
    "shf.l.wrap.b32 %d, %x0, %x1, 8;": ([words(0x11223344), words(0x55667788)], words(0x66778811)),
    "shf.r.wrap.b32 %d, %x0, %x1, 8;": ([words(0x11223344), words(0x55667788)], words(0x88112233)),
    "bfe.u32 %d, %x0, 4, 8;": ([words(0xABCD)], words(0xBC)),
    "bfe.s32 %d, %x0, 4, 8;": ([words(0xABCD, 0x7BCD)], words(0xFFFFFFBC, 0xFFFFFFBC)),
    "bfe.s32 %d, %x0, 28, 8;": ([words(0x90000000)], words(0xFFFFFFF9)),
    "bfi.b32 %d, %x0, %x1, 8, 4;": ([words(0xFF), words(0x12340000)], words(0x12340F00)),
    "prmt.b32 %d, %x0, %x1, 0x7604U;": ([words(0x33221100), words(0x77665544)], words(0x77660044)),
    "prmt.b32 %d, %x0, 0, 0x8880U;": ([words(0x00000080)], words(0xFFFFFF80)),
    "lop3.b32 %d, %x0, %x1, 0xF0F0, 0xE8;": ([words(0xFF00), words(0xCCCC)], words(0xFCC0)),
    "popc.b32 %d, %x0;": ([ints(-1, 5)], ints(32, 2)),
    "clz.b32 %d, %x0;": ([ints(-1, 5, 0)], ints(0, 29, 32)),
    "brev.b32 %d, %x0;": ([words(1)], words(2**31)),
    # comparisons and moves
    "setp.ne.f32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([A, B], ints(1, 0, 1, 0, 0)),
    "setp.neu.f32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([A, B], ints(1, 0, 1, 1, 1)),
    "setp.lt.f32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([A, B], ints(1, 0, 0, 0, 0)),
    "setp.geu.f32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([A, B], ints(0, 1, 1, 1, 1)),
    "setp.num.f32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([A, B], ints(1, 1, 1, 0, 0)),
    "setp.lt.u32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([ints(1, -1), ints(-1, 1)], ints(1, 0)),
    "setp.lt.s32 %p0, %x0, %x1; selp.b32 %d, 1, 0, %p0;": ([ints(1, -1), ints(-1, 1)], ints(0, 1)),
    "setp.eq.s32 %p1, %x0, 1; setp.lt.and.s32 %p0|%p2, %x0, %x1, !%p1; selp.b32 %d, 1, 0, %p0;": (
        [ints(1, 0, 5), ints(2, 2, 2)],
        ints(0, 1, 0),
    ),
    "setp.eq.s32 %p1, %x0, 1; not.pred %p2, %p1; selp.f32 %d, 0f3F800000, 0fFF800000, %p2;": (
        [ints(1, 0)],
        tensor(-INF, 1),
    ),
    "set.lt.u32.f32 %d, %x0, %x1;": ([A, B], ints(-1, 0, 0, 0, 0)),
    "mov.b64 %d, {%x0, %x1};": ([ints(1), ints(2)], ints(2**33 + 1, dtype=LONG)),
    "mov.b64 {_, %d}, %x0;": ([ints(2**33 + 1, dtype=LONG)], ints(2)),
    "mov.b32 {%h0, %h1}, %x0; mov.b32 %d, {%h1, %h0};": ([words(0x11112222)], words(0x22221111)),
    "mov.b32 %d, 5; setp.gt.s32 %p0, %x0, 0; @%p0 mov.b32 %d, %x0;": ([ints(-3, 3)], ints(5, 3)),
    "{ .reg .b32 %t0; mov.b32 %t0, 1; { .reg .b32 %t0; mov.b32 %t0, 2; } add.s32 %d, %t0, %x0; }": ([ints(0)], ints(1)),
    # the warp
    "shfl.sync.bfly.b32 %d, %x0, 1, 31, -1;": ([LANES], LANES ^ 1),
    "shfl.sync.idx.b32 %d, %x0, 3, 0x1F, -1;": ([LANES], ints(*[3] * 32)),
    "shfl.sync.up.b32 %d|%p0, %x0, 1, 0, -1; @!%p0 mov.b32 %d, -1;": ([LANES], ints(*range(-1, 31))),
    "shfl.sync.down.b32 %d, %x0, 2, 0x1C1F, -1;": (
        [LANES],
        ints(*[lane + 2 if lane % 4 < 2 else lane for lane in range(32)]),
    ),
    "redux.sync.add.s32 %d, %x0, -1;": ([LANES], ints(*[496] * 32)),
    "setp.gt.s32 %p0, %x0, 3; vote.sync.ballot.b32 %d, %p0, -1;": ([LANES], words(*[2**32 - 16] * 32)),
    "setp.gt.s32 %p0, %x0, 31; vote.sync.any.pred %p1, %p0, -1; selp.b32 %d, 1, 0, %p1;": (
        [LANES],
        ints(*[0] * 32),
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_an_instruction_gives_what_the_manual_says(code):
    inputs, expected = CASES[code]
    result = compute(code, inputs, expected.dtype)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_threads_that_part_meet_again_and_loops_end_for_each_alone():
    out = torch.zeros(64, dtype=torch.int32)
    code = """
        mov.b32 %t0, 0;
    $LOOP:
        add.s32 %t0, %t0, 1;
        setp.lt.s32 %p0, %t0, %t15;
        @%p0 bra $LOOP;
        and.b32 %t1, %t15, 1;
        setp.eq.s32 %p1, %t1, 1;
        @%p1 bra $ODD;
        add.s32 %t0, %t0, 100;
        bra.uni $JOIN;
    $ODD:
        add.s32 %t0, %t0, 200;
    $JOIN:
        shfl.sync.bfly.b32 %t2, %t0, 0, 31, -1;
        mad.wide.u32 %l0, %t15, 4, %out;
        st.global.b32 [%l0], %t2;
    """
    run(code, {"out": out}, threads=64)
    assert out.tolist() == [max(thread, 1) + (200 if thread % 2 else 100) for thread in range(64)]


def test_vectors_are_loaded_and_stored_in_order():
    source, out = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    code = """
        setp.lt.s32 %p0, %t15, 16;
        mad.wide.u32 %l0, %t15, 16, %source;
        mad.wide.u32 %l1, %t15, 16, %out;
        @%p0 ld.global.L1::evict_first.v2.b64 { %l2, %l3 }, [ %l0 + 0 ];
        mov.b64 {%t0, %t1}, %l2;
        mov.b64 {%t2, %t3}, %l3;
        @%p0 st.global.v4.b32 [%l1], {%t3, %t2, %t1, %t0};
    """
    counts = run(code, {"source": source, "out": out})
    assert torch.equal(out, source.view(-1, 4).flip(1).reshape(-1))
    assert counts.loads == {16: 16}


def test_bytes_are_extended_by_their_type():
    source, out = torch.tensor([200], dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)
    code = """
        ld.global.u8 %h0, [%source]; ld.global.s8 %h1, [%source];
        cvt.s32.s16 %t0, %h0; cvt.s32.s16 %t1, %h1;
        st.global.v2.b32 [%out], {%t0, %t1};
    """
    run(code, {"source": source, "out": out})
    assert out.tolist() == [200, -56]


def test_a_parameter_is_extended_by_its_type():
    out = torch.zeros(2, dtype=torch.int64)
    code = "ld.param.s32 %l0, [number]; ld.param.u32 %l1, [number]; st.global.v2.b64 [%out], {%l0, %l1};"
    run(code, {"out": out, "number": 2**32 - 5})
    assert out.tolist() == [-5, 2**32 - 5]


@pytest.mark.parametrize(
    ("operation", "start", "expected"),
    [("add.u32", 5, 5 + 32 * 3), ("max.s32", -5, 3), ("exch.b32", 9, 3), ("or.b32", 4, 7), ("inc.u32", 0, 0)],
)
def test_atomics_update_once_for_each_thread(operation, start, expected):
    out = torch.tensor([start], dtype=torch.int32)
    run(f"atom.global.gpu.acq_rel.{operation} %t0, [%out], 3;", {"out": out})
    assert out.item() == expected


def test_an_atomic_of_one_thread_returns_what_was_there():
    ticket, out = torch.tensor([7]), torch.zeros(3, dtype=torch.int64)
    code = """
        setp.eq.s32 %p0, %t15, 0;
        @%p0 atom.global.gpu.acq_rel.add.u64 %l0, [%ticket], 1;
        @%p0 st.global.b64 [%out + 8], %l0;
    """
    run(code, {"ticket": ticket, "out": out}, grid=(3, 1, 1), threads=32)
    assert ticket.item() == 10
    assert 7 <= out[1].item() <= 9


def test_shared_memory_carries_values_across_warps_and_belongs_to_one_cta():
    out = torch.zeros(3, 64, dtype=torch.int32)
    code = """
        mov.b32 %t0, global_smem;
        mad.lo.s32 %t1, %t15, 4, %t0;
        mov.u32 %t2, %ctaid.x;
        mad.lo.s32 %t3, %t2, 1000, %t15;
        st.shared::cta.b32 [%t1], %t3;
        bar.sync 0;
        sub.s32 %t4, 63, %t15;
        mad.lo.s32 %t5, %t4, 4, %t0;
        ld.shared.b32 %t6, [%t5];
        mad.lo.s32 %t7, %t2, 64, %t15;
        mad.wide.u32 %l0, %t7, 4, %out;
        st.global.b32 [%l0], %t6;
    """
    run(code, {"out": out}, threads=64, grid=(3, 1, 1), shared_bytes=256)
    assert torch.equal(out, (1000 * torch.arange(3)[:, None] + torch.arange(63, -1, -1)).int())


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_go_to_shared_memory_and_back(trans):
    source, out = torch.arange(128, dtype=SHORT), torch.zeros(64, dtype=torch.int32)
    code = f"""
        mad.wide.u32 %l0, %t15, 8, %source;
        ld.global.v2.b32 {{%t0, %t1}}, [%l0];
        mov.b32 %t2, global_smem;
        and.b32 %t3, %t15, 15;
        mad.lo.s32 %t4, %t3, 16, %t2;
        stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%t4], {{%t0, %t1}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%t5, %t6}}, [%t4];
        mad.wide.u32 %l1, %t15, 8, %out;
        st.global.v2.b32 [%l1], {{%t5, %t6}};
    """
    run(code, {"source": source, "out": out}, shared_bytes=256)
    first, second = source.view(torch.int32).view(32, 2).T
    expected = [first.contiguous(), second.contiguous()]
    if trans:
        expected = [half.view(SHORT).view(8, 8).T.contiguous().view(torch.int32).view(-1) for half in expected]
    assert torch.equal(out.view(32, 2), torch.stack(expected, 1))


@pytest.mark.parametrize(
    ("code", "fault", "message"),
    [
        ("ld.global.b32 %t0, [%x + 128];", OutOfBounds, "at byte 128 of 'x'"),
        ("ld.global.b32 %t0, [%x + -4];", OutOfBounds, "at byte -4 of 'x'"),
        ("ld.global.v4.b32 {%t0, %t1, %t2, %t3}, [%x + 116];", OutOfBounds, "16 bytes at byte 116 of 'x'"),
        ("ld.global.b32 %t0, [%x + 2];", Misaligned, "4 bytes at byte 2 of 'x'"),
        ("sub.s64 %l0, %y, %x; add.s64 %l1, %x, 128; st.global.b32 [%l1], %t15;", OutOfBounds, "of 'x'"),
        ("mov.b64 %l0, 0; ld.global.b32 %t0, [%l0];", OutOfBounds, "no argument"),
        ("mov.b32 %t0, global_smem; ld.shared.b32 %t1, [%t0];", Uninitialised, "never written"),
        ("mov.b32 %t0, global_smem; st.shared.b32 [%t0 + 64], %t1;", OutOfBounds, "byte 64 of 64 bytes"),
        ("mov.b32 %t0, global_smem; st.shared.b32 [%t0 + 1], %t1;", Misaligned, "shared memory"),
        ("setp.lt.s32 %p0, %t15, 8; @%p0 bra $L; bar.sync 0; $L: mov.b32 %t0, 1;", None, ""),
        ("setp.lt.s32 %p0, %t15, 8; @%p0 bra $L; bar.sync 0; $L: bar.sync 0;", Diverged, "barrier"),
        ("setp.lt.s32 %p0, %t15, 8; @%p0 shfl.sync.idx.b32 %t0, %t1, 0, 31, -1;", Unsupported, "a guard"),
        ("setp.lt.s32 %p0, %t15, 8; @%p0 bra $L; shfl.sync.idx.b32 %t0, %t1, 0, 31, -1; $L:", Diverged, "absent"),
        ("$L: bra.uni $L;", Endless, "instructions"),
        ("tcgen05.alloc.b32 [%t0], 32;", Unsupported, "line 15.*unknown instruction: tcgen05"),
        ("add.rz.f32 %t0, %t9, %t9;", Unsupported, "rz"),
        ("ld.global.unheard.b32 %t0, [%x];", Unsupported, "unheard"),
    ],
)
def test_what_a_gpu_would_punish_is_refused(code, fault, message):
    arguments = {"x": torch.zeros(32, dtype=torch.int32), "y": torch.zeros(32, dtype=torch.int32)}
    if fault is None:
        run(code, arguments, shared_bytes=64, budget=1000)
        return
    with pytest.raises(fault, match=message):
        run(code, arguments, shared_bytes=64, budget=1000)
