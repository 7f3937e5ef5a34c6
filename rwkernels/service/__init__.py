"""A service that owns the device and answers batches of labels with their maps, over Arrow Flight.

`rwkernels serve` runs it, `RemoteMapBuilder(url, num_classes)` takes the place of a loader's builder. `limits` holds
every bound, `messages` what is said and how it is checked, `flight` its envelope, `security` tokens and certificates,
`admission` what is held at a time, `batching` the thread that joins requests, `launches` the map builder, `stream` one
client's stream, `server` all of it together, `metrics` and `logs` what is told about it; `connection`, `pipeline` and
`client` are the client's side, `command` the command. docs/service.md describes it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkernels.service.client import RemoteMapBuilder
    from rwkernels.service.connection import UnavailableError
    from rwkernels.service.limits import Limits
    from rwkernels.service.server import MapService

__all__ = ["Limits", "MapService", "RemoteMapBuilder", "UnavailableError"]

_MODULES = {"Limits": "limits", "MapService": "server", "RemoteMapBuilder": "client", "UnavailableError": "connection"}


def __getattr__(name: str) -> Any:
    # The client needs another library than the server, and the command's help none.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
