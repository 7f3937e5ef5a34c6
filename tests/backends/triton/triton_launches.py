"""Launches of the Triton backend on a device that is not there, and what their machine code promises."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from loss_cases import name
from ptx import binary
from ptx.driver import Device, Launch, emulated_device

from rwkernels.backends import triton
from rwkernels.backends.problem import LossProblem

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
REGISTER = re.compile(r"\bR(\d+)(?:\.(64))?")
_disassembler = ThreadPoolExecutor(1)
_disassembled: dict[str, Future[str]] = {}  # by the hash of the kernel

OPTIONS: dict[str, dict[str, Any]] = {
    "ignore": {"ignore_index": 255},
    "background": {"background": True},
    "class_scale": {"class_scale": True},
    "no_background": {"include_background": False},
    "none": {"reduction": "none"},
    "loss_only": {"with_grad": False},
    "recompute": {"with_loss": False},
    "recompute_none": {"with_loss": False, "reduction": "none"},
    "everything": {"ignore_index": 255, "background": True, "class_scale": True, "include_background": False},
}


@dataclass(frozen=True)
class Variant:
    """One binary of the kernel `region_wise`, by the call that needs it."""

    kind: str
    num_classes: int
    dtype: torch.dtype = torch.float32
    map_dtype: torch.dtype = torch.float32
    label_dtype: torch.dtype = torch.uint8
    shape: tuple[int, int] = (16, 16)
    channels_last: bool = False
    option: str | None = None

    def __str__(self) -> str:
        parts = [self.kind, f"K{self.num_classes}", name(self.dtype), self.option]
        return "-".join([part for part in parts if part] + ["last"] * self.channels_last)

    @property
    def options(self) -> dict[str, Any]:
        return OPTIONS[self.option] if self.option else {}

    @property
    def dense(self) -> bool:
        return self.kind == "dense"

    @property
    def labelled(self) -> bool:
        return not self.dense or "ignore_index" in self.options

    @property
    def rectified(self) -> bool:
        """Whether two values are all that a pixel of the map has."""
        return not self.dense and not {"class_scale", "include_background"} & self.options.keys()

    @property
    def pixel_bytes(self) -> int:
        """What is loaded for a pixel before anything is computed, the class scale and the like apart."""
        found = self.num_classes * self.dtype.itemsize
        found += self.map_dtype.itemsize * (self.num_classes if self.dense else 1)
        found += self.label_dtype.itemsize if self.labelled else 0
        return found + (4 if not self.dense and self.options.get("background") else 0)

    def problem(self, batch: int = 2) -> LossProblem:
        pixels = (batch, *self.shape)
        logits = torch.zeros(batch, self.num_classes, *self.shape, dtype=self.dtype)
        maps = torch.zeros(logits.shape if self.dense else pixels, dtype=self.map_dtype)
        if self.channels_last:
            logits = logits.to(memory_format=torch.channels_last)
            maps = maps.to(memory_format=torch.channels_last) if self.dense else maps
        options = self.options
        ignored = options.get("ignore_index")
        background = not self.dense and options.get("background")
        return LossProblem(
            logits,
            maps,
            labels=torch.zeros(pixels, dtype=self.label_dtype) if self.labelled else None,
            background=torch.zeros(pixels) if background else None,
            class_scale=torch.ones(self.num_classes) if options.get("class_scale") else None,
            image_count=None if ignored is None else torch.full((batch,), logits[0, 0].numel()),
            background_value=1.0,
            ignore_index=ignored,
            include_background=options.get("include_background", True),
            reduction=options.get("reduction", "mean"),
            validate=False,
            backend="triton",
            groups=0,
        )

    def launch(self, device: Device) -> Launch:
        """The launch of `region_wise`."""
        problem = self.problem()
        options = self.options
        upstream = None
        if not options.get("with_loss", True):
            upstream = torch.ones(problem.logits[:, 0].shape if problem.reduction == "none" else ())
        triton.loss(
            problem,
            with_loss=options.get("with_loss", True),
            grad=torch.empty_like(problem.logits) if options.get("with_grad", True) else None,
            upstream=upstream,
            divide=True,
            validate=False,
        )
        return next(launch for launch in reversed(device.launches) if launch.name == "region_wise")


@contextmanager
def on_target(arch: int | str, run: bool = False) -> Iterator[Device]:
    """The device sm_`arch`, or AMD's `arch`, for which torch is built for ROCm."""
    amd = isinstance(arch, str)
    rocm = patch.object(torch.version, "hip", "7.0") if amd else nullcontext()
    with rocm, emulated_device("hip" if amd else "cuda", arch, run) as device:
        yield device


