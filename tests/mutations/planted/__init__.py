"""The mistakes, by area."""

from __future__ import annotations

from planted import around, backends, core, files, losses, maps, plans, service

AREAS = {
    **core.AREAS,
    **backends.AREAS,
    **maps.AREAS,
    **losses.AREAS,
    **plans.AREAS,
    **files.AREAS,
    **service.AREAS,
    **around.AREAS,
}
