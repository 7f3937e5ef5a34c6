"""`MapLoader`: any loader of batches, with the map of every batch built one batch ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from rwkernels import checks
from rwkernels.data import ahead, batches
from rwkernels.data.batches import Key
from rwkernels.data.building import Map, MapBuilder, MapOptions, chosen

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MapLoader:
    """A loader whose batches carry their region-wise map, built while the step before is computed.

    Only labels travel to the device. With CUDA labels the map is built there, on a stream of its own; on the CPU in a
    background thread by the compiled core, which holds no lock of Python. Batches are asked for in the caller's
    thread, so samplers, workers, random numbers, errors and Ctrl-C are those of the wrapped loader. Errors come with
    the batch they belong to.

    Args:
        loader: A `DataLoader`, or any iterable of batches: MONAI's `ThreadDataLoader`, nnU-Net's augmenters, a list.
        num_classes: Number of classes K; not needed beside a `builder`.
        label_key: Where a batch holds its labels: key of a mapping, index into a tuple or list, name of an attribute
            of anything else (a namedtuple or dataclass). Default: index 1 of a tuple or list, else `"label"`. Labels
            are `[B, *S]` or `[B, 1, *S]`, integers or floats that hold whole numbers, tensors or arrays.
        map_key: Name of the map in a mapping, namedtuple or dataclass; tuples and lists have it appended. A namedtuple
            without such a field gets one more.
        maps: `"rectified"` (Eq. 4), `"boundary"` (Eq. 3), `"active_contour"`, `"constant"`, or a function
            `labels [B, *S] -> map`, called on the device and in the thread or stream where maps are built.
        device: Where maps are built. The labels of the batch are moved there, other entries stay. Default: where
            labels are.
        spacing: Size of a pixel, one number or one per spatial axis.
        spacing_key: Where a batch holds the spacing of its images instead, on the CPU: a tensor or array
            `[B, axes]`, or `[B]` for isotropic images; one tensor `[B]` per axis; or a number or a tuple of numbers
            that holds for all.
        class_max_key: Where a batch holds the largest distances `[B, K]` of the volumes that its patches are from
            (see `class_max` and `rectified_map`).
        ignore_index: Label of pixels that do not count.
        black_border: Count the outside of the image as another label.
        spatial_dims: Number of spatial axes. Where it is not given, a second axis of 1 in labels of four axes or more
            is that of channels.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.
        map_options: Further options of the family: `{"alpha": ..., "beta": ...}` of `constant_map`, `{"absent": ...,
            "inside_offset": ...}` of `boundary_map`; keywords for a function.
        depth: How many batches to be ahead. A service is asked for as many at a time.
        threads: Threads of the core for one map on the CPU; None for as many as torch uses. One leaves the others, and
            the pool of threads that the loss uses, to the training step.
        builder: What builds the maps instead, such as a `RemoteMapBuilder` of `rwkernels.service`. It has its own
            number of classes and options; here remain `device` and `depth`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; while iterating, a batch has no such entry or bad labels.
        RuntimeError: Maps were to be built on CUDA in a worker process of a `DataLoader`.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation".

    Examples:
        >>> import torch, rwkernels as rw
        >>> from rwkernels.data import MapLoader
        >>> images, labels = torch.randn(6, 1, 32, 32), torch.randint(4, (6, 32, 32))
        >>> data = torch.utils.data.TensorDataset(images, labels)
        >>> loader = MapLoader(torch.utils.data.DataLoader(data, batch_size=2), num_classes=4)
        >>> for images, labels, maps in loader:
        ...     loss = rw.region_wise_loss(torch.zeros(2, 4, 32, 32), maps)
        >>> maps.shape, len(loader)
        (torch.Size([2, 32, 32]), 3)
    """

    def __init__(
        self,
        loader: Iterable[Any],
        num_classes: int | None = None,
        *,
        device: torch.device | str | int | None = None,
        depth: int = 1,
        builder: MapBuilder | None = None,
        **options: Unpack[MapOptions],
    ) -> None:
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise TypeError(f"loader: expected an iterable of batches, got {checks.describe(loader)}")
        self.loader = loader
        self.device = None if device is None else torch.device(device)
        self.depth = checks.integer("depth", depth, lowest=1)
        self.builder = chosen(builder, num_classes, options)

    def __iter__(self) -> Iterator[Any]:
        return MapIterator(self.loader, self.builder, self.device, self.depth)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Whatever else is asked (dataset, sampler, batch_size, ...) the wrapped loader answers. Not before it is there:
        # copying and unpickling look for special methods of an empty object.
        if name.startswith("__") or "loader" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Tells the epoch to whatever of the loader shuffles by it: itself, its sampler, its batches' sampler."""
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        owners: list[Any] = [self.loader, getattr(self.loader, "sampler", None), batch_sampler, inner]
        for owner in {id(owner): owner for owner in owners if hasattr(owner, "set_epoch")}.values():
            owner.set_epoch(epoch)

    def __repr__(self) -> str:
        return f"MapLoader({self.loader!r}, num_classes={self.builder.num_classes})"


