"""What a compiled kernel needs of the hardware, and its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

RESOURCE = re.compile(r"Function ([\w$]+):\s*\n\s*(.*)")


@dataclass(frozen=True)
class Resources:
    """Of one thread, but for `shared_bytes`, of one CTA. On AMD `registers` counts the vector registers."""

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    spills: int  # CUDA: bytes of stack and local memory, which only spills use here; AMD: registers
    scalar_registers: int = 0


def nvidia_tool(name: str) -> Path:
    import triton.backends.nvidia

    return Path(triton.backends.nvidia.__file__).parent / "bin" / name


def ask_cuobjdump(cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(nvidia_tool("cuobjdump")), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@lru_cache(maxsize=256)
def cuda_resources(cubin: bytes, shared_bytes: int) -> Resources:
    described = RESOURCE.search(ask_cuobjdump(cubin, "--dump-resource-usage"))
    if described is None:
        raise ValueError("cuobjdump tells no resources")
    used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", described[2])}
    return Resources(used["REG"], used["STACK"], used["LOCAL"], shared_bytes, used["STACK"] + used["LOCAL"])


@lru_cache(maxsize=256)
def sass(cubin: bytes) -> str:
    return ask_cuobjdump(cubin, "-sass")


def hip_resources(assembly: str, shared_bytes: int) -> Resources:
    """From the metadata at the end of the assembly."""

    def value(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        return int(found[1]) if found else 0

    private = value("private_segment_fixed_size")
    return Resources(
        registers=value("vgpr_count"),
        stack_bytes=private,
        local_bytes=private,
        shared_bytes=shared_bytes,
        spills=value("vgpr_spill_count") + value("sgpr_spill_count"),
        scalar_registers=value("sgpr_count"),
    )
