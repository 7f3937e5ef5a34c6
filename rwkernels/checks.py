"""Argument checks: one place, one voice. Every message says `name: expected ..., got ...`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from rwkernels.backends.problem import BadInputError

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# PyTorch computes little in these; each fits into the signed type beside it.
_WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum", "none")


def describe(value: object) -> str:
    """A short text of what came: dtype and shape of a tensor, type and value of anything else."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def plain(tensor: Tensor) -> Tensor:
    """The tensor without a subclass that only carries metadata, such as MONAI's MetaTensor."""
    return tensor.as_subclass(Tensor) if hasattr(tensor, "as_tensor") else tensor


def tensor(name: str, value: object) -> Tensor:
    """`value` as a plain tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}")
    return plain(value)


def label_dtype(name: str, labels: Tensor) -> Tensor:
    """Labels in a dtype the kernels take; no copy for those of `LABEL_DTYPES`."""
    if labels.dtype in _WIDER:
        return labels.to(_WIDER[labels.dtype])
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"{name}: expected integer labels (uint8, int8, int16, int32 or int64), got {describe(labels)}")
    return labels


def labels(value: object, spatial_dims: int | None = None) -> Tensor:
    """Labels [B, *S] with one to three spatial axes; one axis has to be asked for."""
    found = label_dtype("labels", tensor("labels", value))
    if spatial_dims is not None and integer("spatial_dims", spatial_dims) not in (1, 2, 3):
        raise ValueError(f"spatial_dims: expected 1, 2 or 3, got {describe(spatial_dims)}")
    if spatial_dims is not None and found.dim() != spatial_dims + 1:
        raise ValueError(f"labels: expected [B, *S] with {spatial_dims} spatial axes, got {describe(found)}")
    if spatial_dims is None and found.dim() == 2:
        raise ValueError(
            "labels: expected [B, *S] with 2 or 3 spatial axes (add a batch axis to one image, labels[None]; "
            f"for rows of one spatial axis pass spatial_dims=1), got {describe(found)}"
        )
    if not 2 <= found.dim() <= 4:
        raise ValueError(f"labels: expected [B, *S] with 1 to 3 spatial axes, got {describe(found)}")
    return found


def labels_like(name: str, value: object, of: Sequence[int]) -> Tensor:
    """Labels for maps or logits of shape `of` [B, K, *S]: [B, *S], or [B, 1, *S] with the channel axis dropped."""
    found = label_dtype(name, tensor(name, value))
    if found.dim() == len(of) and found.shape[1] == 1:
        found = found.squeeze(1)
    shape(name, found, (of[0], *of[2:]), "[B, *S]")
    return found


def whole_labels(labels: Tensor, validate: bool) -> Tensor:
    """Integer labels from floating ones that hold whole numbers, as nnU-Net's do; fractions become bad labels."""
    if not labels.is_floating_point():
        return labels
    # In float16 2^31 is no number; beyond it the cast may land on a label.
    whole = (labels == labels.round()) & (labels.abs().to(torch.float32) < 2**31)
    if validate and not torch.compiler.is_compiling() and not bool(whole.all()):
        value = float(labels[~whole][0])
        raise ValueError(f"labels: expected whole numbers, got {value}")
    lowest = torch.iinfo(torch.int32).min
    return torch.where(whole, labels.to(torch.int32), lowest)


def logits(value: object) -> Tensor:
    """Logits as a plain floating tensor [B, K, *S] with one to three spatial axes."""
    found = tensor("logits", value)
    floating("logits", found)
    if not 3 <= found.dim() <= 5:
        raise ValueError(f"logits: expected [B, K, *S] with 1 to 3 spatial axes, got {describe(found)}")
    if found.shape[1] < 1:
        raise ValueError(f"logits: expected at least one channel, got {describe(found)}")
    return found


