"""The trainers inside the real nnU-Net: how they are found, and the loss they build from plans. No training here."""

import os

import pytest
import torch
from loss_cases import loss_and_gradient, random_labels, random_logits
from nnunet_plans import IGNORE, dataset_json, plans
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import rwkernels as rw
from rwkernels.integrations.nnunet import trainer_folder, trainers

pytestmark = pytest.mark.nnunet

SPACING = [3.0, 0.7, 1.1]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
PATCH = [8, 16, 24]
# 1 / the product of the strides up to each level but the last; nnU-Net halves the weights and drops the last of them.
LEVELS = [((8, 16, 24), (3.0, 0.7, 1.1)), ((8, 8, 12), (3.0, 1.4, 2.2)), ((4, 4, 6), (6.0, 2.8, 4.4))]
WEIGHTS = [2 / 3, 1 / 3, 0.0]
HEADS = 3


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainer_folder()))
    monkeypatch.delenv("nnUNet_compile", raising=False)
    return tmp_path


def make(found, *, ignore=False, regions=False, patch=PATCH, spacing=SPACING, strides=STRIDES):
    return found(plans(patch, spacing, strides), "tiny", 0, dataset_json(ignore, regions), torch.device("cpu"))


def named(name):
    return trainers.trainer(name)


def batch(ignore=False):
    """Logits and labels of all levels, as the network and nnU-Net's loader hand them to the loss."""
    outputs = [random_logits((2, HEADS, *shape), seed=i) for i, (shape, _) in enumerate(LEVELS)]
    index = IGNORE if ignore else None
    targets = [random_labels((2, *shape), HEADS, index, seed=i)[:, None] for i, (shape, _) in enumerate(LEVELS)]
    return outputs, [target.to(torch.int16) for target in targets]


def weighted(*of_level):
    return sum(weight * value for weight, value in zip(WEIGHTS, of_level, strict=False))


def own_loss(ignore=False, **weights):
    """nnU-Net's Dice and cross-entropy, built here the way its trainer builds them."""
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    index = IGNORE if ignore else None
    return DC_and_CE_loss(dice, {}, ignore_label=index, dice_class=MemoryEfficientSoftDiceLoss, **weights)


# --- found by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", trainers.TRAINERS)
def test_nnunet_finds_every_trainer_in_the_folder(name):
    found = recursive_find_trainer_class_by_name(name)
    assert found is trainers.TRAINERS[name]
    assert issubclass(found, nnUNetTrainer)


def test_nnunet_finds_ours_beside_other_folders(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_trainers.py").write_text(
        "from rwkernels.integrations.nnunet.trainers import nnUNetTrainerCERRW\n"
        "class nnUNetTrainerMine(nnUNetTrainerCERRW):\n    alpha_step = 0.5\n"
    )
    folders = os.pathsep.join([str(trainer_folder()), str(tmp_path / "mine")])
    monkeypatch.setenv("nnUNet_extTrainer", folders)
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").alpha_step == 0.5
    assert recursive_find_trainer_class_by_name("nnUNetTrainerRRW") is trainers.nnUNetTrainerRRW


def test_a_name_chooses_optimiser_and_length_and_a_folder_of_results():
    trainer = make(recursive_find_trainer_class_by_name("nnUNetTrainerRRW_Adam1en4_300epochs"))
    assert trainer.num_epochs == 300
    assert trainer.initial_lr == 1e-4
    assert "nnUNetTrainerRRW_Adam1en4_300epochs__nnUNetPlans__tiny" in trainer.output_folder
    trainer.network = torch.nn.Linear(2, 2)
    optimizer, schedule = trainer.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == trainer.weight_decay == 3e-5
    schedule.step(150)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.5**0.9)


