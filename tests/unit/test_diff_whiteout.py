"""Overlay marks to layer rows, on tables made in Python (the conformance suite does it on a real overlay)."""

from __future__ import annotations

import stat

from pylayers.diff.overlaymark import is_whiteout
from pylayers.diff.whiteout import convert_upper, visible_xattrs
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    EntryTable,
    TableBuilder,
    encode_xattrs,
)
from pylayers.store.row import Entry


def converted(*rows: tuple[bytes, Entry, dict[bytes, bytes]]) -> dict[bytes, tuple[Entry, dict[bytes, bytes]]]:
    builder = TableBuilder()
    for path, entry, xattrs in rows:
        builder.add(path, entry, link=b"other" if entry.flags & FLAG_HARDLINK else b"", xattrs=encode_xattrs(xattrs))
    table, _ = builder.build()
    records, heap = bytearray(table.records), bytearray(table.heap)
    convert_upper(records, heap)
    done = EntryTable(records, heap)
    return {done.path(entry): (entry, done.xattrs(entry)) for entry in done}


def test_is_whiteout() -> None:
    assert is_whiteout(stat.S_IFCHR | 0o600, 0, 0)
    assert not is_whiteout(stat.S_IFCHR, 1, 3)
    assert not is_whiteout(stat.S_IFCHR, 0, 1)
    assert not is_whiteout(stat.S_IFREG, 0, 0)


def test_whiteouts_even_where_the_kernel_linked_them() -> None:
    device = Entry(mode=stat.S_IFCHR | 0o600)
    done = converted(
        (b"", Entry(mode=stat.S_IFDIR | 0o755), {}),
        (b"a", device, {}),
        (b"b", device._replace(flags=FLAG_HARDLINK, nlink=2), {b"trusted.overlay.origin": b"x"}),
        (b"null", Entry(mode=stat.S_IFCHR | 0o666, rdev_major=1, rdev_minor=3), {}),
        (b"rdev", Entry(mode=stat.S_IFBLK | 0o666), {}),
    )
    for path in (b"a", b"b"):
        entry, xattrs = done[path]
        assert (entry.flags, entry.link_length, xattrs) == (FLAG_WHITEOUT, 0, {})
    assert done[b"null"][0].flags == done[b"rdev"][0].flags == 0


def test_opaque_and_foreign_xattrs() -> None:
    directory, file = Entry(mode=stat.S_IFDIR | 0o700, uid=3), Entry(mode=stat.S_IFREG | 0o600)
    own = {b"trusted.overlay.impure": b"y", b"trusted.overlay.origin": b"\0\1"}
    done = converted(
        (b"", directory, own),
        (b"merged", directory, {b"trusted.overlay.opaque": b"x", b"user.a": b"1"}),
        (b"opaque", directory, {b"trusted.overlay.opaque": b"y", b"user.a": b"1", b"security.capability": b"c"}),
        (b"user", directory, {b"user.overlay.opaque": b"y"}),
        (b"zfile", file, {b"trusted.overlay.opaque": b"y", b"trusted.overlayed": b"kept"}),
    )
    assert done[b""][1] == {}
    assert (done[b"merged"][0].flags, done[b"merged"][1]) == (0, {b"user.a": b"1"})
    assert done[b"opaque"][0].flags == FLAG_OPAQUE
    assert done[b"opaque"][1] == {b"user.a": b"1", b"security.capability": b"c"}
    assert (done[b"opaque"][0].mode, done[b"opaque"][0].uid) == (directory.mode, 3)
    assert (done[b"user"][0].flags, done[b"user"][1]) == (FLAG_OPAQUE, {})
    assert (done[b"zfile"][0].flags, done[b"zfile"][1]) == (0, {b"trusted.overlayed": b"kept"})


def test_visible_xattrs() -> None:
    builder = TableBuilder()
    builder.add(b"f", Entry(), xattrs=encode_xattrs({b"trusted.overlay.origin": b"o", b"user.x": b"1"}))
    table, _ = builder.build()
    assert visible_xattrs(table, table.entry(0)) == {b"user.x": b"1"}
