"""The relations of the store: references, images and chains here; steps, leases and containers beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from pylayers.errors import Conflict, InvalidInput, NotFound
from pylayers.oci.chain import extend_chain
from pylayers.oci.digest import check_digest, is_digest
from pylayers.record import field, record
from pylayers.store.database import Database
from pylayers.store.holder import Containers
from pylayers.store.lease import Leases
from pylayers.store.mirror import Mirror, write_rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from _typeshed import StrPath

    from pylayers.store.step import Steps
    from pylayers.store.workspace import Workspace


@record
class ImageRecord:
    """Describe an image; `dangling` (no reference names it) is filled in when a record is read."""

    digest: str  # of the manifest
    config_digest: str  # docker's image id
    diff_ids: tuple[str, ...]
    size_bytes: int
    built_ns: int
    dangling: bool = field(default=False, compare=False)


@record
class ChainRecord:
    """Describe a chain: a layer over a parent chain. `tree_digest` is None until somebody computed it."""

    chain_id: str
    parent_chain_id: str | None
    diff_id: str
    tree_digest: bytes | None = None


class References:
    """Map full reference names ("docker.io/library/ubuntu:latest") to manifest digests."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self.mirror = mirror

    def get(self, name: str) -> str | None:
        """Return the digest a name stands for."""
        rows = self._database.read("SELECT digest FROM reference WHERE name=?", (name,))
        return rows[0][0] if rows else None

    def set(self, name: str, digest: str) -> None:
        """Let a name stand for a manifest or index; durable on return."""
        check_digest(digest)
        with self._database.write() as connection:
            self.mirror.write(name, self.row(name, digest))
            connection.execute("INSERT OR REPLACE INTO reference VALUES(?, ?)", (name, digest))

    @staticmethod
    def row(name: str, digest: str) -> dict[str, Any]:
        """Return what a name's mirror holds."""
        return {"name": name, "digest": digest}

    def delete(self, name: str) -> None:
        """Remove a name. Raises NotFound."""
        with self._database.write() as connection:
            if self.get(name) is None:
                raise NotFound(f"reference {name!r} does not exist", hint="list the images with: pylayers image ls")
            self.mirror.remove(name)
            connection.execute("DELETE FROM reference WHERE name=?", (name,))

    def names(self, digest: str) -> list[str]:
        """Return the names that stand for a digest, sorted."""
        rows = self._database.read("SELECT name FROM reference WHERE digest=? ORDER BY name", (digest,))
        return [row[0] for row in rows]

    def walk(self) -> Iterator[tuple[str, str]]:
        """Yield (name, digest), sorted by name."""
        yield from self._database.read("SELECT name, digest FROM reference ORDER BY name")

    def walk_others(self) -> Iterator[tuple[str, str]]:
        """Yield (name, digest) of what is no image itself, such as an index; sorted by name."""
        yield from self._database.read("SELECT name, digest FROM reference_other ORDER BY name")


_IMAGE = """SELECT digest, config_digest, size_bytes, built_ns,
    NOT EXISTS(SELECT 1 FROM reference WHERE reference.digest=image.digest) FROM image"""


class Images:
    """Keep what is known of each image, by manifest digest."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self.mirror = mirror

    def add(self, record: ImageRecord) -> None:
        """Add or replace an image; durable on return."""
        for digest in (record.digest, record.config_digest, *record.diff_ids):
            check_digest(digest)
        with self._database.write() as connection:
            self.mirror.write(record.digest, self.row(record))
            connection.execute("DELETE FROM image WHERE digest=?", (record.digest,))
            connection.execute(
                "INSERT INTO image VALUES(?, ?, ?, ?)",
                (record.digest, record.config_digest, record.size_bytes, record.built_ns),
            )
            connection.executemany(
                "INSERT INTO image_layer VALUES(?, ?, ?)",
                [(record.digest, position, diff_id) for position, diff_id in enumerate(record.diff_ids)],
            )

    @staticmethod
    def row(record: ImageRecord) -> dict[str, Any]:
        """Return what an image's mirror holds."""
        return {
            "digest": record.digest,
            "config_digest": record.config_digest,
            "diff_ids": list(record.diff_ids),
            "size_bytes": record.size_bytes,
            "built_ns": record.built_ns,
        }

    def _load(self, rows: list[tuple[Any, ...]]) -> list[ImageRecord]:
        found = []
        for digest, config_digest, size_bytes, built_ns, dangling in rows:
            layers = self._database.read("SELECT diff_id FROM image_layer WHERE image=? ORDER BY position", (digest,))
            diff_ids = tuple(row[0] for row in layers)
            found.append(ImageRecord(digest, config_digest, diff_ids, size_bytes, built_ns, bool(dangling)))
        return found

    def get(self, digest: str) -> ImageRecord | None:
        """Return an image by its manifest digest."""
        found = self._load(self._database.read(f"{_IMAGE} WHERE digest=?", (digest,)))
        return found[0] if found else None

    def find(self, prefix: str) -> ImageRecord | None:
        """Return the image whose manifest or config digest starts with hex digits, "sha256:" before them or not.

        Raises Conflict when images with different configs match.
        """
        digits = prefix.removeprefix("sha256:")
        if not digits or not set(digits) <= set("0123456789abcdef"):
            return None
        low, high = f"sha256:{digits}", f"sha256:{digits}g"
        found = self._load(
            self._database.read(
                f"{_IMAGE} WHERE digest BETWEEN ?1 AND ?2 OR config_digest BETWEEN ?1 AND ?2"
                " ORDER BY built_ns DESC, digest",
                (low, high),
            )
        )
        if len({record.config_digest for record in found}) > 1:
            raise Conflict(f"image id {prefix!r} is ambiguous: {len(found)} images match", hint="give more digits")
        return found[0] if found else None

    def delete(self, digest: str) -> None:
        """Remove an image's record (its files go at the next collect). Raises NotFound."""
        with self._database.write() as connection:
            if self.get(digest) is None:
                raise NotFound(f"image {digest} does not exist", hint="list the images with: pylayers image ls")
            self.mirror.remove(digest)
            connection.execute("DELETE FROM image WHERE digest=?", (digest,))

    def walk(self) -> Iterator[ImageRecord]:
        """Yield every image, newest first; those that no reference names have `dangling` set."""
        yield from self._load(self._database.read(f"{_IMAGE} ORDER BY built_ns DESC, digest"))


