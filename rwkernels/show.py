"""`rwkernels show`: the maps of somebody's own labels, in a window or in a file."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkernels.commands import problem
from rwkernels.maps.families import FAMILIES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

_MOST_VALUES = 1000
_EXTRAS = {"nibabel": "plot", "PIL": "plot", "SimpleITK": "precompute", "tifffile": "precompute", "zarr": "precompute"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = (
        "Draws the region-wise maps of a label image side by side. Of a volume it shows one slice, by default the one "
        "with the most classes, with the distances of the volume."
    )
    parser.add_argument(
        "labels", type=Path, metavar="LABELS", help="a label image: NIfTI, NRRD, MetaImage, NPY, NPZ, PNG, TIFF or Zarr"
    )
    parser.add_argument("--key", metavar="NAME", help="which array of NPZ files and Zarr groups")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write .svg, .pdf, .eps or .png instead of a window")
    parser.add_argument("--slice", type=int, metavar="N", help="which slice of a volume, counted from 0")
    parser.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="axis of the file to slice along: by default the axial one of scans, 0 of arrays",
    )
    parser.add_argument(
        "--flat", action="store_true", help="distances within the slice, as training on slices has them"
    )
    parser.add_argument("--classes", type=int, nargs="+", metavar="LABEL", help="which labels; by default up to four")
    parser.add_argument(
        "--families",
        nargs="+",
        choices=tuple(FAMILIES),
        default=["active_contour", "boundary", "rectified"],
        metavar="NAME",
        help=", ".join(FAMILIES),
    )
    parser.add_argument(
        "--spacing", type=float, nargs="+", metavar="STEP", help="size of a pixel, instead of that in the file"
    )
    parser.add_argument("--dpi", type=float, default=300, help="dots per inch of pictures (default 300)")


class Labels(NamedTuple):
    """A label image as it is shown: rows go down."""

    array: npt.NDArray[Any]
    spacing: tuple[float, ...]
    unit: str | None
    axes: tuple[tuple[int, bool], ...]  # where an axis of the file is in `array`, and whether it is reversed there
    axis: int  # of the file, whose slices are shown by default


def read(path: Path, key: str | None = None) -> Labels:
    """The label image in a file. Raises `ValueError` for what is none, `OSError` for what cannot be read."""
    try:
        found = _upright(path, key)
    except FileNotFoundError:
        raise FileNotFoundError("no such file") from None
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        hint = f'pip install "rwkernels[{_EXTRAS[error.name]}]"'
        raise ImportError(f"{path.name} needs {error.name}, which is not installed: {hint}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:  # whatever a reader raises of a file that is no label map
        raise ValueError(f"{type(error).__name__}: {error}") from error
    while found.array.ndim > 2 and 1 in found.array.shape:  # an image is an image in a file of volumes too
        gone = found.array.shape.index(1)
        spacing = tuple(step for axis, step in enumerate(found.spacing) if axis != gone)
        axes = tuple((place - (place > gone), turned) for place, turned in found.axes if place != gone)
        found = Labels(found.array.squeeze(gone), spacing, found.unit, axes, 0)
    return found


def _upright(path: Path, key: str | None) -> Labels:
    """A scan is turned so that superior and anterior are up and the patient's left is left. Nothing is resampled."""
    from rwkernels.formats import ReadOptions, open_labels

    opened = open_labels(path, ReadOptions(key=key))
    array, steps = opened.load(), opened.spacing or ()
    if array.ndim not in (2, 3):
        raise ValueError(f"expected an image or a volume, got an array of shape {list(array.shape)}")
    if opened.affine is None:
        return Labels(array, steps, opened.unit, tuple((axis, False) for axis in range(array.ndim)), 0)
    from nibabel.orientations import io_orientation

    # For every axis of the file, the axis of the patient (to the right, the front, the head), and 1 or -1 along it.
    turns = io_orientation(opened.affine).tolist()
    if any(to != to for to, _ in turns):
        raise ValueError("expected an affine with three directions")
    # Down go the head to the feet and the front to the back.
    axes = tuple((2 - int(to), (sign == 1) == (to > 0)) for to, sign in turns)
    order = _order(axes)
    shown = array.reshape(*array.shape, *[1] * (3 - array.ndim)).transpose(order)
    shown = shown[tuple(slice(None, None, -1 if turned else 1) for _, turned in (axes[axis] for axis in order))]
    return Labels(shown, tuple((*steps, 1.0)[axis] for axis in order), opened.unit, axes, order[0])


def values_and_codes(array: npt.NDArray[Any]) -> tuple[list[int], npt.NDArray[np.int64]]:
    """The labels that occur, and the array with each one's place among them. Raises `ValueError` for no labels."""
    import numpy as np

    if array.dtype.kind not in "buif" or not (np.isfinite(array) & (np.rint(array) == array)).all():
        raise ValueError(f"expected labels, whole numbers, got {array.dtype} with other values")
    values, codes = np.unique(array, return_inverse=True)
    if len(values) > _MOST_VALUES:
        raise ValueError(f"expected labels, got {len(values)} different values: is this an image?")
    return [int(value) for value in values], codes.reshape(array.shape).astype(np.int64)


