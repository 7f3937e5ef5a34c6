"""What is timed of distances and maps: rwkernels through its public functions, and the peers.

Whatever a peer needs in another form (labels + 1, one-hot masks, int64) is made beforehand and not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rwkernels as rw
from rwkernels.bench import names, peers, truth
from rwkernels.bench.harness import EFFORTS, Contender, Maker, Missing
from rwkernels.bench.inputs import Task, labels, labels_plus_one


def _buffer(reused: bool) -> str:
    return "reused" if reused else "fresh"


def _check_backend(backend: str | None, device: str) -> None:
    """Raises `Missing` if that backend cannot run on `device`."""
    from rwkernels.backends import load

    reason = None if backend is None else load(backend).can_run(torch.device(device))
    if reason:
        raise Missing(reason)


# --- distances -------------------------------------------------------------------------------------------------


def _edt_distances(task: Task) -> Callable[[], list[Any]]:
    """The multi-label transform of the `edt` package, image by image."""
    edt = peers.need("edt")
    plus_one = labels_plus_one(task)
    spacing = task.spacing or (1.0,) * len(task.image_shape)
    return lambda: [edt.edt(image, anisotropy=spacing, parallel=torch.get_num_threads()) for image in plus_one]


@lru_cache(maxsize=2)
def _other_answer(task: Task, ours: bool) -> Tensor | None:
    """An independent implementation's answer where there is no affordable truth: `edt` judges us, we judge `edt`."""
    if ours:
        return None if peers.missing_module("edt") else truth.on_host(_edt_distances(task)())
    found: Tensor = rw.distance_transform(labels(task), spacing=task.spacing)
    return found


def distance_makers(task: Task, device: str, known: bool) -> dict[str, Maker]:
    """Raw multi-label distances; `known`: SciPy's answer is worth its time, as it is needed for another row too."""
    image = labels(task).to(device)

    def check(result: Any, is_ours: bool) -> str | None:
        expected = truth.distance(task, known)
        return truth.mismatch(result, _other_answer(task, is_ours) if expected is None else expected)

    def ours(name: str, backend: str | None = None, reused: bool = False) -> Contender:
        _check_backend(backend, device)
        out = torch.empty(task.shape, device=device) if reused else None
        run = partial(rw.distance_transform, image, spacing=task.spacing, backend=backend, out=out)
        return Contender(name, run, partial(check, is_ours=True), buffer=_buffer(reused))

    def edt(name: str) -> Contender:
        return Contender(name, _edt_distances(task), partial(check, is_ours=False), buffer="fresh")

    def per_class(name: str) -> Contender:
        """Distances class by class, added up: a distance is 0 outside of its class."""
        library = peers.library(name, device)
        images = [library.prepare(masks, task.spacing) for masks in truth.one_hot(task)]

        def run() -> list[Any]:
            return [sum(library.distances(image)) for image in images]

        return Contender(name, run, partial(check, is_ours=False), buffer="fresh")

    return {
        names.OURS: ours,
        names.REUSED: partial(ours, reused=True),
        names.REFERENCE: partial(ours, backend="reference"),
        names.CUCIM_BACKEND: partial(ours, backend="cucim"),
        names.EDT: edt,
        **dict.fromkeys(peers.NAMES, per_class),
    }


# --- rectified maps --------------------------------------------------------------------------------------------


def _edt_rectified(task: Task, out: Tensor) -> Callable[[], Tensor]:
    distance = _edt_distances(task)
    index = labels(task).long()

    def run() -> Tensor:
        for b, found in enumerate(distance()):
            d = torch.from_numpy(found)
            largest = torch.zeros(task.num_classes)
            largest.scatter_reduce_(0, index[b].flatten(), d.flatten(), "amax")
            foreground = d.div_(largest.take(index[b])).neg_()
            out[b].fill_(1).scatter_(0, index[b : b + 1], foreground.unsqueeze(0))
        return out

    return run


def per_class_map(library: peers.Library, images: list[Any], shape: tuple[int, ...], device: str) -> Tensor:
    """The paper's code with the distance transform of a library of the CPU (`truth.paper_map` says it for SciPy)."""
    maps = np.zeros(shape, np.float32)
    for channels, image in zip(maps, images, strict=True):
        peers.rectify(library.distances(image), channels)
    return torch.from_numpy(maps).to(device)


def gpu_per_class_map(library: peers.Library, images: list[Any], shape: tuple[int, ...], device: str) -> Tensor:
    """The same where images and distances live on a GPU."""
    maps = torch.zeros(shape, device=device)
    for channels, image in zip(maps, images, strict=True):
        for channel, distance in zip(channels, library.distances(image), strict=True):
            channel.copy_(distance).div_(-(channel.amax() + 1e-15))
    return maps.masked_fill_(maps == 0, 1)


