"""Losses that are trained together, on CUDA tensors: by the reference, and without making the host wait."""

import pytest
import torch
from loss_cases import random_labels, random_logits

import rwkernels as rw

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("region", ["dice_ce", "focal", "cross_entropy"])
@pytest.mark.parametrize("schedule", ["equal", "gradual"])
def test_on_a_gpu_they_are_what_they_are_on_the_cpu(region, schedule):
    loss_fn = rw.CombinedLoss(region, rw.RegionWiseLoss(ignore_index=-1), schedule=schedule, alpha_step=0.25)
    loss_fn.step()
    logits, labels = random_logits((2, 4, 33, 47)), random_labels((2, 33, 47), 4, -1)
    x = logits.clone().requires_grad_()
    expected = loss_fn(x, labels)
    expected.backward()
    there, own = logits.cuda().requires_grad_(), labels.cuda()
    loss_fn.cuda()
    for mode in ("default", "error"):  # the first call compiles, and copies the weights
        torch.cuda.set_sync_debug_mode(mode)
        try:
            there.grad = None
            loss = loss_fn(there, own)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), expected.detach())
    torch.testing.assert_close(there.grad.cpu(), x.grad, rtol=1e-4, atol=1e-7)