@pytest.mark.parametrize(
    ("name", "optimizer", "rate", "epochs"),
    [
        ("nnUNetTrainerRRW", "SGD", 1e-2, 1000),
        ("nnUNetTrainerDiceBoundaryGradual_5epochs", "SGD", 1e-2, 5),
        ("nnUNetTrainerRWBoundary_SGD1en3", "SGD", 1e-3, 1000),
        ("nnUNetTrainerRRW_Adam1en5", "Adam", 1e-5, 1000),
    ],
)
def test_what_a_name_leaves_out_is_nnunets_own(name, optimizer, rate, epochs):
    trainer = make(named(name))
    trainer.network = torch.nn.Linear(2, 2)
    assert type(trainer.configure_optimizers()[0]).__name__ == optimizer
    assert (trainer.initial_lr, trainer.num_epochs) == (rate, epochs)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainer", "nnUNetTrainerRRW_Adam", "nnUNetTrainerRRW_0epochs", "nnUNetTrainerRRW_5epochs_Adam1en4"]
)
def test_a_name_that_says_nothing_of_ours_is_no_trainer(name):
    with pytest.raises(ValueError, match="name: expected one of nnUNetTrainerRRW"):
        named(name)


def test_a_name_gives_one_class():
    assert named("nnUNetTrainerRRW_5epochs") is named("nnUNetTrainerRRW_5epochs")


# --- the loss of the plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "maps"), [("nnUNetTrainerRRW", "rectified"), ("nnUNetTrainerRWBoundary", "boundary")])
def test_every_level_takes_its_own_labels_spacing_and_weight(name, maps):
    outputs, targets = batch()
    levels = zip(outputs, targets, LEVELS, strict=True)
    expected = weighted(*(rw.RegionWiseLoss(maps, spacing=s)(output, target) for output, target, (_, s) in levels))
    outputs[2].fill_(float("nan"))  # weight 0
    torch.testing.assert_close(make(named(name))._build_loss()(outputs, targets), expected)


def test_the_weights_of_the_levels_are_nnunets():
    own = nnUNetTrainer(plans(PATCH, SPACING, STRIDES), "tiny", 0, dataset_json(), torch.device("cpu"))._build_loss()
    assert isinstance(own, DeepSupervisionWrapper)
    assert make(named("nnUNetTrainerRRW"))._build_loss().weights == list(own.weight_factors) == pytest.approx(WEIGHTS)


def test_a_2d_configuration_has_the_spacing_of_its_two_axes():
    outputs = [random_logits((2, HEADS, 16, 24))]
    targets = [random_labels((2, 1, 16, 24), HEADS)]
    options = {"patch": [16, 24], "strides": [[1, 1], [2, 2], [2, 1]]}
    for spacing in ([0.7, 1.1], [3.0, 0.7, 1.1]):  # some planners also write the distance between slices
        loss_fn = make(named("nnUNetTrainerRWBoundary"), spacing=spacing, **options)._build_loss().loss
        expected = rw.BoundaryLoss(spacing=(0.7, 1.1))(outputs[0], targets[0])
        torch.testing.assert_close(loss_fn(outputs[0], targets[0]), expected)


def test_without_spacing_pixels_of_the_finest_level_are_counted():
    class Pixels(trainers.nnUNetTrainerRWBoundary):
        use_spacing = False

    outputs, targets = batch()
    steps = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    levels = zip(outputs, targets, steps, strict=True)
    expected = weighted(*(rw.BoundaryLoss(spacing=step)(output, target) for output, target, step in levels))
    torch.testing.assert_close(make(Pixels)._build_loss()(outputs, targets), expected)


def test_without_deep_supervision_the_loss_takes_the_one_output():
    class Plain(trainers.nnUNetTrainerRRW):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.enable_deep_supervision = False

    outputs, targets = batch()
    expected = rw.RegionWiseLoss(spacing=SPACING)(outputs[0], targets[0])
    torch.testing.assert_close(make(Plain)._build_loss()(outputs[0], targets[0]), expected)


@pytest.mark.parametrize("name", ["nnUNetTrainerRRW", "nnUNetTrainerRWBoundary", "nnUNetTrainerDiceRRW"])
def test_ignored_pixels_do_not_count_whatever_their_logits(name):
    outputs, targets = batch(ignore=True)
    trainer = make(named(name), ignore=True)
    assert trainer.label_manager.num_segmentation_heads == HEADS
    loss_fn = trainer._build_loss()
    maps = trainer.maps
    levels = zip(outputs, targets, LEVELS, strict=True)
    expected = weighted(
        *(rw.RegionWiseLoss(maps, spacing=s, ignore_index=IGNORE)(output, target) for output, target, (_, s) in levels)
    )
    if name == "nnUNetTrainerDiceRRW":  # nnU-Net's Dice reads every logit
        dice = own_loss(ignore=True, weight_ce=0)
        expected = expected + weighted(*(dice(o, t) for o, t in zip(outputs, targets, strict=True)))
    else:
        outputs[0] = torch.where(targets[0] == IGNORE, float("nan"), outputs[0])
    torch.testing.assert_close(loss_fn(outputs, targets), expected)


