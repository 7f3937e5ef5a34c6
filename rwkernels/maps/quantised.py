"""The foreground of a map in one or two bytes a pixel, for disks and networks; `rectified_codes` straight from labels.

Which maps have such a foreground, every value in [-1, 0]: `rectified_map` always; `active_contour_map` (all 0) and
`constant_map` with a `beta` in [0, 1] as well. Boundary maps have not: they hold distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rwkernels import arrays, checks
from rwkernels.backends import choose, default
from rwkernels.backends.problem import MapProblem
from rwkernels.maps.distance import class_max, map_problem
from rwkernels.maps.families import rectified_map
from rwkernels.ops.labels import with_refusals

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CODES = {8: torch.uint8, 16: torch.uint16}
_STEPS = {torch.uint8: 255, torch.uint16: 65535}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def largest_error(bits: int = 16) -> float:
    """The largest difference between a value and what `decode` makes of its code: half a step, and the rounding.

    7.7e-6 for 16 bits, 1.97e-3 for 8.

    Examples:
        >>> from rwkernels.maps.quantised import largest_error
        >>> round(largest_error(16), 7), round(largest_error(8), 5)
        (7.7e-06, 0.00196)
    """
    return 0.5 / _STEPS[_code_dtype(bits)] + 2.0**-25


def encode(foreground: Any, bits: int = 16) -> Any:
    """Codes of foreground values in [-1, 0]: `round(-value * (2 ** bits - 1))`, rounded exactly, ties to even.

    0 and -1 come back from `decode` as they were, every other value within `largest_error(bits)`.

    Args:
        foreground: float32, bfloat16 or float16 of any shape with values in [-1, 0], as the foreground of
            `rectified_map` has: a tensor on any device, or an array.
        bits: 16 or 8 a value.

    Returns:
        uint16 or uint8 of the same shape, kind and device.

    Raises:
        TypeError: `foreground` has another dtype.
        ValueError: A value lies outside [-1, 0] or is NaN, or `bits` is neither 8 nor 16.

    Examples:
        >>> import torch
        >>> from rwkernels.maps.quantised import encode
        >>> encode(torch.tensor([0.0, -0.25, -1.0]))
        tensor([    0, 16384, 65535], dtype=torch.uint16)
    """
    found, back = arrays.to_tensor(foreground)
    found = checks.tensor("foreground", found).detach()
    if found.dtype not in _FLOATS:
        raise TypeError(f"foreground: expected float32, bfloat16 or float16, got {checks.describe(found)}")
    codes = torch.empty(found.shape, dtype=_code_dtype(bits), device=found.device)
    plain = found.to(torch.float32).contiguous()
    if not default(found.device, "encode_values").encode_values(codes, plain):
        _refuse_outside(found)
    return back(codes)


def decode(codes: Any, out: Any = None) -> Any:
    """The values of `encode`'s codes: `-code / (2 ** bits - 1)`, rounded once; 0 and -1 exactly.

    Args:
        codes: uint16 or uint8 of any shape: a tensor on any device, or an array.
        out: A contiguous float32 buffer of the same shape to write into.

    Returns:
        float32 of the same shape, kind and device.

    Raises:
        TypeError: `codes` has another dtype.
        ValueError: `out` has another shape, dtype or device, or is not contiguous.

    Examples:
        >>> import torch
        >>> from rwkernels.maps.quantised import decode, encode
        >>> decode(encode(torch.tensor([0.0, -0.25, -1.0]), bits=8))
        tensor([ 0.0000, -0.2510, -1.0000])
    """
    found, back = arrays.to_tensor(codes)
    found = checks.tensor("codes", found)
    if found.dtype not in _STEPS:
        raise TypeError(f"codes: expected uint8 or uint16, got {checks.describe(found)}")
    steps = _STEPS[found.dtype]
    if out is None:
        values = torch.empty(found.shape, dtype=torch.float32, device=found.device)
    else:
        values = checks.output(arrays.to_buffer(out), found.shape, torch.float32, found.device)
    if found.device.type != "cpu":
        return back(values.copy_(found).div_(-steps).add_(0.0))  # -0 + 0 is 0
    decode_array(found.contiguous().view(-1).numpy(), values)
    return back(values)


def decode_array(codes: NDArray[Any], values: Tensor) -> None:
    """`decode` on the CPU of a flat array, which may be read only as no tensor is, into a contiguous tensor."""
    codes = np.require(codes, codes.dtype.newbyteorder("="), ["C", "ALIGNED"])
    default(values.device, "decode_values").decode_values(values, codes)


class RectifiedCodes(NamedTuple):
    """A rectified map in the fewest bytes.

    Attributes:
        codes: `encode` of the foreground, uint16 or uint8 `[B, *S]`.
        class_max: Largest distance of every class in every image, float32 `[B, K]`; see `rwkernels.data.class_max`.
        image_count: Pixels of every image that count, int64 `[B]`; None where all do.
    """

    codes: Any
    class_max: Any
    image_count: Any


def rectified_codes(
    labels: Any,
    num_classes: int,
    bits: int = 16,
    *,
    spacing: float | Sequence[float] | None = None,
    class_max: Any = None,
    ignore_index: int | None = None,
    black_border: bool = False,
    spatial_dims: int | None = None,
    out: Any = None,
    work: Tensor | None = None,
    backend: str | None = None,
) -> RectifiedCodes:
    """The codes of a rectified map, Eq. 4, and the largest distances that it was divided by, in one go.

    The codes are those of `encode(rectified_map(...).foreground, bits)`, bit for bit, without a map in between that is
    written out. The largest distances are those of `rwkernels.data.class_max`, which costs no second transform here.
    Label values are always checked, on a GPU as well: no code stands for the NaN of a label that is out of range.

    Args:
        labels: Integers `[B, *S]`, a tensor on any device or an array; see `rectified_map` for what is not said here.
        num_classes: Number of classes K.
        bits: 16 or 8 a code.
        spacing: Size of a pixel, one number or one per spatial axis. Default 1.
        class_max: Largest distance of every class `[B, K]` to divide by instead of the image's own.
        ignore_index: Label of pixels that do not count. Their code is 0.
        black_border: Count the outside of the image as another label.
        spatial_dims: Number of spatial axes; needed for one.
        out: A contiguous buffer of the codes' dtype and the labels' shape to write them into.
        work: Contiguous float32 tensor with room for as many values as there are labels, to be used again by the next
            call: fresh memory costs time. By default it is allocated.
        backend: Name of the backend to use instead of the default one.

    Returns:
        Codes, largest distances (the images' own, whatever `class_max` says) and counts, of the kind of `labels`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A label is out of range, `class_max` of a present class is not positive and finite, or an argument
            has a wrong shape or value.

    References:
        Valverde & Tohka, "Region-wise Loss for Biomedical Image Segmentation", Eq. 4.

    Examples:
        >>> import torch
        >>> from rwkernels.maps.quantised import rectified_codes
        >>> codes, class_max, _ = rectified_codes(torch.tensor([[[0, 0, 0, 1, 1]]]), num_classes=2, bits=8)
        >>> codes
        tensor([[[255, 170,  85, 128, 255]]], dtype=torch.uint8)
        >>> class_max
        tensor([[3., 2.]])
    """
    problem, back = map_problem(
        labels,
        num_classes,
        spacing=spacing,
        class_max=class_max,
        black_border=black_border,
        ignore_index=ignore_index,
        spatial_dims=spatial_dims,
        validate=True,
        backend=backend,
    )
    found, code_dtype = problem.labels, _code_dtype(bits)
    codes = None if out is None else checks.output(arrays.to_buffer(out), found.shape, code_dtype, found.device)
    field = found.new_empty(found.numel(), dtype=torch.float32) if work is None else _working_memory(work, found)
    chosen = choose(found.device, "fill_rectified", problem.backend)
    if hasattr(chosen, "fill_rectified_codes"):
        made = RectifiedCodes(
            codes=found.new_empty(found.shape, dtype=code_dtype) if codes is None else codes,
            class_max=found.new_empty((len(found), problem.num_classes), dtype=torch.float32),
            image_count=found.new_empty(len(found), dtype=torch.int64),
        )
        with_refusals(partial(chosen.fill_rectified_codes, *made, work=field), problem)
    else:
        made = _in_steps(problem, bits, field)
        if codes is not None:
            made = made._replace(codes=codes.copy_(made.codes))
    count = None if problem.ignore_index is None else back(made.image_count)
    return RectifiedCodes(back(made.codes), back(made.class_max), count)


def _in_steps(problem: MapProblem, bits: int, field: Tensor) -> RectifiedCodes:
    """`rectified_codes` by a backend that has no kernel for it."""
    labels, settings = problem.labels, problem._asdict()
    del settings["labels"], settings["class_max"]
    settings["spatial_dims"] = labels.dim() - 1
    buffer = field[: labels.numel()].view(labels.shape)
    maps = rectified_map(labels, class_max=problem.class_max, out=buffer, **settings)
    return RectifiedCodes(encode(maps.foreground, bits), class_max(labels, **settings), maps.image_count)


def _working_memory(work: Any, labels: Tensor) -> Tensor:
    found = checks.tensor("work", work)
    fits = found.dtype == torch.float32 and found.device == labels.device and found.is_contiguous()
    if not fits or found.numel() < labels.numel():
        expected = f"a contiguous float32 tensor of at least {labels.numel()} values on {labels.device}"
        raise ValueError(f"work: expected {expected}, got {checks.describe(found)}")
    return found.view(-1)


def _code_dtype(bits: int) -> torch.dtype:
    wanted = checks.integer("bits", bits)
    if wanted not in _CODES:
        raise ValueError(f"bits: expected 8 or 16, got {wanted}")
    return _CODES[wanted]


def _refuse_outside(foreground: Tensor) -> None:
    """Raises for the first value outside [-1, 0], if there is one."""
    inside = (foreground >= -1) & (foreground <= 0)
    if bool(inside.all()):
        return
    place = tuple(int(at) for at in (~inside).nonzero()[0])
    raise ValueError(f"foreground: expected values in [-1, 0], got {float(foreground[place])} at {place}")
