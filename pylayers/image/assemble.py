"""Make images from layers and a configuration."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.manifest import MEDIA_CONFIG, MEDIA_LAYER_TAR, Manifest
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.metadata import ImageRecord


@record
class AssembledImage:
    """Name an image that is stored; `existed` when nothing had to be written."""

    digest: str
    config_digest: str
    existed: bool


def assemble(store: Store, config: ImageConfig, layer_sizes: Sequence[int]) -> AssembledImage:
    """Store the config and manifest of an image whose layers are stored, and record it.

    Equal inputs give equal digests. Writes nothing when the image is there already.
    """
    content = config.to_json()
    layers = tuple(
        Descriptor(MEDIA_LAYER_TAR, diff_id, size_bytes)
        for diff_id, size_bytes in zip(config.diff_ids, layer_sizes, strict=True)
    )
    manifest = Manifest(Descriptor(MEDIA_CONFIG, config.digest, len(content)), layers)
    digest = manifest.digest
    if store.metadata.images.get(digest) is not None:
        return AssembledImage(digest, manifest.config.digest, existed=True)
    store.blobs.put(content)
    store.blobs.put(manifest.to_json())
    store.metadata.images.add(
        ImageRecord(
            digest=digest,
            config_digest=manifest.config.digest,
            diff_ids=config.diff_ids,
            size_bytes=sum(layer_sizes),
            built_ns=time.time_ns(),
        )
    )
    return AssembledImage(digest, manifest.config.digest, existed=False)
