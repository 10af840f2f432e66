"""Build, store, mount, run and ship container image layers. The public names; each is imported on first use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.event import (
        BuildFinished,
        BuildResult,
        BuildWarning,
        Event,
        Step,
        StepFinished,
        StepOutput,
        StepStarted,
        StepStatus,
    )
    from pylayers.engine import Engine
    from pylayers.engine.container import Container, ContainerOptions
    from pylayers.errors import PylayersError
    from pylayers.image.view import Image

__all__ = [
    "BuildFinished",
    "BuildResult",
    "BuildWarning",
    "Container",
    "ContainerOptions",
    "Engine",
    "Event",
    "Image",
    "PylayersError",
    "Step",
    "StepFinished",
    "StepOutput",
    "StepStarted",
    "StepStatus",
]

_HOMES = {
    "Engine": "pylayers.engine",
    "Container": "pylayers.engine.container",
    "ContainerOptions": "pylayers.engine.container",
    "Image": "pylayers.image.view",
    "PylayersError": "pylayers.errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pylayers' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "pylayers.build.event")), name)
