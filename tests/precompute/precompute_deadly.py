"""Once imported, whoever opens the source of a certain name is killed, as one that is out of memory is."""

from __future__ import annotations

import os
import signal

try:
    from distributed import WorkerPlugin
except ModuleNotFoundError:
    WorkerPlugin = object  # type: ignore[assignment,misc]

from rwkernels.precompute import items

_original = items.open_labels


def _deadly(path, options):
    if path.name == os.environ.get("RWKERNELS_TEST_DEADLY"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _original(path, options)


items.open_labels = _deadly


class Armed(WorkerPlugin):
    """For workers of Dask: sets the name in each that starts."""

    name = "armed"

    def __init__(self, source: str) -> None:
        self.source = source

    def setup(self, worker) -> None:
        os.environ["RWKERNELS_TEST_DEADLY"] = self.source

    def teardown(self, worker) -> None:
        os.environ.pop("RWKERNELS_TEST_DEADLY", None)
