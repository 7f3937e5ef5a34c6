"""Training in two processes (gloo on the CPU) gives the gradients of one process on the joined batch."""

import copy
import pickle

import pytest
import torch
from ddp_ranks import CASES, CLASSES, IMAGES, WORLD, batch, gradients, model, run
from torch import distributed as dist

import rwkernels as rw

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch comes without torch.distributed over gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def joined(case):
    """Loss and gradients of one process on the whole batch."""
    network = model()
    loss = case.loss(None)(network(batch()[0]), case.labels())
    loss.backward()
    return loss.detach(), gradients(network)


def tolerance(case):
    return {"rtol": 2e-3, "atol": 2e-4} if case.cast == torch.float16 else {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_loss_and_gradient_of_the_joined_batch(name, ranks):
    case = CASES[name]
    loss, expected = joined(case)
    for rank in ranks:
        torch.testing.assert_close(rank["joined"][name][1], expected, **tolerance(case))
    mean = torch.stack([rank["joined"][name][0] for rank in ranks]).mean()
    torch.testing.assert_close(mean, loss, rtol=1e-3 if case.cast == torch.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.compiled])
def test_without_a_group_they_do_only_where_all_have_as_many_pixels(name, ranks):
    case = CASES[name]
    _, expected = joined(case)
    found = ranks[0]["apart"][name][1]
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert (difference < 1e-6) == (name == "equal parts")


def test_where_all_have_as_many_pixels_the_weight_is_exactly_one(ranks):
    for rank in ranks:
        assert torch.equal(rank["joined"]["equal parts"][0], rank["apart"]["equal parts"][0])
        for a, b in zip(rank["joined"]["equal parts"][1], rank["apart"]["equal parts"][1], strict=True):
            assert torch.equal(a, b)


def test_gradients_accumulated_over_micro_batches_are_those_of_the_joined_batch(ranks):
    _, expected = joined(CASES["some pixels ignored"])
    for rank in ranks:
        torch.testing.assert_close(rank["accumulated"], expected, rtol=1e-5, atol=1e-6)


def test_two_epochs_over_a_map_loader_train_as_one_process_does(ranks):
    images, labels = batch()
    order = [sorted(a + b) for a, b in zip(ranks[0]["epochs"][1], ranks[1]["epochs"][1], strict=True)]
    assert order == [list(range(IMAGES))] * 2
    assert ranks[0]["epochs"][1][0] != ranks[0]["epochs"][1][1]  # set_epoch was heard
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        rw.RegionWiseLoss()(network(images), labels).backward()
        optimizer.step()
    for rank in ranks:
        torch.testing.assert_close(rank["epochs"][0], [p.detach() for p in network.parameters()])


def test_what_cannot_be_joined_is_refused_by_name(ranks):
    assert "NotImplementedError: process_group: a transform of torch.func" in ranks[0]["refusals"]["transform"]
    assert "tensor(0.)" in ranks[0]["refusals"]["not a member"]  # the loss of zeros: (1 - 1) / 2
    assert "process_group: expected a group that this process is a member of" in ranks[1]["refusals"]["not a member"]


def test_bad_groups_are_refused():
    logits, maps = torch.zeros(1, 2, 4, 4), rw.rectified_map(torch.zeros(1, 4, 4, dtype=torch.long), 2)
    with pytest.raises(TypeError, match=r'process_group: expected a torch\.distributed process group, "world" or None'):
        rw.region_wise_loss(logits, maps, process_group="gloo")
    with pytest.raises(ValueError, match='process_group: expected None for reduction="none"'):
        rw.region_wise_loss(logits, maps, process_group="world", reduction="none")
    with pytest.raises(ValueError, match='process_group: expected None for reduction="none"'):
        rw.RegionWiseLoss(process_group="world", reduction="none")


@pytest.mark.gpu
def test_on_a_gpu_the_sum_over_processes_does_not_make_the_host_wait(tmp_path):
    from rwkernels.losses import distributed

    if not dist.is_nccl_available():
        pytest.skip("torch comes without NCCL")
    logits = torch.randn(2, CLASSES, 64, 48, device="cuda", requires_grad=True)
    labels = torch.randint(-1, CLASSES, (2, 64, 48), device="cuda")
    loss_fn = rw.RegionWiseLoss(ignore_index=-1)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        counts = rw.rectified_map(labels, CLASSES, ignore_index=-1).image_count
        for mode in ("default", "error"):  # the first call compiles and opens the connection
            torch.cuda.set_sync_debug_mode(mode)
            loss = distributed.weighted(loss_fn(logits, labels), distributed.pixels_of(logits, counts), "world")
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()
    torch.testing.assert_close(loss, loss_fn(logits, labels))


def test_the_world_of_a_single_process_is_that_process():
    images, labels = batch()
    logits = torch.randn(IMAGES, CLASSES, *images.shape[2:], requires_grad=True)
    loss_fn = rw.RegionWiseLoss(process_group="world")
    for again in (loss_fn, copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert torch.equal(again(logits, labels), rw.RegionWiseLoss()(logits, labels))
    assert "process_group='world'" in repr(loss_fn)
