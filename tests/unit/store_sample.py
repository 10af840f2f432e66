"""Small layers for the store's tests."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile

from pylayers.store import Layer, Store
from pylayers.store.entry import EntryTable, TableBuilder
from pylayers.store.lease import Lease
from pylayers.store.row import Entry


def make_table(*names: bytes) -> EntryTable:
    """Make a table of a root and regular files."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=0o40755))
    for number, name in enumerate(names):
        builder.add(name, Entry(mode=0o100644, size_bytes=number, mtime_ns=number * 10**9))
    return builder.build()[0]


def make_tar(files: dict[str, bytes]) -> bytes:
    """Make a real tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def digest(content: bytes) -> str:
    """Return a digest, not by the code under test."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def add_layer(store: Store, content: bytes, table: EntryTable | None = None, lease: Lease | None = None) -> Layer:
    """Ingest a layer whose tar is `content`."""
    table = table or make_table(b"a", b"b/c")
    with store.layers.ingest(lease=lease) as writer:
        os.write(writer.fd, content)
        return writer.commit(table.records, table.heap, len(content), digest(content))