def test_a_batch_of_ignored_pixels_alone_gives_no_loss_and_no_gradient():
    outputs, targets = batch()
    targets = [torch.full_like(target, IGNORE) for target in targets]
    loss_fn = make(named("nnUNetTrainerCERRW"), ignore=True)._build_loss()
    leaf = outputs[0].requires_grad_()
    loss = loss_fn([leaf, *outputs[1:]], targets)
    loss.backward()
    assert loss == 0
    assert not leaf.grad.any()


@pytest.mark.parametrize(
    ("name", "weights", "maps", "alpha"),
    [
        ("nnUNetTrainerDiceRRW", {"weight_ce": 0}, "rectified", None),
        ("nnUNetTrainerCERRW", {"weight_dice": 0}, "rectified", None),
        ("nnUNetTrainerDiceBoundary", {"weight_ce": 0}, "boundary", None),
        ("nnUNetTrainerCEBoundary", {"weight_dice": 0}, "boundary", None),
        ("nnUNetTrainerDiceRRWGradual", {"weight_ce": 0}, "rectified", 0.6),
        ("nnUNetTrainerCERRWGradual", {"weight_dice": 0}, "rectified", 0.6),
        ("nnUNetTrainerDiceBoundaryGradual", {"weight_ce": 0}, "boundary", 0.6),
        ("nnUNetTrainerCEBoundaryGradual", {"weight_dice": 0}, "boundary", 0.6),
    ],
)
def test_a_joined_loss_is_nnunets_own_and_ours(name, weights, maps, alpha):
    trainer = make(named(name))
    trainer.loss = trainer._build_loss()
    trainers.set_epoch(trainer.loss, 40)
    own = own_loss(**weights)
    outputs, targets = batch()
    region, region_wise = (1, 1) if alpha is None else (alpha, 1 - alpha)

    def level(output, target, spacing):
        return region * own(output, target) + region_wise * rw.RegionWiseLoss(maps, spacing=spacing)(output, target)

    levels = zip(outputs, targets, LEVELS, strict=True)
    expected = weighted(*(level(output, target, s) for output, target, (_, s) in levels))
    torch.testing.assert_close(trainer.loss(outputs, targets), expected)
    _, found = loss_and_gradient(lambda x: trainer.loss([x, *outputs[1:]], targets), outputs[0])
    _, gradient = loss_and_gradient(lambda x: WEIGHTS[0] * level(x, targets[0], LEVELS[0][1]), outputs[0])
    torch.testing.assert_close(found, gradient)


def test_in_a_distributed_training_the_pixels_that_count_are_summed_over_the_processes():
    trainer = make(named("nnUNetTrainerDiceRRW"), ignore=True)
    assert trainer._build_loss().loss.rw_loss.process_group is None
    trainer.is_ddp = True
    assert trainer._build_loss().loss.rw_loss.process_group == "world"


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_data_set_with_regions_is_refused_before_anything_is_written(folders):
    with pytest.raises(ValueError, match=r"nnUNetTrainerRRW: expected a data set whose labels exclude each other"):
        make(named("nnUNetTrainerRRW"), regions=True)
    assert not list(folders.iterdir())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("optimizer_name", "adam", "optimizer_name: expected one of 'SGD', 'Adam'"),
        ("region_loss", "focal", "region_loss: expected one of 'none', 'dice', 'cross_entropy'"),
        ("maps", "rrw", "maps: expected one of 'rectified'"),
        ("schedule", "slow", "schedule: expected one of 'equal', 'gradual'"),
    ],
)
def test_a_subclass_that_asks_for_what_is_not_there_is_told_so(attribute, value, message):
    wrong = type("nnUNetTrainerWrong", (trainers.nnUNetTrainerDiceRRW,), {attribute: value})
    with pytest.raises(ValueError, match=message):
        make(wrong)._build_loss()