@cache
def _compiled(variant: Variant, arch: int | str) -> Launch:
    with on_target(arch) as device:
        launch = variant.launch(device)
    if isinstance(arch, int):
        _disassembled[launch.compiled.hash] = _disassembler.submit(binary.sass, launch.asm["cubin"])
    return launch


def compiled(variants: Iterable[Variant], arch: int | str = 90) -> list[tuple[Variant, Launch]]:
    """The recorded launches of variants. Each is compiled once, and disassembled while the next one is compiled."""
    return [(variant, _compiled(variant, arch)) for variant in variants]


def sass(launch: Launch) -> str:
    found = _disassembled.get(launch.compiled.hash)
    return launch.sass if found is None else found.result()


def width(opcode: str) -> int:
    """The bytes that a load or store of SASS moves."""
    modifiers = opcode.split(".")
    for modifier, found in {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.items():
        if modifier in modifiers:
            return found
    return 4


def _words(opcode: str) -> int:
    """How many registers a load fills or a store empties; 1 for all else, whose pairs are spelled out."""
    return max(width(opcode) // 4, 1) if opcode.startswith(("LDG", "STG")) else 1


def instructions(text: str) -> list[tuple[str, str]]:
    """Opcodes and operands in order."""
    return [(opcode, operands) for opcode, operands in INSTRUCTION.findall(text)]


def widths(launch: Launch, opcode: str) -> Counter[int]:
    """How many accesses of global memory a thread makes, by their bytes: `opcode` is LDG or STG."""
    return Counter(width(found) for found, _ in instructions(sass(launch)) if found.split(".")[0] == opcode)


def early_bytes(launch: Launch) -> int:
    """The bytes that a thread has asked for when it first needs a register that it loaded.

    A multiprocessor issues the instructions of a warp in order and waits at that point.
    """
    found, loaded = 0, set[int]()
    for opcode, operands in instructions(sass(launch)):
        kind = opcode.split(".")[0]
        target, _, rest = operands.partition(",")
        if loaded & (_registers(rest, 1) if kind == "LDG" else _registers(operands, _words(opcode))):
            break
        if kind == "LDG":
            found += width(opcode)
            loaded |= _registers(target, _words(opcode))
    return found


def _registers(operands: str, count: int) -> set[int]:
    return {
        int(first) + more for first, pair in REGISTER.findall(operands) for more in range(max(count, 2 if pair else 1))
    }


def resident(launch: Launch) -> int:
    """How many CTAs a multiprocessor of sm_90 holds (CUDA C++ Programming Guide, compute capability 9.0).

    It has 65536 registers, given to warps in units of 256, a quarter of them to each of 4 schedulers, whose warps they
    stay; 64 warps, 32 CTAs, and 228 KiB of shared memory, of which every CTA takes 1 more.
    """
    used, warps = launch.resources, launch.num_warps
    of_a_warp = -(-used.registers * 32 // 256) * 256
    by_registers = 4 * (65536 // 4 // of_a_warp) // warps
    by_shared = 228 * 1024 // (1024 + used.shared_bytes)
    return min(32, 64 // warps, by_registers, by_shared)


def bytes_in_flight(variant: Variant, launch: Launch) -> int:
    """Bytes that the CTAs of a multiprocessor have asked for before they first wait.

    What several threads of a CTA ask for is counted once: no more than its pixels have.
    """
    asked = early_bytes(launch) * 32 * launch.num_warps
    return resident(launch) * min(asked, launch.constants["BLOCK"] * variant.pixel_bytes)
