"""Check, repair and rebuild: compare files with their digests, indexes with their tars, the database with both."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylayers.errors import IntegrityError, InvalidInput, NotFound, PylayersError
from pylayers.oci.digest import is_digest
from pylayers.store.database import Database
from pylayers.store.entry import EntryTable
from pylayers.store.file import remove_file, remove_tree, sync_path
from pylayers.store.holder import ContainerRecord, Containers
from pylayers.store.metadata import Chains, ImageRecord, Images, References
from pylayers.store.mirror import Mirror

if TYPE_CHECKING:
    from pylayers.oci.document import Fields
    from pylayers.store.store import Store


@dataclass(frozen=True, slots=True)
class Problem:
    """Tell one thing that is wrong: kind of thing, which one, what; and whether it was mended (or removed)."""

    kind: str  # "blob", "layer", "image", "reference", "step", "record", "database" or "file"
    subject: str
    message: str
    repaired: bool = False


def check(store: Store, *, repair: bool) -> list[Problem]:
    """Run every check, from the bytes up, so that a repair's own consequences are found by the next one."""
    problems = [Problem("database", store.metadata.path, message) for message in store.metadata.database.check()]
    problems += _check_strangers(store, repair)
    problems += _check_blobs(store, repair)
    problems += _check_layers(store, repair)
    if problems and any(problem.kind == "database" for problem in problems):
        return problems  # what a broken database says about the files means nothing
    # Others' writes wait for a repair: set back to what was read before them, a name would stand for its last image.
    with store.metadata.transaction() if repair else contextlib.nullcontext():
        problems += _check_mirrors(store, repair)
    problems += _check_images(store)
    problems += _check_steps(store, repair)
    return problems


def _check_strangers(store: Store, repair: bool) -> Iterator[Problem]:
    """Find what an interrupted atomic write left beside its target, and names that are no digest."""
    image = store.root / "image"
    kept = (f"{image}/blobs/sha256", f"{image}/layers/sha256")
    for folder in (*kept, *(mirror.directory for mirror in _mirrors(store))):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = f"{folder}/{name}"
            stale = name.startswith(".")
            if stale or (folder in kept and not is_digest(f"sha256:{name}")):
                if stale and repair:
                    remove_tree(path)
                message = "left by an interrupted write" if stale else "not named by a digest"
                yield Problem("file", path, message, stale and repair)
    for diff_id in store.layers.walk():
        directory = store.layers.path(diff_id)
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if not name.startswith(".layer.idx-"):
                continue
            path = f"{directory}/{name}"
            if repair:
                remove_file(path, durable=False)
            yield Problem("file", path, "left by an interrupted write", repair)


def _check_blobs(store: Store, repair: bool) -> Iterator[Problem]:
    for blob in store.blobs.walk():
        try:
            with open(store.blobs.path(blob.digest), "rb") as stream:
                found = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        except FileNotFoundError:
            continue  # removed meanwhile
        if found != blob.digest:
            if repair:
                store.blobs.delete(blob.digest)
            yield Problem("blob", blob.digest, f"the content's digest is {found}", repair)


def _check_layers(store: Store, repair: bool) -> Iterator[Problem]:
    for diff_id in store.layers.walk():
        try:
            store.layers.verify_tar(diff_id)
        except (IntegrityError, NotFound) as error:
            if not os.path.isdir(store.layers.path(diff_id)):
                continue  # removed meanwhile
            if repair:
                store.layers.delete(diff_id)
            yield Problem("layer", diff_id, error.message, repair)
            continue
        try:
            store.layers.verify_index(diff_id)
        except IntegrityError as error:
            yield Problem("layer", diff_id, error.message, repair and _reindex(store, diff_id))


def _reindex(store: Store, diff_id: str) -> bool:
    """Make layer.idx again from a tar whose digest is right; the chunk records are lost until the next push."""
    from pylayers.store.tarindex import index_tar

    try:
        path = store.layers.make_whole(diff_id)
        with open(path, "rb") as tar:
            records, heap = index_tar(tar.fileno(), os.fstat(tar.fileno()).st_size, path)
        store.layers.replace_index(diff_id, EntryTable(records, heap), b"")
    except IntegrityError:
        return False
    return True


def _mirrors(store: Store) -> tuple[Mirror, ...]:
    metadata = store.metadata
    return metadata.references.mirror, metadata.images.mirror, metadata.containers.mirror


