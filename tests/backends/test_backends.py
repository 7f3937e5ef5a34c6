"""Which backend does what, where, and why another cannot."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_cases import make_case

import rwkernels as rw
from rwkernels import backends as list_backends
from rwkernels.backends import NAMES, choose, cucim, native, reference, triton
from rwkernels.backends.triton import losses
from rwkernels.formats import in_order
from rwkernels.maps import quantised

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU of compute capability 9.0, as far as the choice of a backend goes."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    triton._why_not.cache_clear()
    yield monkeypatch
    triton._why_not.cache_clear()


def _pretend_triton(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    monkeypatch.setattr(losses, "_kernels", lambda: None)


def test_on_the_cpu_the_native_core_comes_first():
    if native.can_run(CPU) is None:
        assert choose(CPU, "loss") is native
    assert choose(CPU, "loss", "reference") is reference


def test_an_argument_comes_before_the_environment_and_that_before_the_usual_order(monkeypatch):
    monkeypatch.setenv("RWKERNELS_BACKEND", "reference")
    assert choose(CPU, "loss") is reference
    if native.can_run(CPU) is None:
        assert choose(CPU, "loss", "native") is native


def test_work_on_files_and_labels_asks_no_backend_that_is_meant_for_a_gpu(monkeypatch):
    monkeypatch.setenv("RWKERNELS_BACKEND", "cucim")
    with pytest.raises(ValueError, match="backend: 'cucim' cannot run on cpu"):
        choose(CPU, "fill_rectified")
    values = np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert (in_order(values) == values).all()
    assert in_order(values).flags.c_contiguous
    foreground = torch.tensor([0.0, -0.25, -1.0])
    assert quantised.encode(foreground, 8).tolist() == [0, 64, 255]


def test_on_a_gpu_the_loss_runs_in_triton(pretended_gpu):
    _pretend_triton(pretended_gpu, "3.8.0")
    assert choose(CUDA, "loss") is triton
    assert choose(CUDA, "scale_gradient", "triton") is triton
    assert choose(CUDA, "loss", "reference") is reference


def test_maps_on_a_gpu_run_in_triton_then_in_cucim_then_in_the_reference(pretended_gpu):
    reasons = {"triton": None, "cucim": None}
    pretended_gpu.setattr(triton, "can_run", lambda device: reasons["triton"])
    pretended_gpu.setattr(cucim, "can_run", lambda device: reasons["cucim"])
    assert choose(CUDA, "fill_rectified") is triton
    assert choose(CUDA, "fill_rectified", "cucim") is cucim
    assert choose(CUDA, "loss", "cucim") is triton
    assert choose(CUDA, "fill_dense", "cucim") is triton
    pretended_gpu.setenv("RWKERNELS_BACKEND", "cucim")
    assert choose(CUDA, "fill_boundary") is cucim
    pretended_gpu.delenv("RWKERNELS_BACKEND")
    reasons["triton"] = "the device is too old"
    assert choose(CUDA, "fill_rectified") is cucim
    assert choose(CUDA, "loss") is reference
    reasons["cucim"] = "cupy is missing"
    assert choose(CUDA, "fill_rectified") is reference
    with pytest.raises(ValueError, match=r"^backend: 'cucim' cannot run on cuda:0: cupy is missing$"):
        choose(CUDA, "fill_rectified", "cucim")


def test_the_environment_forces_a_backend(pretended_gpu):
    _pretend_triton(pretended_gpu, "3.8.0")
    pretended_gpu.setenv("RWKERNELS_BACKEND", "reference")
    assert choose(CUDA, "loss") is reference
    assert choose(CPU, "loss") is reference


@pytest.mark.parametrize(
    ("version", "capability", "reason"),
    [
        ("3.2.0", (9, 0), "it needs triton 3.3 or later, found 3.2.0"),
        ("3.8.0", (7, 5), "it needs compute capability 8.0 or later, the device has 7.5"),
    ],
)
def test_a_gpu_that_is_too_old_and_a_triton_that_is_are_named(version, capability, reason, pretended_gpu):
    _pretend_triton(pretended_gpu, version)
    pretended_gpu.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert triton.can_run(CUDA) == reason
    assert choose(CUDA, "loss") is reference
    with pytest.raises(ValueError, match=f"backend: 'triton' cannot run on cuda:0: {reason}"):
        choose(CUDA, "loss", "triton")


def test_a_triton_that_is_missing_is_named(pretended_gpu):
    pretended_gpu.setitem(sys.modules, "triton", None)
    assert triton.can_run(CUDA).startswith("triton cannot be imported")


def test_triton_needs_a_gpu():
    case = make_case()
    with pytest.raises(ValueError, match="backend: 'triton' cannot run on cpu: it computes on GPUs only"):
        rw.region_wise_loss(case.logits, case.maps, backend="triton")


def test_every_backend_says_why_it_cannot_run():
    found = {(status.name, status.device.split(":")[0]): status for status in list_backends()}
    assert set(found) == {(name, device) for name in NAMES for device in ("cpu", "cuda")}
    assert all(status.available or status.reason for status in found.values())
    assert str(found["triton", "cpu"]) == "triton on cpu: it computes on GPUs only"
    assert str(found["cucim", "cpu"]) == "cucim on cpu: it computes on NVIDIA GPUs only"


def test_a_training_step_on_the_cpu_imports_no_triton():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    step = (
        "import sys, torch, rwkernels as rw; x = torch.randn(2, 3, 8, 8, requires_grad=True);"
        "rw.RegionWiseLoss()(x, torch.randint(3, (2, 8, 8))).backward(); rw.backends();"
        "sys.exit(bool({'triton', 'cupy', 'cucim'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", step], check=False).returncode == 0
