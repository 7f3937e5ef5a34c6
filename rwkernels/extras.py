"""Some libraries are optional; a missing one is named together with the extra it is in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version


@contextmanager
def needs(extra: str, package: str | tuple[str, ...] | None = None, module: str | None = None) -> Iterator[None]:
    """Turns the failed import of `package` (by default, of the extra's own name) into one that names the extra.

    A package that is there but misses something itself keeps its own error. `module` is what is named as needing it; by
    default, the integration of the extra's name.
    """
    packages = (package,) if isinstance(package, str) else package or (extra,)
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        raise ImportError(
            f"{module or f'rwkernels.integrations.{extra}'} needs {missing}, which is not installed: "
            f'pip install "rwkernels[{extra}]"'
        ) from error


@contextmanager
def needs_scale() -> Iterator[None]:
    """Turns a failed import of dask or Zarr into one that names the extra `scale`; other failures stay what they are.

    Of these two an old release may be there that lacks what is imported; and the Zarr that is needed needs a later
    Python than the rest of the package does.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("dask", "zarr"):
            raise
        if package == "zarr" and sys.version_info[:2] < (3, 11):
            here = ".".join(map(str, sys.version_info[:2]))
            raise ImportError(
                "rwkernels.scale keeps what lies between its passes in Zarr 3, which needs Python 3.11 or later; "
                f"this is Python {here}"
            ) from error
        try:
            missing = f"{package} cannot be used as it is installed ({version(package)})"
        except PackageNotFoundError:
            missing = f"{package} is not installed"
        raise ImportError(
            f'rwkernels.scale needs dask and Zarr 3, and {missing}: pip install "rwkernels[scale]"'
        ) from error
