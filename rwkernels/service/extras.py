"""The libraries of the extra `service`; a missing one is named together with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(module: str, package: str | None = None) -> Iterator[None]:
    """Turns the failed import of `module` (of `package`, if that has another name) into one that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module:
            raise
        raise ImportError(
            f'rwkernels.service needs {package or module}, which is not installed: pip install "rwkernels[service]"'
        ) from error
