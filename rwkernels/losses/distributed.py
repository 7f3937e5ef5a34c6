"""The mean of a batch that several processes hold parts of: N of Eq. 1 is summed over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

WORLD = "world"


def check_group(value: Any, reduction: str) -> Any:
    """A process group, "world" or None; refuses what has no joined value."""
    if value is None:
        return None
    if dist.is_available() and value is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group gives the others
        raise ValueError("process_group: expected a group that this process is a member of")
    if not (dist.is_available() and isinstance(value, dist.ProcessGroup)) and value != WORLD:
        raise TypeError(f'process_group: expected a torch.distributed process group, "world" or None, got {value!r}')
    if reduction == "none":
        raise ValueError('process_group: expected None for reduction="none", whose losses are not joined')
    return value


def size_of(group: Any) -> int:
    """How many processes the group has; 1 for "world" where torch.distributed was not started."""
    if group == WORLD:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return dist.get_world_size(group)


def joined(loss: Tensor, logits: Tensor, image_count: Tensor | None, reduction: str, group: Any) -> Tensor:
    """The loss of this process as its part of that of `group`, if there is one (see `region_wise_loss`)."""
    if group is None:
        return loss
    if reduction == "sum":
        return loss * size_of(group)
    return loss if size_of(group) == 1 else weighted(loss, pixels_of(logits, image_count), group)


def weighted(loss: Tensor, pixels: Tensor, group: Any) -> Tensor:
    """The mean `loss` over the `pixels` of this process, weighted so that the group's mean is that of all pixels.

    Constant with respect to the logits: the sum that travels is of integers.
    """
    total = pixels.detach().clone()
    dist.all_reduce(total, group=None if group == WORLD else group)
    # Whole numbers first: where every process has as many pixels, the weight is exactly 1 and the gradient that the
    # forward kept is right as it is.
    weight = (pixels * size_of(group)).to(loss.dtype) / total.clamp(min=1).to(loss.dtype)
    return loss * weight


def pixels_of(logits: Tensor, image_count: Tensor | None) -> Tensor:
    """Pixels of this process that count, an int64 scalar on the device of the logits."""
    if image_count is not None:
        return image_count.sum()
    return torch.full((), logits[:, 0].numel(), dtype=torch.int64, device=logits.device)
