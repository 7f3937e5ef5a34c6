"""What every integration does where its library is missing, and that none is imported before it is asked for."""

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rwkernels.extras import needs
from rwkernels.integrations import nnunet
from rwkernels.integrations.nnunet.__main__ import main

MODULES = {
    "monai": ("monai", "monai"),
    "torchio": ("torchio", "torchio"),
    "lightning": ("lightning", "lightning"),
    "nnunet.trainers": ("nnunet", "nnunetv2"),
}


def hide(monkeypatch: pytest.MonkeyPatch, package: str, module: str) -> None:
    """Makes `package` look uninstalled and `module` look never imported."""
    for name in list(sys.modules):
        if any(name == root or name.startswith(root + ".") for root in (package, module)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("module", MODULES)
def test_a_missing_library_is_named_together_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, package = MODULES[module]
    name = f"rwkernels.integrations.{module}"
    hide(monkeypatch, package, name)
    with pytest.raises(ImportError, match=rf'needs {package}, .*pip install "rwkernels\[{extra}\]"'):
        importlib.import_module(name)


def test_what_a_library_itself_misses_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), needs("monai"):
        import no_such_package  # noqa: F401


def test_the_packages_of_the_integrations_import_no_library() -> None:
    libraries = {"monai", "torchio", "lightning", "pytorch_lightning", "nnunetv2"}
    program = (
        "import sys, rwkernels, rwkernels.integrations, rwkernels.integrations.nnunet\n"
        f"sys.exit(repr({libraries!r} & set(sys.modules)) if {libraries!r} & set(sys.modules) else 0)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr


def test_the_folder_of_the_trainers_holds_one_module_and_its_name_is_ours_alone() -> None:
    # nnU-Net imports every module of the folder under its bare name.
    assert [path.name for path in nnunet.trainer_folder().glob("*.py")] == ["rwkernels_trainers.py"]


def test_the_command_prints_the_folder_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("2.8", "2.8.1", "2.10.0rc1", "3.0"):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        assert main() == 0
        assert Path(capsys.readouterr().out.removesuffix("\n")) == nnunet.trainer_folder()


def test_the_command_refuses_an_nnunet_that_does_not_look_into_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.7.3")
    assert main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "nnunetv2: expected 2.8 or later" in printed.err
    assert "got 2.7.3" in printed.err


def test_the_command_says_what_to_install_where_nnunet_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert 'pip install "rwkernels[nnunet]"' in printed.err
