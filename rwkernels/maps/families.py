"""The map families of the region-wise loss, and how any map is made rectified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends.problem import MapProblem, is_label
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.distance import map_problem, run_map


def _foreground_buffer(out: Any) -> Any:
    return arrays.to_buffer(out.foreground if isinstance(out, RectifiedMap) else out)


def rectified_map(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    class_max: Any = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    out: Any = None,
    backend: str | None = None,
) -> RectifiedMap:
    """Rectified region-wise (RRW) map, Eq. 4: `-d_i / max_j d_j` at the true class, 1 at every other.

    `d` is the exact distance to the nearest pixel of another label; the maximum is over the pixels of the same class
    in the same image. An image with a single label has no such pixel: its true class holds -1.

    Args:
        labels: Integers `[B, *S]` in `[0, num_classes)` with two or three spatial axes. A tensor on any device, a
            NumPy or a CuPy array.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis in the order of the labels' axes. Default 1.
        class_max: Largest distance of every class `[B, K]`, in units of `spacing`, to divide by instead of the image's
            own: for a patch, that of the whole volume. Values are then `-min(d / class_max, 1)`.
        ignore_index: Label, possibly negative, of pixels that do not count. They bound regions like any other label.
        black_border: Count the outside of the image as another label.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check the label values: by default on the CPU, not on a GPU, where it would wait for the device.
            Labels out of range that are not checked hold NaN.
        out: A contiguous float32 buffer `[B, *S]` for the foreground, or a map whose foreground is written over.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The compact map; `.dense()` writes it out as `[B, K, *S]`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, `class_max` of a present class is not positive and finite, or an argument
            has a wrong shape or value.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 4.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.rectified_map(torch.tensor([[[0, 0, 1, 1]]]), num_classes=2).dense()
        tensor([[[[-1.0000, -0.5000,  1.0000,  1.0000]],
        <BLANKLINE>
                 [[ 1.0000,  1.0000, -0.5000, -1.0000]]]])
    """
    problem, back = map_problem(
        labels,
        num_classes,
        spacing=spacing,
        class_max=class_max,
        black_border=black_border,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=validate,
        backend=backend,
    )
    if out is None:
        foreground, count = torch.ops.rwkernels.rectified(*problem)
    else:
        found = problem.labels
        foreground = checks.output(_foreground_buffer(out), found.shape, torch.float32, found.device)
        count = found.new_empty(found.shape[0], dtype=torch.int64)
        torch.ops.rwkernels.rectified_out(*problem, foreground, count)
    image_count = None if problem.ignore_index is None else count
    return _compact(problem, foreground, 1.0, image_count)._map(back)


def _compact(
    problem: MapProblem, foreground: Tensor, background: Tensor | float, image_count: Tensor | None = None
) -> RectifiedMap:
    return RectifiedMap(
        problem.labels,
        foreground,
        background,
        num_classes=problem.num_classes,
        ignore_index=problem.ignore_index,
        image_count=image_count,
    )


def _constant(
    foreground: float, background: float, labels: Any, num_classes: int, out: Any, **options: Any
) -> RectifiedMap:
    """A map of two numbers; `options` are those of `map_problem`."""
    problem, back = map_problem(labels, num_classes, **options)
    buffer = _foreground_buffer(out)
    values = run_map("constant", problem, foreground, out=buffer, shape=problem.labels.shape)
    return _compact(problem, values, background)._map(back)


def active_contour_map(
    labels: Any,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    out: Any = None,
    backend: str | None = None,
) -> RectifiedMap:
    """Active contour map: 0 at the true class, 1 at every other (`1 - onehot(labels)`).

    Args:
        labels: Integers `[B, *S]` in `[0, num_classes)`.
        num_classes: Number of classes K.
        ignore_index: Label of pixels that do not count.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check the label values: by default on the CPU only.
        out: A contiguous float32 buffer `[B, *S]` for the foreground, or a map whose foreground is written over.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The compact map.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong shape or value.

    References:
        Valverde & Tohka, section 3.1, after the region term of Chan & Vese's active contours.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.active_contour_map(torch.tensor([[[0, 1]]]), num_classes=2).dense()
        tensor([[[[0., 1.]],
        <BLANKLINE>
                 [[1., 0.]]]])
    """
    return _constant(
        0.0,
        1.0,
        labels,
        num_classes,
        out,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=validate,
        backend=backend,
    )


def constant_map(
    labels: Any,
    num_classes: int,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    ignore_index: int | None = None,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    out: Any = None,
    backend: str | None = None,
) -> RectifiedMap:
    """Constant map: `-beta` at the true class, `alpha` at every other.

    Args:
        labels: Integers `[B, *S]` in `[0, num_classes)`.
        num_classes: Number of classes K.
        alpha: Value at the wrong classes.
        beta: Minus the value at the true class.
        ignore_index: Label of pixels that do not count.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check the label values: by default on the CPU only.
        out: A contiguous float32 buffer `[B, *S]` for the foreground, or a map whose foreground is written over.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The compact map.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong shape or value.

    References:
        Cao et al. 2020, as a region-wise map in Valverde & Tohka, section 3.1.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.constant_map(torch.tensor([[[0, 1]]]), num_classes=2, alpha=2.0, beta=3.0).dense()
        tensor([[[[-3.,  2.]],
        <BLANKLINE>
                 [[ 2., -3.]]]])
    """
    return _constant(
        -checks.number("beta", beta),
        checks.number("alpha", alpha),
        labels,
        num_classes,
        out,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=validate,
        backend=backend,
    )


def boundary_map(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    absent: float = 0.0,
    inside_offset: float = 0.0,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    validate: bool | None = None,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    """Boundary map, Eq. 3: minus the distance to the boundary inside a class, plus the distance outside.

    Args:
        labels: Integers `[B, *S]` in `[0, num_classes)`; see `rectified_map`.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per spatial axis in the order of the labels' axes. Default 1.
        absent: Value of the channel of a class that an image lacks.
        inside_offset: Subtracted from the distances inside a class, in units of `spacing`: 1 gives the variant
            `-(d - 1)` of Kervadec et al.
        ignore_index: Label, possibly negative, of pixels that do not count; their map is 0.
        black_border: Count the outside of the image as another label for the distances inside a class.
        spatial_dims: Number of spatial axes; needed for one.
        validate: Check the label values: by default on the CPU only.
        out: A contiguous float32 buffer `[B, K, *S]` to write into.
        backend: Name of the backend to use instead of the default one.

    Returns:
        float32 `[B, K, *S]` of the kind of `labels`, in units of `spacing`; 0 in the channel of a class that fills its
        image.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong shape or value.

    References:
        Valverde & Tohka, Eq. 3; Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.boundary_map(torch.tensor([[[0, 0, 1]]]), num_classes=2)
        tensor([[[[-2., -1.,  1.]],
        <BLANKLINE>
                 [[ 2.,  1., -1.]]]])
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
    options = (checks.number("absent", absent), checks.number("inside_offset", inside_offset))
    return back(run_map("boundary", problem, *options, out=out, shape=problem.shape))


