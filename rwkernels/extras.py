"""The libraries that an integration stands on are optional; a missing one is named together with the extra it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, package: str | None = None, module: str | None = None) -> Iterator[None]:
    """Turns the failed import of `package` (by default, of the extra's own name) into one that names the extra.

    A package that is there but misses something itself keeps its own error. `module` is what is named as needing it; by
    default, the integration of the extra's name.
    """
    package = extra if package is None else package
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(
            f"{module or f'rwkernels.integrations.{extra}'} needs {package}, which is not installed: "
            f'pip install "rwkernels[{extra}]"'
        ) from error
