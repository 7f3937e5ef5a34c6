"""`rwkernels doctor`: what is installed, what can run, why the rest cannot, and whether what runs is right."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import torch

from rwkernels import backends, region_wise_loss
from rwkernels.backends import BackendStatus, instruction_sets, reference
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.distance import class_distance_transform, distance_transform
from rwkernels.maps.families import boundary_map, rectified_map

_PACKAGES = (
    "rwkernels",
    "torch",
    "numpy",
    "triton",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "cucim-cu12",
    "cucim-cu13",
    "monai",
)
_RELATIVE_ERROR = 1e-5


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}", torch.cuda.get_device_name(index)


def _labels() -> torch.Tensor:
    """Two images with curved regions, one of them without class 3."""
    y, x = torch.meshgrid(torch.arange(37.0), torch.arange(45.0), indexing="ij")
    rings = ((y - 17).square() / 2 + (x - 20).square()).sqrt()
    first = (rings < 16).long() + (rings < 9) + (rings < 4)
    return torch.stack([first, (x > y).long() + (rings < 8)])


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error relative to the largest expected value; entries that are not finite have to agree."""
    found, expected = found.double().cpu(), expected.double().cpu()
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return float("inf")
    scale = expected[finite].abs().max().clamp(min=1e-30)
    return float((found[finite] - expected[finite]).abs().max() / scale)


def self_check(name: str, device: str) -> Iterator[tuple[str, float]]:
    """Every kind of result of a backend, with its largest relative error against the float64 reference."""
    labels, num_classes, spacing = _labels(), 4, [1.5, 1.0]
    here = labels.to(device)
    options: dict[str, Any] = {"spacing": spacing, "backend": name}
    yield "distance", _difference(distance_transform(here, **options), reference.distance(labels, spacing))
    of_classes = reference.class_distance(labels, num_classes, spacing)
    yield "class distance", _difference(class_distance_transform(here, num_classes, **options), of_classes)
    boundary = reference.boundary(labels, num_classes, spacing)
    yield "boundary map", _difference(boundary_map(here, num_classes, **options), boundary)
    foreground = reference.rectified(labels, num_classes, spacing)
    maps = rectified_map(here, num_classes, **options)
    dense = reference.dense(labels, foreground, 1.0, num_classes)
    yield "rectified map", _difference(maps.dense(backend=name), dense)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(dense.shape, generator=generator, dtype=torch.float64)
    losses: list[tuple[str, RectifiedMap | torch.Tensor]] = [
        ("compact loss", maps),
        ("dense loss", dense.float().to(device)),
    ]
    for kind, given in losses:
        leaf = logits.float().to(device).requires_grad_()
        loss = region_wise_loss(leaf, given, reduction="sum", backend=name)
        (gradient,) = torch.autograd.grad(loss, leaf)
        yield kind, _difference(loss.detach()[None], reference.pixel_loss(logits, dense).sum()[None])
        yield f"{kind}, gradient", _difference(gradient, reference.pixel_gradient(logits, dense))


def _report(status: BackendStatus) -> bool:
    print(f"\n{status}")
    if not status.available:
        return True
    good = True
    try:
        for what, error in self_check(status.name, status.device):
            passed = error <= _RELATIVE_ERROR
            good &= passed
            print(f"  {'ok ' if passed else 'BAD'} {what:<24} relative error {error:.1e}")
    except Exception as error:
        print(f"  BAD {type(error).__name__}: {error}")
        return False
    return good


def run(_: argparse.Namespace | None = None) -> int:
    """Prints the report. 0 if every backend that can run is right and at least one besides the reference can."""
    for name, value in _versions():
        print(f"{name:<14} {value}")
    active, isas = instruction_sets()
    if isas:
        print(f"{'C++ core':<14} {active} of {', '.join(isas)}")
    found = backends()
    reports = [_report(status) for status in found]
    good = all(reports)
    fast = any(status.available and status.name != "reference" for status in found)
    if not fast:
        print("\nOnly the slow reference can run here.")
    print("\nAll is well." if good and fast else "\nSomething is wrong, see above.")
    return 0 if good and fast else 1
