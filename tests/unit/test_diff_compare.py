"""The docker-style list of changes."""

from __future__ import annotations

import stat

import pytest

from pylayers.diff.compare import list_changes
from pylayers.store.entry import FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable, TableBuilder
from pylayers.store.row import Entry

DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def table(*rows: tuple[str, int] | tuple[str, int, int]) -> EntryTable:
    builder = TableBuilder()
    for path, mode, *flags in rows:
        builder.add(path.encode(), Entry(mode=mode, flags=flags[0] if flags else 0))
    return builder.build()[0]


PARENT = table(
    ("", DIRECTORY), ("a", FILE), ("d", DIRECTORY), ("d/1", FILE), ("d/2", DIRECTORY), ("d/2/x", FILE), ("d-", FILE)
)  # fmt: skip
ROOT = ("", DIRECTORY, FLAG_IMPLICIT)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((ROOT,), []),
        ((("", DIRECTORY),), ["C "]),
        ((ROOT, ("a", FILE), ("b", FILE)), ["C a", "A b"]),
        ((ROOT, ("d", 0, FLAG_WHITEOUT)), ["D d"]),
        ((ROOT, ("nothing", 0, FLAG_WHITEOUT)), []),
        ((ROOT, ("d", DIRECTORY), ("d/2", 0, FLAG_WHITEOUT), ("d/3", FILE)), ["C d", "D d/2", "A d/3"]),
        ((ROOT, ("d", DIRECTORY, FLAG_OPAQUE), ("d/1", FILE)), ["C d", "C d/1", "D d/2"]),
        ((ROOT, ("d", DIRECTORY, FLAG_OPAQUE), ("d/2", DIRECTORY)), ["C d", "D d/1", "C d/2", "D d/2/x"]),
        ((ROOT, ("d", DIRECTORY, FLAG_IMPLICIT), ("d/2", DIRECTORY, FLAG_IMPLICIT), ("d/2/y", FILE)), ["A d/2/y"]),
        ((ROOT, ("n", DIRECTORY, FLAG_OPAQUE), ("n/f", FILE)), ["A n", "A n/f"]),
        ((ROOT, ("d", LINK), ("d-", FILE)), ["C d", "C d-"]),
        ((ROOT, ("d-", FILE), ("d", DIRECTORY), ("d/1", FILE)), ["C d", "C d/1", "C d-"]),
    ],
)
def test_list_changes(rows: tuple[tuple[str, int], ...], expected: list[str]) -> None:
    assert [f"{line.kind} {line.path.decode()}" for line in list_changes(table(*rows), PARENT)] == expected


def test_everything_is_new_without_a_parent() -> None:
    lines = list_changes(PARENT, EntryTable(b"", b""))
    assert [line.path.decode() for line in lines] == ["", "a", "d", "d/1", "d/2", "d/2/x", "d-"]
    assert {line.kind for line in lines} == {"A"}
