"""The loss in a training loop on a GPU: graphs, streams, devices, wrappers, and how near it comes to a copy's speed.

`pytest -m gpu`; with `-s` the speeds are printed.
"""

import statistics

import pytest
import torch
from loss_cases import (
    FLOATS,
    assert_like_eager,
    eager_loss,
    either_kind,
    loss_and_gradient,
    make_case,
    name,
    random_logits,
)

import rwkernels as rw
from rwkernels.backends import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DEVICE = "cuda"
FLUSH = 256 << 20  # bytes, more than any second-level cache holds


def _loss(case, x, **options):
    return rw.region_wise_loss(x, case.maps, **case.options(), **options)


@pytest.fixture
def kernels():
    """Skips where the GPU kernels do not run: the reference backend promises none of this."""
    backend = choose(torch.device(DEVICE), "loss")
    if backend.NAME == "reference":
        pytest.skip(f"the Triton backend does not run here: {[str(status) for status in rw.backends()]}")
    return backend.NAME


@either_kind
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("num_classes", [2, 4, 10, 14, 15, 16, 17, 64, 128, 256, 300])
def test_every_shape_of_a_program_gives_the_loss_of_eager_pytorch(num_classes, dtype, kind, kernels):
    shape = (67, 61) if num_classes < 100 else (31, 17)
    assert_like_eager(make_case(kind, num_classes=num_classes, dtype=dtype, shape=shape, ignore_index=-1).to(DEVICE))


@either_kind
def test_a_step_is_captured_and_replayed_with_other_logits(kind, kernels):
    case = make_case(kind, num_classes=4, shape=(64, 48), ignore_index=-1).to(DEVICE)
    x = case.logits.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels: a capture may not
        _loss(case, x).backward()
    torch.cuda.current_stream().wait_stream(stream)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = _loss(case, x)
        loss.backward()
    case.logits = random_logits(case.logits.shape, seed=77).to(DEVICE)
    with torch.no_grad():
        x.copy_(case.logits)
    graph.replay()
    expected = loss_and_gradient(lambda x: eager_loss(x, case.dense.float(), case.labels, -1), case.logits)
    torch.testing.assert_close((loss.detach(), x.grad), expected)


def test_the_current_stream_is_the_one_that_is_used(kernels):
    case = make_case(num_classes=4, shape=(512, 512)).to(DEVICE)
    expected = loss_and_gradient(lambda x: eager_loss(x, case.dense.float()), case.logits)
    x = torch.zeros_like(case.logits)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # another stream would read the zeros
        x.copy_(case.logits)
        found = loss_and_gradient(lambda x: _loss(case, x), x)
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_than_the_current_one_work(kernels):
    case = make_case(shape=(64, 48)).to("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_like_eager(case)


def test_a_step_compiles_into_one_graph_with_the_kernel_in_it(kernels):
    from torch._inductor.utils import run_and_get_code

    case = make_case(num_classes=4, shape=(64, 48)).to(DEVICE)
    compiled = torch.compile(lambda x: 2 * _loss(case, x), fullgraph=True)
    expected = loss_and_gradient(lambda x: 2 * eager_loss(x, case.dense.float()), case.logits)
    torch.testing.assert_close(loss_and_gradient(compiled, case.logits), expected)
    torch._dynamo.reset()
    _, sources = run_and_get_code(lambda: compiled(case.logits.requires_grad_()))
    assert any("region_wise" in source and "ops.rwkernels.region_wise" not in source for source in sources)


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved-tensor-hooks", "reentrant"])
def test_a_checkpointed_loss_has_the_same_gradient(reentrant, kernels):
    case = make_case(shape=(64, 48)).to(DEVICE)
    x = case.logits.clone().requires_grad_()
    loss = torch.utils.checkpoint.checkpoint(lambda x: _loss(case, x), x, use_reentrant=reentrant)
    loss.backward()
    expected = loss_and_gradient(lambda x: eager_loss(x, case.dense.float()), case.logits)
    torch.testing.assert_close((loss.detach(), x.grad), expected)


def test_a_data_parallel_step_has_the_same_gradient(kernels, tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("torch comes without NCCL")
    torch.manual_seed(0)
    case = make_case(shape=(32, 48)).to(DEVICE)
    model = torch.nn.Conv2d(3, 3, 3, padding=1).to(DEVICE)
    _loss(case, model(case.logits)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
        _loss(case, parallel(case.logits)).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], expected)
    finally:
        torch.distributed.destroy_process_group()


# --- speed: always a ratio to a peer in the same run ------------------------------------------------------------


def _milliseconds(functions, repeats=20):
    """Median times of `functions`, taken in turns, each with a cold second-level cache."""
    junk = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)
    times = {key: [] for key in functions}
    for key in functions:
        functions[key]()
    for _ in range(repeats):
        for key, function in functions.items():
            junk.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times[key].append(start.elapsed_time(end))
    return {key: statistics.median(values) for key, values in times.items()}


def _large(kind, num_classes, dtype, shape=(160, 192, 160)):
    case = make_case(kind, num_classes=num_classes, shape=(4, 4), batch=1)
    x = torch.randn((1, num_classes, *shape), device=DEVICE).to(dtype)
    labels = torch.randint(num_classes, (1, *shape), device=DEVICE, dtype=torch.uint8)
    maps = rw.RectifiedMap(labels, -torch.rand((1, *shape), device=DEVICE), 1.0, num_classes)
    case.logits, case.labels, case.maps = x, labels, maps if kind == "compact" else maps.dense()
    return case


@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("num_classes", [2, 4, 16, 32])
def test_the_pass_runs_at_the_speed_of_a_copy_of_as_many_bytes(num_classes, dtype, kind, kernels, capsys):
    case = _large(kind, num_classes, dtype)
    x = case.logits.requires_grad_()
    pixels = case.labels.numel()
    of_map = pixels * (4 + 1) if kind == "compact" else case.maps.numel() * case.maps.element_size()
    moved = 2 * x.numel() * x.element_size() + of_map
    assert moved > 64 << 20
    source = torch.empty(moved // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    times = _milliseconds({"loss": lambda: _loss(case, x), "copy": lambda: target.copy_(source)})
    fraction = times["copy"] / times["loss"]
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()}, {kind} K={num_classes} {name(dtype)}: {times['loss']:.3f} ms, "
            f"{moved / times['loss'] / 1e6:.0f} GB/s, {fraction:.0%} of a copy"
        )
    assert fraction > 0.85


@either_kind
def test_a_step_is_faster_than_eager_and_compiled_pytorch(kind, kernels, capsys):
    case = _large(kind, 4, torch.float32)
    dense = case.maps.dense() if kind == "compact" else case.maps
    x = case.logits.requires_grad_()

    def plain(x):
        return (torch.softmax(x, 1) * dense).mean()

    compiled = torch.compile(plain)
    steps = {"ours": lambda x: _loss(case, x), "eager": plain, "torch.compile": compiled}
    times = _milliseconds({key: lambda loss=loss: torch.autograd.grad(loss(x), x) for key, loss in steps.items()})
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}, {kind}: {times}")
    assert times["eager"] > 2.5 * times["ours"]
    assert times["torch.compile"] > 2 * times["ours"]
