"""What is timed of distances and maps: rwkernels through its public functions, and the peers.

Whatever a peer needs in another form (labels + 1, one-hot masks, int64) is made beforehand and not timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rwkernels as rw
from rwkernels.bench import peers, truth
from rwkernels.bench.harness import EFFORTS, Contender, absent
from rwkernels.bench.inputs import Task, labels, labels_plus_one

OURS, REUSED = "rwkernels", "rwkernels, reused buffer"
COMPACT, COMPACT_REUSED = "rwkernels compact", "rwkernels compact, reused buffer"
DENSE, DENSE_REUSED = "rwkernels dense", "rwkernels dense, reused buffer"
REFERENCE, CUCIM_BACKEND = "rwkernels, reference backend", "rwkernels, cucim backend"
CPU_AND_COPIES = "rwkernels on the CPU, and copies"
EDT, EDT_FINISH, EDT_TWICE = "edt", "edt + torch", "edt twice per class"
MONAI_BOUNDARY = "MONAI BoundaryLoss map"
TWICE = {f"{name.removesuffix(' per class')} twice per class": name for name in (
    peers.SCIPY, peers.OPENCV, peers.DIPLIB, peers.SIMPLEITK, peers.CUCIM, peers.CUPY)}  # fmt: skip
SCIPY_TWICE = "SciPy twice per class"

Maker = Callable[[], Contender]
Check = Callable[[Any], str | None]


def on_host(result: Any) -> Tensor:
    """A result of any kind as a tensor on the CPU."""
    if isinstance(result, list):
        result = np.stack(result)
    found = result if isinstance(result, Tensor) else torch.from_numpy(np.asarray(result))
    return found.detach().cpu()


# --- distances -------------------------------------------------------------------------------------------------


def _edt_distances(task: Task) -> Callable[[], list[Any]]:
    """The multi-label transform of the `edt` package, image by image."""
    edt = importlib.import_module("edt")
    plus_one = labels_plus_one(task)
    spacing = task.spacing or (1.0,) * len(task.image_shape)
    return lambda: [edt.edt(image, anisotropy=spacing, parallel=torch.get_num_threads()) for image in plus_one]


@lru_cache(maxsize=2)
def _other_answer(task: Task, ours: bool) -> Tensor | None:
    """An independent implementation's answer where there is no affordable truth: `edt` judges us, we judge `edt`."""
    if ours:
        return None if peers.missing_module("edt") else on_host(_edt_distances(task)())
    found: Tensor = rw.distance_transform(labels(task), spacing=task.spacing)
    return found


def _distance_check(task: Task, known: bool, ours: bool) -> Check:
    def check(result: Any) -> str | None:
        expected = truth.distance(task, known)
        if expected is None:
            expected = _other_answer(task, ours)
        return None if expected is None else truth.mismatch(on_host(result), expected)

    return check


def _per_class_distances(name: str, task: Task, device: str, check: Check) -> Contender:
    """Distances class by class, added up: a distance is 0 outside of its class."""
    library = peers.library(name, device)
    if library.missing:
        return absent(name, library.missing)
    images = [library.prepare(masks, task.spacing) for masks in truth.one_hot(task)]

    def run() -> list[Any]:
        return [sum(library.distances(image)) for image in images]

    return Contender(name, run, lambda result: check([on_host(image).numpy() for image in result]), buffer="fresh")


def distance_makers(task: Task, device: str, known: bool) -> dict[str, Maker]:
    """Raw multi-label distances; `known`: SciPy's answer is worth its time, as it is needed for another row too."""
    image = labels(task).to(device)
    check = _distance_check(task, known, ours=True)
    judge = _distance_check(task, known, ours=False)

    def reused() -> Contender:
        out = torch.empty(task.shape, device=device)
        run = bound(rw.distance_transform, image, spacing=task.spacing, out=out)
        return Contender(REUSED, run, lambda result: check(on_host(result)), buffer="reused")

    def ours(name: str, backend: str | None) -> Contender:
        run = bound(rw.distance_transform, image, spacing=task.spacing, backend=backend)
        return Contender(name, run, lambda result: check(on_host(result)), buffer="fresh")

    def edt() -> Contender:
        missing = peers.missing_module("edt")
        return absent(EDT, missing) if missing else Contender(EDT, _edt_distances(task), judge, buffer="fresh")

    makers: dict[str, Maker] = {
        OURS: lambda: ours(OURS, None),
        REUSED: reused,
        REFERENCE: lambda: ours(REFERENCE, "reference"),
        CUCIM_BACKEND: lambda: _with_backend(CUCIM_BACKEND, "cucim", device, lambda: ours(CUCIM_BACKEND, "cucim")),
        EDT: edt,
    }
    for name in (*peers.CPU_LIBRARIES, *peers.GPU_LIBRARIES):
        makers[name] = bound(_per_class_distances, name, task, device, judge)
    return makers


