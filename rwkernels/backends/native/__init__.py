"""The CPU backend: the C++ core in `csrc/`, called with addresses and sizes that were checked before."""

from __future__ import annotations

import torch

from rwkernels.backends.native.codes import (
    decode_values,
    encode_values,
    fill_rectified_codes,
    pack_labels,
    reverse_axes,
    unpack_labels,
)
from rwkernels.backends.native.compiled import ISA_VARIABLE, advise_huge_pages, can_run, core
from rwkernels.backends.native.joint import joint, joint_gradient, scale_joint
from rwkernels.backends.native.loss import fill_negatives, loss, scale_gradient
from rwkernels.backends.native.maps import (
    fill_boundary,
    fill_class_distance,
    fill_dense,
    fill_distance,
    fill_rectified,
    first_bad_label,
    largest_of_classes,
    pass_axis,
    rectify,
)
from rwkernels.backends.native.plans import plan_loss, plan_step

__all__ = [
    "ISA_VARIABLE",
    "NAME",
    "advise_huge_pages",
    "can_run",
    "core",
    "decode_values",
    "encode_values",
    "fill_boundary",
    "fill_class_distance",
    "fill_dense",
    "fill_distance",
    "fill_negatives",
    "fill_rectified",
    "fill_rectified_codes",
    "first_bad_label",
    "instruction_sets",
    "joint",
    "joint_gradient",
    "largest_of_classes",
    "loss",
    "pack_labels",
    "pass_axis",
    "plan_loss",
    "plan_step",
    "rectify",
    "reverse_axes",
    "scale_gradient",
    "scale_joint",
    "unpack_labels",
]

NAME = "native"


def instruction_sets() -> tuple[str, list[str]]:
    """The instruction set in use by the core, and all that can run here; empty if the core is missing."""
    if can_run(torch.device("cpu")) is not None:
        return "", []
    return core().active_isa(), core().isas()