def draw(arguments: argparse.Namespace) -> Figure:
    """The figure that the arguments ask for. Raises `ValueError` or `OSError` with what is wrong."""
    import numpy as np

    from rwkernels import plots

    found = read(arguments.labels, arguments.key)
    values, codes = values_and_codes(found.array)
    spacing, unit = found.spacing, found.unit
    if arguments.spacing is not None:
        steps = arguments.spacing * codes.ndim if len(arguments.spacing) == 1 else arguments.spacing
        if len(steps) != codes.ndim:
            raise ValueError(f"--spacing: expected 1 or {codes.ndim} numbers, got {len(steps)}")
        spacing, unit = tuple(steps[axis] for axis in _order(found.axes)), None
    classes = None
    if arguments.classes is not None:
        missing = sorted(set(arguments.classes) - set(values))
        if missing:
            raise ValueError(f"--classes: expected labels of the file ({_some(values)}), got {missing[0]}")
        classes = [values.index(value) for value in arguments.classes]
    plane: tuple[int, int | None] | None = _plane(arguments, found, codes)
    if plane is not None and arguments.flat:
        axis, index = plane
        assert index is not None
        codes = np.take(codes, [index], axis=axis).squeeze(axis)
        spacing = tuple(step for a, step in enumerate(spacing) if a != axis)
        plane = None
    return plots.maps(
        codes,
        len(values),
        spacing=spacing,
        families=arguments.families,
        classes=classes,
        plane=plane,
        class_names=[f"label {value}" for value in values],
        unit=unit,
    )


def _order(axes: Sequence[tuple[int, bool]]) -> list[int]:
    """For every axis of the array, its axis in the file."""
    where = [place for place, _ in axes]
    return [where.index(axis) for axis in range(len(where))]


def _plane(arguments: argparse.Namespace, found: Labels, codes: npt.NDArray[np.int64]) -> tuple[int, int] | None:
    """The axis and index in the array of the slice to show; None for an image. Says which slice it took."""
    import torch

    from rwkernels.plots.pictures import fullest_slice

    if codes.ndim == 2:
        for option in ("slice", "axis"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option}: expected none, for the file holds a single image")
        return None
    axis = found.axis if arguments.axis is None else arguments.axis
    place, reversed_there = found.axes[axis]
    size = codes.shape[place]
    if arguments.slice is None:
        index = fullest_slice(torch.from_numpy(codes), place)
        shown = size - 1 - index if reversed_there else index
        print(f"slice {shown} of {size} along axis {axis}, the one with the most classes")
        return place, index
    if not 0 <= arguments.slice < size:
        raise ValueError(f"--slice: expected a number in [0, {size}), got {arguments.slice}")
    return place, size - 1 - arguments.slice if reversed_there else arguments.slice


def _some(values: Sequence[int], most: int = 12) -> str:
    told = ", ".join(map(str, values[:most]))
    return told if len(values) <= most else f"{told}, ... ({len(values)} in all)"


def _why_no_window() -> str | None:
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    backends: Any = importlib.import_module("matplotlib.backends")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    backend = plt.get_backend()
    windows = backends.backend_registry.list_builtin(backends.BackendFilter.INTERACTIVE)
    if backend.lower() not in {name.lower() for name in windows}:
        return f"matplotlib's backend here, {backend}, opens no window"
    return None


def _window(figure: Figure) -> None:
    """Opens the figure, which was made without pyplot, in one of its windows."""
    plt: Any = importlib.import_module("matplotlib.pyplot")
    manager = plt.figure().canvas.manager
    manager.canvas.figure = figure
    figure.set_canvas(manager.canvas)
    plt.show()


def _check_target(path: Path) -> None:
    """Refuses where the figure cannot be written before it is drawn."""
    from rwkernels.plots.style import FORMATS

    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise ValueError(f"--save: expected a name that ends in {', '.join('.' + one for one in FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--save: there is no folder {path.parent}")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command: 0; 2 for files and arguments that cannot be shown, and where there is no window."""
    try:
        from rwkernels import plots

        if arguments.save is not None:
            _check_target(arguments.save)
        else:
            reason = _why_no_window()
            if reason is not None:
                return problem("show", f"{reason}: pass --save FILE to write the figure")
        figure = draw(arguments)
        if arguments.save is None:
            _window(figure)
        else:
            print(f"wrote {plots.save(figure, arguments.save, dpi=arguments.dpi)}")
    except ImportError as error:
        return problem("show", error)
    except (ValueError, TypeError, OSError) as error:
        return problem("show", f"{arguments.labels}: {error}")
    return 0