def bound(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    """`function` with all its arguments."""
    return lambda: function(*arguments, **options)


def _with_backend(name: str, backend: str, device: str, make: Maker) -> Contender:
    """What `make` makes, if that backend can run on `device`."""
    from rwkernels.backends import load

    reason = load(backend).can_run(torch.device(device))
    return absent(name, reason) if reason else make()


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


def _per_class_map(name: str, task: Task, device: str, check: Check) -> Contender:
    """The paper's code with the distance transform of a library (`truth.paper_map` says it for SciPy)."""
    library = peers.library(name, device)
    if library.missing:
        return absent(name, library.missing)
    masks, moved = truth.one_hot(task), (1 + 4 * task.num_classes) * task.pixels
    images = [library.prepare(image, task.spacing) for image in masks]
    if library.device == "cuda":
        return Contender(
            name, gpu_per_class_map(library, images, masks.shape, device), check, buffer="fresh", moved=moved
        )

    def run() -> Tensor:
        maps = np.zeros(masks.shape, np.float32)
        for channels, image in zip(maps, images, strict=True):
            for channel, distance in zip(channels, library.distances(image), strict=True):
                np.divide(distance, -(distance.max() + 1e-15), out=channel, casting="unsafe")
        maps[maps == 0] = 1
        return torch.from_numpy(maps).to(device)

    return Contender(name, run, check, buffer="fresh", moved=moved)


def gpu_per_class_map(
    library: peers.Library, images: list[Any], shape: tuple[int, ...], device: str
) -> Callable[[], Tensor]:
    """The same where images and distances live on a GPU."""

    def run() -> Tensor:
        maps = torch.zeros(shape, device=device)
        for channels, image in zip(maps, images, strict=True):
            for channel, distance in zip(channels, library.distances(image), strict=True):
                channel.copy_(distance).div_(-(channel.amax() + 1e-15))
        return maps.masked_fill_(maps == 0, 1)

    return run


def _paper(task: Task, device: str, check: Check) -> Contender:
    """SciPy, unless it takes so long that the run that gave the truth has to do for the timing too."""
    if not truth.has_scipy():
        return absent(peers.SCIPY, "scipy is not installed")
    seconds = truth.paper_run(task).seconds
    if seconds > EFFORTS["full"].once:
        moved = (1 + 4 * task.num_classes) * task.pixels
        return Contender(peers.SCIPY, lambda: None, seconds=seconds, buffer="fresh", moved=moved)
    return _per_class_map(peers.SCIPY, task, device, check)


def rectified_makers(task: Task, device: str) -> dict[str, Maker]:
    """Labels to the rectified map: ours compact and dense, the peers dense as the paper's code makes it."""
    image, k = labels(task).to(device), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)
    dense_bytes = (1 + 4 * k) * task.pixels

    def check_compact(maps: rw.RectifiedMap) -> str | None:
        expected = truth.foreground(task)
        return None if expected is None else truth.mismatch(on_host(maps.foreground), expected)

    def check(found: Any) -> str | None:
        foreground = truth.foreground(task)
        return None if foreground is None else truth.dense_mismatch(on_host(found), task, foreground)

    def compact(name: str, out: Tensor | None, backend: str | None = None) -> Contender:
        run = bound(rw.rectified_map, image, k, spacing=task.spacing, out=out, backend=backend)
        return Contender(name, run, check_compact, buffer="fresh" if out is None else "reused")

    def dense() -> Contender:
        def run() -> Tensor:
            found: Tensor = rw.rectified_map(image, k, spacing=task.spacing).dense()
            return found

        return Contender(DENSE, run, check, buffer="fresh", moved=dense_bytes)

    def dense_reused() -> Contender:
        out, foreground = torch.empty(shape, device=device), torch.empty(task.shape, device=device)

        def run() -> Tensor:
            maps = rw.rectified_map(image, k, spacing=task.spacing, out=foreground)
            found: Tensor = maps.dense(out=out)
            return found

        return Contender(DENSE_REUSED, run, check, buffer="reused", moved=dense_bytes)

    def on_cpu() -> Contender:
        """Labels that are on the device come to the CPU, and their map goes back."""

        def run() -> rw.RectifiedMap:
            return rw.rectified_map(image.cpu(), k, spacing=task.spacing).to(device)

        return Contender(CPU_AND_COPIES, run, check_compact, buffer="fresh")

    def edt() -> Contender:
        missing = peers.missing_module("edt")
        if missing:
            return absent(EDT_FINISH, missing)
        run = _edt_rectified(task, torch.empty(shape))
        return Contender(EDT_FINISH, run, check, buffer="reused", moved=dense_bytes)

    makers: dict[str, Maker] = {
        COMPACT: lambda: compact(COMPACT, None),
        COMPACT_REUSED: lambda: compact(COMPACT_REUSED, torch.empty(task.shape, device=device)),
        DENSE: dense,
        DENSE_REUSED: dense_reused,
        REFERENCE: lambda: compact(REFERENCE, None, "reference"),
        CUCIM_BACKEND: lambda: _with_backend(
            CUCIM_BACKEND, "cucim", device, lambda: compact(CUCIM_BACKEND, None, "cucim")
        ),
        CPU_AND_COPIES: on_cpu,
        EDT_FINISH: edt,
        peers.SCIPY: lambda: _paper(task, device, check),
    }
    for name in (*peers.CPU_LIBRARIES, *peers.GPU_LIBRARIES):
        makers.setdefault(name, bound(_per_class_map, name, task, device, check))
    return makers


