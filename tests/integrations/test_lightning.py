"""Maps in Lightning's hook, for every kind of batch, in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import lightning_ddp
import pytest
import torch
from loss_cases import FAMILIES
from samples import scene
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rwkernels as rw
from rwkernels.integrations.lightning import AlphaSchedule, BatchMaps, RegionWiseMaps

CLASSES = 3
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def labels(shape=(9, 12)):
    return scene("blobs", shape, CLASSES, batch=2)


def images(shape=(9, 12)):
    return torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))


def same(found, expected):
    if isinstance(expected, rw.RectifiedMap):
        return torch.equal(found.dense(), expected.dense())
    return torch.equal(found, expected)


# --- a batch and its maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 7)], ids=["2d", "3d"])
@pytest.mark.parametrize("form", ["plain", "channel", "float"])
def test_the_map_is_that_of_the_labels(form, shape, family):
    spacing = (0.5, 2.0, 3.0)[: len(shape)]
    given = labels(shape)
    given = given[:, None] if form != "plain" else given
    given = given.float() if form == "float" else given
    options = {} if shape != (5, 6, 7) or form != "plain" else {"spatial_dims": 3}
    found = BatchMaps(CLASSES, maps=family, spacing=spacing, **options)((images(shape), given))[2]
    assert same(found, rw.RegionWiseLoss(family, spacing=spacing).build_map(labels(shape), CLASSES))


def test_a_volume_of_one_slice_is_told_from_a_channel_by_its_number_of_axes():
    flat = labels((1, 9))[:, None]  # [2, 1, 1, 9]
    found = BatchMaps(CLASSES, spatial_dims=3)((images((1, 1, 9)), flat))[2]
    assert found.shape == (2, 1, 1, 9)
    assert BatchMaps(CLASSES)((images((1, 9)), flat))[2].shape == (2, 1, 9)


def test_every_kind_of_batch_gets_its_map_and_stays_as_it_was():
    expected = rw.rectified_map(labels(), CLASSES)
    pair = (images(), labels())
    found = BatchMaps(CLASSES)(pair)
    assert type(found) is tuple
    assert len(pair) == 2
    assert same(found[2], expected)
    assert type(BatchMaps(CLASSES)(list(pair))) is list
    batch = {"image": pair[0], "mask": pair[1]}
    found = BatchMaps(CLASSES, label_key="mask", map_key="z")(batch)
    assert set(batch) == {"image", "mask"}
    assert set(found) == {"image", "mask", "z"}
    assert same(found["z"], expected)
    assert same(BatchMaps(CLASSES, label_key=0)((labels(), images()))[2], expected)


@pytest.mark.parametrize(
    ("options", "batch", "error", "message"),
    [
        ({}, {"image": 0}, ValueError, r"label_key: expected a key of the batch \('image'\), got 'label'"),
        ({}, (images(),), ValueError, "label_key: expected an index into the batch, got 1 for a tuple of 1"),
        ({}, images(), ValueError, "label_key: expected an entry or attribute of the batch, got 'label' for a Tensor"),
        ({}, (images(), "cat"), TypeError, "label_key: expected labels, a tensor or an array, got str 'cat'"),
        ({}, (images(), 5 + labels()), ValueError, r"labels: expected integers in \[0, 3\)"),
        ({"spacing": (1.0, 1.0, 1.0)}, (images(), labels()), ValueError, "spacing: expected"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(options, batch, error, message):
    with pytest.raises(error, match=message):
        BatchMaps(CLASSES, **options)(batch)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"maps": "rrw"}, ValueError),
        ({"spacing": -1}, ValueError),
        ({"label_key": 1.5}, TypeError),
        ({"beta": 1}, TypeError),
    ],
)
def test_bad_settings_are_refused_before_the_first_batch(options, error):
    with pytest.raises(error, match="|".join(options)):
        BatchMaps(CLASSES, **options)


# --- modules, data modules and the trainer ------------------------------------------------------------------------


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(1, CLASSES, 3, padding=1)
        self.seen = []

    def step(self, batch, stage):
        self.seen.append((stage, len(batch)))
        assert same(batch[2], rw.rectified_map(batch[1], CLASSES))
        return rw.region_wise_loss(self.network(batch[0]), batch[2])

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "validate")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def predict_step(self, batch, batch_idx):
        self.seen.append(("predict", len(batch)))
        return self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ModelWithMaps(RegionWiseMaps, Model):
    region_wise_maps = BatchMaps(CLASSES)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(images(), labels()), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class DataWithMaps(RegionWiseMaps, Data):
    region_wise_maps = BatchMaps(CLASSES)


@pytest.mark.parametrize(("model", "data"), [(ModelWithMaps, Data), (Model, DataWithMaps)], ids=["module", "data"])
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_maps_come_with_the_batches_of_every_stage_that_has_labels(model, data):
    made = model()
    trainer = L.Trainer(fast_dev_run=True, **QUIET)
    before = made.network.weight.detach().clone()
    trainer.fit(made, datamodule=data())
    trainer.test(made, datamodule=data(), verbose=False)
    trainer.predict(made, datamodule=data(), return_predictions=False)
    assert dict(made.seen) == {"train": 3, "validate": 3, "test": 3, "predict": 2}
    assert not torch.equal(made.network.weight, before)


def test_what_other_classes_do_to_a_batch_comes_first():
    class Moved(Model):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0].flip(-1), batch[1].flip(-1)

    class Both(RegionWiseMaps, Moved):
        def __init__(self):
            super().__init__()
            self.region_wise_maps = BatchMaps(CLASSES)

    found = Both().on_after_batch_transfer((images(), labels()), 0)
    assert same(found[2], rw.rectified_map(labels().flip(-1), CLASSES))


def test_a_method_may_add_the_maps():
    class Own(RegionWiseMaps, Model):
        def region_wise_maps(self, batch):
            return (*batch, rw.boundary_map(batch[1], CLASSES))

    assert same(Own().on_after_batch_transfer((images(), labels()), 0)[2], rw.boundary_map(labels(), CLASSES))


def test_a_class_without_settings_is_told_what_it_lacks():
    class Forgot(RegionWiseMaps, Model):
        pass

    with pytest.raises(TypeError, match="region_wise_maps: expected a BatchMaps on Forgot, got none"):
        Forgot().on_after_batch_transfer((images(), labels()), 0)


def test_maps_made_in_a_loader_move_with_the_batch_as_tensors_do():
    batch = {"map": rw.rectified_map(labels(), CLASSES), "image": images()}
    moved = Model().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["map"].device.type == moved["image"].device.type == "meta"


# --- alpha --------------------------------------------------------------------------------------------------------


class Fading(ModelWithMaps):
    def __init__(self):
        super().__init__()
        self.loss = rw.CombinedLoss(nn.CrossEntropyLoss(), rw.RegionWiseLoss(), "gradual", alpha_step=0.2)
        self.alphas = []

    def step(self, batch, stage):
        self.alphas.append((self.current_epoch, stage, round(float(self.loss.alpha), 6)))
        return self.loss(self.network(batch[0]), batch[1], batch[2])


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
@pytest.mark.parametrize("every", ["train", "validation"])
def test_alpha_follows_the_epoch_also_when_a_training_is_resumed(every, tmp_path):
    def fit(epochs, start=None):
        model = Fading()
        saving = L.pytorch.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=every == "train")
        options = {**QUIET, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        trainer = L.Trainer(max_epochs=epochs, callbacks=[AlphaSchedule(), saving], **options)
        trainer.fit(model, datamodule=Data(), ckpt_path=start)
        return model.alphas, saving.best_model_path or saving.last_model_path

    seen, _ = fit(2)
    (last,) = tmp_path.glob("epoch=1*.ckpt")
    resumed, _ = fit(4, last)
    assert sorted(set(seen)) == [(0, "train", 1.0), (0, "validate", 1.0), (1, "train", 0.8), (1, "validate", 0.8)]
    assert [entry for entry in resumed if entry[1] == "train"] == [(2, "train", 0.6), (3, "train", 0.4)]


def test_a_schedule_without_a_loss_to_move_is_refused():
    with pytest.raises(ValueError, match='AlphaSchedule: expected a CombinedLoss with schedule="gradual" in Model'):
        AlphaSchedule().on_fit_start(L.Trainer(fast_dev_run=True, **QUIET), Model())


# --- two processes ------------------------------------------------------------------------------------------------


def run_in_two(folder: Path) -> None:
    script = Path(lightning_ddp.__file__)
    path = os.pathsep.join(filter(None, [str(script.parent.parent), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, str(script), "2", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_two_processes_train_as_one_on_their_joined_batch_does(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    lightning_ddp.main(1, alone)
    run_in_two(together)
    for step in range(2):
        halves = [torch.load(together / f"labels-{rank}-0-{step}.pt") for rank in range(2)]
        assert torch.equal(torch.stack(halves, 1).flatten(0, 1), torch.load(alone / f"labels-0-0-{step}.pt"))
    one, two = torch.load(alone / "end.pt"), torch.load(together / "end.pt")
    assert one["alpha"] == two["alpha"] == 0.5
    for name, weights in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weights)
