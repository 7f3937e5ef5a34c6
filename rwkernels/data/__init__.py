"""Maps where data is loaded: one batch ahead of the training step, in workers, or once for whole volumes."""

from rwkernels.data.loader import MapLoader
from rwkernels.data.precomputed import PrecomputedMaps
from rwkernels.data.volumes import crop
from rwkernels.data.workers import AddMap, MapCollate
from rwkernels.maps.distance import class_max

__all__ = ["AddMap", "MapCollate", "MapLoader", "PrecomputedMaps", "class_max", "crop"]