def rectified_makers(task: Task, device: str) -> dict[str, Maker]:
    """Labels to the rectified map: ours compact and dense, the peers dense as the paper's code makes it."""
    image, k = labels(task).to(device), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)
    dense_bytes = (1 + 4 * k) * task.pixels

    def check_compact(maps: rw.RectifiedMap) -> str | None:
        return truth.mismatch(maps.foreground, truth.foreground(task))

    def check(found: Any) -> str | None:
        return truth.dense_mismatch(found, task)

    def compact(name: str, backend: str | None = None, reused: bool = False) -> Contender:
        _check_backend(backend, device)
        out = torch.empty(task.shape, device=device) if reused else None
        run = partial(rw.rectified_map, image, k, spacing=task.spacing, out=out, backend=backend)
        return Contender(name, run, check_compact, buffer=_buffer(reused))

    def dense(name: str, reused: bool = False) -> Contender:
        out, foreground = (torch.empty(s, device=device) if reused else None for s in (shape, task.shape))

        def run() -> Tensor:
            found: Tensor = rw.rectified_map(image, k, spacing=task.spacing, out=foreground).dense(out=out)
            return found

        return Contender(name, run, check, buffer=_buffer(reused), moved=dense_bytes)

    def on_cpu(name: str) -> Contender:
        """Labels that are on the device come to the CPU, and their map goes back."""

        def run() -> rw.RectifiedMap:
            return rw.rectified_map(image.cpu(), k, spacing=task.spacing).to(device)

        return Contender(name, run, check_compact, buffer="fresh")

    def edt(name: str) -> Contender:
        return Contender(name, _edt_rectified(task, torch.empty(shape)), check, buffer="reused", moved=dense_bytes)

    def per_class(name: str) -> Contender:
        library = peers.library(name, device)
        seconds = truth.paper_run(task).seconds if name == names.SCIPY else 0.0
        if seconds > EFFORTS["full"].once:  # so long that the run that gave the truth has to do for the timing too
            return Contender(name, lambda: None, seconds=seconds, buffer="fresh", moved=dense_bytes)
        images = [library.prepare(masks, task.spacing) for masks in truth.one_hot(task)]
        make_map = per_class_map if library.device == "cpu" else gpu_per_class_map
        run = partial(make_map, library, images, shape, device)
        return Contender(name, run, check, buffer="fresh", moved=dense_bytes)

    return {
        names.COMPACT: compact,
        names.COMPACT_REUSED: partial(compact, reused=True),
        names.DENSE: dense,
        names.DENSE_REUSED: partial(dense, reused=True),
        names.REFERENCE: partial(compact, backend="reference"),
        names.CUCIM_BACKEND: partial(compact, backend="cucim"),
        names.CPU_AND_COPIES: on_cpu,
        names.EDT_FINISH: edt,
        **dict.fromkeys(peers.NAMES, per_class),
    }


# --- boundary maps ---------------------------------------------------------------------------------------------


def twice_per_class(library: peers.Library, task: Task, device: str) -> Callable[[], Tensor]:
    """Outside minus inside, two transforms for every image and class (Eq. 3); every class has to be present."""
    masks = truth.one_hot(task)
    inside = [library.prepare(image, task.spacing) for image in masks]
    outside = [library.prepare(~image, task.spacing) for image in masks]
    on_cpu = library.device == "cpu"
    out: Any = np.empty(masks.shape, np.float32) if on_cpu else torch.empty(masks.shape, device=device)
    subtract: Callable[..., Any] = partial(np.subtract, casting="unsafe") if on_cpu else torch.sub

    def run() -> Tensor:
        for channels, within, without in zip(out, inside, outside, strict=True):
            pairs = zip(channels, library.distances(without), library.distances(within), strict=True)
            for channel, far, near in pairs:
                subtract(far, near, out=channel)
        return torch.from_numpy(out).to(device) if on_cpu else out

    return run


def boundary_makers(task: Task, device: str) -> dict[str, Maker]:
    """Labels to the boundary map."""
    image, k = labels(task).to(device), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)

    def check(found: Any) -> str | None:
        return truth.mismatch(found, truth.boundary(task))

    def ours(name: str, reused: bool = False) -> Contender:
        out = torch.empty(shape, device=device) if reused else None
        run = partial(rw.boundary_map, image, k, spacing=task.spacing, out=out)
        return Contender(name, run, check, buffer=_buffer(reused))

    def twice(name: str) -> Contender:
        single = names.EDT_PER_CLASS if name == names.EDT_TWICE else names.TWICE[name]
        return Contender(name, twice_per_class(peers.library(single, device), task, device), check, buffer="reused")

    def monai(name: str) -> Contender:
        """MONAI's own map; it takes 1 off inside, as Kervadec et al. do, and is judged by that."""
        make_map = peers.monai_boundary_loss()().compute_distance_map
        target = torch.from_numpy(truth.one_hot(task)).float().to(device)

        def check_kervadec(found: Tensor) -> str | None:
            return truth.mismatch(found, truth.kervadec(task))

        return Contender(name, partial(make_map, target), check_kervadec, buffer="fresh")

    singles = peers.NAMES if device == "cuda" else peers.CPU_LIBRARIES
    return {
        names.OURS: ours,
        names.REUSED: partial(ours, reused=True),
        names.EDT_TWICE: twice,
        names.MONAI_BOUNDARY: monai,
        **dict.fromkeys((name for name, single in names.TWICE.items() if single in singles), twice),
    }
