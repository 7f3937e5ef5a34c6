"""Maps made in the worker processes of a `DataLoader`: of a sample, or of a batch as it is collated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from rwkernels import checks
from rwkernels.data import batches
from rwkernels.data.building import MapBuilder, MapOptions, chosen

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AddMap:
    """A transform of samples: adds the map of the sample's labels.

    The map of a sample is a `RectifiedMap` (or dense map) without an axis for images: `maps[y0:y1, x0:x1]` crops it,
    and default collation joins those of a batch. It has to follow every transform that moves or resamples labels.

    Args:
        num_classes: Number of classes K.
        builder: What builds the maps instead, such as a `RemoteMapBuilder` of `rwkernels.service`; it has its own
            number of classes and options.
        **options: `label_key`, `map_key`, `maps`, `spacing`, `spacing_key`, `class_max_key`, `ignore_index`,
            `black_border`, `spatial_dims`, `validate`, `backend`, `map_options` and `threads` as of `MapLoader`, for
            samples: labels are `[*S]` or `[1, *S]`, a spacing one number or one per axis, largest distances `[K]`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value, or a sample lacks an entry or has bad labels.
        RuntimeError: Labels are on CUDA in a worker process.

    Examples:
        >>> import torch
        >>> from rwkernels.data import AddMap
        >>> sample = {"image": torch.randn(1, 4, 6), "label": torch.randint(3, (4, 6))}
        >>> AddMap(num_classes=3)(sample)["map"].shape
        torch.Size([4, 6])
    """

    def __init__(
        self, num_classes: int | None = None, *, builder: MapBuilder | None = None, **options: Unpack[MapOptions]
    ) -> None:
        self.builder = chosen(builder, num_classes, options)

    def __call__(self, sample: Any) -> Any:
        """The sample with its map."""
        _, labels = self.builder.labels_of(sample)
        _refuse_cuda_labels(labels)
        return batches.added(sample, self.builder.map_key, self.builder.of_sample(sample, labels))


class MapCollate:
    """A `collate_fn`: collates samples, then adds the map of the batch.

    Next to `AddMap` it makes one call for a batch instead of one for a sample, and map and batch share their labels.

    Args:
        num_classes: Number of classes K.
        collate: What makes a batch of samples. Default: PyTorch's.
        builder: What builds the maps instead, such as a `RemoteMapBuilder` of `rwkernels.service`; it has its own
            number of classes and options.
        **options: As of `MapLoader`, but for `device` and `depth`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value, or a batch lacks an entry or has bad labels.
        RuntimeError: Labels are on CUDA in a worker process.

    Examples:
        >>> import torch
        >>> from rwkernels.data import MapCollate
        >>> data = [(torch.randn(1, 4, 6), torch.randint(3, (4, 6))) for _ in range(5)]
        >>> loader = torch.utils.data.DataLoader(data, batch_size=5, collate_fn=MapCollate(num_classes=3))
        >>> images, labels, maps = next(iter(loader))
        >>> maps.shape
        torch.Size([5, 4, 6])
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        collate: Callable[[list[Any]], Any] = default_collate,
        builder: MapBuilder | None = None,
        **options: Unpack[MapOptions],
    ) -> None:
        if not callable(collate):
            raise TypeError(f"collate: expected a function of a list of samples, got {checks.describe(collate)}")
        self.collate = collate
        self.builder = chosen(builder, num_classes, options)

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of the samples, with its map."""
        batch = self.collate(samples)
        _, labels = self.builder.labels_of(batch)
        _refuse_cuda_labels(labels)
        return batches.added(batch, self.builder.map_key, self.builder.of_batch(batch, labels))


def _refuse_cuda_labels(labels: Tensor) -> None:
    if labels.is_cuda and get_worker_info() is not None:
        raise RuntimeError(
            f"labels: expected labels on the CPU in a worker process of a DataLoader, got {checks.describe(labels)}; "
            "MapLoader builds maps on CUDA, in the process that trains"
        )
