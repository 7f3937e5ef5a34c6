"""Imported by a run of `rwkernels precompute`, it kills the worker that reads one source."""

from __future__ import annotations

import os
import signal

from rwkernels.precompute import items

_original = items.open_labels


def _deadly(path, options):
    if path.name == os.environ.get("RWKERNELS_TEST_DEADLY"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _original(path, options)


items.open_labels = _deadly
