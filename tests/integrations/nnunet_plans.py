"""Plans and a data set as nnU-Net writes and reads them, small enough for a CPU.

A test that imports this file is skipped, with the reason, where nnU-Net is missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunetv2", reason='nnU-Net is missing: pip install "rwkernels[nnunet]"')

LABELS = {"background": 0, "ring": 1, "core": 2}
IGNORE = 3


def dataset_json(ignore: bool = False, regions: bool = False) -> dict[str, Any]:
    labels: dict[str, Any] = dict(LABELS)
    found: dict[str, Any] = {"channel_names": {"0": "noise"}, "labels": labels, "file_ending": ".nii.gz"}
    if regions:
        labels["ring"] = [1, 2]
        found["regions_class_order"] = [1, 2]
    if ignore:
        labels["ignore"] = IGNORE
    return found


def plans(patch_size: list[int], spacing: list[float], strides: list[list[int]]) -> dict[str, Any]:
    """Plans of one configuration, `tiny`: a U-Net with few channels and a level per stride, in 2D or 3D."""
    axes, stages = len(patch_size), len(strides)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4] * stages,
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages,
            "strides": strides,
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch_size,
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": architecture,
    }
    return {
        "dataset_name": "Dataset001_Rings",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"tiny": configuration},
        "label_manager": "LabelManager",
        "continue_training": False,
    }


def volume(generator: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and its labels: a ring around a core, in nnU-Net's axis order (the reverse of SimpleITK's)."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centre = np.array(shape) / 2 + generator.uniform(-4, 4, 3)
    radius = np.sqrt((((grid - centre) / np.array(shape)) ** 2).sum(-1))
    labels = (radius < 0.3).astype(np.uint8) + (radius < 0.15)
    image = labels + generator.normal(0, 0.5, shape)
    return image.astype(np.float32), labels.astype(np.uint8)


def write_dataset(folder: Path, cases: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    """`Dataset001_Rings` with generated NIfTI volumes; `spacing` belongs to the axes of `shape`."""
    import SimpleITK as sitk

    generator = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        image, labels = volume(generator, shape)
        for array, name in ((image, f"imagesTr/ring_{case}_0000.nii.gz"), (labels, f"labelsTr/ring_{case}.nii.gz")):
            written = sitk.GetImageFromArray(array)
            written.SetSpacing(spacing[::-1])
            sitk.WriteImage(written, str(folder / name))
    (folder / "dataset.json").write_text(json.dumps({**dataset_json(), "numTraining": cases}))
