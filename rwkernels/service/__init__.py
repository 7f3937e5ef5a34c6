"""A service that owns the device and answers batches of labels with their maps, over Arrow Flight.

`rwkernels serve` runs it, `RemoteMapBuilder(url, num_classes)` takes the place of a loader's builder. `wire` is what
both sides agree on, `server` and `client` are the two sides. docs/service.md describes it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkernels.service.client.builder import RemoteMapBuilder
    from rwkernels.service.client.connection import UnavailableError
    from rwkernels.service.server.service import MapService
    from rwkernels.service.wire.limits import Limits

__all__ = ["Limits", "MapService", "RemoteMapBuilder", "UnavailableError"]

_MODULES = {
    "Limits": "wire.limits",
    "MapService": "server.service",
    "RemoteMapBuilder": "client.builder",
    "UnavailableError": "client.connection",
}


def __getattr__(name: str) -> Any:
    # The client needs another library than the server, and the command's help none.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
