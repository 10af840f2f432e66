"""The relation of containers."""

from __future__ import annotations

from collections.abc import Iterator

from pylayers.errors import AlreadyExists, Conflict, NotFound
from pylayers.record import record, replace
from pylayers.store.database import Database
from pylayers.store.mirror import Mirror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record
class ContainerRecord:
    """Describe a container as far as the store must know it; the rest is in containers/<id>/."""

    id: str  # 64 hex digits
    name: str
    image_digest: str | None
    chain_id: str | None
    created_ns: int = 0


class Containers:
    """Keep containers by id, with unique names."""

    def __init__(self, database: Database, mirror: Mirror) -> None:
        self._database = database
        self.mirror = mirror

    def add(self, record: ContainerRecord, *, durable: bool = True) -> None:
        """Add a container, durably unless it needn't outlive this boot. Raises AlreadyExists for its id or name."""
        with self._database.write(durable=durable):
            if self._load("WHERE id=? OR name=?", (record.id, record.name)):
                raise AlreadyExists(
                    f"container name {record.name!r} is taken", hint=f"remove it with: pylayers rm {record.name}"
                )
            self.save(record, durable=durable)

    def save(self, record: ContainerRecord, *, durable: bool = True) -> None:
        """Add or replace a container's record; the name must be free or its own."""
        row: dict[str, Any] = {
            "id": record.id,
            "name": record.name,
            "image_digest": record.image_digest,
            "chain_id": record.chain_id,
            "created_ns": record.created_ns,
        }
        with self._database.write(durable=durable) as connection:
            self.mirror.write(record.id, row, durable=durable)
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

    def delete(self, container_id: str, *, durable: bool = True) -> None:
        """Forget a container. Raises NotFound."""
        with self._database.write(durable=durable) as connection:
            if self.get(container_id) is None:
                raise NotFound(f"container {container_id} does not exist", hint="list them with: pylayers ps -a")
            self.mirror.remove(container_id, durable=durable)
            connection.execute("DELETE FROM container WHERE id=?", (container_id,))

    def walk(self) -> Iterator[ContainerRecord]:
        """Yield every container, oldest first."""
        yield from self._load("ORDER BY created_ns, id")
