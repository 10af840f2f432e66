"""The store: blobs, layers, metadata, leases, collection, check and repair of one data root."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.store.layer import Layer
    from pylayers.store.store import Store

__all__ = ["Layer", "Store"]


def __getattr__(name: str) -> type:
    """Import what is asked for: a part of the store is used before all of it is loaded (see build/source/ahead)."""
    if name == "Store":
        from pylayers.store.store import Store

        return Store
    if name == "Layer":
        from pylayers.store.layer import Layer

        return Layer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
