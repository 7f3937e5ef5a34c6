"""Dask and Zarr are optional; a missing one is named together with the extra it is in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

ZARR_PYTHON = (3, 11)


@contextmanager
def needs() -> Iterator[None]:
    """Turns a failed import of dask or Zarr into one that names the extra; other failures stay what they are."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("dask", "zarr"):
            raise
        raise ImportError(_reason(package)) from error


def _reason(package: str) -> str:
    if package == "zarr" and sys.version_info[:2] < ZARR_PYTHON:
        here = ".".join(map(str, sys.version_info[:2]))
        return (
            "rwkernels.scale keeps what lies between its passes in Zarr 3, which needs Python 3.11 or later; "
            f"this is Python {here}"
        )
    try:
        missing = f"{package} cannot be used as it is installed ({version(package)})"
    except PackageNotFoundError:
        missing = f"{package} is not installed"
    return f'rwkernels.scale needs dask and Zarr 3, and {missing}: pip install "rwkernels[scale]"'
