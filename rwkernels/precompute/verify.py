"""Items against the truth: the source read again, distances by SciPy one class at a time, everything compared."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkernels.data.store import damage, record
from rwkernels.formats import files, open_labels, whole_labels
from rwkernels.maps.quantised import decode, largest_error
from rwkernels.precompute.items import Job, Outcome, guarded
from rwkernels.precompute.settings import Settings

Array = npt.NDArray[Any]
_RELATIVE = 1e-6  # of float32 distances


def sample(names: Sequence[str], amount: str, seed: int) -> list[str]:
    """As many names as `amount` says: a number, a fraction like 0.1, or `all`; a choice that `seed` repeats.

    Raises:
        ValueError: `amount` is none of these.
    """
    if amount == "all":
        return list(names)
    try:
        value = float(amount)
        if not (value > 0 and (value < 1 or value == int(value))):
            raise ValueError
    except (ValueError, OverflowError):
        message = f"--verify: expected a number of items, a fraction between 0 and 1, or all, got {amount!r}"
        raise ValueError(message) from None
    count = math.ceil(value * len(names)) if value < 1 else int(value)
    return sorted(random.Random(seed).sample(list(names), min(count, len(names))))


def verify(job: Job) -> Outcome:
    """Compares the item of a source with what SciPy makes of the source."""
    return guarded(job, _verify)


def _verify(job: Job) -> Outcome:
    import zarr

    kept = record(job.item)
    if kept is None:
        return _bad(job, "there is no item")
    harm = damage(job.item, kept, contents=True)
    if harm is not None or kept["source"]["sha256"] != files.checksum(job.path)[0]:
        return _bad(job, harm or "its source changed")
    opened = open_labels(job.path, job.settings.read_options(job.max_bytes))
    labels = whole_labels(opened.load())
    group: Any = zarr.open_group(zarr.storage.LocalStore(job.item, read_only=True), mode="r")
    if kept["settings"] != job.settings.as_json():
        return _bad(job, "it was made with other settings")
    if not np.array_equal(group["labels"][...], labels):
        return _bad(job, "labels differ from the source")
    if kept["spacing"] != list(opened.spacing or ()):
        return _bad(job, f"spacing is {kept['spacing']}, in the source {list(opened.spacing or ())}")
    for name, found, expected, allowed in _pairs(group, kept, labels, job.settings, opened.spacing or ()):
        error = float(np.abs(found - expected).max(initial=0.0)) if found.shape == expected.shape else math.inf
        if not error <= allowed:
            return _bad(job, f"{name} is off by {error:.3g}, allowed are {allowed:.3g}")
    return Outcome(job.source, "good")


def _bad(job: Job, reason: str) -> Outcome:
    return Outcome(job.source, "failed", f"not verified: {reason}")


def _pairs(
    group: Any, kept: dict[str, Any], labels: Array, settings: Settings, spacing: tuple[float, ...]
) -> list[tuple[str, Array, Array, float]]:
    """Every array of an item with what it should hold, and the difference that is allowed."""
    pairs: list[tuple[str, Array, Array, float]] = []
    quantised = largest_error(settings.bits) if settings.bits != 32 else 0.0
    if settings.maps == "boundary":
        expected = boundary(labels, settings, spacing)
        scale = float(np.abs(expected).max(initial=0.0))
        return [("dense", group["dense"][...].astype(float), expected, _RELATIVE * max(scale, 1.0))]
    if settings.maps == "rectified":
        foreground, class_max = rectified(labels, settings, spacing)
        largest = np.asarray(kept["class_max"], dtype=float)
        pairs.append(("class_max", largest, class_max, _RELATIVE * max(float(class_max.max(initial=0.0)), 1.0)))
    elif settings.maps not in ("active_contour", "constant"):
        raise ValueError(f"maps: expected a family that SciPy can repeat, got {settings.maps!r}")
    else:
        value = -settings.options.get("beta", 1.0) if settings.maps == "constant" else 0.0
        foreground = np.where(labels == _ignored(settings), 0.0, value)
    stored = group["foreground"][...]
    values = decode(stored) if settings.bits != 32 else stored
    scale = max(float(np.abs(foreground).max(initial=0.0)), 1.0)
    pairs.append(("foreground", values.astype(float), foreground, quantised + _RELATIVE * scale))
    if settings.dense:
        background = settings.options.get("alpha", 1.0) if settings.maps == "constant" else 1.0
        dense = np.stack([np.where(labels == k, foreground, background) for k in range(settings.num_classes)])
        dense = np.where(labels == _ignored(settings), 0.0, dense)
        pairs.append(("dense", group["dense"][...].astype(float), dense, _RELATIVE * scale))
    return pairs


def _ignored(settings: Settings) -> int:
    """The label that is ignored, or one that no label is."""
    return -(1 << 62) if settings.ignore_index is None else settings.ignore_index


def distance(labels: Array, spacing: tuple[float, ...], black_border: bool) -> Array:
    """Distance to the nearest pixel of another label, one SciPy transform per label; inf where there is only one."""
    from scipy.ndimage import distance_transform_edt

    found = np.full(labels.shape, np.inf)
    present = np.unique(labels)
    for label in present if len(present) > 1 or black_border else ():
        inside = np.pad(labels == label, 1) if black_border else labels == label
        transformed = distance_transform_edt(inside, sampling=spacing)
        if black_border:
            transformed = transformed[(slice(1, -1),) * labels.ndim]
        found = np.where(labels == label, transformed, found)
    return found


def rectified(labels: Array, settings: Settings, spacing: tuple[float, ...]) -> tuple[Array, Array]:
    """The foreground of Eq. 4 and the largest distance of every class, in float64."""
    away = distance(labels, spacing, settings.black_border)
    foreground, class_max = np.zeros(labels.shape), np.zeros(settings.num_classes)
    for k in range(settings.num_classes):
        inside = (labels == k) & (labels != _ignored(settings))
        if not inside.any():
            continue
        largest = float(away[inside].max())
        class_max[k] = 1.0 if math.isinf(largest) else largest
        foreground[inside] = -1.0 if math.isinf(largest) else -away[inside] / largest
    return foreground, class_max


def boundary(labels: Array, settings: Settings, spacing: tuple[float, ...]) -> Array:
    """The boundary map of Eq. 3, `[K, *S]` in float64."""
    from scipy.ndimage import distance_transform_edt

    ignored = labels == _ignored(settings)
    inside = distance(labels, spacing, settings.black_border)
    inside = np.where(np.isinf(inside), 0.0, settings.options.get("inside_offset", 0.0) - inside)
    channels = []
    for k in range(settings.num_classes):
        here = (labels == k) & ~ignored
        outside = distance_transform_edt(~here, sampling=spacing) if here.any() else None
        channel = np.full(labels.shape, settings.options.get("absent", 0.0)) if outside is None else outside
        channels.append(np.where(ignored, 0.0, np.where(here, inside, channel)))
    return np.stack(channels)
