"""Dask and Zarr are optional; a missing one is named together with the extra it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs() -> Iterator[None]:
    """Turns a failed import of dask or Zarr into one that names the extra; other failures stay what they are."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("dask", "zarr"):
            raise
        raise ImportError(
            f'rwkernels.scale needs {package}, which is not installed: pip install "rwkernels[scale]"'
        ) from error