def dense_map(maps: Any) -> tuple[Tensor, arrays.Back]:
    """A dense floating map [B, K, *S] as a tensor, and the way back to its kind."""
    maps, back = arrays.to_tensor(maps)
    maps = checks.tensor("maps", maps)
    checks.floating("maps", maps)
    if not 3 <= maps.dim() <= 5:
        raise ValueError(f"maps: expected [B, K, *S] with 1 to 3 spatial axes, got {checks.describe(maps)}")
    return maps, back


def rectify(
    maps: Any,
    labels: Any,
    *,
    background: str | float = "max",
    ignore_index: int | None = None,
    validate: bool | None = None,
    backend: str | None = None,
) -> RectifiedMap:
    """Makes any map rectified: the K-1 values of the wrong classes of a pixel become one.

    With equal values there every pixel's gradient has one negative entry, that of the true class, so a step cannot
    pull two classes up at once (section 3.3 of the paper).

    Args:
        maps: Dense map, floating `[B, K, *S]`.
        labels: Integers `[B, *S]` or `[B, 1, *S]` in `[0, K)`.
        background: `"max"`, `"mean"` or `"min"` of the wrong classes' values, or a number.
        ignore_index: Label of pixels that do not count.
        validate: Check the label values: by default on the CPU only.
        backend: Name of the backend to use instead of the default one.

    Returns:
        The compact map, in the dtype and kind of `maps`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, or an argument has a wrong shape or value.

    References:
        Valverde & Tohka, section 3.3.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1]]])
        >>> rw.rectify(rw.boundary_map(labels, 3), labels).background
        tensor([[[2., 1., 1.]]])
    """
    maps, back = dense_map(maps)
    labels = checks.labels_like("labels", arrays.to_tensor(labels)[0], maps.shape)
    checks.same_device("labels", labels, "maps", maps)
    num_classes, axes = maps.shape[1], labels.dim() - 1
    problem, _ = map_problem(
        labels, num_classes, ignore_index=ignore_index, spatial_dims=axes, validate=validate, backend=backend
    )
    ignored = problem.ignore_index
    zeros = torch.ops.rwkernels.constant(*problem, 0.0)
    true_class = labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device).view(
        1, -1, *[1] * (labels.dim() - 1)
    )
    known = true_class.any(1)
    foreground = torch.where(true_class, maps, 0).sum(1)
    foreground = torch.where(known, foreground, foreground * torch.nan if ignored is None else 0.0)
    if ignored is not None:
        foreground = torch.where(known | is_label(labels, ignored), foreground, torch.nan)
    value: Tensor | float
    if isinstance(background, str):
        others = max(num_classes - 1, 1)
        how = checks.choice("background", background, ("max", "mean", "min"))
        if num_classes == 1:
            value = torch.zeros_like(foreground)
        elif how == "max":
            value = maps.masked_fill(true_class, -torch.inf).amax(1)
        elif how == "min":
            value = maps.masked_fill(true_class, torch.inf).amin(1)
        else:
            value = maps.masked_fill(true_class, 0.0).sum(1) / others
    else:
        value = checks.number("background", background)
    return _compact(problem, foreground + zeros.to(maps.dtype), value)._map(back)


