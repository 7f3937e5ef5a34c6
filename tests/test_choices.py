"""How a run of the tests is chosen: tables of pairs, and no run that passes because it left out what it should test."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from choices import pairwise

ROOT = Path(__file__).parent.parent
WITHOUT_CORE = "sys.modules['rwkernels._native'] = None"
WITHOUT_EXTRA = "metadata.requires = lambda _: ['torch', 'nothing-of-this-name>=2; extra == \"test\"']"


def test_every_two_values_of_two_arguments_meet_in_few_cases():
    axes = {"a": range(7), "b": "xyz", "c": [None, 1.5], "d": [(1, 2), (3,)]}
    names, cases = pairwise(**axes).args
    assert names == tuple(axes)
    chosen = [case.values for case in cases]
    for (i, first), (j, second) in itertools.combinations(enumerate(axes.values()), 2):
        assert {(case[i], case[j]) for case in chosen} == set(itertools.product(first, second))
    assert len(chosen) <= 24  # of 84; 7 x 3 pairs need 21
    assert cases[0].id == "0-x-None-1x2"


@pytest.mark.parametrize(
    ("broken", "options", "code", "words"),
    [
        (WITHOUT_CORE, [], 4, r"no core: the compiled module is missing .*python -m pip install -e .*--without-core"),
        (WITHOUT_CORE, ["--without-core"], 0, "1 skipped"),
        (WITHOUT_EXTRA, [], 4, "of the extra `test` there is no nothing-of-this-name>=2"),
    ],
    ids=["no-core", "without-core", "no-extra"],
)
def test_a_run_that_would_leave_out_what_it_should_test_fails(broken, options, code, words):
    chosen = ["-q", "-p", "no:cacheprovider", "tests/test_cli.py", "-k", "finds_every_backend_of_the_cpu", *options]
    program = f"import sys, pytest; from importlib import metadata; {broken}; sys.exit(pytest.main({chosen}))"
    environment = {**os.environ, "CI": "true" if broken == WITHOUT_EXTRA else "", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(words, done.stdout + done.stderr)
