"""What the documents show is what happens: README's example, the example script, every docstring."""

import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import rwkernels

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_example_trains() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    model = names["model"]
    gradients = [p.grad for p in model.parameters()]  # type: ignore[attr-defined]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    assert len([line for line in example.splitlines() if line]) <= 10


def test_the_examples_of_the_paper_document_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is missing")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "paper.md").read_text(), re.DOTALL)
    for example in examples:
        exec(compile(example, "docs/paper.md", "exec"), {})
    assert len(examples) == 2
    assert (tmp_path / "simplex.svg").stat().st_size > 0


def test_the_readme_shows_exactly_two_set_up_commands() -> None:
    commands = re.findall(r"```bash\n(.*?)```", README.read_text().split("\n## ")[0], re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 and command.startswith("python -m pip install") for command in commands)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    marked = README.read_text().split("<!-- test command -->")[1]
    assert "pytest" in marked.split("```")[1]
    assert "test command" in (ROOT / ".ci" / "run").read_text()


def test_the_example_script_learns() -> None:
    main = runpy.run_path(str(ROOT / "examples" / "train.py"))["main"]
    assert main(steps=60) > 0.9


def modules() -> list[str]:
    """Every module of the package but the command's, the demo's and the compiled core."""
    found = pkgutil.walk_packages(rwkernels.__path__, "rwkernels.")
    return [
        m.name for m in found if not m.name.startswith(("rwkernels.demo", "rwkernels.__main__", "rwkernels._native"))
    ]


@pytest.mark.parametrize("name", ["rwkernels", *modules()])
def test_docstring_examples_give_what_they_show(name: str) -> None:
    if name.startswith("rwkernels.backends.triton_"):
        pytest.importorskip("triton", reason="triton is not installed")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))  # an integration whose library is not there
    result = doctest.testmod(module)
    assert result.failed == 0


def test_every_public_name_has_an_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    missing = [
        name
        for name in rwkernels.__all__
        if name != "backends" and not any(test.examples for test in finder.find(getattr(rwkernels, name)))
    ]
    assert not missing
