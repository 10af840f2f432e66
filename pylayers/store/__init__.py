"""The store: blobs, layers, metadata, leases, collection, check and repair of one data root."""

from pylayers.store.layer import Layer
from pylayers.store.store import Store

__all__ = ["Layer", "Store"]
