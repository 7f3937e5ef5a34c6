"""The picture: one validation slice, its maps, four predictions, learning curves and cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

import rwkernels as rw
from rwkernels.demo.evaluation import SCORED_CLASSES, dice_per_class
from rwkernels.demo.speed import Speed
from rwkernels.demo.training import Training
from rwkernels.experiments.images import Images, Part
from rwkernels.experiments.mni152 import CLASS_NAMES, TRAIN_Z_MM, VALIDATION_Z_MM
from rwkernels.plots.style import COLOURS, DASHES

DPI = 150

_LINES: dict[str, tuple[str, Any]] = {
    name: (COLOURS[colour], dashes)
    for (name, colour), dashes in zip(
        {"RRW": 0, "RW-Boundary": 1, "cross-entropy": 6, "CE fading to RRW": 2}.items(), DASHES, strict=False
    )
}
_CLASS_COLOURS = ("#10151B", "#4A87B5", "#F3E6CB")
_WRONG_COLOUR = "#E8590C"
_TEXT = "#1F2933"
_QUIET = "#52606D"
_MARGIN, _GAP, _PICTURE_WIDTH, _CURVE_HEIGHT = 0.3, 0.2, 2.85, 2.6
_MAP_MM = 10.0
"""Boundary distances are shown up to this; farther away the colour stays."""
_WHITE = CLASS_NAMES.index("white")


def draw(images: Images, trainings: list[Training], speeds: list[Speed]) -> Figure:
    """Return the figure for the middle validation slice."""
    block = images.validation
    shown = len(block.labels) // 2
    window = _brain_window(block.labels[shown].numpy())
    rows, columns = window
    picture_height = _PICTURE_WIDTH * (rows.stop - rows.start) / (columns.stop - columns.start)
    page = _Page(picture_height)

    page.text(0.42, "Region-wise losses on real MR images", size=21, weight="bold", color=_TEXT)
    page.text(
        0.8,
        "MNI152 T1, a population template; labels derived from its tissue maps. Validation slice at "
        f"z = {VALIDATION_Z_MM[shown]:+d} mm; the training slices end at {TRAIN_Z_MM[-1]:+d} mm.",
        size=11.5,
        color=_QUIET,
    )
    _draw_inputs(page, block, shown, window)
    _draw_predictions(page, block, shown, window, trainings)
    _draw_curves(page, trainings)
    _draw_cost(page, speeds)
    return page.figure


class _Page:
    """A page measured in inches from its upper left corner, so that all pictures are equally large."""

    def __init__(self, picture_height: float) -> None:
        self.picture_height = picture_height
        self.inputs_top = 1.65
        self.keys_top = self.inputs_top + picture_height + 0.16
        self.predictions_top = self.keys_top + 1.3
        self.curves_top = self.predictions_top + picture_height + 1.0
        self.width = 2 * _MARGIN + 4 * _PICTURE_WIDTH + 3 * _GAP
        self.height = self.curves_top + _CURVE_HEIGHT + 1.0
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def picture(self, column: int, top: float) -> Axes:
        return self.axes(_MARGIN + column * (_PICTURE_WIDTH + _GAP), top, _PICTURE_WIDTH, self.picture_height)

    def text(self, top: float, text: str, **style: Any) -> None:
        self.figure.text(_MARGIN / self.width, 1 - top / self.height, text, va="center", **style)


def _draw_inputs(page: _Page, block: Part, shown: int, window: tuple[slice, slice]) -> None:
    image_axes, labels_axes, rectified_axes, boundary_axes = (
        page.picture(column, page.inputs_top) for column in range(4)
    )
    labels = block.labels[shown : shown + 1]
    rectified = rw.rectified_map(labels, len(CLASS_NAMES)).dense()[0, _WHITE].numpy()[window]
    boundary = rw.boundary_map(labels, len(CLASS_NAMES))[0, _WHITE].numpy()[window]
    shades = ListedColormap(colormaps["RdBu_r"](np.linspace(0.1, 0.9, 256)))

    _show(image_axes, block.images[shown, 0].numpy()[window], "Image", "T1", cmap="gray")
    _show_classes(labels_axes, labels[0].numpy()[window], "Labels", "what the networks should find")
    for axes, picture, title, subtitle, most in (
        (rectified_axes, rectified, "RRW map", "of white, from -1 to +1", 1.0),
        (boundary_axes, boundary, "RW-Boundary map", "of white, in mm", _MAP_MM),
    ):
        _show(axes, picture, title, subtitle, cmap=shades, vmin=-most, vmax=most)
    _draw_class_key(page.axes(_MARGIN, page.keys_top, 2 * _PICTURE_WIDTH + _GAP, 0.2))
    _draw_map_key(page, rectified_axes.images[0])


def _draw_class_key(axes: Axes) -> None:
    axes.set_axis_off()
    colours = [*zip(CLASS_NAMES, _CLASS_COLOURS, strict=True), ("wrong pixel (below)", _WRONG_COLOUR)]
    axes.legend(
        handles=[Patch(facecolor=colour, edgecolor=_QUIET, lw=0.6, label=name) for name, colour in colours],
        loc="center left",
        borderpad=0,
        borderaxespad=0,
        ncols=4,
        frameon=False,
        fontsize=10.5,
    )


def _draw_map_key(page: _Page, shades: AxesImage) -> None:
    """Draw one bar of colours for both maps: above its value in the RRW map, below it millimetres."""
    left = _MARGIN + 2 * (_PICTURE_WIDTH + _GAP)
    axes = page.axes(left, page.keys_top, 2 * _PICTURE_WIDTH + _GAP, 0.15)
    bar = page.figure.colorbar(shades, cax=axes, orientation="horizontal")
    marks = [-1.0, -0.5, 0.0, 0.5, 1.0]
    texts = [f"{mark:+g}\n{mark * _MAP_MM:+g} mm" for mark in marks]
    texts[2], texts[-1] = "0", f"+1\n+{_MAP_MM:g} mm or more"
    bar.set_ticks(marks, labels=texts)
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.tick_params(length=0, labelsize=9.5, labelcolor=_QUIET)
    axes.spines[:].set_visible(False)


def _draw_predictions(
    page: _Page, block: Part, shown: int, window: tuple[slice, slice], trainings: list[Training]
) -> None:
    labels = block.labels[shown : shown + 1]
    for column, training in enumerate(trainings):
        assert training.final is not None
        prediction = training.final.prediction[shown : shown + 1]
        dice = zip(SCORED_CLASSES, dice_per_class(prediction, labels), strict=True)
        _show_classes(
            page.picture(column, page.predictions_top),
            prediction[0].numpy()[window],
            training.name,
            "Dice here: " + ", ".join(f"{name} {value:.3f}" for name, value in dice),
            wrong=(prediction != labels)[0].numpy()[window],
        )


def _draw_curves(page: _Page, trainings: list[Training]) -> None:
    epochs = range(1, len(trainings[0].dice) + 1)
    width = 3.45
    for k, name in enumerate(SCORED_CLASSES):
        axes = page.axes(_MARGIN + 0.5 + k * (width + 0.62), page.curves_top, width, _CURVE_HEIGHT)
        for training in trainings:
            colour, style = _LINES[training.name]
            values = [epoch[k] for epoch in training.dice]
            axes.plot(epochs, values, color=colour, ls=style, lw=2, label=training.name)
        _title(axes, f"Dice, {name}", "mean over the validation slices after every epoch")
        axes.set_xlabel("epoch", color=_QUIET)
        axes.set_ylabel("Dice", color=_QUIET)
        axes.set_ylim(0, 1)
        axes.set_xlim(0, len(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#E4E7EB", lw=0.8)
        _open_frame(axes)
        if k == 0:
            axes.legend(loc="lower right", frameon=False, fontsize=10.5, handlelength=3)


def _draw_cost(page: _Page, speeds: list[Speed]) -> None:
    width = 2.95
    axes = page.axes(page.width - _MARGIN - width, page.curves_top, width, _CURVE_HEIGHT)
    slowest = max(speed.usual_seconds for speed in speeds)
    rows: list[str] = []
    for speed in speeds:
        for way, seconds in (("usual", speed.usual_seconds), ("rwkernels", speed.fused_seconds)):
            ours = way == "rwkernels"
            axes.barh(len(rows), seconds, height=0.7, color=_LINES[speed.name][0] if ours else "#B8C2CC")
            note = f"{seconds * 1e3:.2f}" + (f"   {speed.ratio:.1f} times faster" if ours else "")
            inside = seconds > 0.6 * slowest
            axes.annotate(
                note,
                (seconds, len(rows)),
                (-5 if inside else 5, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                size=10.5,
                weight="bold" if ours else "normal",
                color="white" if inside and ours else _TEXT,
            )
            rows.append(f"{speed.name}\n{way}")
    _title(axes, "Maps + loss + gradient", "ms a batch; usual: SciPy, eager PyTorch")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlim(0, 1.02 * slowest)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds * 1e3:g}")
    axes.set_xlabel("milliseconds", color=_QUIET)
    axes.invert_yaxis()
    _open_frame(axes)
    axes.tick_params(axis="y", length=0)


def _show(axes: Axes, picture: npt.NDArray[Any], title: str, subtitle: str, **style: Any) -> AxesImage:
    axes.set_axis_off()
    _title(axes, title, subtitle)
    return axes.imshow(picture, interpolation="nearest", **style)


def _show_classes(
    axes: Axes,
    classes: npt.NDArray[Any],
    title: str,
    subtitle: str,
    wrong: npt.NDArray[np.bool_] | None = None,
) -> None:
    colours = ListedColormap([*_CLASS_COLOURS, _WRONG_COLOUR])
    shown = classes if wrong is None else np.where(wrong, len(_CLASS_COLOURS), classes)
    _show(axes, shown, title, subtitle, cmap=colours, vmin=-0.5, vmax=len(_CLASS_COLOURS) + 0.5)


def _title(axes: Axes, title: str, subtitle: str) -> None:
    def write(text: str, above: int, **style: Any) -> None:
        axes.annotate(
            text,
            (0, 1),
            (0, above),
            xycoords="axes fraction",
            textcoords="offset points",
            va="baseline",
            **style,
        )

    write(title, 20, size=13, weight="bold", color=_TEXT)
    write(subtitle, 6, size=10, color=_QUIET)


def _open_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9AA5B1")
    axes.tick_params(colors=_QUIET)


def _brain_window(labels: npt.NDArray[Any], margin: int = 6) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero((labels > 0).any(axis=axis)) for axis in (1, 0))

    def around(hits: npt.NDArray[Any]) -> slice:
        return slice(max(int(hits[0]) - margin, 0), int(hits[-1]) + margin + 1)

    return around(rows), around(columns)
