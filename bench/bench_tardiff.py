"""Merging, digesting, comparing and searching tables; PYLAYERS_BENCH_ENTRIES sets the size of the lowest one."""

from __future__ import annotations

import os
from stat import S_IFDIR, S_IFREG

import pytest
from blake3 import blake3

from pylayers._native import tardiff
from pylayers.store.entry import FLAG_HASHED, FLAG_IMPLICIT, FLAG_WHITEOUT, Buffer, TableBuilder
from pylayers.store.row import Entry

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "4000"))
Table = tuple[Buffer, Buffer]


def make_table(directories: int, *, step: int = 1, edited: bool = False) -> Table:
    """Make a layer of nine files per directory; an edited one has whiteouts and other contents."""
    builder = TableBuilder()
    implicit = Entry(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT)
    seen: set[bytes] = set()
    for number in range(0, directories, step):
        folder = b"usr/lib/package-%d/dist/module-%d" % (number // 40, number)
        parts = folder.split(b"/")
        for path in (b"/".join(parts[:count]) for count in range(len(parts) + 1)):
            if path not in seen:
                seen.add(path)
                builder.add(path, implicit if edited else Entry(mode=S_IFDIR | 0o755))
        for index in range(9):
            path = folder + b"/source_file_%d.js" % index
            if edited and index == 0:
                builder.add(path, Entry(flags=FLAG_WHITEOUT))
            else:
                content = b"%d %d" % (number, index + edited)
                builder.add(path, Entry(mode=S_IFREG | 0o644, size_bytes=len(content), flags=FLAG_HASHED,
                                        blake3=blake3(content).digest()))  # fmt: skip
    table, _ = builder.build()
    return table.records, table.heap


@pytest.fixture(scope="module")
def base() -> Table:
    return make_table(ENTRIES // 10)


@pytest.fixture(scope="module")
def edit() -> Table:
    return make_table(ENTRIES // 10, step=20, edited=True)


@pytest.mark.parametrize("layers", [1, 2, 20])
def test_merge(benchmark, base: Table, edit: Table, layers: int) -> None:  # type: ignore[no-untyped-def]
    benchmark(tardiff.merge, [base, *[edit] * (layers - 1)])


def test_tree_digest(benchmark, base: Table) -> None:  # type: ignore[no-untyped-def]
    benchmark(tardiff.tree_digest, *base, blake3)


@pytest.mark.parametrize("same", [True, False])
def test_diff(benchmark, base: Table, edit: Table, same: bool) -> None:  # type: ignore[no-untyped-def]
    other = base if same else tardiff.merge([base, edit])
    changes = benchmark(tardiff.diff, *base, *other)
    assert (changes == b"") == same


def test_find(benchmark, base: Table) -> None:  # type: ignore[no-untyped-def]
    assert benchmark(tardiff.find, *base, b"usr/lib/package-0/dist/module-7/source_file_3.js") > 0
