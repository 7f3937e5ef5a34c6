"""Data recipes on generated folders with the names of the real ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nibabel", reason='recipes need pip install "rwkernels[experiments]"')
pytest.importorskip("monai", reason='experiments need pip install "rwkernels[experiments]"')

import nibabel

from rwkernels import cli
from rwkernels.experiments import datasets, recipes
from rwkernels.experiments.configuration import Data
from rwkernels.experiments.recipes import RecipeError, acdc17, brats18, kits19, layouts, prepare

ACDC_STEPS = (1.5, 1.25, 10.0)


def save(path: Path, array: np.ndarray, steps: tuple[float, ...], offset: tuple[float, ...] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = offset
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def acdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six patients in place of 100, of different sizes."""
    monkeypatch.setattr(acdc17, "PATIENTS", range(1, 7))
    root = tmp_path / "ACDC" / "training"
    for number in range(1, 7):
        random = np.random.default_rng(number)
        folder = root / f"patient{number:03d}"
        shape = (20 + number, 24, 3)
        for frame in (1, 8 + number):
            name = f"patient{number:03d}_frame{frame:02d}"
            save(folder / f"{name}.nii.gz", random.integers(0, 300, shape).astype(np.int16), ACDC_STEPS)
            save(folder / f"{name}_gt.nii.gz", random.integers(0, 4, shape).astype(np.uint8), ACDC_STEPS)
        save(folder / f"patient{number:03d}_4d.nii.gz", np.zeros((*shape, 2), np.int16), (*ACDC_STEPS, 1.0)[:3])
        (folder / "Info.cfg").write_text(
            f"ED: 1\nES: {8 + number}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
    return tmp_path / "ACDC"


@pytest.fixture
def brats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four high-grade cases in place of 210, and a low-grade one."""
    monkeypatch.setattr(brats18, "HIGH_GRADE", 4)
    root = tmp_path / "BraTS"
    names = ["Brats18_TCIA01_147_1", "Brats18_2013_2_1", "Brats18_CBICA_AAB_1", "Brats18_2013_10_1"]
    for index, name in enumerate([*names, "Brats18_2013_0_1"]):
        folder = root / ("LGG" if index == 4 else "HGG") / name
        random = np.random.default_rng(index)
        inside = np.zeros((16, 14, 5), np.int16)
        inside[4:12, 3:11, 1:4] = 1
        for channel, sequence in enumerate(("flair", "t1", "t1ce", "t2")):
            image = inside * random.integers(100 * (channel + 1), 100 * (channel + 1) + 50, inside.shape)
            save(folder / f"{name}_{sequence}.nii.gz", image.astype(np.int16), (1, 1, 1))
        label = inside * random.choice([0, 1, 2, 4], inside.shape)
        save(folder / f"{name}_seg.nii.gz", label.astype(np.uint8), (1, 1, 1))
    return root


@pytest.fixture
def kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cases in place of 210, slices first, labels in some of them."""
    monkeypatch.setattr(kits19, "CASES", range(4))
    monkeypatch.setattr(kits19, "SIZE", 32)
    root = tmp_path / "kits19" / "data"
    for number in range(4):
        random = np.random.default_rng(number)
        folder = root / f"case_{number:05d}"
        label = np.zeros((6, 64, 64), np.uint8)
        label[2:5, 10:40, 20:50] = 1
        label[3, 20:30, 30:40] = 2
        save(folder / "imaging.nii.gz", random.normal(0, 300, label.shape), (3.0, 0.8, 0.8), (-9.0, 5.0, 7.0))
        save(folder / "segmentation.nii.gz", label, (3.0, 0.8, 0.8), (-9.0, 5.0, 7.0))
    return tmp_path / "kits19"


def array(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_splits_are_those_of_the_paper() -> None:
    assert range(1, 101) == acdc17.PATIENTS
    assert range(210) == kits19.CASES
    assert (brats18.HIGH_GRADE, kits19.SIZE) == (210, 256)


def test_acdc_for_nnunet_is_the_files_as_they_are_even_patients_to_train(acdc: Path, tmp_path: Path) -> None:
    made = prepare("acdc17", acdc, tmp_path / "raw", layout="nnunet")
    assert made.folder == tmp_path / "raw" / "Dataset101_ACDC17"
    assert (made.train, made.validation, made.left_out) == (6, 6, [])
    assert names(made.folder / "imagesTr")[:2] == ["patient002_frame01_0000.nii.gz", "patient002_frame10_0000.nii.gz"]
    assert names(made.folder / "labelsTs") == [
        f"patient{n:03d}_frame{f:02d}.nii.gz" for n in (1, 3, 5) for f in (1, 8 + n)
    ]
    source = acdc / "training" / "patient004" / "patient004_frame12.nii.gz"
    assert (made.folder / "imagesTr" / "patient004_frame12_0000.nii.gz").read_bytes() == source.read_bytes()
    listing = json.loads((made.folder / "dataset.json").read_text())
    assert listing["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert (listing["numTraining"], listing["file_ending"]) == (6, ".nii.gz")
    assert listing["channel_names"] == {"0": "cine MR"}  # a name that nnU-Net z-scores
    assert names(tmp_path / "raw") == ["Dataset101_ACDC17"]


def test_acdc_as_slices_is_z_scored_by_volume_and_loads_without_pickles(acdc: Path, tmp_path: Path) -> None:
    made = prepare("acdc17", acdc, tmp_path / "slices", layout="slices")
    images = datasets.load(Data("slices:acdc17", {"size": [24, 32]}), made.folder)
    assert images.classes == ("background", "RV", "MYO", "LV")
    assert images.train.images.shape == (18, 1, 24, 32)
    assert [name for name, _ in images.validation.groups()][:2] == ["patient001_frame01", "patient001_frame09"]
    assert images.train.spacing[0] == pytest.approx((10.0, 1.25, 1.5))
    source = array(acdc / "training" / "patient003" / "patient003_frame01.nii.gz").astype(float)
    expected = ((source - source.mean()) / source.std()).transpose(2, 1, 0)  # slices, rows, columns
    with np.load(made.folder / "validation" / "patient003_frame01_z002.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["image"][0], expected[2], atol=1e-4)
        label = array(acdc / "training" / "patient003" / "patient003_frame01_gt.nii.gz").transpose(2, 1, 0)[2]
        np.testing.assert_array_equal(file["label"], label)
    # Cropped or padded around the centre: 23 columns became 32.
    case = images.validation.groups()[2][1]
    np.testing.assert_array_equal(images.validation.labels[case][2, :, 4:27].numpy(), label)
    with pytest.raises(ValueError, match='the option "size"'):
        datasets.load(Data("slices:acdc17"), made.folder)


def test_brats_takes_the_high_grade_alternately_and_renumbers_the_enhancing_tumour(brats: Path, tmp_path: Path) -> None:
    made = prepare("brats18", brats, tmp_path / "Dataset042_Gliomas", layout="nnunet")
    assert made.folder == tmp_path / "Dataset042_Gliomas"
    # In the order of names: 2013_10_1, 2013_2_1, CBICA_AAB_1, TCIA01_147_1.
    train, validation = ["Brats18_2013_10_1", "Brats18_CBICA_AAB_1"], ["Brats18_2013_2_1", "Brats18_TCIA01_147_1"]
    assert names(made.folder / "labelsTr") == [f"{name}.nii.gz" for name in train]
    assert names(made.folder / "labelsTs") == [f"{name}.nii.gz" for name in validation]
    for channel, sequence in enumerate(("t2", "t1", "t1ce", "flair")):
        copied = made.folder / "imagesTr" / f"{train[0]}_{channel:04d}.nii.gz"
        assert copied.read_bytes() == (brats / "HGG" / train[0] / f"{train[0]}_{sequence}.nii.gz").read_bytes()
    old = array(brats / "HGG" / train[0] / f"{train[0]}_seg.nii.gz")
    np.testing.assert_array_equal(array(made.folder / "labelsTr" / f"{train[0]}.nii.gz"), np.where(old == 4, 3, old))

    made = prepare("brats18", brats, tmp_path / "slices", layout="slices")
    images = datasets.load(Data("slices:brats18"), made.folder)
    assert images.train.images.shape == (6, 4, 14, 16)  # of 5 slices, 3 have brain in them
    inside = images.train.images[:3] != 0
    values = images.train.images[:3].transpose(0, 1).flatten(1)
    for channel in range(4):
        brain = values[channel][inside.transpose(0, 1).flatten(1)[channel]]
        assert brain.mean().item() == pytest.approx(0, abs=1e-4)
        assert brain.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_kits_keeps_labelled_slices_and_resizes_labels_by_the_nearest_neighbour(kits: Path, tmp_path: Path) -> None:
    made = prepare("kits19", kits, tmp_path / "raw", layout="nnunet")
    assert names(made.folder / "imagesTr") == ["case_00000_0000.nii.gz", "case_00002_0000.nii.gz"]
    assert names(made.folder / "labelsTs") == ["case_00001.nii.gz", "case_00003.nii.gz"]
    label, image = made.folder / "labelsTr" / "case_00000.nii.gz", made.folder / "imagesTr" / "case_00000_0000.nii.gz"
    source = array(kits / "data" / "case_00000" / "segmentation.nii.gz")
    found = array(label)
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, source[2:5, 1::2, 1::2].transpose(1, 2, 0))
    # No class between: tumour inside kidney has no rim of another number, and nothing beside 0, 1, 2.
    assert np.unique(found).tolist() == [0, 1, 2]
    assert json.loads((made.folder / "dataset.json").read_text())["channel_names"] == {"0": "zscore"}
    # Corners of the image stay where they were, in mm, and the first slice is the first labelled one.
    new, old = nibabel.load(image).affine, nibabel.load(kits / "data" / "case_00000" / "imaging.nii.gz").affine
    np.testing.assert_allclose(new @ [-0.5, -0.5, 0, 1], old @ [2, -0.5, -0.5, 1], atol=1e-5)
    np.testing.assert_allclose(new @ [31.5, 31.5, 2, 1], old @ [4, 63.5, 63.5, 1], atol=1e-5)
    np.testing.assert_allclose(nibabel.load(image).header.get_zooms(), (1.6, 1.6, 3.0), rtol=1e-5)


def test_images_of_kits_are_resized_as_pillow_does_it(kits: Path, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="the published code resizes with Pillow")
    made = prepare("kits19", kits, tmp_path / "raw", layout="nnunet")
    source = array(kits / "data" / "case_00001" / "imaging.nii.gz").astype(np.float32)[3]
    expected = np.asarray(pillow.fromarray(source).resize((32, 32), pillow.Resampling.BICUBIC))
    found = array(made.folder / "imagesTs" / "case_00001_0000.nii.gz")[:, :, 1]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_every_missing_or_damaged_case_is_named_and_nothing_is_written(acdc: Path, tmp_path: Path) -> None:
    root = acdc / "training"
    (root / "patient001" / "Info.cfg").unlink()
    (root / "patient002" / "patient002_frame10_gt.nii.gz").unlink()
    (root / "patient003" / "Info.cfg").write_text("ED: 1\n")
    goal = tmp_path / "goal"
    with pytest.raises(RecipeError) as caught:
        prepare("acdc17", acdc, goal, layout="slices")
    assert caught.value.problems == [
        "patient001: Info.cfg missing",
        "patient002: patient002_frame10_gt.nii.gz missing",
        "patient003: Info.cfg has no line ES: NUMBER",
    ]
    assert not goal.exists()

    whole = (root / "patient004" / "patient004_frame01.nii.gz").read_bytes()
    (root / "patient004" / "patient004_frame01.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "patient005" / "patient005_frame01.nii.gz").write_text("not an image")
    save(root / "patient006" / "patient006_frame14_gt.nii.gz", np.full((26, 24, 3), 7, np.uint8), ACDC_STEPS)
    save(root / "patient006" / "patient006_frame01_gt.nii.gz", np.zeros((26, 24, 2), np.uint8), ACDC_STEPS)
    made = prepare("acdc17", acdc, goal, layout="slices", allow_missing=True)
    told = "\n".join(made.left_out)
    assert "patient004_frame01: patient004_frame01.nii.gz is damaged" in told
    assert "patient005_frame01: patient005_frame01.nii.gz cannot be read" in told
    assert "patient006_frame14: expected the labels 0, 1, 2, 3 in patient006_frame14_gt.nii.gz, got 7" in told
    assert "patient006_frame01: expected one shape, got (26, 24, 3)" in told
    assert (made.train, made.validation) == (2, 1)
    kept = {path.name.split("_z")[0] for part in ("train", "validation") for path in (goal / part).iterdir()}
    assert kept == {"patient002_frame01", "patient004_frame12", "patient005_frame13"}


def test_a_damaged_file_found_late_leaves_nothing_behind(
    acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = acdc / "training" / "patient006" / "patient006_frame14.nii.gz"
    last.write_bytes(last.read_bytes()[:-40])
    goal = tmp_path / "made" / "goal"
    for layout in layouts.LAYOUTS:
        assert cli.main(["experiment", "prepare", "acdc17", str(acdc), str(goal), "--format", layout]) == 1
        told = capsys.readouterr().err
        assert "nothing was written" in told
        assert "patient006_frame14: patient006_frame14.nii.gz is damaged" in told
        assert [path for path in (tmp_path / "made").rglob("*") if path.is_file()] == []
        assert not goal.exists()


def test_a_folder_that_exists_is_not_touched(kits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "mine").write_text("keep")
    assert cli.main(["experiment", "prepare", "kits19", str(kits), str(goal), "--format", "slices"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert names(goal) == ["mine"]


def test_an_incomplete_brats_folder_tells_that_the_split_would_move(brats: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(brats / "HGG" / "Brats18_2013_2_1")
    (brats / "HGG" / "Brats18_2013_10_1" / "Brats18_2013_10_1_t1ce.nii.gz").unlink()
    with pytest.raises(
        RecipeError, match="expected 4 folders Brats18_\\*, found 3; every one that is missing"
    ) as caught:
        prepare("brats18", brats, tmp_path / "goal", layout="slices")
    assert "Brats18_2013_10_1: Brats18_2013_10_1_t1ce.nii.gz missing" in str(caught.value)
    with pytest.raises(RecipeError, match="expected a folder HGG"):
        prepare("brats18", tmp_path, tmp_path / "goal", layout="slices")


def test_a_kidney_case_without_any_label_is_named(kits: Path, tmp_path: Path) -> None:
    save(kits / "data" / "case_00002" / "segmentation.nii.gz", np.zeros((6, 64, 64), np.uint8), (3.0, 0.8, 0.8))
    with pytest.raises(RecipeError, match=r"case_00002: segmentation.nii.gz: expected at least one labelled voxel"):
        prepare("kits19", kits, tmp_path / "goal", layout="slices")


def test_prepared_slices_train(kits: Path, tmp_path: Path) -> None:
    from experiment_cases import RRW, TINY

    from rwkernels.experiments import training
    from rwkernels.experiments.configuration import Run

    made = prepare("kits19", kits, tmp_path / "goal", layout="slices")
    data = Data("slices:kits19")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = training.train(Run(data, TINY, RRW, 0), datasets.load(data, made.folder))
    assert result.cases == ["case_00001", "case_00003"]
    assert recipes.RECIPES["kits19"].classes[1:] == ("kidney", "tumour")
    assert len(result.dice[0]) == 2


@pytest.fixture
def example_ct(tmp_path: Path) -> Path:
    """An archive like TotalSegmentator's source distribution: 76 slices, liver and both kidneys from 60 on."""
    import tarfile

    root = tmp_path / "totalsegmentator-2.18.0"
    folder = root / "tests" / "reference_files"
    image = np.random.default_rng(0).integers(-1000, 1500, (20, 18, 76)).astype(np.int32)
    labels = np.zeros(image.shape, np.uint8)
    labels[2:6, 3:9, 60:] = 5
    labels[8:10, 3:9, 60:] = 2
    labels[12:14, 3:9, 60:] = 3
    labels[16:18, 3:9, 60:] = 90  # an organ that is not among the classes
    save(folder / "example_ct.nii.gz", image, (3.0, 2.0, 5.0))
    save(folder / "example_seg_fast_force_split.nii.gz", labels, (3.0, 2.0, 5.0))
    archive = tmp_path / "sdist.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(root, root.name)
    return archive


def test_the_example_ct_is_read_from_its_archive_or_folder_in_blocks_that_lie_apart(example_ct: Path) -> None:
    data = Data("totalsegmentator-ct", {"block": 4, "gap": 1})
    images = datasets.load(data, example_ct)
    assert images.digest() == datasets.load(data, example_ct.parent / "totalsegmentator-2.18.0").digest()
    assert images.train.cases == tuple(f"z={z}" for z in (*range(60, 64), *range(68, 72)))
    assert images.validation.cases == ("z=65", "z=66", "z=73", "z=74")
    assert images.train.images.shape == (8, 1, 32, 32)
    assert images.train.spacing[0] == pytest.approx((5.0, 2.0, 3.0))
    assert images.train.labels.unique().tolist() == [0, 1, 3]
    # Rows are the second axis of the file, turned over: the front of the body is up.
    row = images.train.labels[0, 18 - 1 - 3]
    assert row.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 3, 3, 0, 0, 3, 3, *[0] * 18]
    inside = images.train.images[:, 0, :18, :20]
    assert inside.mean().item() == pytest.approx(0, abs=1e-4)
    assert inside.max() == pytest.approx(inside.mode().values.max().item())  # clipped: many pixels at the end
    (example_ct.parent / "empty").mkdir()
    for nothing in ("empty", "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"Wanted is .*pip download"):
            datasets.load(data, example_ct.parent / nothing)
