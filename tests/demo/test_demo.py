"""The demo: its data, its bookkeeping, its files, and how it ends when something goes wrong."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nilearn", reason='the demo needs pip install "rwkernels[demo]"')
pytest.importorskip("monai", reason='the demo needs pip install "rwkernels[demo]"')
pytest.importorskip("matplotlib", reason='the demo needs pip install "rwkernels[demo]"')
pytest.importorskip("tqdm", reason='the demo needs pip install "rwkernels[demo]"')

import rwkernels as rw
from rwkernels import demo
from rwkernels.demo import evaluation, report, speed, training
from rwkernels.demo.evaluation import Scores, score, share_with_several_negatives
from rwkernels.experiments import mni152
from rwkernels.experiments import training as shared
from rwkernels.experiments.images import Images, Part
from rwkernels.experiments.mni152 import tissue_labels

CPU = torch.device("cpu")
LOSSES = ["RRW", "RW-Boundary", "cross-entropy", "CE fading to RRW"]


@pytest.fixture(scope="module")
def images() -> Images:
    return mni152.load(step=1)


@pytest.fixture
def few_images(images: Images, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Four slices to train and two to score, every third pixel: the whole run in seconds."""

    def thin(part: Part, count: int) -> Part:
        return Part(
            part.images[:count, :, ::3, ::3].contiguous(),
            part.labels[:count, ::3, ::3].contiguous(),
            part.cases[:count],
            part.spacing[:count],
        )

    few = replace(images, train=thin(images.train, 4), validation=thin(images.validation, 2))
    monkeypatch.setattr(mni152, "load", lambda *, step: few)
    return few


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rwkernels demo")
    demo.add_arguments(parser)
    return parser.parse_args(words)


def gradient_of_loss(probabilities: torch.Tensor, z: list[float]) -> torch.Tensor:
    """Eq. 2 for pixels [N, K] that share the map row `z`, as [1, K, N]."""
    row = torch.tensor(z, dtype=torch.float64)
    gradient = probabilities * (row - (probabilities * row).sum(dim=1, keepdim=True))
    return gradient.T[None]


def test_training_and_validation_slices_are_blocks_at_least_a_centimetre_apart(images: Images) -> None:
    train, validation = mni152.TRAIN_Z_MM, mni152.VALIDATION_Z_MM
    assert min(validation) - max(train) >= 10
    assert not set(train) & set(validation)
    for part, z_mm in ((images.train, train), (images.validation, validation)):
        assert part.images.shape == (len(z_mm), 1, 192, 144)
        assert part.labels.shape == (len(z_mm), 192, 144)
        assert part.cases == tuple(f"z={z:+d}mm" for z in z_mm)
    assert images.train.images.mean().item() == pytest.approx(0, abs=1e-4)


def test_labels_are_the_tissue_maps_over_127_at_the_stated_height(images: Images) -> None:
    import nibabel
    import nilearn.datasets

    folder = Path(nilearn.datasets.__file__).parent / "data"
    volumes: dict[str, Any] = {
        tissue: nibabel.load(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
        for tissue in ("gm", "wm")
    }
    for part, z_mm in ((images.train, mni152.TRAIN_Z_MM), (images.validation, mni152.VALIDATION_Z_MM)):
        for z, labels in zip(z_mm, part.labels, strict=True):
            for k, nifti in enumerate(volumes.values(), start=1):
                index = round(z - nifti.affine[2, 3])
                # The crop loses no labelled voxel, and no voxel changes its class.
                assert int((labels == k).sum()) == int((nifti.dataobj[:, :, index] > 127).sum())


def test_tissue_labels_draw_the_line_between_127_and_128() -> None:
    import numpy as np

    grey = np.array([[0, 127, 128, 255, 0, 127]], np.uint8)
    white = np.array([[0, 128, 127, 0, 255, 127]], np.uint8)
    assert tissue_labels(grey, white).tolist() == [[0, 2, 1, 1, 2, 0]]


def test_every_loss_starts_from_the_same_weights_and_sees_the_same_batches(
    few_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[str, int, float]] = []
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in LOSSES}
    unet, step = shared.unet, training.train_step

    def built(*given: Any) -> torch.nn.Module:
        network: torch.nn.Module = unet(*given)
        starts.append(
            (str(given[-1]), torch.initial_seed(), sum(float(p.detach().sum()) for p in network.parameters()))
        )
        return network

    monkeypatch.setattr(shared, "unet", built)
    for seed in (3, 4):
        for run in training.experiment(seed, epochs=2).runs():

            def watched(*given: Any, run: Any = run) -> Any:
                if run.seed == 3:
                    seen[run.loss.name].append(given[-1])
                return step(*given)

            monkeypatch.setattr(training, "train_step", watched)
            torch.manual_seed(len(starts))
            training.train(run, few_images, CPU)
    weights = [{weight for seed, _, weight in starts if seed == of} for of in ("3", "4")]
    assert [len(each) for each in weights] == [1, 1]
    assert weights[0] != weights[1]
    assert [generator for _, generator, _ in starts] == list(range(8))
    first = seen["RRW"]
    assert len(first) == 2 * 2
    for batches in seen.values():
        assert all(torch.equal(a, b) for a, b in zip(first, batches, strict=True))


