"""Mirrors: one small JSON file per row of what cannot be computed again, so that a lost database can be rebuilt.

The database is the truth while it exists: the file is written first, the database's commit decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from pylayers.errors import InvalidInput
from pylayers.oci.digest import hex_of
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES, Fields, decode, encode
from pylayers.store.file import read_file, remove_file, translates, write_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import StrPath

_SUFFIX = ".json"


class Mirror:
    """Keep rows as files, named by the sha256 of their key (a key may be longer than a file name)."""

    def __init__(self, directory: StrPath) -> None:
        self.directory = os.fspath(directory)

    def path(self, key: str) -> str:
        """Return where a row's file lies."""
        return f"{self.directory}/{hex_of(key.encode())}{_SUFFIX}"

    @translates("write a record")
    def write(self, key: str, row: Mapping[str, object], *, durable: bool = True) -> None:
        """Write a row's file; an equal one is left alone. Without durable a power cut may lose or empty it."""
        write_rows(((self, key, row),), durable=durable)

    @translates("remove a record")
    def remove(self, key: str, *, durable: bool = True) -> None:
        """Remove a row's file."""
        remove_file(self.path(key), durable=durable)

    def walk(self) -> Iterator[tuple[str, Fields | None]]:
        """Yield every file with its fields; None for one that cannot be read as a row."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return
        for name in names:
            if not name.endswith(_SUFFIX) or name.startswith("."):
                continue
            path = f"{self.directory}/{name}"
            try:
                if os.stat(path).st_size > DOCUMENT_LIMIT_BYTES:
                    raise InvalidInput(f"{path}: too large for a record")
                fields: dict[str, Any] = decode(read_file(path), path)
            except FileNotFoundError:
                continue
            except InvalidInput:
                yield path, None
                continue
            yield path, Fields(fields, path)


@translates("write a record")
def write_rows(rows: Iterable[tuple[Mirror, str, Mapping[str, object]]], *, durable: bool = True) -> None:
    """Write the files of several rows as Mirror.write does, their flushes together."""
    changed: list[tuple[str, bytes]] = []
    for mirror, key, row in rows:
        content = encode(dict(row))
        path = mirror.path(key)
        with suppress(FileNotFoundError):
            if read_file(path) == content:
                continue
        changed.append((path, content))
    try:
        write_files(changed, durable=durable)
    except FileNotFoundError:  # a root's first rows of a kind
        for path, _ in changed:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        write_files(changed, durable=durable)
