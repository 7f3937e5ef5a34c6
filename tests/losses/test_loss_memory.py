"""What a step of training allocates beyond its inputs, from the events of PyTorch's own allocator."""

import pytest
import torch
from loss_cases import (
    either_kind,
    kept_or_recomputed,
    make_case,
    name,
    needs_native,
    random_labels,
    random_logits,
)
from torch.profiler import ProfilerActivity, profile

import rwkernels as rw


def _leaf(case):
    return case.logits.clone().requires_grad_()


def _peak_bytes(function):
    """The most that PyTorch's allocator held at once beyond what it held before, from the profiler's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_measure_of_memory_sees_what_eager_pytorch_allocates():
    logits = torch.zeros(2**20)
    assert _peak_bytes(lambda: logits.exp().sum()) == pytest.approx(4 * 2**20, rel=0.01)


@needs_native
@either_kind
@kept_or_recomputed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name)
def test_forward_and_backward_allocate_one_gradient_and_less_than_a_twentieth_more(dtype, recompute, kind):
    case = make_case(kind, num_classes=4, shape=(192, 160), dtype=dtype, label_dtype=torch.uint8)
    x = _leaf(case)

    def step():
        rw.region_wise_loss(x, case.maps, recompute=recompute, backend="native").backward()

    step()  # what is set up once is no part of it
    x.grad = None
    gradient = x.numel() * x.element_size()
    assert gradient <= _peak_bytes(step) < 1.05 * gradient


@needs_native
def test_labels_to_gradient_allocate_one_gradient_one_map_and_less_than_a_twentieth_more():
    labels = random_labels((2, 128, 160), 4, dtype=torch.uint8)
    x = random_logits((2, 4, 128, 160)).requires_grad_()
    loss_fn = rw.RegionWiseLoss()
    loss_fn(x, labels).backward()
    x.grad = None
    needed = 4 * (x.numel() + labels.numel())
    assert needed <= _peak_bytes(lambda: loss_fn(x, labels).backward()) < 1.05 * needed


@needs_native
@either_kind
def test_a_loss_that_is_only_looked_at_allocates_nothing_of_the_size_of_the_logits(kind):
    case = make_case(kind, num_classes=4, shape=(192, 160))
    with torch.no_grad():
        peak = _peak_bytes(lambda: rw.region_wise_loss(case.logits, case.maps, backend="native"))
    assert peak < 0.01 * case.logits.numel() * 4
