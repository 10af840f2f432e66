"""Sources that lie in tars and other files which a table describes: images, stages, here-documents, downloads."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from blake3 import blake3

from pylayers._native import graft, tardiff
from pylayers.build.copy.destination import Ownership
from pylayers.build.source.local import GraftedRows
from pylayers.errors import IntegrityError, translate_os_error
from pylayers.record import field, record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    SOURCE_RANGE,
    EntryTable,
    TableBuilder,
)
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

if TYPE_CHECKING:
    from pylayers.build.source.pathfilter import PathFilter

HEREDOC_MODE = 0o644
WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_FLAGS = 29


@record(frozen=False)
class TableTree:
    """One file or directory of a table; its rows' `layer` says which of the files holds their data."""

    table: EntryTable
    top: int
    end: int
    name: str  # last component, for destinations that are directories
    file_count: int
    open_files: Callable[[], list[int]]  # called at most once; the tree closes them
    is_root: bool = False
    included: bool = False  # only what a pattern (--parents) matches
    partial: frozenset[bytes] = frozenset()  # directories, below the top, that are only there for what is in them
    archive: bool = False  # members of an archive, placed by other rules than a directory's content
    owned: bool = False  # of an archive: --chown says whose the members are
    kept: list[int] = field(default_factory=list)  # descriptors that are the tree's to close
    _descriptors: list[int] = field(default_factory=list)
    _digested: tuple[Ownership, bytes] | None = None

    @property
    def is_directory(self) -> bool:
        """Tell whether the tree's top is a directory."""
        return stat.S_ISDIR(self.top_entry.mode)

    @property
    def top_entry(self) -> Entry:
        """Return the row of what is copied."""
        return self.table.entry(self.top)

    def remembered_digest(self, owner: Ownership) -> bytes | None:
        """Return the digest: tables hold every hash."""
        return self.digest(owner)

    def digest(self, owner: Ownership) -> bytes:
        """Return the digest of what reaches the result; a directory's own mode and attributes don't."""
        if self._digested is not None and self._digested[0] == owner:
            return self._digested[1]
        asked, owner = owner, self.member_owner(owner)
        inner = not self.is_directory
        try:
            if owner == Ownership():
                digest = tardiff.tree_digest(self.table.records, self.table.heap, blake3, self.top, inner)
            else:
                rows = self.graft(b"", owner, [0] * self.file_count)
                digest = tardiff.tree_digest(rows.records, rows.heap, blake3, 0, inner)
        except ValueError as error:
            raise IntegrityError(f"no tree digest: {error}") from error
        if self.archive:
            digest = blake3(b"archive" + digest + self.list_implied()).digest()
        self._digested = (asked, digest)
        return digest

    def member_owner(self, owner: Ownership) -> Ownership:
        """Return what is made of the rows' metadata: members of archives keep their modes, owners without --chown."""
        if not self.archive:
            return owner
        return Ownership(owner.uid, owner.gid) if self.owned else Ownership()

    def list_implied(self) -> bytes:
        """Return the directories that only other rows' paths imply."""
        flags = memoryview(self.table.records).cast("B").cast("I")[WORD_FLAGS::WORDS_PER_ENTRY]
        rows = (row for row in range(len(self.table)) if flags[row] & FLAG_IMPLICIT)
        return b"\0".join(self.table.path(self.table.entry(row)) for row in rows)

    def rows(self, prefix: bytes, owner: Ownership) -> GraftedRows:
        """Return the tree's rows at a new path; data comes straight from the files."""
        if not self._descriptors:
            self._descriptors += self.open_files()
        return self.graft(prefix, owner, self._descriptors)

    def graft(self, prefix: bytes, owner: Ownership, descriptors: Sequence[int]) -> GraftedRows:
        """Return the tree's rows at a new path, with data from the given descriptors."""
        packed = struct.pack(f"<{len(descriptors)}i", *descriptors)
        records, heap, sources = graft.graft(
            self.table.records, self.table.heap, self.top, self.end, prefix, packed, SOURCE_RANGE,
            owner.uid, owner.gid, owner.mode,
        )  # fmt: skip
        owner.finish(records)
        return GraftedRows(records, heap, sources)

    def close(self) -> None:
        """Close the files."""
        for descriptor in (*self.release(), *self.kept):
            os.close(descriptor)
        self.kept = []

    def release(self) -> list[int]:
        """Give the opened files away: somebody else closes them."""
        descriptors, self._descriptors = self._descriptors, []
        return descriptors


