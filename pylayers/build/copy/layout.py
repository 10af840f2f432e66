"""COPY and ADD of trees: the destination is resolved in the parent's merged table, the layer written from the sources.

Nothing is mounted or unpacked. The rules are those of BuildKit's COPY: sources are put one after another onto a
growing tree, directories give their content, symlinks in the destination are followed inside the root (one in its last
component too), an existing top directory keeps its metadata but takes its source's time, missing parents are new.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from pylayers._native import tardiff
from pylayers.build.copy.destination import Destination, Ownership, resolve_path
from pylayers.build.copy.rows import Graft, LayerRows, join
from pylayers.build.source.local import GraftedRows, LocalTree
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_IMPLICIT,
    EntryTable,
    TableBuilder,
    encode_xattrs,
)
from pylayers.store.row import Entry

if TYPE_CHECKING:
    from pylayers.build.source.table import TableTree

    SourceTree = LocalTree | TableTree

SECOND_NS = 1_000_000_000
MODE_AT = 92
XATTR_LENGTH_AT = 88


class Layout:
    """A layer that grows over a parent's merged table: directories one by one, and whole trees grafted onto it."""

    def __init__(self, parent: EntryTable, owner: Ownership, epoch_s: int, span: SourceSpan | None = None) -> None:
        self.parent = parent
        self.owner = owner
        self.epoch_s = epoch_s
        self.span = span
        self.grafts: list[Graft] = []
        self._trees: list[Graft] = []  # those of more than one row
        self._files: dict[bytes, Graft] = {}
        self.directories: dict[bytes, tuple[Entry, bytes]] = {
            b"": (Entry(mode=stat.S_IFDIR | 0o755, flags=FLAG_IMPLICIT), b"")
        }

    def find(self, path: bytes) -> tuple[EntryTable | None, Entry] | None:
        """Return what is at a path now, with the table that it is in (None for a directory of the layer)."""
        directory = self.directories.get(path)
        if directory is not None:
            return None, directory[0]
        file = self._files.get(path)
        if file is not None:
            return file.table, file.table.entry(0)
        for graft in reversed(self._trees):
            row = graft.find(path)
            if row >= 0:
                return graft.table, graft.table.entry(row)
        row = tardiff.find(self.parent.records, self.parent.heap, path)
        return None if row < 0 else (self.parent, self.parent.entry(row))

    def look(self, path: bytes) -> tuple[int, bytes] | None:
        """Return the mode and the symlink target of what is at a path now."""
        found = self.find(path)
        if found is None:
            return None
        table, entry = found
        return entry.mode, table.link(entry) if table is not None and stat.S_ISLNK(entry.mode) else b""

    def is_directory(self, path: bytes) -> bool | None:
        """Tell what is at a path now; None for nothing."""
        found = self.find(path)
        return None if found is None else stat.S_ISDIR(found[1].mode)

    def resolve(self, path: str) -> bytes:
        """Follow a path's symlinks in the tree as it is now. Raises InvalidInput."""
        return resolve_path(path.encode(errors="surrogateescape"), self.look)

    def need(self, path: bytes) -> None:
        """Add a directory and everything above it: existing ones as they are, missing ones new."""
        while path and path not in self.directories:
            found = self.find(path)
            if found is None:
                self.directories[path] = (self.new_directory(), b"")
            else:
                table, entry = found
                if not stat.S_ISDIR(entry.mode):
                    raise InvalidInput(f"cannot copy below {show(path)}: it is not a directory", span=self.span)
                if table is self.parent:
                    self.directories[path] = (fresh(entry), encode_xattrs(table.xattrs(entry)))
            path = path.rpartition(b"/")[0]

    def new_directory(self) -> Entry:
        """Return the row of a directory that has to be made."""
        return Entry(
            mode=stat.S_IFDIR | self.owner.parent_mode,
            uid=max(self.owner.uid, 0),
            gid=max(self.owner.gid, 0),
            mtime_ns=self.epoch_s * SECOND_NS,
        )

    def touch(self, path: bytes, mtime_ns: int) -> None:
        """Give a directory of the layer a time; in the root's case there is no row that could carry it."""
        if path and path in self.directories:
            entry, xattrs = self.directories[path]
            self.directories[path] = (entry._replace(mtime_ns=mtime_ns // SECOND_NS * SECOND_NS), xattrs)

    def add(self, rows: GraftedRows, skipped: int = 0) -> None:
        """Graft rows, over all that is there. Raises InvalidInput where a directory would cover something else."""
        graft = Graft(rows, skipped)
        check_collisions(self.parent, graft, self.span)
        for earlier in self._trees:
            check_collisions(earlier.table, graft, self.span, earlier.skipped)
        self.grafts.append(graft)
        if len(graft.table) == 1 and not skipped and not stat.S_ISDIR(graft.table.entry(0).mode):
            self._files[graft.table.path(graft.table.entry(0))] = graft
            return
        for path in self._files:
            row = graft.find(path)
            if row >= 0 and stat.S_ISDIR(graft.table.entry(row).mode):
                raise InvalidInput(f"cannot copy to non-directory: {show(path)}", span=self.span)
        self._trees.append(graft)

    def cover(self, graft: Graft) -> None:
        """Graft rows over whatever the parent has. Raises InvalidInput for another type than an earlier source's."""
        for earlier in self._trees:
            check_collisions(earlier.table, graft, self.span, earlier.skipped)
        for path in (*self.directories, *self._files):
            row = graft.find(path)
            if row >= 0 and stat.S_ISDIR(graft.table.entry(row).mode) != (path in self.directories):
                raise InvalidInput(f"two sources make different things of {show(path)}", span=self.span)
        self.grafts.append(graft)
        self._trees.append(graft)

    def rows(self) -> LayerRows:
        """Return the layer's rows."""
        builder = TableBuilder()
        for path, (entry, xattrs) in self.directories.items():
            builder.add(path, entry, xattrs=xattrs)
        return join(builder.build()[0], self.grafts)


def lay_out(
    parent: EntryTable,
    trees: Sequence[SourceTree],
    destination: Destination,
    owner: Ownership,
    epoch_s: int,
    span: SourceSpan | None = None,
) -> LayerRows:
    """Make the layer table that puts trees at a destination over a parent's merged table."""
    layout = Layout(parent, owner, epoch_s, span)
    for tree in trees:
        place_tree(layout, tree, destination)
    return layout.rows()


def place_tree(layout: Layout, tree: SourceTree, destination: Destination) -> None:
    """Put one tree at a destination, in the tree as earlier sources left it."""
    if getattr(tree, "archive", False):
        from pylayers.build.source.archive import place_archive

        place_archive(layout, cast("TableTree", tree), destination)
        return
    target = layout.resolve(destination.path)
    if destination.as_directory:
        layout.need(target)
    if tree.is_directory:
        if layout.is_directory(target) is False:
            raise InvalidInput(f"cannot copy to non-directory: {show(target)}", span=layout.span)
        layout.need(target)
        if not tree.is_root:
            layout.touch(target, tree.top_entry.mtime_ns)
        rows = tree.rows(target, layout.owner)
        if tree.included or tree.partial:
            keep_existing(layout, tree, target, rows)
        layout.add(rows, 1)
        return
    if layout.is_directory(target):
        name = tree.name.encode(errors="surrogateescape")
        target = target + b"/" + name if target else name
        if layout.is_directory(target):
            raise InvalidInput(f"cannot replace to directory {show(target)} with file", span=layout.span)
    layout.need(target.rpartition(b"/")[0])
    layout.add(tree.rows(target, layout.owner))


def keep_existing(layout: Layout, tree: SourceTree, target: bytes, rows: GraftedRows) -> None:
    """Let directories that a pattern only leads through, or all of them under --parents, keep what they are.

    As in BuildKit such a directory, where it exists, only takes the source's mode.
    """
    source = tree.table
    for number in range(1, tree.end - tree.top):
        entry = source.entry(tree.top + number)
        if not stat.S_ISDIR(entry.mode):
            continue
        path = source.path(entry)[len(source.path(tree.top_entry)) :].lstrip(b"/")
        if not tree.included and path not in tree.partial:
            continue
        found = layout.find(target + b"/" + path if target else path)
        if found is None or not stat.S_ISDIR(found[1].mode):
            continue
        table, existing = found
        xattrs = encode_xattrs(table.xattrs(existing)) if table is not None else b""
        at = number * ENTRY_SIZE_BYTES
        made = Entry._make(ENTRY_STRUCT.unpack_from(rows.records, at))._replace(
            mode=entry.mode,
            uid=existing.uid,
            gid=existing.gid,
            mtime_ns=existing.mtime_ns // SECOND_NS * SECOND_NS,
            xattr_offset=len(rows.heap),
            xattr_length=len(xattrs),
        )
        rows.heap += xattrs
        ENTRY_STRUCT.pack_into(rows.records, at, *made)


def fresh(entry: Entry) -> Entry:
    """Clear what belongs to the table that an entry came from."""
    return Entry(mode=entry.mode, uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns // SECOND_NS * SECOND_NS)


def check_collisions(there: EntryTable, graft: Graft, span: SourceSpan | None, first: int = 0) -> None:
    """Refuse a directory over something else, and something else over a directory, of a table's rows from `first`.

    A directory over a directory takes over the extended attributes that it hasn't itself.
    """
    grafted = graft.table
    top = tardiff.find(there.records, there.heap, grafted.path(grafted.entry(0)))
    begin, end = first, len(there)
    if top >= 0:
        begin, end = max(first, top), tardiff.subtree(there.records, there.heap, top)
    elif first == 0 and end and not there.entry(0).path_length:
        return  # a whole tree, which has nothing at the graft's top
    # The smaller side is gone through, the other searched.
    swap = end - begin < len(grafted)
    few, many = (there, grafted) if swap else (grafted, there)
    for row in range(begin, end) if swap else range(graft.skipped, len(grafted)):
        (mode,) = struct.unpack_from("<I", few.records, row * ENTRY_SIZE_BYTES + MODE_AT)
        path = few.path(few.entry(row))
        found = tardiff.find(many.records, many.heap, path)
        if found < (graft.skipped if swap else first):
            continue
        is_directory, other = stat.S_ISDIR(mode), stat.S_ISDIR(many.entry(found).mode)
        if is_directory and other:
            add_xattrs(there, row if swap else found, graft, found if swap else row)
        if is_directory == other:
            continue
        if is_directory == swap:
            raise InvalidInput(f"cannot replace to directory {show(path)} with file", span=span)
        raise InvalidInput(f"cannot copy to non-directory: {show(path)}", span=span)


def add_xattrs(there: EntryTable, existing: int, graft: Graft, row: int) -> None:
    """Give a grafted directory the attributes of the one that is there."""
    (length,) = struct.unpack_from("<I", there.records, existing * ENTRY_SIZE_BYTES + XATTR_LENGTH_AT)
    if not length:
        return
    records, heap = graft.rows.records, graft.rows.heap
    entry = graft.table.entry(row)
    xattrs = encode_xattrs({**there.xattrs(there.entry(existing)), **graft.table.xattrs(entry)})
    made = entry._replace(xattr_offset=len(heap), xattr_length=len(xattrs))
    heap += xattrs
    ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *made)


def show(path: bytes) -> str:
    """Return a path of the tree for a message."""
    return "/" + path.decode(errors="replace")
