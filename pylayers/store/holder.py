"""The relations of volumes and containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pylayers.errors import AlreadyExists, Conflict, NotFound
from pylayers.record import field, record, replace
from pylayers.store.database import Database
from pylayers.store.mirror import Mirror


@record
class VolumeRecord:
    """Describe a volume; an anonymous one goes with its container."""

    name: str
    driver: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    created_ns: int = 0
    anonymous: bool = False


@record
class ContainerRecord:
    """Describe a container as far as the store must know it; the rest is in containers/<id>/."""

    id: str  # 64 hex digits
    name: str
    image_digest: str | None
    chain_id: str | None
    created_ns: int = 0


class Volumes:
    """Keep volumes by name."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self.mirror = mirror

    def add(self, record: VolumeRecord) -> None:
        """Add a volume; durable on return. Raises AlreadyExists."""
        with self._database.write():
            if self.get(record.name) is not None:
                raise AlreadyExists(f"volume {record.name!r} already exists")
            self.save(record)

    def save(self, record: VolumeRecord) -> None:
        """Add or replace a volume's record."""
        from pylayers.oci.document import encode

        row = {
            "name": record.name,
            "driver": record.driver,
            "labels": dict(record.labels),
            "created_ns": record.created_ns,
            "anonymous": record.anonymous,
        }
        labels = encode(row["labels"]).decode()
        with self._database.write() as connection:
            self.mirror.write(record.name, row)
            connection.execute(
                "INSERT OR REPLACE INTO volume VALUES(?, ?, ?, ?, ?)",
                (record.name, record.driver, labels, record.created_ns, int(record.anonymous)),
            )

    def _load(self, where: str, values: tuple[object, ...] = ()) -> list[VolumeRecord]:
        import json

        rows = self._database.read(
            f"SELECT name, driver, labels, created_ns, anonymous FROM volume {where}", values  # noqa: S608
        )
        return [VolumeRecord(row[0], row[1], json.loads(row[2]), row[3], bool(row[4])) for row in rows]

    def get(self, name: str) -> VolumeRecord | None:
        """Return a volume."""
        found = self._load("WHERE name=?", (name,))
        return found[0] if found else None

    def delete(self, name: str) -> None:
        """Forget a volume; its data is the caller's to remove. Raises NotFound."""
        with self._database.write() as connection:
            if self.get(name) is None:
                raise NotFound(f"volume {name!r} does not exist", hint="list the volumes with: pylayers volume ls")
            self.mirror.remove(name)
            connection.execute("DELETE FROM volume WHERE name=?", (name,))

    def walk(self) -> Iterator[VolumeRecord]:
        """Yield every volume, sorted by name."""
        yield from self._load("ORDER BY name")


class Containers:
    """Keep containers by id, with unique names."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self.mirror = mirror

    def add(self, record: ContainerRecord) -> None:
        """Add a container; durable on return. Raises AlreadyExists for its id or name."""
        with self._database.write():
            if self._load("WHERE id=? OR name=?", (record.id, record.name)):
                raise AlreadyExists(
                    f"container name {record.name!r} is taken", hint=f"remove it with: pylayers rm {record.name}"
                )
            self.save(record)

    def save(self, record: ContainerRecord) -> None:
        """Add or replace a container's record; the name must be free or its own."""
        row: dict[str, Any] = {
            "id": record.id,
            "name": record.name,
            "image_digest": record.image_digest,
            "chain_id": record.chain_id,
            "created_ns": record.created_ns,
        }
        with self._database.write() as connection:
            self.mirror.write(record.id, row)
            connection.execute("DELETE FROM container WHERE id=?", (record.id,))
            connection.execute("INSERT INTO container VALUES(?, ?, ?, ?, ?)", tuple(row.values()))

    def _load(self, where: str, values: tuple[object, ...] = ()) -> list[ContainerRecord]:
        rows = self._database.read(
            f"SELECT id, name, image_digest, chain_id, created_ns FROM container {where}", values  # noqa: S608
        )
        return [ContainerRecord(*row) for row in rows]

    def get(self, container_id: str) -> ContainerRecord | None:
        """Return a container by its whole id."""
        found = self._load("WHERE id=?", (container_id,))
        return found[0] if found else None

    def find(self, text: str) -> ContainerRecord | None:
        """Return a container by id, else by name, else by a prefix of its id, as docker does.

        Raises Conflict when the prefix is ambiguous.
        """
        found = self._load("WHERE id=?", (text,)) or self._load("WHERE name=?", (text,))
        if not found and text and set(text) <= set("0123456789abcdef"):
            found = self._load("WHERE id BETWEEN ? AND ? ORDER BY id", (text, f"{text}g"))
            if len(found) > 1:
                raise Conflict(f"container id {text!r} is ambiguous: {len(found)} match", hint="give more digits")
        return found[0] if found else None

    def rename(self, container_id: str, name: str) -> None:
        """Give a container another name. Raises NotFound, AlreadyExists."""
        with self._database.write():
            record = self.get(container_id)
            if record is None:
                raise NotFound(f"container {container_id} does not exist")
            if self._load("WHERE name=? AND id<>?", (name, container_id)):
                raise AlreadyExists(f"container name {name!r} is taken", hint=f"remove it with: pylayers rm {name}")
            self.save(replace(record, name=name))

    def delete(self, container_id: str) -> None:
        """Forget a container. Raises NotFound."""
        with self._database.write() as connection:
            if self.get(container_id) is None:
                raise NotFound(f"container {container_id} does not exist", hint="list them with: pylayers ps -a")
            self.mirror.remove(container_id)
            connection.execute("DELETE FROM container WHERE id=?", (container_id,))

    def walk(self) -> Iterator[ContainerRecord]:
        """Yield every container, oldest first."""
        yield from self._load("ORDER BY created_ns, id")