def image_tree(
    table: EntryTable, layers: Sequence[Layer], row: int, end: int, name: str, chosen: PathFilter | None = None
) -> TableTree:
    """Return a subtree of an image's merged table, or what a filter chooses of it; a file is taken as it is."""

    def open_tars() -> list[int]:
        return [layer.open_tar() for layer in layers]

    top = table.entry(row)
    is_root = not top.path_length
    if chosen is not None and stat.S_ISDIR(top.mode):
        table, partial = choose_rows(table, row, end, chosen)
        included = chosen.include is not None
        return TableTree(table, 0, len(table), name, len(layers), open_tars, is_root, included, partial)
    if end - row > 1 and not is_root and links_out(table, row, end):
        table, row = mend_links(table, list(range(row, end))), 0
        end = len(table)
    return TableTree(table, row, end, name, len(layers), open_tars, is_root)


def content_tree(name: str, content: bytes, mode: int = HEREDOC_MODE, mtime_s: int = 0) -> TableTree:
    """Return a file that lies in memory as a source, owned by root."""

    def open_memory() -> list[int]:
        try:
            descriptor = os.memfd_create(name[:64], os.MFD_CLOEXEC)
            written = 0
            while written < len(content):
                written += os.write(descriptor, memoryview(content)[written:])
        except OSError as error:
            raise translate_os_error(error, f"keep {name} in memory") from error
        return [descriptor]

    builder = TableBuilder()
    entry = Entry(
        mode=stat.S_IFREG | mode,
        size_bytes=len(content),
        mtime_ns=mtime_s * 1_000_000_000,
        flags=FLAG_HASHED,
        blake3=blake3(content).digest(),
    )
    builder.add(os.fsencode(name), entry)
    return TableTree(builder.build()[0], 0, 1, name, 1, open_memory)


def links_out(table: EntryTable, row: int, end: int) -> bool:
    """Tell whether a subtree has a hard link whose first name lies outside it."""
    flags = memoryview(table.records).cast("B").cast("I")[WORD_FLAGS::WORDS_PER_ENTRY]
    top = table.path(table.entry(row)) + b"/"
    return any(
        flags[at] & FLAG_HARDLINK and not table.link(table.entry(at)).startswith(top) for at in range(row, end)
    )


def choose_rows(table: EntryTable, top: int, end: int, chosen: PathFilter) -> tuple[EntryTable, frozenset[bytes]]:
    """Return the rows of a subtree that a filter chooses, hard links mended, and the directories only led through."""
    base = len(table.path(table.entry(top)))
    base += bool(base)
    kept: list[int] = []
    unchosen: set[bytes] = set()
    wanted: set[bytes] = set()
    for row in range(end - 1, top, -1):
        entry = table.entry(row)
        path = table.path(entry)[base:]
        if not chosen.takes(os.fsdecode(path), stat.S_ISDIR(entry.mode)):
            if path not in wanted:
                continue
            unchosen.add(path)
        kept.append(row)
        while path:
            path = path.rpartition(b"/")[0]
            if path in wanted:
                break
            wanted.add(path)
    kept.append(top)
    kept.reverse()
    return mend_links(table, kept), frozenset(unchosen)


def mend_links(table: EntryTable, rows: list[int]) -> EntryTable:
    """Take some rows; of a hard-linked file whose first name isn't among them, the next name becomes the first."""
    from pylayers.build.source.selector import take_rows

    records, heap = take_rows(table.records, rows), bytearray(table.heap)
    taken = EntryTable(records, heap)
    paths: set[bytes] | None = None
    firsts: dict[bytes, bytes] = {}
    for row in range(len(taken)):
        entry = taken.entry(row)
        if not entry.flags & FLAG_HARDLINK:
            continue
        if paths is None:
            paths = {taken.path(one) for one in taken}
        target = taken.link(entry)
        if target in paths:
            continue
        first = firsts.get(target)
        if first is None:
            firsts[target] = taken.path(entry)
            entry = entry._replace(flags=entry.flags & ~FLAG_HARDLINK, link_offset=0, link_length=0)
        else:
            entry = entry._replace(link_offset=len(heap), link_length=len(first))
            heap += first
        ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *entry)
    return taken
