"""Grafting a table to another path, in rows; the copy of the records alone stands beside it."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from pylayers._native import graft
from pylayers.store.entry import FLAG_HASHED, SOURCE_PATH, SOURCE_RANGE, EntryTable, TableBuilder
from pylayers.store.row import Entry

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "20000"))


@pytest.fixture(scope="module")
def table() -> EntryTable:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    folders = max(ENTRIES // 50, 1)
    for folder in range(folders):
        builder.add(b"package-%05d" % folder, Entry(mode=stat.S_IFDIR | 0o755))
    for number in range(ENTRIES):
        entry = Entry(mode=stat.S_IFREG | 0o644, size_bytes=number, flags=FLAG_HASHED, blake3=bytes(32))
        builder.add(b"package-%05d/module-%06d.py" % (number % folders, number), entry)
    return builder.build()[0]


@pytest.mark.parametrize("kind", [SOURCE_PATH, SOURCE_RANGE], ids=["path", "range"])
def bench_graft(benchmark, table, kind) -> None:
    packed = struct.pack("<i", 3)
    made = benchmark(
        lambda: graft.graft(table.records, table.heap, 0, len(table), b"usr/lib/app", packed, kind, 0, 0, -1)
    )
    assert len(made[0]) == len(table.records)
    benchmark.extra_info["rows"] = len(table)


def bench_copy_of_records(benchmark, table) -> None:
    benchmark(lambda: (bytearray(table.records), bytearray(table.heap)))


def bench_adopt_hashes(benchmark, table) -> None:
    into = bytearray(table.records)
    benchmark(lambda: graft.adopt_hashes(into, 0, table.records, 0, len(table)))
