"""ADD of archives: found by content; members become rows straight from the tar, nothing is unpacked."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pylayers._native import tardiff
from pylayers.build.copy.destination import Destination, Ownership, resolve_path
from pylayers.build.copy.rows import Graft
from pylayers.build.source.local import LocalTree
from pylayers.build.source.table import TableTree, mend_links
from pylayers.errors import InvalidInput, translate_os_error
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_IMPLICIT,
    FLAG_WHITEOUT,
    EntryTable,
    encode_xattrs,
)
from pylayers.transfer.archive import BLOCK_BYTES, damage_errors, decompress, detect_compression, read_pieces

if TYPE_CHECKING:
    from pylayers.build.copy.layout import Layout
    from pylayers.build.session import BuildSession
    from pylayers.store import Store

SECOND_NS = 1_000_000_000
WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_MODE = 23
WORD_FLAGS = 29


def begins_tar(head: bytes) -> bool:
    """Tell whether a block is a tar header with its checksum right; zeros are none."""
    if len(head) < BLOCK_BYTES or not any(head):
        return False
    try:
        written = int(head[148:156].strip(b"\0 ").split(b"\0")[0] or b"x", 8)
    except ValueError:
        return False
    return written == sum(head[:148]) + 8 * 32 + sum(head[156:BLOCK_BYTES])


def detect_members(descriptor: int) -> str | None:
    """Name what a file is by its content: "tar", or the compression around a tar; None for anything else."""
    head = os.pread(descriptor, BLOCK_BYTES, 0)
    if begins_tar(head):
        return "tar"
    compression = detect_compression(head)
    if compression is None:
        return None
    damaged: tuple[type[BaseException], ...] = (OSError, *damage_errors(compression))
    try:
        with open(os.dup(descriptor), "rb") as stream:
            stream.seek(0)
            with decompress(stream, compression) as plain:
                head = b""
                while len(head) < BLOCK_BYTES and (piece := plain.read(BLOCK_BYTES - len(head))):
                    head += piece
                return compression if begins_tar(head) else None
    except damaged:
        return None


def unpack_local(session: BuildSession, tree: LocalTree, owned: bool) -> LocalTree | TableTree:
    """Return a local file's members when it is an archive, else the tree as it is."""
    if not stat.S_ISREG(tree.top_entry.mode):
        return tree
    path = tree.table.path(tree.top_entry)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=tree.root_fd)
    except OSError as error:
        raise translate_os_error(error, f"read {tree.directory / os.fsdecode(path)}") from error
    members = open_members(session.store, descriptor, tree.name, owned)
    return tree if members is None else members


def open_members(store: Store, descriptor: int, name: str, owned: bool) -> TableTree | None:
    """Return the members of an archive as a tree, or None; the descriptor becomes the tree's, or is closed.

    `owned` tells that --chown says whose the members are.

    Raises IntegrityError, with the byte offset for a malformed tar.
    """
    from pylayers.store.tarindex import index_tar

    try:
        compression = detect_members(descriptor)
        if compression is None:
            os.close(descriptor)
            return None
        if compression != "tar":
            plain = write_plain(store, descriptor, compression, name)
            os.close(descriptor)
            descriptor = plain
        records, heap = index_tar(descriptor, os.fstat(descriptor).st_size, name)
    except OSError as error:
        os.close(descriptor)
        raise translate_os_error(error, f"read {name}") from error
    except BaseException:
        os.close(descriptor)
        raise
    table = EntryTable(records, heap)
    refuse_whiteouts(table, name)
    tree = TableTree(
        table, 0, len(table), name, 1, lambda: [os.dup(descriptor)], is_root=True, archive=True, owned=owned
    )
    tree.kept = [descriptor]
    return tree


def write_plain(store: Store, descriptor: int, compression: str, name: str) -> int:
    """Decompress a file into one without a name in the store, and return its descriptor."""
    made = open_nameless(store)
    try:
        with open(os.dup(descriptor), "rb") as stream:
            stream.seek(0)
            for piece in read_pieces(stream, compression, name):
                view = memoryview(piece)
                while view:
                    view = view[os.write(made, view) :]
    except BaseException:
        os.close(made)
        raise
    return made


def open_nameless(store: Store) -> int:
    """Open a new file in the store that has no name, so nothing of it can be left behind."""
    import tempfile

    with tempfile.TemporaryFile(dir=store.root / "tmp") as stream:
        return os.dup(stream.fileno())


def refuse_whiteouts(table: EntryTable, name: str) -> None:
    """Refuse members that a layer can't hold as files: their names mean deletions there."""
    for entry in table:
        if entry.flags & FLAG_WHITEOUT:
            path = os.fsdecode(table.path(entry))
            raise InvalidInput(f"{name}: the member .wh.{path.rpartition('/')[2]} would be a deletion in a layer")


