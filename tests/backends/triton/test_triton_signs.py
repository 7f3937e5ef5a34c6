"""The Triton kernel that counts signs, without a GPU: interpreted, its PTX emulated, and its binaries looked at."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ptx
import pytest
import torch
from choices import pairwise
from loss_cases import KINDS, either_kind, make_case, name

import rwkernels as rw
from rwkernels import diagnostics
from rwkernels.backends import triton

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def device(monkeypatch):
    from ptx.driver import emulated_device

    monkeypatch.setattr(triton, "can_run", lambda device: None)
    with emulated_device("cuda", 90) as device:
        yield device


def options(case):
    return {} if isinstance(case.maps, rw.RectifiedMap) else {"labels": case.labels, "ignore_index": case.ignore_index}


def assert_counts_of_the_reference(case, **more):
    for count in (diagnostics.negative_gradients, diagnostics.wrong_signs):
        given = options(case) | more
        found = count(case.logits, case.maps, backend="triton", validate=False, **given)
        assert torch.equal(found, count(case.logits, case.maps, backend="reference", validate=False, **given))


@either_kind
@pytest.mark.parametrize("num_classes", [1, 4, 20, 118])
def test_the_machine_code_counts_what_the_reference_counts_for_any_number_of_classes(num_classes, kind, device):
    assert_counts_of_the_reference(
        make_case(kind, num_classes=num_classes, shape=(5, 7), ignore_index=-1, background="pixel")
    )
    assert {launch.name for launch in device.launches} == {"count_negatives"}


@either_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_machine_code_counts_what_the_reference_counts_in_every_dtype(dtype, kind, device):
    case = make_case(kind, num_classes=5, shape=(9, 13), dtype=dtype, class_scale=True)
    case.labels[1, 2, 3] = 9  # no class
    if kind == "compact":
        case.maps = case.maps._with(labels=case.labels)
    assert_counts_of_the_reference(
        case, include_background=False, **({} if kind == "compact" else {"labels": case.labels})
    )


@either_kind
@pytest.mark.parametrize("layout", ["channels_last", "crop", "unaligned"])
def test_the_layout_in_memory_does_not_change_what_the_machine_code_counts(layout, kind, device):
    case = make_case(kind, num_classes=4, shape=(6, 35), dtype=torch.bfloat16)
    x = case.logits
    case.logits = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "crop": lambda: torch.nn.functional.pad(x, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
        "unaligned": lambda: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    }[layout]()
    assert_counts_of_the_reference(case, **({} if kind == "compact" else {"labels": case.labels}))


def test_the_machine_code_reads_probabilities_and_knows_what_is_no_number(device):
    y = torch.tensor([[0.6, 0.2, 0.2], [0.0, 0.5, 0.5], [torch.nan, 0.5, 0.5]]).T.reshape(1, 3, 1, 3)
    maps = torch.tensor([12.0, 4.0, -3.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    found = diagnostics.negative_gradients(y, maps, probabilities=True, backend="triton")
    assert found.tolist() == [[[2, 1, -1]]]


@pairwise(kind=KINDS, target=[pytest.param(80, marks=pytest.mark.thorough), 90, 100, "gfx942"])
def test_no_binary_spills_or_uses_local_memory(kind, target, monkeypatch):
    from triton_launches import on_target

    monkeypatch.setattr(triton, "can_run", lambda device: None)
    with on_target(target) as device:
        for num_classes, dtype in ((4, torch.float32), (16, torch.bfloat16), (118, torch.float32)):
            case = make_case(kind, num_classes=num_classes, shape=(16, 16), dtype=dtype, ignore_index=-1)
            diagnostics.wrong_signs(case.logits, case.maps, backend="triton", validate=False, **options(case))
    assert len(device.launches) == 3
    for launch in device.launches:
        used = launch.resources
        assert (used.stack_bytes, used.local_bytes) == (0, 0)
        assert "cubin" in launch.asm or re.search(r"\.vgpr_spill_count: +0\n", launch.asm["amdgcn"])
        assert target == "gfx942" or used.registers <= 128  # four programs a multiprocessor, and more


def test_the_interpreted_kernel_passes_tests_of_the_counts():
    chosen = "triton and (probabilities or underflow or rational_arithmetic and plain-4 or leaving_out or bad_labels)"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/diagnostics/test_diagnostics_signs.py",
            "-k",
            chosen,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "RWKERNELS_BACKEND": "triton", "PYTEST_ADDOPTS": ""},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 10
