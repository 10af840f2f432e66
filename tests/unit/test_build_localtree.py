"""A walked tree's digests: computed once for the same contents, forgotten with them."""

from __future__ import annotations

import random
import stat
import struct
from pathlib import Path

import pytest

from pylayers._native import tardiff
from pylayers.build.copy.destination import Ownership
from pylayers.build.source.local import LocalSource
from pylayers.build.source.selector import IS_SOCKET, TYPE_AT, read_column, unhashed_rows
from pylayers.store.entry import ENTRY_SIZE_BYTES, FLAG_HASHED, EntryTable, TableBuilder
from pylayers.store.row import Entry
from pylayers.store.statcache import StatCache

PLAIN, PRIVATE = Ownership(0, 0), Ownership(0, 0, 0o600)


def test_a_digest_holds_as_long_as_the_hashes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_bytes(b"content")
    source = LocalSource(context, cache=StatCache(tmp_path / "cache"))
    tree = source.open("")
    digests = tree.digest(PLAIN), tree.digest(PRIVATE)
    assert digests[0] != digests[1]
    count = len(tree.records) // ENTRY_SIZE_BYTES
    tree.adopt(0, bytes(tree.records), 0, count)
    with monkeypatch.context() as patched:
        patched.delattr(tardiff, "tree_digest")  # nothing is computed again
        assert (tree.digest(PLAIN), tree.digest(PRIVATE)) == digests
    written = bytearray(tree.records)
    written[-1] ^= 1
    tree.adopt(0, written, 0, count)
    assert tree.digest(PLAIN) != digests[0]
    stored = StatCache(tmp_path / "cache").load(tree.cache_key)
    assert stored is not None
    assert set(stored.digests) == {PLAIN.digest_name}, "the other digest is of the old content"
    source.close()


def test_columns_of_a_table_tell_what_its_rows_do() -> None:
    """Files without a hash, sockets and flags are found by columns of bytes; here row by row."""
    draw = random.Random(5)
    builder = TableBuilder()
    for at in range(500):
        kind = draw.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFSOCK, stat.S_IFIFO])
        builder.add(b"%04d" % at, Entry(mode=kind | draw.randrange(0o10000), flags=draw.randrange(64)))
    table, _ = builder.build()
    rows = [
        row
        for row, entry in enumerate(table)
        if stat.S_ISREG(entry.mode) and not entry.flags & FLAG_HASHED
    ]
    assert unhashed_rows(table.records) == struct.pack(f"={len(rows)}I", *rows)
    assert unhashed_rows(b"") == b""
    sockets = [row for row, entry in enumerate(table) if stat.S_ISSOCK(entry.mode)]
    assert [row for row, yes in enumerate(read_column(table.records, TYPE_AT, IS_SOCKET)) if yes] == sockets


def test_rows_for_a_tar_carry_no_hashes(tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "folder").mkdir(parents=True)
    (context / "folder" / "file").write_bytes(b"content")
    (context / "link").symlink_to("folder/file")
    (context / "twin").hardlink_to(context / "folder" / "file")
    source = LocalSource(context)
    tree = source.open("")
    tree.digest(PLAIN)
    assert any(entry.flags & FLAG_HASHED for entry in tree.table)
    made = tree.rows(b"at", PLAIN)
    flags = [entry.flags for entry in EntryTable(made.records, made.heap)]
    assert flags == [entry.flags & ~FLAG_HASHED for entry in tree.table]
    source.close()