def _check_mirrors(store: Store, repair: bool) -> Iterator[Problem]:
    """Hold the files of each row against the database, which is the truth."""
    metadata = store.metadata
    expected: dict[str, Callable[[], None]] = {}
    for name, digest in metadata.references.walk():
        expected[metadata.references.mirror.path(name)] = lambda n=name, d=digest: metadata.references.set(n, d)  # type: ignore[misc]
    for image in metadata.images.walk():
        expected[metadata.images.mirror.path(image.digest)] = lambda r=image: metadata.images.add(r)  # type: ignore[misc]
    for container in metadata.containers.walk():
        expected[metadata.containers.mirror.path(container.id)] = lambda r=container: metadata.containers.save(r)  # type: ignore[misc]
    found = {path: fields for mirror in _mirrors(store) for path, fields in mirror.walk()}
    for path in sorted(set(expected) | set(found)):
        if path not in expected:
            if repair:
                remove_file(path)
            yield Problem("record", path, "the database does not have it", repair)
        elif found.get(path) is None:
            if repair:
                remove_file(path)
                expected[path]()
            yield Problem("record", path, "missing or unreadable", repair)
    current = dict(metadata.references.walk())
    for path, fields in metadata.references.mirror.walk():
        name = fields.text("name") if fields is not None else ""
        if fields is not None and name in current and fields.text("digest") != current[name]:
            if repair:
                metadata.references.set(name, current[name])
            yield Problem("record", path, f"names {fields.text('digest')}, not {current[name]}", repair)


def _check_images(store: Store) -> Iterator[Problem]:
    """Find images and references whose content is gone: only a pull or a build can bring it back."""
    metadata = store.metadata
    for image in metadata.images.walk():
        for digest in (image.digest, image.config_digest):
            if not store.blobs.exists(digest):
                yield Problem("image", image.digest, f"blob {digest} is missing: pull or build it again")
        for diff_id in image.diff_ids:
            if not store.layers.exists(diff_id):
                yield Problem("image", image.digest, f"layer {diff_id} is missing: pull or build it again")
    for name, digest in metadata.references.walk():
        if not store.blobs.exists(digest):
            yield Problem("reference", name, f"manifest {digest} is missing: pull or build it again")


def _check_steps(store: Store, repair: bool) -> Iterator[Problem]:
    for step in store.metadata.steps.walk():
        missing = [diff_id for diff_id in step.diff_ids if not store.layers.exists(diff_id)]
        if missing:
            if repair:
                store.metadata.steps.delete(step.key)
            yield Problem("step", step.key, f"its layer {missing[0]} is missing", repair)


def rebuild(store: Store) -> None:
    """Fill a new database from the files, then put it in the old one's place. Runs under the exclusive store lock."""
    metadata = store.metadata
    metadata.close()
    directory = os.path.dirname(metadata.path)
    fresh_path = f"{directory}/rebuilt.db"
    for suffix in ("", "-wal", "-shm"):
        remove_file(fresh_path + suffix, durable=False)
    fresh = Database(fresh_path)
    try:
        with fresh.write():
            _restore(metadata.references.mirror, lambda row: _restore_reference(fresh, metadata.references.mirror, row))
            _restore(metadata.images.mirror, lambda row: _restore_image(fresh, metadata.images.mirror, row))
            _restore(
                metadata.containers.mirror, lambda row: _restore_container(fresh, metadata.containers.mirror, row)
            )
    finally:
        fresh.close()  # the last close moves the log into the file
    # A log of the old database must never meet the new one.
    for suffix in ("-wal", "-shm"):
        remove_file(metadata.path + suffix, durable=False)
    os.rename(fresh_path, metadata.path)
    sync_path(directory)


def _restore(mirror: Mirror, restore: Callable[[Fields], None]) -> None:
    for _, fields in mirror.walk():
        if fields is None:
            continue
        try:
            restore(fields)
        except InvalidInput:
            continue  # a damaged row; the next check reports its file
        except PylayersError:
            raise


def _restore_reference(database: Database, mirror: Mirror, row: Fields) -> None:
    References(database, mirror).set(row.required_text("name"), row.required_text("digest"))


def _restore_image(database: Database, mirror: Mirror, row: Fields) -> None:
    record = ImageRecord(
        digest=row.required_text("digest"),
        config_digest=row.required_text("config_digest"),
        diff_ids=row.texts("diff_ids") or (),
        size_bytes=row.integer("size_bytes", least=0),
        built_ns=row.integer("built_ns"),
    )
    Images(database, mirror).add(record)
    if record.diff_ids:
        Chains(database).add_stack(record.diff_ids)


def _restore_container(database: Database, mirror: Mirror, row: Fields) -> None:
    Containers(database, mirror).save(
        ContainerRecord(
            id=row.required_text("id"),
            name=row.required_text("name"),
            image_digest=row.text("image_digest") or None,
            chain_id=row.text("chain_id") or None,
            created_ns=row.integer("created_ns"),
        )
    )
