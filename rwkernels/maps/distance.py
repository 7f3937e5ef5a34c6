"""Exact Euclidean distance transforms of label images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rwkernels import arrays, checks
from rwkernels.backends import choose
from rwkernels.backends.problem import MapProblem, is_label, is_no_class
from rwkernels.ops import labels as ops  # noqa: F401  (ops defines the operators)

_EQUALITY = object()  # in place of a number of classes


def map_problem(
    labels: Any,
    num_classes: Any = _EQUALITY,
    *,
    spacing: float | Sequence[float] | None = None,
    class_max: Any = None,
    black_border: bool = False,
    ignore_index: int | None = None,
    spatial_dims: int | None = None,
    validate: bool | None = False,
    backend: str | None = None,
) -> tuple[MapProblem, arrays.Back]:
    """The arguments of a public function, checked, and the way back to the kind of `labels`.

    Without `num_classes`, only the equality of labels counts.
    """
    labels, back = arrays.to_tensor(labels)
    labels = checks.labels(labels, spatial_dims)
    num_classes = 0 if num_classes is _EQUALITY else checks.integer("num_classes", num_classes, lowest=1)
    class_max = arrays.to_tensor(class_max)[0]
    if class_max is not None:
        class_max = checks.tensor("class_max", class_max)
        checks.floating("class_max", class_max)
        checks.shape("class_max", class_max, (labels.shape[0], num_classes), "[B, K]")
        checks.same_device("class_max", class_max, "labels", labels)
    problem = MapProblem(
        labels=labels,
        num_classes=num_classes,
        spacing=checks.spacing(spacing, labels.dim() - 1),
        class_max=class_max,
        black_border=checks.flag("black_border", black_border),
        ignore_index=checks.ignore_index(ignore_index),
        validate=checks.validate(validate, labels.device),
        backend=checks.backend(backend),
    )
    return problem, back


def run_map(name: str, problem: MapProblem, *options: Any, out: Any, shape: Sequence[int]) -> torch.Tensor:
    """Calls the operator `name`, or its twin that writes into `out`."""
    if out is None:
        result: torch.Tensor = getattr(torch.ops.rwkernels, name)(*problem, *options)
        return result
    buffer = checks.output(arrays.to_buffer(out), shape, torch.float32, problem.labels.device)
    getattr(torch.ops.rwkernels, f"{name}_out")(*problem, *options, buffer)
    return buffer


def distance_transform(
    labels: Any,
    *,
    spacing: float | Sequence[float] | None = None,
    squared: bool = False,
    black_border: bool = False,
    spatial_dims: int | None = None,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    """Exact Euclidean distance of every pixel to the nearest pixel of another label in the same image.

    One multi-label transform: what `scipy.ndimage.distance_transform_edt(labels == k)` gives at the pixels of
    class k, for every k at once.

    Args:
        labels: Integers `[B, *S]` with two or three spatial axes; any values. A tensor on any device, a NumPy or a
            CuPy array.
        spacing: Size of a pixel, one number or one per spatial axis in the order of the labels' axes. Default 1.
        squared: Return squared distances.
        black_border: Count the outside of the image as another label. By default the border is no boundary.
        spatial_dims: Number of spatial axes; needed for one, so that a lone image is not read as rows.
        out: A contiguous float32 buffer `[B, *S]` to write into.
        backend: Name of the backend to use instead of the default one (see `backends`).

    Returns:
        float32 `[B, *S]` of the kind of `labels`, in units of `spacing`. `inf` where an image has one label only:
        there is no boundary to measure to (SciPy returns wrong numbers without a word there).

    Raises:
        TypeError: `labels` are not an integer tensor or array, or another argument has the wrong type.
        ValueError: `labels`, `spacing` or `out` have a wrong shape, or `spacing` is not positive and finite.

    References:
        The distance of Eq. 3 and 4 in Valverde & Tohka, doi 10.1016/j.patcog.2022.109208.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.distance_transform(torch.tensor([[[0, 0, 0, 7]]]))
        tensor([[[3., 2., 1., 1.]]])
    """
    problem, back = map_problem(
        labels, spacing=spacing, black_border=black_border, spatial_dims=spatial_dims, backend=backend
    )
    return back(run_map("distance", problem, checks.flag("squared", squared), out=out, shape=problem.labels.shape))


def class_distance_transform(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    squared: bool = False,
    ignore_index: int | None = None,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    """Exact Euclidean distance of every pixel to the nearest pixel of every class.

    Args:
        labels: Integers `[B, *S]` in `[0, num_classes)`; see `distance_transform`.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        squared: Return squared distances.
        ignore_index: Label, possibly negative, of pixels that belong to no class.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check the label values: by default on the CPU, not on a GPU, where it would wait for the device.
        out: A contiguous float32 buffer `[B, K, *S]` to write into.
        backend: Name of the backend to use instead of the default one.

    Returns:
        float32 `[B, K, *S]` of the kind of `labels`: 0 on the class itself, `inf` everywhere where the image lacks
        the class.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong shape or value.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.class_distance_transform(torch.tensor([[[0, 0, 1]]]), num_classes=2)
        tensor([[[[0., 0., 1.]],
        <BLANKLINE>
                 [[2., 1., 0.]]]])
    """
    problem, back = map_problem(
        labels,
        num_classes,
        spacing=spacing,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=validate,
        backend=backend,
    )
    return back(run_map("class_distance", problem, checks.flag("squared", squared), out=out, shape=problem.shape))


def class_max(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> Any:
    """The largest distance of every class, which a rectified map of these labels is divided by.

    Kept with a volume (K numbers) it lets the maps of patches be made anew, after augmentation for instance, on the
    scale of the volume: `rectified_map(patch, class_max=...)`, or `class_max_key` of `MapLoader`.

    Args:
        labels: Integers `[B, *S]`, a tensor or an array.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis.
        ignore_index: Label of pixels that do not count.
        black_border: Count the outside of the image as another label.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Returns:
        float32 `[B, K]` of the kind of `labels`, in units of `spacing`; 0 for a class that is absent, and 1 for one
        that fills its image: it has no distance to speak of, and with any number its patches have a map of -1.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong value.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 4.

    Examples:
        >>> import torch
        >>> from rwkernels.data import class_max
        >>> class_max(torch.tensor([[[0, 0, 0, 1, 1]]]), num_classes=3)
        tensor([[3., 2., 0.]])
    """
    problem, back = map_problem(
        labels,
        num_classes,
        spacing=spacing,
        black_border=black_border,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=validate,
        backend=backend,
    )
    found, num_classes, ignored = problem.labels, problem.num_classes, problem.ignore_index
    if problem.validate:
        bad = choose(found.device, "first_bad_label").first_bad_label(found.contiguous(), num_classes, ignored)
        if bad >= 0:
            checks.bad_label(found, bad, num_classes, ignored)
    equality = problem._replace(num_classes=0, ignore_index=None, validate=False)
    distance = run_map("distance", equality, False, out=None, shape=found.shape)
    counts = ~is_no_class(found, num_classes)
    if ignored is not None:
        counts &= ~is_label(found, ignored)
    bins = torch.where(counts, found.long(), num_classes).flatten(1)  # the last bin is for what does not count
    largest = distance.new_zeros(len(found), num_classes + 1)
    largest.scatter_reduce_(1, bins, distance.flatten(1), "amax")
    largest = largest[:, :num_classes]
    return back(torch.where(largest.isinf(), 1.0, largest))
