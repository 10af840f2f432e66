"""Make images from layers and a configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.manifest import MEDIA_CONFIG, MEDIA_LAYER_TAR, Manifest
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.metadata import ImageRecord


@record
class AssembledImage:
    """Name an image that is stored, with its documents; `existed` when nothing had to be written."""

    digest: str
    config_digest: str
    existed: bool
    config: ImageConfig
    manifest: Manifest


def assemble(
    store: Store, config: ImageConfig, layer_sizes: Sequence[int], name: str | None = None
) -> AssembledImage:
    """Store the config and manifest of an image whose layers are stored, and record it, under a name if one is given.

    Equal inputs give equal digests. Writes nothing when the image is there already.
    """
    layers = [
        Descriptor(MEDIA_LAYER_TAR, diff_id, size_bytes)
        for diff_id, size_bytes in zip(config.diff_ids, layer_sizes, strict=True)
    ]
    return store_image(store, config, make_manifest(config, layers), name)


def make_manifest(
    config: ImageConfig, layers: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return the manifest of an image."""
    size_bytes = len(config.to_json())
    return Manifest(Descriptor(MEDIA_CONFIG, config.digest, size_bytes), tuple(layers), annotations=annotations or {})


def store_image(
    store: Store, config: ImageConfig, manifest: Manifest, name: str | None = None
) -> AssembledImage:
    """Store an image's two documents and record it, and its name with it. Writes no image that is there already."""
    digest = manifest.digest
    if store.metadata.images.get(digest) is not None:
        if name is not None:
            store.metadata.references.set(name, digest)
        return AssembledImage(digest, manifest.config.digest, True, config, manifest)
    store.blobs.put_all((config.to_json(), manifest.to_json()))
    made = ImageRecord(
        digest=digest,
        config_digest=manifest.config.digest,
        diff_ids=config.diff_ids,
        size_bytes=sum(layer.size_bytes for layer in manifest.layers),
        built_ns=time.time_ns(),
    )
    store.metadata.add_image(made, name)
    return AssembledImage(digest, manifest.config.digest, False, config, manifest)
