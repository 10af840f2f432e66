"""Random layers, one over the other, against a model of the rules; random damage never does harm."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native.unpack import NO_OWNER, WHITEOUT_APPLY, unpack
from pylayers.store.entry import FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, TableBuilder
from pylayers.store.row import Entry

NAMES = st.sampled_from([b"a", b"b", b"c", b"a-", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
KINDS = st.sampled_from(["file", "link", "fifo", "whiteout", "directory", "implicit", "opaque"])


class Row(NamedTuple):
    kind: str
    content: bytes
    mode: int
    mtime_ns: int


ROWS = st.builds(Row, KINDS, st.binary(max_size=40), st.integers(0, 0o7777), st.integers(-(10**10), 2 * 10**18))
LAYERS = st.lists(st.dictionaries(PATHS, ROWS, max_size=12), min_size=1, max_size=4)


def close_upwards(layer: dict[bytes, Row]) -> dict[bytes, Row]:
    """Make it a layer: every parent is a directory, implicit when it has no row of its own."""
    closed = dict(layer)
    for path in layer:
        parent = path
        while b"/" in parent:
            parent = parent.rpartition(b"/")[0]
            if parent not in closed or closed[parent].kind not in ("directory", "implicit", "opaque"):
                closed[parent] = Row("implicit", b"", 0o755, 0)
    return closed


def build(layer: dict[bytes, Row]) -> tuple[bytes, bytes, bytes]:
    builder, tar = TableBuilder(), bytearray(b"header")
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755, flags=FLAG_IMPLICIT))
    for path, row in layer.items():
        kinds = {"file": stat.S_IFREG, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO, "whiteout": 0}
        flags = {"whiteout": FLAG_WHITEOUT, "implicit": FLAG_IMPLICIT, "opaque": FLAG_OPAQUE}.get(row.kind, 0)
        size = len(row.content) if row.kind == "file" else 0
        entry = Entry(
            mode=kinds.get(row.kind, stat.S_IFDIR) | row.mode,
            flags=flags,
            data_offset=len(tar),
            size_bytes=size,
            mtime_ns=row.mtime_ns,
        )
        tar += row.content
        builder.add(path, entry, link=b"t/" + row.content.replace(b"\0", b"0") if row.kind == "link" else b"")
    table, _ = builder.build()
    return bytes(table.records), bytes(table.heap), bytes(tar)


def apply(tree: dict[bytes, Row], layer: dict[bytes, Row]) -> dict[bytes, Row]:
    """Apply a layer to a model tree by the OCI rules."""

    def without(path: bytes, itself: bool) -> dict[bytes, Row]:
        return {k: v for k, v in tree.items() if not (k.startswith(path + b"/") or (itself and k == path))}

    for path, row in sorted(layer.items(), key=lambda item: item[0].replace(b"/", b"\0")):
        old = tree.get(path)
        was_directory = old is not None and old.kind == "directory"
        if row.kind == "whiteout":
            tree = without(path, True)
        elif row.kind in ("directory", "implicit", "opaque"):
            if not was_directory or row.kind == "opaque":
                tree = without(path, False)
            if row.kind != "implicit" or not was_directory:
                tree[path] = row._replace(kind="directory")
        else:
            tree = without(path, True)
            tree[path] = row
    return tree


def read_back(root: bytes) -> dict[bytes, tuple[str, bytes, int, int]]:
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = directory + b"/" + name
            info = os.lstat(path)
            kind = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFDIR: "directory"}[
                stat.S_IFMT(info.st_mode)
            ]
            content = b""
            if kind == "file":
                with open(path, "rb") as file:
                    content = file.read()
            elif kind == "link":
                content = os.readlink(path)[2:]
            mode = 0 if kind == "link" else stat.S_IMODE(info.st_mode)
            found[path[len(root) + 1 :]] = (kind, content, mode, info.st_mtime_ns)
    return found


def expect(tree: dict[bytes, Row]) -> dict[bytes, tuple[str, bytes, int, int]]:
    expected = {}
    for path, row in tree.items():
        content = row.content if row.kind in ("file", "link") else b""
        if row.kind == "link":
            content = content.replace(b"\0", b"0")
        expected[path] = (row.kind, content, 0 if row.kind == "link" else row.mode, row.mtime_ns)
    return expected


def unpack_bytes(root: bytes, records: bytes, heap: bytes, tar: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(tar)
        file.flush()
        root_fd = os.open(root, os.O_RDONLY)
        try:
            unpack(root_fd, file.fileno(), records, heap, WHITEOUT_APPLY, NO_OWNER)
        finally:
            os.close(root_fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads back what mode 0 hides")
@settings(deadline=None, max_examples=150)
@given(LAYERS)
def test_layers_over_one_another(layers: list[dict[bytes, Row]]) -> None:
    tree: dict[bytes, Row] = {}
    with tempfile.TemporaryDirectory() as area:
        root = os.fsencode(area)
        for layer in map(close_upwards, layers):
            unpack_bytes(root, *build(layer))
            tree = apply(tree, layer)
            assert read_back(root) == expect(tree)


@settings(deadline=None, max_examples=150)
@given(LAYERS, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.booleans())
def test_damaged_tables_do_no_harm(
    layers: list[dict[bytes, Row]], damage: list[tuple[int, int]], in_heap: bool
) -> None:
    """Whatever the table says, it is refused, fails, or stays beneath the root."""
    records, heap, tar = build(close_upwards(layers[0]))
    damaged = bytearray(heap if in_heap else records)
    for at, value in damage:
        if damaged:
            damaged[at % len(damaged)] = value
    if in_heap:
        heap = bytes(damaged)
    else:
        records = bytes(damaged)
    with tempfile.TemporaryDirectory() as area:
        root = os.fsencode(area) + b"/root"
        os.mkdir(root)
        # ValueError: refused; OSError: the file system refused (a mode of a fifo turned device, a name too long).
        with contextlib.suppress(ValueError, OSError):
            unpack_bytes(root, records, heap, tar)
        assert os.listdir(area) == ["root"]
