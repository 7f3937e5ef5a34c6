"""A CUDA driver whose launches return at once, so that what a launch costs the host can be measured without a GPU.

After `install()` Triton compiles for sm_90 as it does for a real device, and launches tensors of the CPU through
its own launcher, Python and C alike. That one calls the driver's library, for which a stand-in is built with the
system's C compiler: every function of it succeeds and does nothing. So all of a launch is there but what the driver
itself does.

To PyTorch the stand-in says that there is no device. It takes the place of the driver in this process for good.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_NAME = "libcuda.so.1"
_SOURCE = r"""
#include <stdint.h>

#define DOES_NOTHING(name) int name(void) { return 0; }
DOES_NOTHING(cuCtxGetLimit)
DOES_NOTHING(cuCtxSetCurrent)
DOES_NOTHING(cuCtxSetLimit)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuFuncSetCacheConfig)
DOES_NOTHING(cuLaunchKernel)
DOES_NOTHING(cuLaunchKernelEx)
DOES_NOTHING(cuModuleUnload)
DOES_NOTHING(cuOccupancyMaxActiveClusters)
DOES_NOTHING(cuStreamIsCapturing)
DOES_NOTHING(cuTensorMapEncodeIm2col)
DOES_NOTHING(cuTensorMapEncodeTiled)

static int something;
int cuInit(unsigned flags) { return 100; } /* no device, for who asks first */
int cuDeviceGetCount(int *count) { *count = 0; return 100; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = &something; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &something; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = &something; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = &something; return 0; }
int cuFuncGetAttribute(int *value, int which, void *function) { *value = which == 0 ? 1024 : 0; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 9 : which == 76 ? 0 : which == 97 ? 232448 : which == 81 ? 233472 : which == 10 ? 32 : 132;
    return 0;
}
int cuPointerGetAttribute(void *found, int which, uint64_t pointer) { *(uint64_t *)found = pointer; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "an error of no driver"; return 0; }
"""


def why_not() -> str | None:
    """Why no such driver can be had here; None if it can."""
    if platform.system() != "Linux":
        return "Triton launches on CUDA devices under Linux only"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET keeps Triton from compiling"
    if _compiler() is None:
        return "there is no C compiler"
    if not _LIBRARY and _loaded():
        return "the driver of a GPU is loaded in this process"
    return None


def _compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")


def _loaded() -> bool:
    return _NAME in Path("/proc/self/maps").read_text()


_LIBRARY: list[Any] = []  # the stand-in, once it is loaded, and the folder that it lies in


def _load() -> str:
    """The folder of the stand-in, which this process has loaded then, so that its name finds nothing else."""
    if not _LIBRARY:
        if (reason := why_not()) is not None:
            raise RuntimeError(f"no empty driver: {reason}")
        folder = tempfile.TemporaryDirectory()
        source = Path(folder.name, "driver.c")
        source.write_text(_SOURCE)
        library = str(Path(folder.name, _NAME))
        compiler = _compiler()
        assert compiler is not None
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{_NAME}", "-o", library, str(source)], check=True
        )
        Path(folder.name, "libcuda.so").symlink_to(_NAME)  # as earlier versions of Triton link
        _LIBRARY.extend([ctypes.CDLL(library, ctypes.RTLD_GLOBAL), folder])
    return str(_LIBRARY[1].name)


@cache
def _driver(folder: str) -> Any:
    """Triton's driver object over the stand-in in `folder`."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.backends.nvidia import driver as nvidia

    # Answers as triton.backends.nvidia's own, without a question to torch.cuda, which has no device.
    class EmptyDriver(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_current_device = _zero
            self.get_current_stream = _zero_of

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return str(nvidia.ty_to_cpp(ty))

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def set_current_device(self, index: int) -> None:
            pass

        def get_device_capability(self, index: int | None = None) -> tuple[int, int]:
            return 9, 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("an empty driver has no speed")

    os.environ["TRITON_LIBCUDA_PATH"] = folder  # earlier versions of Triton build a launcher for every signature
    return EmptyDriver()


def _zero() -> int:
    return 0


def _zero_of(_: int) -> int:
    return 0


def install() -> None:
    """Has Triton launch on tensors of the CPU from now on, where nothing runs.

    Raises:
        RuntimeError: `why_not()` says why.
    """
    folder = _load()
    import triton

    triton.runtime.driver.set_active(_driver(folder))
