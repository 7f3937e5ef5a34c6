"""Maps of one label image side by side: Fig. 1 of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

import rwkernels as rw
from rwkernels import arrays, checks
from rwkernels.maps.families import FAMILIES
from rwkernels.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_ROWS = 4
"""Classes that are shown where the caller names none: a page takes no more."""

_WIDTH, _TALLEST, _NARROWEST = 1.7, 2.6, 0.9  # of a panel, in inches

Picture = npt.NDArray[Any]


def _image(labels: Any) -> torch.Tensor:
    """One image of labels [*S] with two or three axes, from [*S] or [1, *S]."""
    found = checks.label_dtype("labels", checks.tensor("labels", arrays.to_tensor(labels)[0])).detach().cpu()
    if found.dim() in (3, 4) and found.shape[0] == 1:
        found = found[0]
    if found.dim() not in (2, 3) or found.numel() == 0:
        raise ValueError(f"labels: expected one image [H, W] or one volume [D, H, W], got {checks.describe(found)}")
    return found.contiguous()


def class_counts(labels: torch.Tensor, axis: int) -> torch.Tensor:
    """How many different labels, which are 0 or more, every slice of a volume [D, H, W] along `axis` has."""
    slices = labels.unbind(axis)
    return torch.tensor([int((torch.bincount(one.flatten().long()) > 0).sum()) for one in slices])


def fullest_slice(labels: torch.Tensor, axis: int) -> int:
    """The slice of a volume with the most classes; of several, the one with the most pixels of rare classes.

    Rare are all classes but the one that most pixels of the volume have.
    """
    counts = class_counts(labels, axis)
    common = torch.bincount(labels.flatten().long()).argmax()
    rare = (labels != common).movedim(axis, 0).flatten(1).sum(1)
    best = torch.where(counts == counts.max(), rare, -1)
    return int(best.argmax())


def _shown_classes(picture: torch.Tensor, num_classes: int, classes: Iterable[int] | None) -> list[int]:
    if classes is not None:
        chosen = [checks.integer("classes", k) for k in classes]
        for k in chosen:
            if not 0 <= k < num_classes:
                raise ValueError(f"classes: expected integers in [0, {num_classes}), got {k}")
        if not chosen:
            raise ValueError("classes: expected at least one class, got none")
        return chosen
    present = torch.bincount(picture.flatten().long(), minlength=num_classes)
    there = [k for k in range(num_classes) if present[k] > 0]
    # The most frequent class is the background, and its map is the others' turned round.
    others = [k for k in there if k != int(present.argmax())] or there
    return sorted(sorted(others, key=lambda k: -int(present[k]))[:MOST_ROWS])


def map_values(labels: torch.Tensor, family: str, k: int, spacing: Any) -> torch.Tensor:
    """The channel of class `k` of a map, [*S]: that of `labels == k` against the rest, which is the same."""
    found = FAMILIES[family]
    options = {"spacing": spacing} if found.measured else {}
    made = found.build((labels == k).to(torch.uint8)[None], 2, **options)
    dense = made.dense() if isinstance(made, rw.RectifiedMap) else made
    result: torch.Tensor = dense[0, 1]
    return result


def maps(
    labels: Any,
    num_classes: int,
    *,
    spacing: float | Sequence[float] | None = None,
    families: Sequence[str] = ("active_contour", "boundary", "rectified"),
    classes: Iterable[int] | None = None,
    plane: tuple[int, int | None] | None = None,
    class_names: Sequence[str] | None = None,
    unit: str | None = None,
    axes: Axes | Iterable[Any] | None = None,
) -> Figure:
    """The region-wise maps of one label image side by side (Fig. 1): a row per class, a column per family.

    Args:
        labels: Integers in `[0, num_classes)`: an image `[H, W]`, or a volume `[D, H, W]` of which one slice is shown;
            a batch axis of 1 may come first. A tensor, a NumPy or a CuPy array.
        num_classes: Number of classes K.
        spacing: Size of a pixel, one number or one per axis of `labels`. Default 1.
        families: Which maps: `"rectified"`, `"boundary"`, `"active_contour"`, `"constant"`.
        classes: Which classes; by default up to four that the image has, without the one that most of its pixels have.
        plane: Of a volume, the axis and the index of the slice. Distances are those in the volume. By default along the
            first axis the slice with the most classes, which an index of None also means.
        class_names: A name for every class.
        unit: Of the distances, for the colour bar; by default pixels, or nothing said where `spacing` is given.
        axes: Axes to draw into, as many as classes times (1 + families), row by row.

    Returns:
        The figure. Purple is negative, white zero and orange positive; the two sides of a scale may differ.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label, a class or a family is not one of those expected, or a shape is wrong.

    Examples:
        >>> import torch
        >>> square = torch.zeros(32, 32, dtype=torch.long)
        >>> square[8:20, 10:22] = 1
        >>> figure = maps(square, num_classes=2)
    """
    image = _image(labels)
    num_classes = checks.integer("num_classes", num_classes, lowest=1)
    for family in families:
        checks.choice("families", family, tuple(FAMILIES))
    outside = (image < 0) | (image >= num_classes)
    if bool(outside.any()):
        checks.bad_label(image, int(outside.flatten().int().argmax()), num_classes, None)
    steps = checks.spacing(spacing, image.dim())
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"class_names: expected {num_classes}, one per class, got {len(class_names)}")
    cut, sizes = _plane(image, plane, steps)
    picture = cut(image)
    shown = _shown_classes(picture, num_classes, classes)
    names = [f"class {k}" if class_names is None else class_names[k] for k in shown]
    values = {family: [cut(map_values(image, family, k, steps)).double().numpy() for k in shown] for family in families}
    return _draw(picture.numpy(), shown, names, values, sizes, _unit_text(unit, spacing), axes)


def _unit_text(unit: str | None, spacing: Any) -> str:
    if unit is None:
        unit = "pixels" if spacing is None else ""
    return f"distance ({unit})" if unit else "distance"


def _plane(image: torch.Tensor, plane: Any, steps: Sequence[float]) -> tuple[Any, tuple[float, float]]:
    """What cuts the shown slice out of an array like `image`, and the size of its pixels (down, right)."""
    if image.dim() == 2:
        if plane is not None:
            raise ValueError(f"plane: expected None for an image, got {plane!r}")
        return (lambda array: array), (steps[0], steps[1])
    axis, index = (0, None) if plane is None else plane
    axis = checks.integer("plane", axis)
    if not 0 <= axis < 3:
        raise ValueError(f"plane: expected an axis of 0, 1 or 2, got {axis}")
    index = fullest_slice(image, axis) if index is None else checks.integer("plane", index)
    if not 0 <= index < image.shape[axis]:
        raise ValueError(f"plane: expected a slice in [0, {image.shape[axis]}) along axis {axis}, got {index}")
    down, right = (step for a, step in enumerate(steps) if a != axis)
    return (lambda array: array.select(axis, index)), (down, right)


def _draw(
    picture: Picture,
    shown: Sequence[int],
    names: Sequence[str],
    values: dict[str, list[Picture]],
    sizes: tuple[float, float],
    distance: str,
    axes: Any,
) -> Figure:
    aspect = sizes[0] / sizes[1]
    figure, grid, bars = _grid(picture.shape, aspect, len(shown), 1 + len(values), axes)
    for row, (k, name) in enumerate(zip(shown, names, strict=True)):
        for panel in grid[row]:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set(color=style.FRAME, linewidth=0.6)
        _show_labels(grid[row][0], picture, k, row, aspect)
        grid[row][0].set_ylabel(name, size=style.SIZE, color=style.TEXT)
    for column, (family, of_classes) in enumerate(values.items(), start=1):
        own = [line[column] for line in grid]
        text = distance if FAMILIES[family].dense else "map value"
        limits = (-1.0, 1.0) if FAMILIES[family].divided else (np.min(of_classes), np.max(of_classes))
        _show_family(figure, own, of_classes, aspect, limits, text, bars[column] if bars else None)
    titles = ["Labels", *(FAMILIES[family].title for family in values)]
    style.letters(grid[0], titles)
    return figure


def _grid(shape: Sequence[int], aspect: float, rows: int, columns: int, axes: Any) -> tuple[Figure, Any, Any]:
    """The figure, its panels, and in a figure of our own the axes of the colour bars, so that all panels align."""
    if axes is not None:
        figure, grid = style.panels(axes, rows, columns, (1, 1))
        return figure, grid, None
    height = min(_WIDTH * shape[0] * aspect / shape[1], _TALLEST)
    width = max(min(_WIDTH, height * shape[1] / (shape[0] * aspect)), _NARROWEST)
    size = (columns * (width + 0.1) + 0.3, rows * (height + 0.08) + 0.75)
    ratios = [height] * rows + [0.09]
    figure, grid = style.panels(None, rows + 1, columns, size, height_ratios=ratios)
    grid[-1][0].set_axis_off()
    return figure, grid[:-1], grid[-1]


def _show_labels(panel: Axes, picture: Picture, k: int, row: int, aspect: float) -> None:
    """All classes in greys, class `k` in a colour of its own."""
    from matplotlib.colors import to_rgb

    present = np.unique(picture)
    others = [one for one in present if one != k]
    greys = dict(zip(others, np.linspace(0.96, 0.55, max(len(others), 1)), strict=False))
    colours = np.empty((*picture.shape, 3))
    for one in present:
        colours[picture == one] = to_rgb(style.COLOURS[row % len(style.COLOURS)]) if one == k else (greys[one],) * 3
    panel.imshow(colours, interpolation="nearest", aspect=aspect)


def _show_family(
    figure: Figure,
    panels: Sequence[Axes],
    pictures: list[Picture],
    aspect: float,
    limits: tuple[float, float],
    text: str,
    place: Axes | None,
) -> None:
    """One family of maps of all classes, on one scale that is white at zero, with its bar below."""
    from matplotlib.colors import TwoSlopeNorm

    low, high = map(float, limits)
    # A side that has no values still has a colour: the scale reaches as far there as on the other side.
    reach = max(abs(low), abs(high)) or 1.0
    norm = TwoSlopeNorm(0.0, low if low < 0 else -reach, high if high > 0 else reach)
    drawn: AxesImage | None = None
    for panel, picture in zip(panels, pictures, strict=True):
        drawn = panel.imshow(picture, norm=norm, cmap=style.diverging(), interpolation="nearest", aspect=aspect)
    assert drawn is not None
    where: dict[str, Any] = {"cax": place} if place is not None else {"ax": list(panels), "aspect": 18, "pad": 0.02}
    bar = figure.colorbar(drawn, orientation="horizontal", **where)
    ticks = sorted({min(low, 0.0), 0.0, max(high, 0.0)})
    style.bar_of(bar, text, ticks)
    if len(ticks) > 1:
        bar.ax.set_xlim(ticks[0], ticks[-1])
