"""Calls every function of the C++ core on awkward sizes, from several threads and in a forked child.

Under a sanitizer the process ends at the first complaint. NumPy only: torch has threads of its own that would be
reported. Numbers are compared with the tests' references elsewhere; here a rerun on one thread has to agree.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import _native
import numpy as np

RNG = np.random.default_rng(0)
SHAPES = [
    (1, (1,)),
    (2, (37,)),
    (3, (1, 5)),
    (2, (33, 70)),
    (1, (513, 257)),  # enough pixels for threads to be worth their while
    (0, (4, 4)),
    (2, (0, 3)),
    (2, (5, 33, 17)),
    (1, (64, 3, 100)),
]
CODES = {"u1": np.uint8, "i1": np.int8, "i2": np.int16, "i4": np.int32, "i8": np.int64}
THREADS = 4


def address(array: np.ndarray | None) -> int:
    """Where the array's data begins; 0 for none."""
    return 0 if array is None else array.ctypes.data


def label_images(batch: int, shape: tuple[int, ...], num_classes: int, dtype: type) -> list[np.ndarray]:
    """Random, coarse, uniform and single-pixel labels."""
    full = (batch, *shape)
    random = RNG.integers(0, num_classes, full)
    coarse = np.broadcast_to((np.arange(shape[-1]) // 7) % num_classes, full)
    uniform = np.zeros(full)
    single = np.zeros(full)
    single.reshape(-1)[single.size // 3 : single.size // 3 + 1] = num_classes - 1
    return [np.ascontiguousarray(a, dtype) for a in (random, coarse, uniform, single)]


def described(labels: np.ndarray, code: str, threads: int, num_classes: int = 0, **options: Any) -> Any:
    """The core's problem of labels [B, *S]; `options` are what is not left out of it."""
    given = {
        "shape": labels.shape,
        "spacing": (),
        "black_border": False,
        "class_max": 0,
        "ignore": None,
        "validate": False,
    }
    return _native.MapProblem(
        **given | options, labels=address(labels), label_dtype=code, num_classes=num_classes, threads=threads
    )


def refusal(call: Callable[..., None], problem: Any, **arguments: Any) -> np.ndarray:
    """Whether labels are refused or class_max, and the flat index of what is bad; -1 twice if nothing is."""
    try:
        call(problem, **arguments)
    except _native.BadValue as bad:
        return np.array([bad.argument == "labels", bad.index])
    return np.array([-1, -1])


def distances(labels: np.ndarray, code: str, num_classes: int, threads: int) -> list[np.ndarray]:
    """Every function on labels; ends with the arrays they wrote."""
    batch, *shape = labels.shape
    spacing = (2.5, 1.0, 0.75)[3 - len(shape) :]
    like, dense = labels.shape, (batch, num_classes, *shape)
    out = {name: np.zeros(like, np.float32) for name in ("plain", "border", "rectified")}
    out |= {name: np.zeros(dense, np.float32) for name in ("classes", "boundary", "dense")}
    half, count = np.zeros(dense, np.uint16), np.zeros(batch, np.int64)
    maxima = np.zeros((batch, num_classes), np.float32)
    codes_of, field = [np.zeros(like, np.uint8), np.zeros(like, np.uint16)], np.zeros(like, np.float32)

    def problem(num_classes: int = num_classes, **options: Any) -> Any:
        return described(labels, code, threads, num_classes, **options)

    _native.distance(problem(spacing=spacing), out=address(out["plain"]), squared=False)
    _native.distance(problem(black_border=True), out=address(out["border"]), squared=True)
    _native.class_distance(problem(spacing=spacing, validate=True), out=address(out["classes"]), squared=False)
    _native.class_max(problem(), distance=address(out["border"]), out=address(maxima))
    threes = np.full((batch, num_classes), 3.0, np.float32)
    for class_max in (None, threes):
        given = problem(spacing=spacing, black_border=True, ignore=0, validate=True, class_max=address(class_max))
        _native.rectified(given, field=address(out["rectified"]), count=address(count))
        for codes in codes_of:
            _native.rectified(
                given,
                field=address(field),
                count=address(count),
                codes=address(codes),
                code_bytes=codes.itemsize,
                largest=address(maxima),
            )
    given = problem(spacing=spacing, ignore=0, validate=True)
    _native.boundary(given, out=address(out["boundary"]), absent=0.0, inside_offset=1.0)
    scale = np.linspace(0.5, 2, num_classes, dtype=np.float32)
    for array, kind in ((out["dense"], "f4"), (half, "bf"), (half, "f2")):
        _native.dense(
            problem(),
            foreground=address(out["rectified"]),
            background=address(out["plain"]),
            background_value=1.0,
            class_scale=address(scale),
            out=address(array),
            out_dtype=kind,
        )
    # A smaller class count makes labels bad: found when checked, harmless when not.
    few, first_bad = problem(1, spacing=spacing), _native.first_bad_label(problem(1))
    _native.rectified(few, field=address(out["plain"]), count=0)
    given = problem(1, spacing=spacing, validate=True)
    refused = [refusal(_native.rectified, given, field=address(field), count=address(count))]
    assert refused[0][1] == first_bad
    given = problem(class_max=address(np.zeros_like(threes)))
    refused += [refusal(_native.rectified, given, field=address(field), count=0)]
    reversed_bytes = np.zeros(labels.size, np.uint8)
    if labels.itemsize == 1 and batch > 0:
        lengths = (*[1] * (3 - len(shape)), *shape)
        _native.reverse_axes(bytes=address(labels), out=address(reversed_bytes), shape=lengths, threads=threads)
    return [*out.values(), half, count, maxima, *codes_of, reversed_bytes, *refused]


def single_steps(labels: np.ndarray, code: str, num_classes: int, threads: int) -> list[np.ndarray]:
    """Passes along one axis each, and Eq. 4 on one block."""
    field, written = np.full(labels.shape, np.nan, np.float32), []
    for axis in reversed(range(1, labels.ndim)):
        first = axis == labels.ndim - 1
        lines = (int(np.prod(labels.shape[:axis])), labels.shape[axis], int(np.prod(labels.shape[axis + 1 :])))
        problem = described(labels, code, threads, shape=lines, black_border=axis % 2 == 0)
        _native.axis_pass(problem, field=address(field), unit=0.7, first=first)
        written.append(field.copy())
    maxima = np.linspace(2, 9, num_classes, dtype=np.float32)
    for class_max in (None, maxima):
        block = field.copy()
        problem = described(
            labels,
            code,
            threads,
            num_classes,
            shape=(1, labels.size),
            spacing=(0.7,),
            class_max=address(class_max),
            ignore=0,
        )
        _native.rectify(problem, field=address(block), squared_max=address(maxima))
        written.append(block)
    return written


def losses(labels: np.ndarray, code: str, num_classes: int, threads: int) -> list[np.ndarray]:
    """The loss of dense and compact maps and its signs, contiguous and with the classes last, in every dtype."""
    batch, *shape = labels.shape
    written: list[np.ndarray] = []
    values = np.random.default_rng(1).standard_normal((batch, num_classes, *shape))
    for dtype, code_of_dtype in ((np.float32, "f4"), (np.float64, "f8"), (np.float16, "f2"), (np.uint16, "bf")):
        bits = values.astype(np.float32).view(np.uint32) >> 16 if dtype is np.uint16 else values
        for classes_last in (False, True):
            logits = bits.astype(dtype)
            if classes_last:
                logits = np.moveaxis(np.ascontiguousarray(np.moveaxis(logits, 1, -1)), -1, 1)
            grad = np.zeros_like(logits)
            strides = tuple(s // logits.itemsize for s in logits.strides)
            precise = np.float64 if dtype is np.float64 else np.float32
            sums, pixels, signs = np.zeros(batch), np.zeros(labels.shape, precise), np.zeros(labels.shape, np.int32)
            foreground = np.linspace(-1, 0, labels.size, dtype=np.float32)
            weights, ones = np.linspace(0.5, 2, num_classes), np.ones(batch)
            pixel_ones = np.ones(pixels.shape, precise)
            for compact in (False, True):
                problem = _native.LossProblem(
                    logits=address(logits),
                    dtype=code_of_dtype,
                    shape=logits.shape,
                    strides=strides,
                    map=address(foreground if compact else logits),
                    map_dtype="f4" if compact else code_of_dtype,
                    map_strides=None if compact else strides,
                    labels=address(labels),
                    label_dtype=code,
                    ignore=0,
                    background=0,
                    background_value=1.0,
                    class_scale=address(weights) if compact else 0,
                    scale_groups=1,
                    validate=True,
                    threads=threads,
                )
                _native.region_wise(
                    problem,
                    grad=address(grad),
                    grad_strides=strides,
                    image_scale=address(ones),
                    pixel_scale=address(pixel_ones),
                    image_sums=address(sums),
                    pixel_loss=address(pixels),
                )
                _native.negatives(problem, probabilities=False, wrong=compact, out=address(signs))
                written += [sums.copy(), pixels.copy(), grad.copy(), signs.copy()]
    return written


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """The same bits, whatever the number of threads."""
    for a, b in zip(found, expected, strict=True):
        assert a.tobytes() == b.tobytes(), "the result depends on the number of threads"


def everything(dtypes: dict[str, Any]) -> None:
    """All functions over all shapes and the given label dtypes."""
    for batch, shape in SHAPES:
        for code, dtype in dtypes.items():
            for num_classes in (5,) if np.prod(shape) > 10_000 else (1, 2, 5, 17):
                for labels in label_images(batch, shape, num_classes, dtype):
                    same(distances(labels, code, num_classes, THREADS), distances(labels, code, num_classes, 1))
                    same(losses(labels, code, num_classes, THREADS), losses(labels, code, num_classes, 1))
                    same(single_steps(labels, code, num_classes, THREADS), single_steps(labels, code, num_classes, 1))


def value_codes(threads: int) -> None:
    """Foreground values to codes and back."""
    for size in (0, 1, 15, 16, 17, 65_535, 65_537, 300_001):
        values = -RNG.random(size, np.float32)
        for kind, steps in ((np.uint8, 255), (np.uint16, 65_535)):
            codes, back = np.empty(size, kind), np.empty(size, np.float32)
            assert _native.encode_values(
                values=address(values), count=size, bytes=codes.itemsize, codes=address(codes), threads=threads
            )
            _native.decode_values(
                codes=address(codes), count=size, bytes=codes.itemsize, values=address(back), threads=threads
            )
            assert np.array_equal(codes, np.rint(values.astype(np.float64) * -steps))
            assert np.abs(back - values).max(initial=0) < 0.51 / steps


def packed_labels(dtypes: dict[str, type]) -> None:
    """Labels into few bits and back, with and without an ignored one; a label of no class is found."""
    for code, dtype in dtypes.items():
        for bits in (1, 2, 4, 8):
            for size in (0, 1, 7, 8, 9, 8 * 4096 - 1, 8 * 4096 + 3, 100_001):
                classes = min((1 << bits) - 1, 100)
                expected = RNG.integers(0, classes + 1, size)
                labels = np.where(expected == classes, 101, expected).astype(dtype)
                packed, back = np.empty(-(-size * bits // 8), np.uint8), np.empty(size, np.uint8)
                problem = described(labels[None], code, 1, classes, ignore=101)
                assert _native.pack_labels(problem, bits=bits, packed=address(packed))
                _native.unpack_labels(packed=address(packed), count=size, bits=bits, labels=address(back))
                assert np.array_equal(back, expected)
                if size > 0:
                    labels[-1] = 120
                    assert not _native.pack_labels(problem, bits=bits, packed=address(packed))


def main() -> None:
    """Every instruction set, then concurrent callers, then a forked child after the pool was used."""
    for isa in _native.isas():
        _native.force_isa(isa)
        value_codes(THREADS)
        dtypes = CODES if isa == "baseline" else {"u1": np.uint8, "i8": np.int64}
        packed_labels(dtypes)
        everything(dtypes)
        print("ok", isa, flush=True)
    _native.force_isa("")
    labels = label_images(2, (260, 270), 5, np.uint8)[0]
    callers = [threading.Thread(target=distances, args=(labels, "u1", 5, THREADS)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print("ok concurrent callers", flush=True)
    if "tsan" in os.environ.get("LD_PRELOAD", ""):
        return  # ThreadSanitizer does not follow threads started after fork() in a process that had some
    child = os.fork()
    if child == 0:
        distances(labels, "u1", 5, THREADS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the forked child failed"
    print("ok forked child", flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
