"""Reference-counted collection: mark from the roots, delete the rest. Runs under the exclusive collect lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pylayers.errors import NotFound, PylayersError
from pylayers.oci.digest import is_digest
from pylayers.store.file import allocated_bytes, read_file

if TYPE_CHECKING:
    from pylayers.store.store import Store


@dataclass(frozen=True, slots=True)
class Collected:
    """Say what was deleted (or, in a dry run, would be), and how many disk bytes that gives back."""

    layers: tuple[str, ...]
    blobs: tuple[str, ...]
    chains: tuple[str, ...]
    freed_bytes: int


@dataclass(slots=True)
class Reachable:
    """Gather what must stay."""

    layers: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)


def collect(store: Store, *, dry_run: bool, keep_cache: bool) -> Collected:
    """Mark and sweep; chains go first, then layers, then blobs. Interrupted anywhere, the next run goes on."""
    metadata = store.metadata
    if not dry_run:
        metadata.leases.drop_dead()
        if not keep_cache:
            metadata.steps.clear()
    reachable = mark(store, keep_cache=keep_cache)
    chains = tuple(chain.chain_id for chain in metadata.chains.walk() if chain.chain_id not in reachable.chains)
    layers = tuple(diff_id for diff_id in store.layers.walk() if diff_id not in reachable.layers)
    blobs = tuple(blob.digest for blob in store.blobs.walk() if blob.digest not in reachable.blobs)
    freed_bytes = _count_bytes(store, layers)
    freed_bytes += sum(allocated_bytes(store.blobs.path(digest)) for digest in blobs)
    if not dry_run:
        metadata.chains.delete(chains)
        for diff_id in layers:
            store.layers.delete(diff_id)
        for digest in blobs:
            store.blobs.delete(digest)
    return Collected(layers, blobs, chains, freed_bytes)


def _count_bytes(store: Store, diff_ids: Iterable[str]) -> int:
    """Count the disk bytes that go with some layers: those of files that nothing else has a name for.

    Another layer may have a file as its base, and a snapshot a layer's tar and table: it is then freed with that.
    """
    links: dict[tuple[int, int], int] = {}
    total = 0
    for diff_id in diff_ids:
        with contextlib.suppress(FileNotFoundError), os.scandir(store.layers.path(diff_id)) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                inode = status.st_dev, status.st_ino
                links[inode] = links.get(inode, 0) + 1
                if links[inode] == status.st_nlink:
                    total += status.st_blocks * 512
    return total


def mark(store: Store, *, keep_cache: bool) -> Reachable:
    """Find everything that an image, reference, container, step or live lease needs."""
    metadata = store.metadata
    reachable = Reachable()
    wanted_chains: set[str] = set()
    # First of all: who ends a lease meanwhile has recorded what it held, which is then read below. None begins to hold.
    held = metadata.leases.items()
    manifests = {digest for _, digest in metadata.references.walk()}
    for image in metadata.images.walk():
        manifests.add(image.digest)
        reachable.blobs.add(image.config_digest)
        _mark_stack(reachable, image.diff_ids)
    for container in metadata.containers.walk():
        if container.image_digest:
            manifests.add(container.image_digest)
        if container.chain_id:
            wanted_chains.add(container.chain_id)
    for step in metadata.steps.walk() if keep_cache else ():
        reachable.layers.update(step.diff_ids)
        if step.chain_id:
            wanted_chains.add(step.chain_id)
    for kind, name in held:
        if kind == "layer":
            reachable.layers.add(name)
        elif kind == "blob":
            manifests.add(name)
        else:
            wanted_chains.add(name)  # an active snapshot's key simply names no chain
    _mark_chains(store, reachable, wanted_chains)
    _mark_blobs(store, reachable, manifests)
    return reachable


def _mark_stack(reachable: Reachable, diff_ids: Iterable[str]) -> None:
    from pylayers.oci.chain import chain_ids

    stack = list(diff_ids)
    reachable.layers.update(stack)
    reachable.chains.update(chain_ids(stack))


def _mark_chains(store: Store, reachable: Reachable, wanted: set[str]) -> None:
    known = {chain.chain_id: chain for chain in store.metadata.chains.walk()}
    for chain_id in wanted | (reachable.chains & set(known)):
        at: str | None = chain_id
        while at is not None and at in known:
            reachable.chains.add(at)
            reachable.layers.add(known[at].diff_id)
            at = known[at].parent_chain_id


def _mark_blobs(store: Store, reachable: Reachable, digests: set[str]) -> None:
    """Follow manifests and indexes; what isn't one of them (a layer blob under a lease) stands for itself."""
    from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
    from pylayers.oci.manifest import Manifest, parse_manifest

    queue = [digest for digest in digests if is_digest(digest)]
    seen: set[str] = set()
    while queue:
        digest = queue.pop()
        if digest in seen:
            continue
        seen.add(digest)
        reachable.blobs.add(digest)
        try:
            if store.blobs.stat(digest).size_bytes > DOCUMENT_LIMIT_BYTES:
                continue
            content = read_file(store.blobs.path(digest))
            if content[:1] != b"{":
                continue
            document = parse_manifest(content)
        except (NotFound, FileNotFoundError):
            continue  # an index may name platforms that were never pulled
        except PylayersError:
            continue  # a config, or another document that points at nothing
        if isinstance(document, Manifest):
            reachable.blobs.add(document.config.digest)
            reachable.blobs.update(layer.digest for layer in document.layers)
        else:
            queue += [manifest.digest for manifest in document.manifests]
