"""The examples of docs/training.md for MONAI, TorchIO and Lightning, and the example script, run as they stand."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from samples import scene

ROOT = Path(__file__).parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "training.md").read_text(), flags=re.MULTILINE)


def example(title):
    """The one example of a section."""
    (section,) = [text for text in SECTIONS if text.startswith(title + "\n")]
    (found,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """`images/` and `labels/` with four generated volumes, in the current folder."""
    import nibabel
    import numpy as np

    monkeypatch.chdir(tmp_path)
    for i, labels in enumerate(scene("blobs", (24, 20, 12), 3, batch=4).numpy()):
        noisy = labels + np.random.default_rng(i).normal(0, 0.3, labels.shape)
        for folder, array in (("images", noisy.astype(np.float32)), ("labels", labels.astype(np.uint8))):
            Path(folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), Path(folder, f"{i}.nii.gz"))


def trained(names, attribute="network"):
    gradients = [parameter.grad for parameter in names[attribute].parameters()]
    return all(gradient is not None and gradient.isfinite().all() for gradient in gradients) and any(
        gradient.any() for gradient in gradients
    )


@pytest.mark.parametrize("title", ["MONAI", "TorchIO"])
def test_the_example_of_a_section_trains(title, volumes):
    names: dict = {}
    exec(compile(example(title), f"docs/training.md, {title}", "exec"), names)
    assert trained(names)
    assert torch.isfinite(names["loss"])


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_example_for_lightning_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes checkpoints
    names: dict = {}
    exec(compile(example("Lightning"), "docs/training.md, Lightning", "exec"), names)
    module = names["trainer"].lightning_module
    assert names["trainer"].current_epoch == 2
    assert float(module.loss.alpha) == pytest.approx(0.99)  # of the second epoch


def test_the_script_for_monai_learns():
    main = runpy.run_path(str(ROOT / "examples" / "monai_training.py"))["main"]
    assert main() > 0.9
