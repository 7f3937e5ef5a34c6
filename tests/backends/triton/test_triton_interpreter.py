"""The Triton kernels, interpreted: the tests of loss, distances and maps once more, with `backend="triton"` on the CPU.

Triton reads `TRITON_INTERPRET` when a kernel is declared, so this takes a process of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rwkernels.backends import triton

_WHY_NOT = triton._why_not(None)
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))

TESTS = Path(__file__).parents[2]
NOT_OURS = "not reference and not native and not over-scipy"  # those run elsewhere
# Thousands of evaluations, or of programs: minutes for the interpreter, and nothing that smaller tests do not show.
LONG = ["thread_count", "scaled_loss_do_not_flush", "every_option", "finite_differences", "allocate"]


# Of distances and maps: what the emulator of PTX does not repeat in `test_triton_edt.py`.
MAPS = [
    "step_along_each_axis",
    "units_of_spacing",
    "empty",
    "hand_computes",
    "given_class_maximum",
    "everything_is_ignored",
    "flat_maps",
    "out_of_range",
]


# And of the comparisons with SciPy, isotropic and not, those that take seconds.
SCIPY = (
    "(what_scipy_gives_class_by_class or spacing_is_one_number) and (13x37 or 5x70) and "
    "(random or blobs or one-odd-pixel or uniform)"
)


def _run(files, chosen, at_least):
    """In one process for several files: it takes seconds to start."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen),
            *(str(next(TESTS.rglob(f"test_{file}.py"))) for file in files),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "RWKERNELS_BACKEND": "triton", "PYTEST_ADDOPTS": ""},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    passed = re.search(r"(\d+) passed", result.stdout)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert passed, result.stdout[-1000:]
    assert int(passed[1]) >= at_least, "tests were left out"


@pytest.mark.parametrize(
    ("files", "ours", "at_least"),
    [
        (["loss", "loss_inputs"], "triton", 240),
        (["autograd"], NOT_OURS, 55),
        (["transforms"], "triton", 55),
    ],
    ids=["loss", "autograd", "transforms"],
)
def test_the_interpreted_kernels_pass_the_tests_of(files, ours, at_least):
    _run(files, " and not ".join([ours, *LONG]), at_least)


def test_the_interpreted_kernels_pass_what_is_left_to_them_of_distances_and_maps():
    _run(["distance", "maps", "boundary_map"], f"triton and ({' or '.join([*MAPS, SCIPY])})", 33)


def test_the_interpreted_kernels_pass_tests_of_plans_by_ordinary_launches():
    _run(["triton_plans"], "laid_out_in_different_ways or built_before or asked_for_twice", 3)
