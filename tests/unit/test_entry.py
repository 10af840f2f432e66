"""The record has two definitions: pyx/entry.pxd and pylayers/store/entry.py. They must be one."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from pylayers.store import entry
from pylayers.store.entry import (
    ENTRY_FIELDS,
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    EntryTable,
    TableBuilder,
    decode_xattrs,
    encode_xattrs,
    entry_dtype,
    path_key,
)
from pylayers.store.row import Entry

DECLARATIONS = (Path(__file__).parents[2] / "pyx" / "entry.pxd").read_text()
C_TYPES = {"uint64_t": "Q", "int64_t": "q", "uint32_t": "I", "uint8_t[32]": "32s"}


def parse_struct(text: str) -> list[tuple[str, str]]:
    body = re.search(r"cdef packed struct entry_t:\n((?:    .*\n)+)", text)
    assert body is not None
    fields = []
    for line in body.group(1).splitlines():
        match = re.fullmatch(r"    (\w+) (\w+)(\[\d+\])?\s*(?:#.*)?", line)
        assert match is not None, line
        kind, name, array = match.groups()
        fields.append((name, C_TYPES[kind + (array or "")]))
    return fields


def test_fields_have_the_same_names_order_and_types() -> None:
    assert parse_struct(DECLARATIONS) == list(ENTRY_FIELDS)
    assert Entry._fields == tuple(name for name, _ in ENTRY_FIELDS)


def test_flags_are_the_same() -> None:
    declared = {name: int(value) for name, value in re.findall(r"^    (FLAG_\w+) = (\d+)", DECLARATIONS, re.M)}
    assert len(declared) == 6
    assert declared == {name: getattr(entry, name) for name in dir(entry) if name.startswith("FLAG_")}


def test_record_is_packed_and_numpy_agrees() -> None:
    assert ENTRY_SIZE_BYTES == 168 == entry_dtype().itemsize
    offsets = entry_dtype().fields
    assert offsets is not None
    at = 0
    for name, code in ENTRY_FIELDS:
        assert offsets[name][1] == at, name
        at += struct.calcsize("<" + code)


def test_entry_survives_packing_with_a_distinct_value_per_field() -> None:
    values = [bytes(range(32)) if code == "32s" else number + 1 for number, (_, code) in enumerate(ENTRY_FIELDS)]
    packed = ENTRY_STRUCT.pack(*values)
    table = EntryTable(packed, b"")
    assert table.entry(0) == Entry(*values)
    assert table.array["layer"][0] == values[Entry._fields.index("layer")]


def test_xattrs_round_trip_sorted() -> None:
    xattrs = {b"user.b": b"\0\xff", b"user.a": b""}
    encoded = encode_xattrs(xattrs)
    assert list(decode_xattrs(encoded)) == [b"user.a", b"user.b"]
    assert decode_xattrs(memoryview(encoded)) == xattrs


def test_component_order_keeps_a_subtree_together() -> None:
    shuffled = [b"a.b", b"ab", b"a/z", b"a", b"a-b", b"a/b"]
    assert sorted(shuffled, key=path_key) == [b"a", b"a/b", b"a/z", b"a-b", b"a.b", b"ab"]


def test_builder_sorts_and_tells_where_rows_came_from() -> None:
    builder = TableBuilder()
    builder.add(b"b", Entry(mode=0o120777), link=b"target", xattrs=encode_xattrs({b"user.x": b"1"}))
    builder.add(b"", Entry(mode=0o40755))
    builder.add(b"a/c", Entry(mode=0o100644, size_bytes=3))
    table, order = builder.build()
    assert order == [1, 2, 0]
    assert [table.path(row) for row in table] == [b"", b"a/c", b"b"]
    last = table.entry(2)
    assert table.link(last) == b"target"
    assert table.xattrs(last) == {b"user.x": b"1"}
    with pytest.raises(struct.error):
        table.entry(3)