def integer(name: str, value: Any, lowest: int | None = None) -> int:
    """`value` as an int; bool is refused."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {describe(value)}") from None
    if lowest is not None and found < lowest:
        raise ValueError(f"{name}: expected an integer >= {lowest}, got {found}")
    if not -(2**63) <= found < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {found}")
    return found


def number(name: str, value: Any) -> float:
    """`value` as a finite float."""
    try:
        if isinstance(value, (str, bool)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {describe(value)}") from None
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got {describe(value)}") from None
    if not math.isfinite(found):
        raise ValueError(f"{name}: expected a finite number, got {found}")
    return found


def spacing(value: float | Sequence[float] | None, axes: int) -> list[float]:
    """One positive number per spatial axis, in the order of the labels' axes."""
    if value is None:
        return [1.0] * axes
    several = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
    steps: list[Any] = list(cast("Iterable[Any]", value)) if several else [value] * axes
    if len(steps) != axes:
        raise ValueError(f"spacing: expected one number or {axes} (one per spatial axis), got {len(steps)}: {value!r}")
    found = [number("spacing", step) for step in steps]
    if min(found) <= 0:
        raise ValueError(f"spacing: expected positive numbers, got {value!r}")
    return found


def spacing_of_any_axes(value: Any) -> Any:
    """A spacing whose length is known with the labels only: None, a number or a sequence; arrays become lists."""
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    elif isinstance(value, Iterable) and not isinstance(value, (str, Sequence)):
        value = list(value)
    several = isinstance(value, Sequence) and not isinstance(value, str)
    spacing(value, max(len(value), 1) if several else 1)
    return value


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses a tensor on another device: nothing is copied between devices behind the caller's back."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device} like {other_name}, got {describe(value)}")


def shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    """Refuses another shape than `expected`, which `meaning` explains."""
    if list(value.shape) != list(expected):
        raise ValueError(f"{name}: expected shape {list(expected)} ({meaning}), got {describe(value)}")


def floating(name: str, value: Tensor) -> None:
    """Refuses what is not float32, float64, bfloat16 or float16."""
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {describe(value)}")


def choice(name: str, value: object, options: Sequence[str]) -> str:
    """Refuses what is not one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {describe(value)}")
    return value


def backend(value: object) -> str | None:
    """The name of a backend, or None; whether there is one of that name is found out where it is chosen."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"backend: expected the name of a backend or None, got {describe(value)}")
    return value


def flag(name: str, value: object) -> bool:
    """Refuses what is not True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {describe(value)}")
    return value


def validate(value: bool | None, device: torch.device) -> bool:
    """Whether label values are checked: by default on the CPU only, for elsewhere it stalls the device."""
    return device.type == "cpu" if value is None else flag("validate", value)


def ignore_index(value: int | None) -> int | None:
    """An integer (negative ones too) or None."""
    return None if value is None else integer("ignore_index", value)


def output(value: object, expected: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer to write into: exact shape, dtype and device, contiguous."""
    found = tensor("out", value)
    shape("out", found, expected, "the result's")
    if found.dtype != dtype or found.device != device or not found.is_contiguous():
        raise ValueError(f"out: expected a contiguous {dtype} tensor on {device}, got {describe(found)}")
    return found


def bad_input(
    found: BadInputError, labels: Tensor, num_classes: int, ignore_index: int | None, class_max: Tensor | None = None
) -> NoReturn:
    """Raises by name for what a backend found in the contiguous labels, or in the maxima of classes."""
    if found.argument == "class_max":
        assert class_max is not None
        bad_maximum(class_max, found.index)
    bad_label(labels, found.index, num_classes, ignore_index)


def bad_label(labels: Tensor, flat_index: int, num_classes: int, ignore_index: int | None) -> NoReturn:
    """Raises for the label at `flat_index` of the contiguous labels."""
    place = []
    rest = flat_index
    for size in reversed(labels.shape):
        rest, at = divmod(rest, size)
        place.append(at)
    place.reverse()
    refuse_label(int(labels[tuple(place)]), place, num_classes, ignore_index)


def refuse_label(value: int, place: Sequence[int], num_classes: int, ignore_index: int | None) -> NoReturn:
    """Raises for the label `value`, found at `place`."""
    also = "" if ignore_index is None else f" or {ignore_index} (ignore_index)"
    raise ValueError(f"labels: expected integers in [0, {num_classes}){also}, got {value} at {tuple(place)}")


def bad_maximum(class_max: Tensor, flat_index: int) -> NoReturn:
    """Raises for a maximum of a present class that no distance can be divided by."""
    image, k = divmod(flat_index, class_max.shape[1])
    raise ValueError(
        "class_max: expected a positive, finite distance for every class that is present, "
        f"got {float(class_max[image, k])} for class {k} of image {image}"
    )