def place_archive(layout: Layout, tree: TableTree, destination: Destination) -> None:
    """Put an archive's members below a destination: they take the place of what is there, directories join.

    Directories that only members' paths imply follow the destination's symlinks, which can't lead out of it.
    """
    target = layout.resolve(destination.path)
    if layout.is_directory(target) is False:
        raise InvalidInput(f"cannot unpack {tree.name} over a file", span=layout.span)
    given, layout.owner = layout.owner, Ownership(layout.owner.uid, layout.owner.gid)  # --chmod is not for archives
    layout.need(target)
    pending: list[tuple[EntryTable, bytes]] = [(tree.table, target)]
    while pending:
        table, prefix = pending.pop(0)
        table, moved = split_linked(layout, table, prefix, target)
        pending += moved
        piece = TableTree(table, 0, len(table), tree.name, 1, tree.open_files, is_root=True)
        rows = piece.rows(prefix, tree.member_owner(layout.owner))
        tree.kept += piece.release()
        take_existing(layout, table, rows.records, rows.heap)
        cover(layout, Graft(rows, 1))
    layout.owner = given


def below(prefix: bytes, path: bytes) -> bytes:
    """Join two paths of which either may be empty."""
    return prefix + b"/" + path if prefix and path else prefix or path


def split_linked(
    layout: Layout, table: EntryTable, prefix: bytes, target: bytes
) -> tuple[EntryTable, list[tuple[EntryTable, bytes]]]:
    """Take out what lies below implied directories that are symlinks at the destination: the rest, the parts."""
    moved: list[tuple[EntryTable, bytes]] = []
    kept: list[int] = []
    row = 0
    top = len(table.path(table.entry(0)))

    def look(path: bytes) -> tuple[int, bytes] | None:
        return layout.look(below(target, path))

    flags = memoryview(table.records).cast("B").cast("I")[WORD_FLAGS::WORDS_PER_ENTRY]
    if not any(flags[at] & FLAG_IMPLICIT for at in range(1, len(table))):
        return table, moved
    while row < len(table):
        if not row or not flags[row] & FLAG_IMPLICIT:
            kept.append(row)
            row += 1
            continue
        path = table.path(table.entry(row))[top:].lstrip(b"/")
        found = layout.look(below(prefix, path))
        if found is None or not stat.S_ISLNK(found[0]):
            if found is not None and not stat.S_ISDIR(found[0]):
                shown = os.fsdecode(below(prefix, path))
                raise InvalidInput(f"cannot unpack below /{shown}: it is not a directory", span=layout.span)
            kept.append(row)
            row += 1
            continue
        end = tardiff.subtree(table.records, table.heap, row)
        inside = below(prefix, path)[len(target) :].lstrip(b"/")
        resolved = below(target, resolve_path(inside, look))
        layout.need(resolved)
        part = mend_links(table, list(range(row, end)))
        moved.append((part, resolved))
        row = end
    return (mend_links(table, kept) if moved else table), moved


def take_existing(layout: Layout, table: EntryTable, records: bytearray, heap: bytearray) -> None:
    """Give implied directories what is at the destination, where there is a directory, else the build's time."""
    flags = memoryview(table.records).cast("B").cast("I")[WORD_FLAGS::WORDS_PER_ENTRY]
    for row in range(1, len(table)):
        if not flags[row] & FLAG_IMPLICIT:
            continue
        made = EntryTable(records, heap).entry(row)
        found = layout.find(bytes(heap[made.path_offset : made.path_offset + made.path_length]))
        if found is None:
            made = made._replace(mtime_ns=layout.epoch_s * SECOND_NS)
        else:
            source, there = found
            xattrs = encode_xattrs(source.xattrs(there)) if source is not None else b""
            made = made._replace(
                mode=there.mode,
                uid=there.uid,
                gid=there.gid,
                mtime_ns=there.mtime_ns // SECOND_NS * SECOND_NS,
                xattr_offset=len(heap),
                xattr_length=len(xattrs),
            )
            heap += xattrs
        ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *made)


def cover(layout: Layout, graft: Graft) -> None:
    """Graft members over all that is there; in a layer a row of another type replaces what is below it."""
    from pylayers.build.copy.layout import add_xattrs

    parent, table = layout.parent, graft.table
    modes = memoryview(bytes(table.records)).cast("I")[WORD_MODE::WORDS_PER_ENTRY]
    for row in range(graft.skipped, len(table)):
        if stat.S_ISDIR(modes[row]):
            found = tardiff.find(parent.records, parent.heap, table.path(table.entry(row)))
            if found >= 0 and stat.S_ISDIR(parent.entry(found).mode):
                add_xattrs(parent, found, graft, row)
    layout.cover(graft)
