"""What a tar leaves, found the slow way: Python's tarfile and dictionaries; nothing is sorted or searched cleverly."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from decimal import Decimal
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG

from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    EntryTable,
    path_key,
)

TYPES = {
    tarfile.DIRTYPE: S_IFDIR,
    tarfile.SYMTYPE: S_IFLNK,
    tarfile.CHRTYPE: S_IFCHR,
    tarfile.BLKTYPE: S_IFBLK,
    tarfile.FIFOTYPE: S_IFIFO,
}


class Refused(Exception):
    """The model cannot extract this."""


@dataclass
class Inode:
    """One file of the model; hard links share it."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    data: bytes = b""
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Row:
    """One expected or found row, with nothing in it that depends on where bytes lie."""

    path: bytes
    flags: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    data: bytes = b""
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1


def clean(path: bytes) -> bytes:
    """Normalise a path; '..' is refused."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Refused(path)
    return b"/".join(parts)


def ancestors(path: bytes) -> list[bytes]:
    """List every directory above a path, the root first."""
    if not path:
        return []
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(len(parts))]


def read_members(tar: bytes) -> list[tuple[bytes, bytes, bytes, Inode]]:
    """List (type, path, link, inode) of every member."""
    members = []
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            encoded = {key: value.encode("utf-8", "surrogateescape") for key, value in info.pax_headers.items()}
            mtime = Decimal(info.pax_headers["mtime"]) if "mtime" in info.pax_headers else Decimal(int(info.mtime))
            inode = Inode(
                mode=TYPES.get(info.type, S_IFREG) | (info.mode & 0o7777),
                uid=info.uid,
                gid=info.gid,
                mtime_ns=int(mtime * 10**9),
                rdev=(info.devmajor, info.devminor) if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE) else (0, 0),
                xattrs={
                    key.removeprefix("SCHILY.xattr.").encode("utf-8", "surrogateescape"): value
                    for key, value in encoded.items()
                    if key.startswith("SCHILY.xattr.")
                },
            )
            link = info.linkname.encode("utf-8", "surrogateescape")
            if info.isreg():
                content = archive.extractfile(info)
                assert content is not None
                inode.data = content.read()
                inode.size_bytes = len(inode.data)
            elif info.issym():
                inode.link = link
            members.append((info.type, info.name.encode("utf-8", "surrogateescape"), link, inode))
    return members


class Model:
    """A directory tree that entries are extracted into, one after another."""

    def __init__(self) -> None:
        self.files: dict[bytes, Inode] = {}
        self.whiteouts: set[bytes] = set()
        self.opaque: set[bytes] = set()

    def require_directory(self, path: bytes) -> None:
        if path in self.files and S_IFMT(self.files[path].mode) != S_IFDIR:
            raise Refused(path)

    def remove_below(self, path: bytes) -> None:
        prefix = path + b"/" if path else b""
        for found in [found for found in self.files if found != path and found.startswith(prefix)]:
            del self.files[found]
        self.whiteouts = {mark for mark in self.whiteouts if mark == path or not mark.startswith(prefix)}
        self.opaque = {mark for mark in self.opaque if mark != path and not mark.startswith(prefix)}

    def add(self, kind: bytes, raw_path: bytes, link: bytes, inode: Inode) -> None:
        path = clean(raw_path)
        parts = path.split(b"/")
        own = [part for part in parts if part.startswith(b".wh..wh.")]
        if own and (own != [b".wh..wh..opq"] or parts[-1] != own[0]):
            return  # what aufs keeps for itself
        if any(part.startswith(b".wh.") for part in parts[:-1]):
            raise Refused(path)
        for above in ancestors(path):
            self.require_directory(above)
        if parts[-1] == b".wh..wh..opq":
            self.opaque.add(b"/".join(parts[:-1]))
            return
        if parts[-1].startswith(b".wh."):
            hidden = parts[-1][4:]
            if hidden in (b"", b".", b".."):
                raise Refused(path)
            self.whiteouts.add(b"/".join([*parts[:-1], hidden]))
            return
        if kind == tarfile.LNKTYPE:
            self.remove_below(path)  # as extracting would, before it links: the target may have lain there
            target = self.files.get(clean(link))
            if target is None or S_IFMT(target.mode) == S_IFDIR:
                raise Refused(path)
            inode = target
        if S_IFMT(inode.mode) != S_IFDIR:
            if not path:
                raise Refused(path)
            self.remove_below(path)
        self.files[path] = inode

    def rows(self) -> list[Row]:
        """Give the table rows: marks, implicit parents and canonical hard links included."""
        paths = set(self.files) | self.whiteouts | self.opaque | {b""}
        for path in list(paths):
            paths.update(ancestors(path))
        parents = {above for path in paths for above in ancestors(path)}
        rows: list[Row] = []
        first: dict[int, Row] = {}
        names: dict[int, list[Row]] = {}
        for path in sorted(paths, key=path_key):
            inode = self.files.get(path)
            if inode is None:
                rows.append(self.row_without_entry(path, path in parents))
                continue
            row = Row(path=path, flags=0, **vars(inode))
            rows.append(row)
            if S_IFMT(inode.mode) == S_IFDIR:
                if path in self.opaque or path in self.whiteouts:
                    row.flags = FLAG_OPAQUE
                continue
            names.setdefault(id(inode), []).append(row)
            if id(inode) in first:
                row.flags |= FLAG_HARDLINK
                row.link = first[id(inode)].path
            first.setdefault(id(inode), row)
        for group in names.values():
            for row in group:
                row.nlink = len(group)
        return rows

    def row_without_entry(self, path: bytes, parent: bool) -> Row:
        if path in self.whiteouts and path not in self.opaque and not parent:
            return Row(path=path, flags=FLAG_WHITEOUT)
        if path in self.whiteouts:
            return Row(path=path, flags=FLAG_OPAQUE, mode=S_IFDIR | 0o755)
        return Row(path=path, flags=FLAG_IMPLICIT | (FLAG_OPAQUE if path in self.opaque else 0), mode=S_IFDIR | 0o755)


def model_rows(tar: bytes) -> list[Row]:
    """Give the rows that scanning a tar should give."""
    model = Model()
    for member in read_members(tar):
        model.add(*member)
    return model.rows()


def read_data(tar: bytes, table: EntryTable, entry: object) -> bytes:
    """Read a row's data through its data_offset, holes filled."""
    import struct

    size, offset, flags = entry.size_bytes, entry.data_offset, entry.flags  # type: ignore[attr-defined]
    if not flags & FLAG_SPARSE:
        return tar[offset : offset + size]
    whole = bytearray(size)
    for start, length in struct.iter_unpack("<QQ", table.link(entry)):  # type: ignore[arg-type]
        whole[start : start + length] = tar[offset : offset + length]
        offset += length
    return bytes(whole)


def table_rows(tar: bytes, table: EntryTable) -> list[Row]:
    """Give a scanned table as comparable rows."""
    entries = list(table)
    by_path = {table.path(entry): entry for entry in entries}
    rows = []
    for entry in entries:
        file = by_path[table.link(entry)] if entry.flags & FLAG_HARDLINK else entry
        link = b"" if file.flags & FLAG_SPARSE and not entry.flags & FLAG_HARDLINK else table.link(entry)
        assert (entry.data_offset, entry.header_offset) == (file.data_offset, file.header_offset)
        rows.append(
            Row(
                path=table.path(entry),
                flags=entry.flags & ~FLAG_SPARSE,
                mode=entry.mode,
                uid=entry.uid,
                gid=entry.gid,
                mtime_ns=entry.mtime_ns,
                size_bytes=entry.size_bytes,
                data=read_data(tar, table, file) if S_IFMT(entry.mode) == S_IFREG else b"",
                link=link,
                rdev=(entry.rdev_major, entry.rdev_minor),
                xattrs=table.xattrs(entry),
                nlink=entry.nlink,
            )
        )
    return rows