def test_a_pixel_with_the_papers_rectified_map_has_one_negative_gradient_entry() -> None:
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    gradient = gradient_of_loss(uniform, [0, 0, 0, -0.6])
    torch.testing.assert_close(gradient.flatten().tolist(), [0.0375, 0.0375, 0.0375, -0.1125])
    assert share_with_several_negatives(gradient) == 0.0


def test_the_share_counts_pixels_and_not_entries() -> None:
    # z = [12, 4, -3]: the middle class is pushed up as well wherever the mean of z under y exceeds 4.
    probabilities = torch.tensor(
        [[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64
    )
    means = [7.4, -0.8, 6.6, 1.4]
    assert share_with_several_negatives(gradient_of_loss(probabilities, [12, 4, -3])) == sum(
        mean > 4 for mean in means
    ) / len(means)
    assert share_with_several_negatives(gradient_of_loss(probabilities, [10, 10, -3])) == 0.0


def test_eight_fifteenths_of_the_simplex_have_two_negative_entries() -> None:
    steps = 400
    centres = [((3 * i + 1) / (3 * steps), (3 * j + 1) / (3 * steps)) for i in range(steps) for j in range(steps - i)]
    first_two = torch.tensor(centres, dtype=torch.float64)
    probabilities = torch.cat([first_two, 1 - first_two.sum(dim=1, keepdim=True)], dim=1)
    assert share_with_several_negatives(gradient_of_loss(probabilities, [12, 4, -3])) == pytest.approx(
        8 / 15, abs=0.005
    )


def test_cutting_backward_at_the_logits_gives_the_gradients_of_plain_backward(few_images: Images) -> None:
    images, labels = few_images.train.images[:2], few_images.train.labels[:2]
    features = training.experiment(0, 1).tasks[0].training.features
    network, plain = (shared.unet(1, 3, features, 0) for _ in range(2))
    criterion = torch.nn.CrossEntropyLoss()
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    loss, gradient, seconds = training.train_step(network, criterion, still, images, labels)
    expected = criterion(plain(images), labels)
    expected.backward()
    assert loss.item() == expected.item()
    assert gradient.shape == (2, 3, *labels.shape[1:])
    assert seconds > 0
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_scores_are_right_for_a_shifted_square_and_infinite_for_a_class_found_nowhere() -> None:
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[0, 4:8, 4:8] = 1
    labels[0, 12:16, 12:16] = 2
    prediction = torch.zeros_like(labels)
    prediction[0, 4:8, 6:10] = 1
    scores = score(prediction, labels)
    assert scores.dice == (0.5, 0.0)
    assert scores.hausdorff_mm == (2.0, math.inf)
    assert scores.hausdorff95_mm[1] == math.inf
    assert scores.empty_slices == (0, 1)
    assert scores.unlearned == ("white",)


def test_a_class_that_was_not_learned_is_flagged_in_the_table() -> None:
    result = training.Training("RRW", several_negatives=[0.0], train_seconds=2.0, loss_seconds=0.1)
    result.final = Scores((0.09, 0.8), (math.inf, 3.0), (math.inf, 2.0), (9, 0), torch.zeros(1, 2, 2))
    text = report.table([result])
    assert "0.090!" in text
    assert "0.800!" not in text
    assert "! RRW: grey under Dice 0.1, not learned" in text
    assert "no grey predicted in 9 slices, hence Hausdorff inf" in text


def test_the_verdict_says_so_when_rrw_does_worse_than_cross_entropy() -> None:
    def with_dice(name: str, *dice: float) -> training.Training:
        return training.Training(name, final=Scores(dice, (1, 1), (1, 1), (0, 0), torch.zeros(1, 2, 2)))

    text = report.verdict([with_dice("RRW", 0.7, 0.9), with_dice("cross-entropy", 0.75, 0.85)])
    assert "grey -0.050 (worse), white +0.050 (better)" in text


def test_the_usual_way_and_rwkernels_give_the_same_loss_and_gradient(images: Images) -> None:
    labels = images.train.labels[::7]
    logits = torch.randn(len(labels), 3, *labels.shape[1:], generator=torch.Generator().manual_seed(0))
    pairs = [
        (partial(speed.usual_loss, "rectified"), rw.RegionWiseLoss("rectified")),
        (partial(speed.usual_loss, "boundary"), rw.BoundaryLoss()),
    ]
    for usual, fused in pairs:
        expected, expected_gradient, _ = training.timed_loss(usual, logits, labels)
        loss, gradient, _ = training.timed_loss(fused, logits, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        largest = expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * largest)


def test_a_short_run_writes_picture_and_numbers_of_all_four_losses(
    few_images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert demo.run(options("--epochs", "2", "--out", str(out), "--device", "cpu")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "rwkernels-demo.png"]
    assert (out / "rwkernels-demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    results = json.loads((out / "results.json").read_text())
    assert list(results["losses"]) == LOSSES
    for entry in results["losses"].values():
        assert set(entry["dice"]) == {"grey", "white"}
        assert all(0 <= dice <= 1 for dice in entry["dice"].values())
        assert len(entry["dice_per_epoch"]) == len(entry["several_negatives_per_epoch"]) == 2
        assert 0 < entry["loss_share"] < 1
        for name, distance in entry["hausdorff_mm"].items():
            assert distance is None if entry["empty_slices"][name] else math.isfinite(distance)
    for name in ("RRW", "cross-entropy", "CE fading to RRW"):
        assert results["losses"][name]["several_negatives_per_epoch"] == [0.0, 0.0]
    assert all(entry["ratio"] > 0 for entry in results["speed"].values())

    printed = capsys.readouterr().out
    assert "population template" in printed
    assert "derived from its tissue maps" in printed
    assert all(name in printed for name in LOSSES)
    assert "times faster" in printed


def test_ctrl_c_in_the_second_loss_prints_the_first_and_leaves_no_file(
    few_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = training.train_step, 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_step", interrupted)
    assert demo.run(options("--epochs", "1", "--out", str(tmp_path), "--device", "cpu")) == 130
    assert list(tmp_path.iterdir()) == []
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert "\nRRW  " in captured.out
    assert "\nRW-Boundary  " not in captured.out


def test_ctrl_c_while_the_picture_is_written_leaves_no_part_of_it(
    few_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Path, target: Path) -> None:
        assert self.read_bytes().startswith(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", half)
    assert demo.run(options("--epochs", "1", "--out", str(tmp_path), "--device", "cpu")) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tpu", "cpu:x", ""])
def test_an_unknown_device_is_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(options("--device", name, "--out", str(tmp_path))) == 2
    assert f"--device: expected cpu or cuda, got {name!r}" in capsys.readouterr().err


def test_cuda_is_refused_with_the_option_named_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert demo.run(options("--device", "cuda", "--out", str(tmp_path))) == 2
    assert "--device cuda: PyTorch" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert demo.run(options("--out", str(tmp_path / "taken"), "--device", "cpu")) == 2
    assert "--out" in capsys.readouterr().err


def test_a_missing_package_is_named_together_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "monai" else find_spec(name))
    assert demo.run(options()) == 1
    message = capsys.readouterr().err
    assert "monai not installed" in message
    assert 'pip install "rwkernels[demo]"' in message


@pytest.mark.parametrize("epochs", ["0", "-2", "many"])
def test_a_number_of_epochs_that_makes_no_sense_is_refused(epochs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--epochs", epochs)
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_short_run_works_on_the_gpu(few_images: Images, tmp_path: Path) -> None:
    assert demo.run(options("--epochs", "2", "--out", str(tmp_path), "--device", "cuda")) == 0
    assert (tmp_path / "rwkernels-demo.png").exists()


def test_dice_under_a_tenth_or_undefined_counts_as_not_learned() -> None:
    scores = Scores((0.1, math.nan), (1, 1), (1, 1), (0, 0), torch.zeros(1, 2, 2))
    assert evaluation.UNLEARNED_DICE == 0.1
    assert scores.unlearned == ("white",)
