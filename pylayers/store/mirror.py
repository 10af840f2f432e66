"""Mirrors: one small JSON file per row of what cannot be computed again, so that a lost database can be rebuilt.

The database is the truth while it exists: the file is written first, the database's commit decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pylayers.errors import InvalidInput
from pylayers.oci.digest import hex_of
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES, Fields, decode, encode
from pylayers.store.file import remove_file, translates, write_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SUFFIX = ".json"


class Mirror:
    """Keep rows as files, named by the sha256 of their key (a key may be longer than a file name)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, key: str) -> Path:
        """Return where a row's file lies."""
        return self.directory / (hex_of(key.encode()) + _SUFFIX)

    @translates("write a record")
    def write(self, key: str, row: Mapping[str, object], *, durable: bool = True) -> None:
        """Write a row's file; an equal one is left alone. Without durable a power cut may lose or empty it."""
        write_rows(((self, key, row),), durable=durable)

    @translates("remove a record")
    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove a row's file."""
        remove_file(self.path(key), durable=durable)

    def walk(self) -> Iterator[tuple[Path, Fields | None]]:
        """Yield every file with its fields; None for one that cannot be read as a row."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return
        for name in names:
            if not name.endswith(_SUFFIX) or name.startswith("."):
                continue
            path = self.directory / name
            try:
                if path.stat().st_size > DOCUMENT_LIMIT_BYTES:
                    raise InvalidInput(f"{path}: too large for a record")
                fields: dict[str, Any] = decode(path.read_bytes(), str(path))
            except FileNotFoundError:
                continue
            except InvalidInput:
                yield path, None
                continue
            yield path, Fields(fields, str(path))


@translates("write a record")
def write_rows(rows: Iterable[tuple[Mirror, str, Mapping[str, object]]], *, durable: bool = True) -> None:
    """Write the files of several rows as Mirror.write does, their flushes together."""
    changed: list[tuple[Path, bytes]] = []
    for mirror, key, row in rows:
        content = encode(dict(row))
        path = mirror.path(key)
        try:
            if path.read_bytes() == content:
                continue
        except FileNotFoundError:
            mirror.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        changed.append((path, content))
    write_files(changed, durable=durable)