class Chains:
    """Keep the stacks of layers that were seen: parents, and tree digests once computed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, chain_id: str, parent_chain_id: str | None, diff_id: str, tree_digest: bytes | None = None
    ) -> None:
        """Add a chain whose parent is there already; one that is there keeps a tree digest it has.

        Raises InvalidInput when chain_id isn't the one of parent and layer.
        """
        if extend_chain(parent_chain_id, diff_id) != chain_id:
            raise InvalidInput(f"chain {chain_id} is not {diff_id} over {parent_chain_id or 'nothing'}")
        self._database.execute(
            "INSERT INTO chain VALUES(?, ?, ?, ?) ON CONFLICT(chain_id) DO"
            " UPDATE SET tree_digest=COALESCE(excluded.tree_digest, tree_digest)",
            (chain_id, parent_chain_id, diff_id, tree_digest),
        )

    def add_stack(self, diff_ids: Sequence[str], *, durable: bool = True) -> str:
        """Add the chain of each prefix of a stack; return the whole stack's. One transaction.

        durable=False leaves the flush to a later transaction, such as the one that adds the image.
        """
        parent: str | None = None
        with self._database.write(durable=durable):
            for diff_id in diff_ids:
                chain_id = extend_chain(parent, diff_id)
                self.add(chain_id, parent, diff_id)
                parent = chain_id
        if parent is None:
            raise InvalidInput("an empty stack of layers has no chain id")
        return parent

    def get(self, chain_id: str) -> ChainRecord | None:
        """Return a chain."""
        rows = self._database.read(
            "SELECT chain_id, parent, diff_id, tree_digest FROM chain WHERE chain_id=?", (chain_id,)
        )
        return ChainRecord(*rows[0]) if rows else None

    def diff_ids(self, chain_id: str) -> tuple[str, ...]:
        """Return the layers of a chain, lowest first. Raises NotFound."""
        found: list[str] = []
        at: str | None = chain_id
        while at is not None:
            record = self.get(at)
            if record is None:
                raise NotFound(f"chain {at} is not known")
            found.append(record.diff_id)
            at = record.parent_chain_id
        return tuple(reversed(found))

    def set_tree_digest(self, chain_id: str, tree_digest: bytes) -> None:
        """Remember a chain's tree digest. Not synced: it can be computed again. Raises NotFound."""
        changed = self._database.execute(
            "UPDATE chain SET tree_digest=? WHERE chain_id=?", (tree_digest, chain_id), durable=False
        )
        if not changed:
            raise NotFound(f"chain {chain_id} is not known")

    def delete(self, chain_ids: Sequence[str]) -> None:
        """Forget chains; a chain and its children must go together."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM chain WHERE chain_id=?", [(chain_id,) for chain_id in chain_ids])

    def walk(self) -> Iterator[ChainRecord]:
        """Yield every chain, sorted by chain id."""
        for row in self._database.read("SELECT chain_id, parent, diff_id, tree_digest FROM chain ORDER BY chain_id"):
            yield ChainRecord(*row)


class Metadata:
    """Give access to each relation. The database is opened by the first statement."""

    def __init__(self, directory: StrPath, workspace: Workspace) -> None:
        self.path = os.path.join(directory, "metadata.db")
        refs, images = (Mirror(os.path.join(directory, name)) for name in ("refs", "images"))
        self.database = Database(self.path, expected=lambda: any(refs.walk()) or any(images.walk()))
        self.references = References(self.database, refs)
        self.images = Images(self.database, images)
        self.chains = Chains(self.database)
        self.leases = Leases(self.database, workspace)
        self.containers = Containers(self.database, Mirror(os.path.join(directory, "containers")))

    @cached_property  # two threads may make two, which are equal
    def steps(self) -> Steps:
        """Return the build cache, which few commands load."""
        from pylayers.store.step import Steps

        return Steps(self.database)

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Join the calls made inside the block into one transaction. Take no lock and hold no lease inside."""
        return self.database.write()

    def add_image(self, record: ImageRecord, name: str | None) -> None:
        """Add an image, and a name for it if one is given: one transaction, the flushes of both mirrors together."""
        with self.transaction():
            if name is not None:  # what finds its row written leaves it alone
                mirrors = self.images.mirror, self.references.mirror
                rows = self.images.row(record), self.references.row(name, record.digest)
                write_rows(zip(mirrors, (record.digest, name), rows, strict=True))
            self.images.add(record)
            if name is not None:
                self.references.set(name, record.digest)

    def resolve(self, name: str) -> ImageRecord | None:
        """Return the image for a full reference name, a digest, or a prefix of an image id."""
        digest = self.references.get(name) or (name if is_digest(name) else None)
        found = self.images.get(digest) if digest else None
        return found or self.images.find(name)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def leave(self) -> None:
        """Leave the database to the end of this process."""
        self.database.leave()
