"""The seven key rows of the regression guard, run through the C++ core alone.

    python guard_rows.py CORE ROW RUNS

It imports neither torch nor the package: under Valgrind those would take minutes, and drown what is counted.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

# Odd sizes, so that ends of rows and of tiles are part of it.
PLANE, VOLUME, CLASSES = (1, 1, 197, 221), (1, 43, 61, 53), 4
_NAME = "rwkernels._native"


class Prepared(NamedTuple):
    """A row that is ready to run, and the least bytes that it reads and writes."""

    run: Callable[[], Any]
    moved: int


def load_core(path: str) -> Any:
    """The compiled module at `path`, or the one that this process has loaded: its types cannot be there twice."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    return sys.modules[_NAME]


def labels(sizes: tuple[int, ...]) -> bytearray:
    """Rings around the middle of an image [B, Z, Y, X], class 3 innermost."""
    _, depth, height, width = sizes
    out = bytearray()
    for z in range(depth):
        for y in range(height):
            row = bytearray(width)
            off = ((y + 0.5) / height - 0.5) ** 2
            off += ((z + 0.5) / depth - 0.5) ** 2 if depth > 1 else 0.0
            for label, radius in ((1, 0.42), (2, 0.27), (3, 0.11)):
                half = int(width * max(radius**2 - off, 0.0) ** 0.5)
                middle = width // 2
                row[middle - half : middle + half] = bytes([label]) * (2 * half)
            out += row
    return out


def _floats(count: int) -> array[float]:
    """Numbers between -2 and 2 that look random."""
    some = [((i * 7919) % 1021) / 255.25 - 2 for i in range(1021)]
    return array("f", some * (count // 1021 + 1))[:count]


def _address(values: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(values))


def _map_problem(core: Any, image: bytearray, shape: tuple[int, ...], classes: int) -> Any:
    return core.MapProblem(
        labels=_address(image),
        label_dtype="u1",
        shape=shape,
        spacing=(),
        black_border=False,
        num_classes=classes,
        class_max=0,
        ignore=None,
        validate=True,
        threads=1,
    )


def _loss_problem(
    core: Any, logits: Any, maps: Any, image: bytearray | None, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Any:
    """Of a compact map over the labels of an image, or of a dense one without."""
    return core.LossProblem(
        logits=_address(logits),
        dtype="f4",
        shape=shape,
        strides=strides,
        map=_address(maps),
        map_dtype="f4",
        map_strides=strides if image is None else None,
        labels=0 if image is None else _address(image),
        label_dtype="u1",
        ignore=None,
        background=0,
        background_value=1.0,
        class_scale=0,
        scale_groups=1,
        validate=False,
        threads=1,
    )


def _map_row(core: Any, sizes: tuple[int, ...], what: str) -> Prepared:
    image, pixels = labels(sizes), sizes[1] * sizes[2] * sizes[3]
    channels = CLASSES if what == "boundary" else 1
    out, count = array("f", bytes(4 * pixels * channels)), array("q", [0])
    shape = sizes if sizes[1] > 1 else (sizes[0], *sizes[2:])

    def run() -> Any:
        problem = _map_problem(core, image, shape, CLASSES)
        if what == "distance":
            return core.distance(problem, out=_address(out), squared=False)
        if what == "rectified":
            return core.rectified(problem, field=_address(out), count=_address(count))
        return core.boundary(problem, out=_address(out), absent=0.0, inside_offset=0.0)

    return Prepared(run, pixels * (1 + 4 * channels))


def _loss_row(core: Any, *, compact: bool) -> Prepared:
    _, _, height, width = PLANE
    pixels = height * width
    logits, grad = _floats(CLASSES * pixels), array("f", bytes(4 * CLASSES * pixels))
    maps, image = _floats(pixels if compact else CLASSES * pixels), labels(PLANE)
    scale, sums = array("d", [1 / (CLASSES * pixels)]), array("d", [0.0])
    shape, strides = (1, CLASSES, height, width), (CLASSES * pixels, pixels, width, 1)

    def run() -> Any:
        problem = _loss_problem(core, logits, maps, image if compact else None, shape, strides)
        return core.region_wise(
            problem,
            grad=_address(grad),
            grad_strides=strides,
            image_scale=_address(scale),
            pixel_scale=0,
            image_sums=_address(sums),
            pixel_loss=0,
        )

    return Prepared(run, pixels * (8 * CLASSES + 5 if compact else 12 * CLASSES))


def _step_row(core: Any) -> Prepared:
    """A whole step of a small image, from labels to the gradient, by a plan that is there."""
    side, classes = 32, 3
    pixels = side * side
    logits, grad = _floats(classes * pixels), array("f", bytes(4 * classes * pixels))
    image, foreground, loss = bytearray(pixels), array("f", bytes(4 * pixels)), array("f", [0.0])
    for y in range(9, 23):
        image[y * side + 8 : y * side + 25] = bytes([1 + (y > 15)]) * 17
    strides = (classes * pixels, pixels, side, 1)
    problem = _loss_problem(core, logits, foreground, image, (1, classes, side, side), strides)
    maps = _map_problem(core, image, (1, side, side), classes)
    plan = core.LossPlan(problem, maps=maps, grad_strides=strides, mean=True, divide=True, channels=classes, weight=1.0)

    def run() -> None:
        plan.run(
            _address(logits), _address(foreground), _address(image), 0, 0, 0, _address(grad), _address(loss), 0.0, 1
        )

    return Prepared(run, pixels * (1 + 8 * classes))


ROWS: dict[str, Callable[[Any], Prepared]] = {
    "distance 2D": lambda core: _map_row(core, PLANE, "distance"),
    "distance 3D": lambda core: _map_row(core, VOLUME, "distance"),
    "rectified map 3D": lambda core: _map_row(core, VOLUME, "rectified"),
    "boundary map 2D": lambda core: _map_row(core, PLANE, "boundary"),
    "loss, dense map": lambda core: _loss_row(core, compact=False),
    "loss, compact map": lambda core: _loss_row(core, compact=True),
    "small step": _step_row,
}


def prepare(core: str, row: str) -> Prepared:
    """A row over the core at a path."""
    return ROWS[row](load_core(core))


if __name__ == "__main__":
    prepared = prepare(*sys.argv[1:3])
    for _ in range(int(sys.argv[3])):
        prepared.run()
