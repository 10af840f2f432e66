"""OCI image layouts: write an image as a directory that skopeo, umoci and podman read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pylayers.errors import AlreadyExists, translate_os_error
from pylayers.image.view import Image
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_hex
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import Index
from pylayers.store import Store

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"


def write_layout(store: Store, image: Image, directory: Path, reference: str) -> None:
    """Write one image as a layout; layers are hard-linked where possible, so that no byte is copied.

    Raises AlreadyExists when the directory holds anything. Source: OCI image-layout specification 1.1.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise AlreadyExists(f"{directory} is not empty", hint="name a new directory")
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest in (image.digest, image.id):
            (blobs / digest_hex(digest)).write_bytes(store.blobs.read(digest, DOCUMENT_LIMIT_BYTES))
        for diff_id in dict.fromkeys(image.config.diff_ids):
            place(store.layers.open(diff_id).tar_path, blobs / digest_hex(diff_id))
        size_bytes = (blobs / digest_hex(image.digest)).stat().st_size
        tag = reference.rpartition(":")[2] if ":" in reference else reference
        annotations = {REFERENCE_ANNOTATION: tag} if tag else {}
        index = Index((Descriptor(image.manifest.media_type, image.digest, size_bytes, annotations),))
        (directory / "index.json").write_bytes(index.to_json())
        # Last: without it the directory is no layout, so that an interrupted write isn't taken for one.
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    except OSError as error:
        raise translate_os_error(error, f"write layout {directory}") from error


def place(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
