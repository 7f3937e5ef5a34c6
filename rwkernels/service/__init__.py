"""A service that owns the device and answers batches of labels with their maps, over gRPC.

`rwkernels serve` runs it, `RemoteMapBuilder(url, num_classes)` takes the place of a loader's builder. `wire` is what
both sides agree on, `server` and `client` are the two sides. docs/service.md describes it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rwkernels.extras import needs

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
    # The command's help needs none of the libraries.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("service", ("grpc", "msgspec", "prometheus_client"), __name__):
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
