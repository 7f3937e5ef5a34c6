"""Compiled Triton kernels on a machine without a GPU: a device that is not there, and an emulator of its PTX.

Within `emulated_device`, Triton compiles a launch for the device, and the emulator runs it on tensors of the CPU:

    with emulated_device("cuda", 90) as device:
        kernel[grid](...)
    assert device.launches[0].resources.spills == 0

Below it, `run.run_ptx` runs the text of a PTX module.
"""

from __future__ import annotations

import importlib.util
import os


def missing() -> str | None:
    """Why Triton cannot compile for a GPU here; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET keeps Triton from compiling"
    try:
        from triton import knobs
    except ImportError:
        return "Triton is older than the one whose launcher is imitated here (it has no `knobs`)"
    try:
        return None if knobs.nvidia.ptxas.path else "Triton comes without ptxas"
    except RuntimeError as error:
        return f"Triton finds no ptxas: {error}"
