"""OCI image layouts: write images as a directory that skopeo, umoci and podman read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pylayers.errors import AlreadyExists, InvalidInput, translate_os_error
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_hex
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import Index
from pylayers.record import replace
from pylayers.store.clone import clone_file
from pylayers.store.file import write_file
from pylayers.transfer.content import (
    INDEX_NAME,
    LAYOUT_CONTENT,
    LAYOUT_NAME,
    REFERENCE_ANNOTATION,
    Blob,
    Bundle,
)


def write_layout(bundle: Bundle, directory: Path, *, merge: bool = False) -> None:
    """Write a bundle as a layout directory; the store's files are cloned, never linked.

    merge=True adds to a layout that is there already: an image takes the tag of one that has it. Raises AlreadyExists
    when the directory holds anything else. Source: OCI image-layout specification 1.1.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        known = read_roots(directory) if merge else ()
        if known is None or (not merge and any(directory.iterdir())):
            raise AlreadyExists(f"{directory} is not empty", hint="name a new directory")
        blobs = directory / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        for blob in bundle.distinct_blobs():
            place_blob(blob, blobs)
        index = Index(merge_roots(known, bundle.roots))
        write_file(directory / INDEX_NAME, index.to_json(), mode=0o644, durable=False)
        # Last: without it the directory is no layout, so that an interrupted write isn't taken for one.
        write_file(directory / LAYOUT_NAME, LAYOUT_CONTENT, mode=0o644, durable=False)
    except OSError as error:
        raise translate_os_error(error, f"write layout {directory}") from error


def place_blob(blob: Blob, blobs: Path) -> None:
    """Write one blob beside its place, then rename it there; one of that size that is there stays."""
    target = blobs / digest_hex(blob.digest)
    if target.is_file() and target.stat().st_size == blob.size_bytes:
        return
    if isinstance(blob.content, bytes):
        write_file(target, blob.content, mode=0o644, durable=False)
        return
    beside = target.with_name(f".{target.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        clone_file(blob.content, beside)
        os.rename(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def read_roots(directory: Path) -> tuple[Descriptor, ...] | None:
    """Return the entries of a layout's index.json; none for an empty directory, None for one that is no layout."""
    path = directory / INDEX_NAME
    if not any(directory.iterdir()):
        return ()
    if not (directory / LAYOUT_NAME).is_file() or not path.is_file():
        return None
    if path.stat().st_size > DOCUMENT_LIMIT_BYTES:
        raise InvalidInput(f"{path} is larger than {DOCUMENT_LIMIT_BYTES} bytes")
    return Index.from_json(path.read_bytes()).manifests


def merge_roots(known: Sequence[Descriptor], added: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """Return the entries of both; of what was known, tags that are given anew go, and equal digests too."""
    tags = {root.annotations.get(REFERENCE_ANNOTATION) for root in added} - {None}
    digests = {root.digest for root in added}
    kept = []
    for root in known:
        tag = root.annotations.get(REFERENCE_ANNOTATION)
        if tag in tags:
            continue
        if root.digest in digests and tag is None:
            continue
        kept.append(replace(root, annotations=dict(root.annotations)))
    return (*kept, *added)
