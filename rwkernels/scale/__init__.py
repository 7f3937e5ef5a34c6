"""Distances and maps of volumes larger than memory: dask arrays and Zarr stores (the extra `scale`).

    >>> from rwkernels import scale

The transform is separable, so tasks pass one or two axes at a time over whole lines, and what lies in between is kept
in a temporary Zarr store. Results are those of the in-memory functions. docs/scale.md says how and what it costs.
"""

from rwkernels.extras import needs_scale

with needs_scale():
    from rwkernels.scale.families import active_contour_map, boundary_map, constant_map
    from rwkernels.scale.large_map import LargeMap
    from rwkernels.scale.store import distance_transform_zarr, open_map, rectified_map_zarr
    from rwkernels.scale.volumes import distance_transform, rectified_map

__all__ = [
    "LargeMap",
    "active_contour_map",
    "boundary_map",
    "constant_map",
    "distance_transform",
    "distance_transform_zarr",
    "open_map",
    "rectified_map",
    "rectified_map_zarr",
]