class Family(NamedTuple):
    """A kind of map that is made of labels alone, and what losses, loaders, stores and figures have to know of it."""

    build: Callable[..., Any]  # (labels, num_classes, ...): a `RectifiedMap`, or a tensor [B, K, *S] if `dense`
    title: str  # the paper's name
    measured: bool = False  # it measures distances, and so takes `spacing` and `black_border`
    divided: bool = False  # by the largest distance of every class, and so it takes `class_max`
    dense: bool = False  # others are compact: the foreground varies, the background is one number
    bounded: bool = True  # the foreground lies in [-1, 0], with a `beta` in [0, 1] where there is one
    options: tuple[str, ...] = ()  # the numbers that it takes besides

    def fits_codes(self, options: Mapping[str, float]) -> bool:
        """Whether all foreground values, of a map with these options, have codes: see `quantised`."""
        return not self.dense and self.bounded and 0 <= options.get("beta", 1.0) <= 1


FAMILIES = {
    "rectified": Family(rectified_map, "RRW", measured=True, divided=True),
    "boundary": Family(boundary_map, "RW-Boundary", measured=True, dense=True, options=("absent", "inside_offset")),
    "active_contour": Family(active_contour_map, "RW-AC"),
    "constant": Family(constant_map, "Constant", options=("alpha", "beta")),
}
"""By the name that losses, loaders, stores, the service and integrations know them by. Messages list them in order."""
