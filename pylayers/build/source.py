"""What COPY and ADD read from: trees of a local context, and trees inside an image or stage.

A local tree is walked, never read, until a digest or a layer needs its content; what an earlier build knew
of it comes from the stat cache. Owners of local files don't count: a context belongs to root, as in docker.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pylayers._native import confirm, filehash, graft, tardiff, walk
from pylayers.dockerfile.ignore import IgnoreRules
from pylayers.dockerfile.match import match
from pylayers.errors import Conflict, InvalidInput, NotFound, translate_os_error
from pylayers.record import field, record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HASHED,
    SOURCE_PATH,
    SOURCE_RANGE,
    Buffer,
    Entry,
    EntryTable,
    decode_xattrs,
    encode_xattrs,
)
from pylayers.store.layer import Layer
from pylayers.store.statcache import KnownTree, StatCache

WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_XATTR_LENGTH = 22
WORD_MODE = 23
WORD_FLAGS = 29
SYMLINK_LIMIT = 40
DIGEST_NAME = "tree"  # a walk's key says what was walked, so that one name serves all
# Local file systems that stamp a directory whenever a name in it comes, goes or changes: ext, xfs, btrfs, tmpfs, f2fs,
# zfs, bcachefs and overlay. Elsewhere every directory is listed again.
STAMPING_FILESYSTEMS = {
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E, 0x794C7630,
}  # fmt: skip
# Labels and overlay's own marks belong to the host, not to the content.
HOST_XATTRS = (
    b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.", b"user.overlay.", b"system.nfs4",
)  # fmt: skip


def new_hasher() -> type:
    """Import the blake3 constructor on first use: an unchanged rebuild never needs it."""
    from blake3 import blake3

    return blake3


@record(frozen=False)
class GraftedRows:
    """Rows of a layer with their sources; `origin` gets the hashes back once the layer is written."""

    records: bytearray
    heap: bytearray
    sources: bytearray
    origin: LocalTree | None = None
    start: int = 0


@record(frozen=False)
class LocalTree:
    """One file or directory of a local context, as walked."""

    directory: Path  # what was walked
    root_fd: int
    records: Buffer  # the known table's own where that was confirmed
    heap: Buffer
    top: int  # row of what is copied
    end: int
    name: str  # last component, for destinations that are directories
    walked_at_ns: int
    cache: StatCache | None
    cache_key: str
    known: KnownTree | None
    unknown: bytes | None  # uint32 rows with no known content; None: all is as it was known

    @property
    def is_directory(self) -> bool:
        """Tell whether the tree's top is a directory."""
        return stat.S_ISDIR(self.top_entry.mode)

    @property
    def top_entry(self) -> Entry:
        """Return the row of what is copied."""
        return EntryTable(self.records, self.heap).entry(self.top)

    def remembered_digest(self) -> bytes | None:
        """Return the digest that an earlier build computed, if nothing changed since."""
        if self.unknown is None and self.known is not None:
            return self.known.digests.get(DIGEST_NAME)
        return None

    def digest(self) -> bytes:
        """Return the tree digest, reading only files whose content isn't known."""
        remembered = self.remembered_digest()
        if remembered is not None:
            return remembered
        self.ensure_table()
        self.hash_unknown()
        rows = self.graft(b"", 0, 0, -1)
        digest = tardiff.tree_digest(rows.records, rows.heap, new_hasher())
        self.remember(digest)
        return digest

    def hash_unknown(self) -> None:
        """Hash the files that the stat cache could not vouch for. Raises Conflict for one that changes meanwhile."""
        if not self.unknown:
            return
        try:
            filehash.hash_files(self.root_fd, *self.own_table(), self.unknown, new_hasher())
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT, errno.ELOOP):
                raise translate_os_error(error, f"read {self.directory}") from error
            raise Conflict(
                f"{os.fsdecode(error.filename or b'')} changed while it was read", hint="run the build again"
            ) from error
        self.unknown = b""

    def rows(self, prefix: bytes, uid: int, gid: int, mode: int) -> GraftedRows:
        """Return the tree's rows at a new path, ready for tarwrite.

        They carry no hashes: a file may have changed since it was hashed, and a layer's index must tell what its tar
        holds. tarwrite hashes what it writes.
        """
        self.ensure_table()
        rows = self.graft(prefix, uid, gid, mode)
        words = memoryview(rows.records).cast("I")
        for at in range(WORD_FLAGS, len(words), WORDS_PER_ENTRY):
            words[at] &= ~FLAG_HASHED
        return rows

    def graft(self, prefix: bytes, uid: int, gid: int, mode: int) -> GraftedRows:
        """Return the tree's rows at a new path."""
        descriptors = struct.pack("<i", self.root_fd)
        records, heap, sources = graft.graft(
            self.records, self.heap, self.top, self.end, prefix, descriptors, SOURCE_PATH, uid, gid, mode
        )
        return GraftedRows(records, heap, sources, self, self.top)

    def ensure_table(self) -> None:
        """Take hashes and xattrs over from the known table when the tree was found unchanged."""
        if self.unknown is not None or self.known is None:
            return
        confirmed = self.records is self.known.records
        records, heap = self.own_table()
        if not confirmed:
            walk.recall(records, heap, self.known.records, self.known.heap, self.known.trusted_before_ns)
        self.unknown = unhashed_rows(records)

    def own_table(self) -> tuple[bytearray, bytearray]:
        """Return the table to be written into; a confirmed one is a window of the stat cache and is copied first."""
        if not isinstance(self.records, bytearray) or not isinstance(self.heap, bytearray):
            self.records, self.heap = bytearray(self.records), bytearray(self.heap)
        return self.records, self.heap

    def remember(self, digest: bytes) -> None:
        """Write what is now known to the stat cache."""
        if self.cache is not None:
            self.cache.store(self.cache_key, self.records, self.heap, self.walked_at_ns, {DIGEST_NAME: digest})

    def close(self) -> None:
        """Close the walked directory."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1


def unhashed_rows(records: Buffer) -> bytes:
    """Return the uint32 rows of regular files without a content hash."""
    words = memoryview(records).cast("I")
    modes = words[WORD_MODE::WORDS_PER_ENTRY]
    flags = words[WORD_FLAGS::WORDS_PER_ENTRY]
    rows = [
        row
        for row, (mode, flag) in enumerate(zip(modes, flags, strict=True))
        if mode & 0o170000 == stat.S_IFREG and not flag & FLAG_HASHED
    ]
    return struct.pack(f"={len(rows)}I", *rows)


@record(frozen=False)
class LocalSource:
    """A build context on disk, less what its ignore rules name."""

    directory: Path
    rules: IgnoreRules | None = None
    cache: StatCache | None = None
    fingerprint: str = ""  # of the ignore rules: part of the stat cache's key
    _trees: list[LocalTree] = field(default_factory=list)

    def close(self) -> None:
        """Close every tree that was opened."""
        for tree in self._trees:
            tree.close()
        self._trees.clear()

    def find(self, pattern: str) -> list[str]:
        """Expand one COPY source to paths relative to the context; never empty.

        Climbing out is clamped at the context's root. Raises NotFound when nothing matches.
        """
        cleaned = clean_source(pattern)
        if not any(character in cleaned for character in "*?[\\"):
            found = [cleaned] if self.holds(cleaned) else []
        else:
            found = [path for path in self.expand(cleaned.split("/")) if self.holds(path)]
        if not found:
            raise NotFound(
                f"{pattern!r} not found in the build context",
                hint="check the path, and whether .dockerignore excludes it",
            )
        return found

    def expand(self, components: Sequence[str], base: str = "") -> Iterator[str]:
        """Yield the paths that match a pattern, component by component, in sorted order."""
        head, rest = components[0], components[1:]
        directory = self.directory / resolve_inside(self.directory, base)
        if not any(character in head for character in "*?[\\"):
            names = [head] if os.path.lexists(directory / head) else []
        else:
            try:
                names = sorted(name for name in os.listdir(directory) if match(head, name))
            except (NotADirectoryError, FileNotFoundError):
                names = []
        for name in names:
            path = f"{base}/{name}" if base else name
            if rest:
                yield from self.expand(rest, path)
            else:
                yield path

    def holds(self, path: str) -> bool:
        """Tell whether a path exists in the context and isn't ignored."""
        if not path:
            return True
        above, _, last = path.rpartition("/")
        place = self.directory / resolve_inside(self.directory, above) / last
        if not os.path.lexists(place):
            return False
        if not self.included(path, is_directory=place.is_dir() and not place.is_symlink()):
            return False
        # What a symlink leads to must be in the context as well.
        resolved = resolve_inside(self.directory, path)
        target = self.directory / resolved
        return os.path.lexists(target) and (not resolved or self.included(resolved, is_directory=target.is_dir()))

    def included(self, path: str, *, is_directory: bool) -> bool:
        """Tell whether the ignore rules leave a path, or something below it, in the context."""
        if self.rules is None or not self.rules.excluded(path, is_directory):
            return True
        return is_directory and self.rules.may_contain(path)

    def open(self, path: str) -> LocalTree:
        """Walk one found path. A symlink given as the source is followed, inside the context."""
        resolved = resolve_inside(self.directory, path)
        name = path.rsplit("/", 1)[-1]
        target = self.directory / resolved
        is_directory = target.is_dir()
        walked = target if is_directory else target.parent
        base = resolved if is_directory else resolved.rpartition("/")[0]
        only = None if is_directory else os.fsencode(target.name)
        try:
            root_fd = os.open(walked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                tree = self.walk(walked, root_fd, base, only, name)
            except BaseException:
                os.close(root_fd)
                raise
        except OSError as error:
            raise translate_os_error(error, f"read the build context {walked}") from error
        self._trees.append(tree)
        return tree

    def walk(self, walked: Path, root_fd: int, base: str, only: bytes | None, name: str) -> LocalTree:
        """Walk an opened directory (or one name in it) and match it with the stat cache."""
        selector = Selector(self.rules, base, only)
        started_ns = time.time_ns()
        key = "\0".join((str(walked), os.fsdecode(only or b""), self.fingerprint))
        known = self.cache.load(key) if self.cache is not None else None
        if known is not None and self.confirms(root_fd, known):
            top, end = self.find_top(walked, only, known.records, known.heap)
            return LocalTree(
                walked, root_fd, known.records, known.heap, top, end, name, started_ns, self.cache, key, known, None
            )
        # A first walk reads the xattrs in its threads; a later one takes most of them from what is known.
        records, heap = walk.walk(root_fd, selector if selector.needed else None, known is None, os.cpu_count() or 1)
        if selector.partial:
            records = drop_hollow(records, heap, selector)
        records = drop_sockets(records)
        unknown: bytes | None = b""
        if known is not None:
            stored = (known.records, known.heap, known.trusted_before_ns)
            try:
                unknown = None if walk.same(records, heap, *stored) else walk.recall(records, heap, *stored)
            except ValueError:  # what is stored reaches beyond its own heap: damaged, so nothing is known
                known, count = None, len(records) // ENTRY_SIZE_BYTES
                unknown = struct.pack(f"={count}I", *range(count))
            if unknown is not None:
                walk.read_xattrs(root_fd, records, heap, unknown)
        if unknown is not None:
            drop_host_xattrs(records, heap)
            unknown = unhashed_rows(records)
        top, end = self.find_top(walked, only, records, heap)
        return LocalTree(
            walked, root_fd, records, heap, top, end, name, started_ns, self.cache, key, known, unknown
        )

    def find_top(self, walked: Path, only: bytes | None, records: Buffer, heap: Buffer) -> tuple[int, int]:
        """Return the rows of what is copied: all, or those of one name. Raises NotFound where it vanished."""
        if only is None:
            return 0, len(records) // ENTRY_SIZE_BYTES
        top = tardiff.find(records, heap, only)
        if top < 0:
            raise NotFound(f"{walked / os.fsdecode(only)} vanished while it was read")
        return top, top + 1

    def confirms(self, root_fd: int, known: KnownTree) -> bool:
        """Tell, without listing anything, that a walk would find the known tree again.

        Rules with exceptions may have left out a directory for what was not in it, which no known row tells.
        """
        if DIGEST_NAME not in known.digests or (self.rules is not None and self.rules.has_exceptions):
            return False
        if confirm.read_filesystem_type(root_fd) not in STAMPING_FILESYSTEMS:
            return False
        try:
            return confirm.confirm(root_fd, known.records, known.heap, known.trusted_before_ns, os.cpu_count() or 1)
        except ValueError:  # damaged: the walk that follows finds out what is still of use
            return False


@record(frozen=False)
class Selector:
    """Decide for walk() which names of a directory belong to the context."""

    rules: IgnoreRules | None
    base: str
    only: bytes | None
    partial: bool = False  # an excluded directory was entered because a `!` rule may reach inside
    hollow: set[bytes] = field(default_factory=set)

    @property
    def needed(self) -> bool:
        """Tell whether anything can be left out at all."""
        return self.rules is not None or self.only is not None

    def __call__(self, directory: bytes, names: list[bytes], modes: bytes) -> bytearray:
        """Return one byte per name: 0 leaves it out."""
        if self.only is not None:
            return bytearray(name == self.only and not directory for name in names)
        keep = bytearray(b"\1" * len(names))
        if self.rules is None:
            return keep
        inside = os.fsdecode(directory)
        base = "/".join(part for part in (self.base, inside) if part)
        for index, mode in enumerate(memoryview(modes).cast("I")):
            name = os.fsdecode(names[index])
            path = f"{base}/{name}" if base else name
            is_directory = stat.S_ISDIR(mode)
            if self.rules.excluded(path, is_directory):
                if is_directory and self.rules.may_contain(path):
                    self.partial = True
                    self.hollow.add(os.fsencode(f"{inside}/{name}" if inside else name))
                else:
                    keep[index] = 0
        return keep


def drop_hollow(records: bytearray, heap: bytearray, selector: Selector) -> bytearray:
    """Leave out excluded directories in which no `!` rule kept anything."""
    table = EntryTable(records, heap)
    wanted: set[bytes] = set()
    kept: list[int] = []
    for row in range(len(table) - 1, -1, -1):
        path = table.path(table.entry(row))
        if path in selector.hollow and path not in wanted:
            continue
        kept.append(row)
        while path:
            path = path.rpartition(b"/")[0]
            if path in wanted:
                break
            wanted.add(path)
    return take_rows(records, kept[::-1])


def drop_sockets(records: bytearray) -> bytearray:
    """Leave out sockets, which a tar cannot hold."""
    modes = memoryview(records).cast("I")[WORD_MODE::WORDS_PER_ENTRY]
    if not any(mode & 0o170000 == stat.S_IFSOCK for mode in modes):
        return records
    return take_rows(records, [row for row, mode in enumerate(modes) if mode & 0o170000 != stat.S_IFSOCK])


def take_rows(records: Buffer, rows: Sequence[int]) -> bytearray:
    """Copy the given rows."""
    view = memoryview(records)
    return bytearray().join(view[row * ENTRY_SIZE_BYTES : (row + 1) * ENTRY_SIZE_BYTES] for row in rows)


def drop_host_xattrs(records: bytearray, heap: bytearray) -> None:
    """Leave out extended attributes that belong to the host."""
    words = memoryview(records).cast("I")
    for row, length in enumerate(words[WORD_XATTR_LENGTH::WORDS_PER_ENTRY]):
        if not length:
            continue
        at = row * ENTRY_SIZE_BYTES + 16
        offset = struct.unpack_from("<Q", records, at)[0]
        found = decode_xattrs(heap[offset : offset + length])
        kept = encode_xattrs({name: value for name, value in found.items() if not name.startswith(HOST_XATTRS)})
        if len(kept) != length:
            struct.pack_into("<Q", records, at, len(heap))
            words[row * WORDS_PER_ENTRY + WORD_XATTR_LENGTH] = len(kept)
            heap += kept


def clean_source(pattern: str) -> str:
    """Normalise a COPY source: relative to the context's root, '..' clamped there."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def resolve_inside(root: Path, path: str) -> str:
    """Follow every symlink of a path, as if root were '/'. Raises InvalidInput for loops."""
    pending = [part for part in path.split("/") if part][::-1]
    done: list[str] = []
    followed = 0
    while pending:
        part = pending.pop()
        if part == "..":
            if done:
                done.pop()
            continue
        if part == ".":
            continue
        here = root.joinpath(*done, part)
        if here.is_symlink():
            followed += 1
            if followed > SYMLINK_LIMIT:
                raise InvalidInput(f"too many symbolic links in {path!r}")
            target = os.readlink(here)
            if target.startswith("/"):
                done.clear()
            pending.extend([piece for piece in target.split("/") if piece][::-1])
            continue
        done.append(part)
    return "/".join(done)


@record(frozen=False)
class ImageTree:
    """One file or directory inside the merged tree of an image or stage."""

    layers: Sequence[Layer]
    table: EntryTable
    top: int
    end: int
    name: str
    _descriptors: list[int] = field(default_factory=list)

    @property
    def is_directory(self) -> bool:
        """Tell whether the tree's top is a directory."""
        return stat.S_ISDIR(self.top_entry.mode)

    @property
    def top_entry(self) -> Entry:
        """Return the row of what is copied."""
        return self.table.entry(self.top)

    def digest(self) -> bytes:
        """Return the tree digest; the layers' tables hold every hash."""
        return tardiff.tree_digest(self.table.records, self.table.heap, new_hasher(), self.top)

    def rows(self, prefix: bytes, uid: int, gid: int, mode: int) -> GraftedRows:
        """Return the tree's rows at a new path; data comes straight from the layers' tars."""
        if not self._descriptors:
            for layer in self.layers:
                self._descriptors.append(layer.open_tar())
        packed = struct.pack(f"<{len(self._descriptors)}i", *self._descriptors)
        records, heap, sources = graft.graft(
            self.table.records, self.table.heap, self.top, self.end, prefix, packed, SOURCE_RANGE, uid, gid, mode
        )
        return GraftedRows(records, heap, sources)

    def close(self) -> None:
        """Close the layers' tars."""
        while self._descriptors:
            os.close(self._descriptors.pop())


SourceTree = LocalTree | ImageTree
