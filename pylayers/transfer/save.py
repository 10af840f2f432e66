"""Gather stored images for an archive: their documents as they are, their layers as they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.image.view import Image
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import layer_compression
from pylayers.oci.platform import Platform
from pylayers.record import replace
from pylayers.store import Store
from pylayers.transfer.content import Blob, Bundle, DockerImage, name_root, pack_layers


def bundle_images(store: Store, images: Sequence[tuple[Image, Sequence[str]]]) -> Bundle:
    """Return a bundle of images, each with the full names it gets in the archive.

    A manifest that speaks of compressed layers, which the store keeps plain, is written anew for plain ones.
    """
    blobs: list[Blob] = []
    roots: list[Descriptor] = []
    docker: list[DockerImage] = []
    for image, names in images:
        layers = pack_layers(store, image.config.diff_ids)
        blobs += [blob for _, blob in layers]
        content = store.blobs.read(image.digest, DOCUMENT_LIMIT_BYTES)
        plain = all(not layer_compression(layer.media_type) for layer in image.manifest.layers)
        if not plain:
            content = replace(image.manifest, layers=tuple(descriptor for descriptor, _ in layers)).to_json()
        manifest = Blob.of(content)
        config = Blob.of(store.blobs.read(image.id, DOCUMENT_LIMIT_BYTES))
        blobs += [manifest, config]
        platform = Platform(image.config.os, image.config.architecture, image.config.variant)
        root = Descriptor(image.manifest.media_type, manifest.digest, manifest.size_bytes, platform=platform)
        roots += name_root(root, names)
        docker.append(DockerImage(image.id, tuple(names), tuple(blob.digest for _, blob in layers)))
    return Bundle(tuple(blobs), tuple(roots), tuple(docker))
