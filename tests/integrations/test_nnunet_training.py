"""The real nnU-Net plans, preprocesses, trains, continues and predicts on a tiny generated data set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunet_plans import dataset_json, plans, write_dataset

from rwkernels.integrations.nnunet import trainer_folder

pytestmark = pytest.mark.nnunet

# The thick axis is the last one, so nnU-Net transposes: its 2D slices have the axes (0, 1).
SHAPE, SPACING = (40, 48, 5), (0.7, 1.1, 4.0)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()

TINY = """
import os
from rwkernels.integrations.nnunet.trainers import nnUNetTrainerDiceRRWGradual, nnUNetTrainerRRW

class Short:
    alpha_step = 0.25

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["TINY_EPOCHS"])
        self.num_iterations_per_epoch = 8
        self.num_val_iterations_per_epoch = 2

class nnUNetTrainerTinyRRW(Short, nnUNetTrainerRRW):
    learning_rate = 3e-2

class nnUNetTrainerTinyGradual(Short, nnUNetTrainerDiceRRWGradual):
    pass
"""


def block(name: str) -> str:
    """The marked block of commands or code in the document."""
    return re.search(rf"<!-- nnunet {name} -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL).group(1)


class Project:
    """A folder with everything nnU-Net keeps, and its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results" / "Dataset001_Rings"
        (root / "trainers").mkdir()
        (root / "trainers" / "tiny_trainers.py").write_text(TINY)
        (root / "trainers" / "my_trainers.py").write_text(block("trainer"))
        write_dataset(root / "raw" / "Dataset001_Rings", cases=5, shape=SHAPE, spacing=SPACING)

    def run(self, *command: object, epochs: int = 2) -> str:
        """Runs one of nnU-Net's commands, or a script, and returns what it printed."""
        environment = {
            **os.environ,
            **{f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_extTrainer": os.pathsep.join([str(trainer_folder()), str(self.root / "trainers")]),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "TINY_EPOCHS": str(epochs),
        }
        options = {"capture_output": True, "text": True, "timeout": 600, "check": False}
        finished = subprocess.run(list(map(str, command)), env=environment, **options)
        assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
        return finished.stdout

    def train(self, trainer: str, *options: object, epochs: int) -> str:
        return self.run("nnUNetv2_train", 1, "2d", 0, "-tr", trainer, "-device", "cpu", *options, epochs=epochs)

    def folder(self, trainer: str) -> Path:
        return self.results / f"{trainer}__nnUNetPlans__2d" / "fold_0"

    def checkpoint(self, trainer: str) -> dict:
        return torch.load(self.folder(trainer) / "checkpoint_final.pth", weights_only=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which the document's commands have planned, preprocessed and trained two epochs."""
    found = Project(tmp_path_factory.mktemp("nnunet"))
    commands = block("commands").splitlines()
    commands.insert(1, f'export nnUNet_extTrainer="$nnUNet_extTrainer:{found.root}/trainers"')
    script = "\n".join(commands).replace("DATASET", "1").replace("-c 2d", "-c 2d -np 1 -npfp 1")
    assert "-tr nnUNetTrainerRRW" in script
    script = script.replace("-tr nnUNetTrainerRRW", "-tr nnUNetTrainerTinyRRW -device cpu")
    found.printed = found.run("bash", "-euo", "pipefail", "-c", script)
    return found


def test_two_epochs_train_and_validate_and_the_spacing_is_that_of_the_slices(project):
    assert "Epoch 1" in project.printed
    assert "Mean Validation Dice" in project.printed
    logged = project.checkpoint("nnUNetTrainerTinyRRW")["logging"]
    first, second = logged["train_losses"]
    assert -1 <= second < first < 1
    found = json.loads((project.results / "nnUNetTrainerTinyRRW__nnUNetPlans__2d" / "plans.json").read_text())
    assert found["transpose_forward"] == [2, 0, 1]
    assert found["configurations"]["2d"]["median_image_size_in_voxels"] == list(SHAPE[:2])
    debug = json.loads((project.folder("nnUNetTrainerTinyRRW") / "debug.json").read_text())
    spacing = re.search(r"RegionWiseLoss\('rectified', spacing=\((.*), (.*)\)\)", debug["loss"])
    assert [float(size) for size in spacing.groups()] == pytest.approx(SPACING[:2], rel=1e-6)
    assert (project.folder("nnUNetTrainerTinyRRW") / "validation" / "summary.json").is_file()


def alphas(printed):
    return [line.split()[-1] for line in printed.splitlines() if "Current alpha" in line]


def test_a_training_that_was_cut_off_goes_on_with_the_alpha_of_its_epoch(project):
    name = "nnUNetTrainerTinyGradual"
    assert alphas(project.train(name, epochs=1)) == ["1"]
    printed = project.train(name, "--c", epochs=3)
    assert "Epoch 0" not in printed
    assert alphas(printed) == ["0.75", "0.5"]
    assert project.checkpoint(name)["current_epoch"] == 3


def test_the_trainer_of_the_document_is_found_and_has_its_settings(project):
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "found = find('nnUNetTrainerMine')\n"
        "print(found.alpha_step, found.optimizer_name, found.learning_rate, found.epochs, found.use_spacing)"
    )
    assert project.run(sys.executable, "-c", code).splitlines()[-1] == "0.002 Adam 0.0001 600 False"


def test_prediction_finds_the_trainer_again(project, tmp_path):
    raw = project.root / "raw" / "Dataset001_Rings"
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "ring_0_0000.nii.gz").write_bytes((raw / "imagesTr" / "ring_0_0000.nii.gz").read_bytes())
    arguments = ["-d", 1, "-c", "2d", "-f", 0, "-tr", "nnUNetTrainerTinyRRW", "-device", "cpu", "-npp", 1, "-nps", 1]
    project.run("nnUNetv2_predict", "-i", inputs, "-o", tmp_path / "out", *arguments)
    assert (tmp_path / "out" / "ring_0.nii.gz").is_file()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_compiled_network_gets_the_loss_and_the_step_of_an_uncompiled_one(device, tmp_path, monkeypatch):
    from rwkernels.integrations.nnunet.trainers import nnUNetTrainerDiceRRW

    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.infer_dataset_class", lambda folder: None)

    class Compiled(nnUNetTrainerDiceRRW):
        def _do_i_compile(self):  # nnU-Net itself compiles on CUDA alone
            return True

    monkeypatch.setenv("nnUNet_compile", "0")
    losses, weights = [], []
    for found in (nnUNetTrainerDiceRRW, Compiled):
        torch.manual_seed(0)
        made = plans([32, 40], [0.7, 1.1], [[1, 1], [2, 2], [2, 2]])
        trainer = found(made, "tiny", 0, dataset_json(), torch.device(device))
        trainer.initialize()
        trainer.network.train()
        generator = torch.Generator().manual_seed(1)
        target = torch.randint(3, (2, 1, 32, 40), generator=generator).to(torch.int16)
        batch = {
            "data": torch.randn(2, 1, 32, 40, generator=generator),
            "target": [target, target[:, :, ::2, ::2]],
        }
        losses.append([trainer.train_step(batch)["loss"].item() for _ in range(2)])
        module = getattr(trainer.network, "_orig_mod", trainer.network)
        assert (module is not trainer.network) == (found is Compiled)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    tolerance = 1e-5 if device == "cpu" else 1e-2  # nnU-Net trains in float16 on CUDA
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)
    torch.testing.assert_close(weights[1], weights[0], rtol=10 * tolerance, atol=tolerance)