# --- boundary maps ---------------------------------------------------------------------------------------------


def twice_per_class(name: str, library: peers.Library, task: Task, device: str, check: Check) -> Contender:
    """Outside minus inside, two transforms for every image and class (Eq. 3); every class has to be present."""
    if library.missing:
        return absent(name, library.missing)
    masks = truth.one_hot(task)
    inside = [library.prepare(image, task.spacing) for image in masks]
    outside = [library.prepare(~image, task.spacing) for image in masks]
    on_cpu = library.device == "cpu"
    out: Any = np.empty(masks.shape, np.float32) if on_cpu else torch.empty(masks.shape, device=device)
    subtract = bound_subtract(on_cpu)

    def run() -> Tensor:
        for channels, within, without in zip(out, inside, outside, strict=True):
            pairs = zip(channels, library.distances(without), library.distances(within), strict=True)
            for channel, far, near in pairs:
                subtract(far, near, out=channel)
        return torch.from_numpy(out).to(device) if on_cpu else out

    return Contender(name, run, check, buffer="reused")


def bound_subtract(on_cpu: bool) -> Callable[..., Any]:
    """NumPy's subtraction into float32, or torch's."""
    return (lambda a, b, out: np.subtract(a, b, out=out, casting="unsafe")) if on_cpu else torch.sub


def _monai_boundary(task: Task, device: str) -> Contender:
    """MONAI's own map; it takes 1 off inside, as Kervadec et al. do, and is judged by that."""
    missing = peers.missing_module("monai.losses")
    if missing:
        return absent(MONAI_BOUNDARY, missing)
    losses = importlib.import_module("monai.losses")
    if not hasattr(losses, "BoundaryLoss"):
        return absent(MONAI_BOUNDARY, "this release of MONAI has no BoundaryLoss")
    target = torch.from_numpy(truth.one_hot(task)).float().to(device)
    make = losses.BoundaryLoss().compute_distance_map

    def check(result: Tensor) -> str | None:
        if not truth.has_scipy():
            return None
        expected = truth.boundary(task)
        return truth.mismatch(on_host(result), torch.where(expected < 0, expected + 1, expected))

    return Contender(MONAI_BOUNDARY, lambda: make(target), check, buffer="fresh")


def boundary_makers(task: Task, device: str) -> dict[str, Maker]:
    """Labels to the boundary map."""
    image, k = labels(task).to(device), task.num_classes
    shape = (task.shape[0], k, *task.image_shape)

    def check(found: Any) -> str | None:
        return truth.mismatch(on_host(found), truth.boundary(task)) if truth.has_scipy() else None

    def ours(name: str, out: Tensor | None) -> Contender:
        run = bound(rw.boundary_map, image, k, spacing=task.spacing, out=out)
        return Contender(name, run, check, buffer="fresh" if out is None else "reused")

    makers: dict[str, Maker] = {
        OURS: lambda: ours(OURS, None),
        REUSED: lambda: ours(REUSED, torch.empty(shape, device=device)),
        EDT_TWICE: lambda: twice_per_class(EDT_TWICE, peers.CPU_LIBRARIES[peers.EDT_PER_CLASS], task, device, check),
        MONAI_BOUNDARY: lambda: _monai_boundary(task, device),
    }
    for name, single in TWICE.items():
        if device == "cuda" or single in peers.CPU_LIBRARIES:
            makers[name] = bound(twice_per_class, name, peers.library(single, device), task, device, check)
    return makers


def make(makers: dict[str, Maker], names: Sequence[str]) -> list[Contender]:
    """The contenders called `names`, in that order."""
    return [makers[name]() for name in names]