class MapIterator:
    """One pass over a loader, some batches ahead of the caller."""

    def __init__(self, loader: Iterable[Any], builder: MapBuilder, device: torch.device | None, depth: int) -> None:
        _refuse_cuda_in_worker(device)
        self._source = iter(loader)
        self._builder, self._device, self._depth = builder, device, depth
        self._ahead: deque[Callable[[], Any]] = deque()
        self._ended = False
        self._thread: ahead.BackgroundThread | None = None
        self._stream: ahead.SideStream | None = None

    def __iter__(self) -> MapIterator:
        return self

    def __next__(self) -> Any:
        while not self._ended and len(self._ahead) <= self._depth:
            self._fetch()
        if not self._ahead:
            if self._thread is not None:
                self._thread.close()
            raise StopIteration
        return self._ahead.popleft()()

    def _fetch(self) -> None:
        """Takes one batch more from the loader and starts on its map.

        An error is kept for the turn of its batch: those before it are whole, and the caller gets them first.
        """
        try:
            batch = next(self._source)
            self._ahead.append(self._start(batch))
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._ahead.append(ahead.failed(error))

    def _start(self, batch: Any) -> Callable[[], Any]:
        key, labels = self._builder.labels_of(batch)
        device = labels.device if self._device is None else self._device
        if self._builder.remote:
            _refuse_cuda_in_worker(device)
            return partial(_complete, self._builder.map_key, batch, key, labels, self._ask(batch, labels, device))
        work = partial(_built, self._builder, batch, key, labels, device)
        if device.type == "cpu":
            if self._thread is None:
                self._thread = ahead.BackgroundThread()
            finish = self._thread.start(work)
        elif device.type == "cuda":
            _refuse_cuda_in_worker(device)
            if self._stream is None:
                self._stream = ahead.SideStream(device)
            finish = self._stream.start(work, [labels, *self._builder.other_tensors(batch)])
        else:
            finish = ahead.at_once(work)
        return partial(_complete, self._builder.map_key, batch, key, labels, finish)

    def _ask(self, batch: Any, labels: Tensor, device: torch.device) -> Callable[[], tuple[Tensor, Map]]:
        """Lets another process build the map, while threads wait for it; it is moved when it is taken."""
        if self._thread is None:
            self._thread = ahead.BackgroundThread(self._depth)
        wait = self._thread.start(partial(self._builder.of_batch, batch, labels.cpu()))

        def finish() -> tuple[Tensor, Map]:
            return ahead.to_device(labels, device), wait().to(device, non_blocking=device.type != "cpu")

        return finish


def _built(builder: MapBuilder, batch: Any, key: Key, labels: Tensor, device: torch.device) -> tuple[Tensor, Map]:
    """Labels and map on the device."""
    moved = ahead.to_device(labels, device)
    return moved, builder.of_batch(batch, moved)


def _complete(map_key: str, batch: Any, key: Key, labels: Tensor, finish: Callable[[], tuple[Tensor, Map]]) -> Any:
    moved, maps = finish()
    if moved is not labels:
        batch = batches.replaced(batch, key, moved)
    return batches.added(batch, map_key, maps)


def _refuse_cuda_in_worker(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda" and get_worker_info() is not None:
        raise RuntimeError(
            f"device: expected a CPU device in a worker process of a DataLoader, got {device}: every worker would "
            "open a CUDA context of its own, and a forked one cannot. Wrap the DataLoader in the process that trains"
        )
