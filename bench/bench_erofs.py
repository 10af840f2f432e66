"""Write EROFS indexes: PYLAYERS_BENCH_ENTRIES rows (default 20,000), and ten times as many for the growth."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pylayers._native import erofs
from pylayers.store.entry import EntryTable, TableBuilder
from pylayers.store.row import Entry

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "20000"))
FILES_A_FOLDER = 50


def make_table(count: int) -> EntryTable:
    """Make a table like a package tree's: folders of small files."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    for number in range(count):
        folder = b"package%d" % (number // FILES_A_FOLDER)
        if number % FILES_A_FOLDER == 0:
            builder.add(folder, Entry(mode=stat.S_IFDIR | 0o755, mtime_ns=number))
        builder.add(
            b"%s/module_%d.py" % (folder, number),
            Entry(mode=stat.S_IFREG | 0o644, size_bytes=4000, data_offset=number * 4096, mtime_ns=number),
        )
    return builder.build()[0]


@pytest.mark.parametrize("times", [1, 10])
def test_write(benchmark: Any, tmp_path: Path, times: int) -> None:
    table = make_table(ENTRIES * times)
    descriptor = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    try:
        size = benchmark(erofs.write, descriptor, table.records, table.heap, [ENTRIES * times * 4096])
        benchmark.extra_info["image_bytes"] = size
        benchmark.extra_info["rows"] = len(table)
    finally:
        os.close(descriptor)
