"""What COPY and ADD read from a local context.

A local tree is walked, never read, until a digest or a layer needs its content; what an earlier build knew
of it comes from the stat cache. Owners of local files don't count: a context belongs to root, as in docker.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from pylayers._native import confirm, tardiff, walk
from pylayers.build.copy.destination import Ownership
from pylayers.build.source import ahead
from pylayers.dockerfile.ignore import IgnoreRules
from pylayers.dockerfile.match import match
from pylayers.errors import Conflict, InvalidInput, NotFound, translate_os_error
from pylayers.record import field, record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HASHED,
    SOURCE_NONE,
    SOURCE_PATH,
    SOURCE_STRUCT,
    Buffer,
    EntryTable,
)
from pylayers.store.row import Entry
from pylayers.store.statcache import KnownTree, StatCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.source.pathfilter import PathFilter

FLAGS_AT = 116  # the flags' lowest byte: they have no other
WITHOUT_HASH = bytes(flags & ~FLAG_HASHED & 0xFF for flags in range(256))
SYMLINK_LIMIT = 40
# Local file systems that stamp a directory whenever a name in it comes, goes or changes: ext, xfs, btrfs, tmpfs, f2fs,
# zfs, bcachefs and overlay. Elsewhere every directory is listed again.
STAMPING_FILESYSTEMS = {
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E, 0x794C7630,
}  # fmt: skip


@record(frozen=False)
class GraftedRows:
    """Rows of a layer, their top first, with their sources; `origin` gets the hashes back once the layer is written."""

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
    is_root: bool = False  # the context's root (its time is the checkout's, not the content's), or only some files
    included: bool = False  # only what a pattern (--parents) matches
    partial: frozenset[bytes] = frozenset()  # directories, below the top, that are only there for what is in them
    sockets: frozenset[int] = frozenset()  # rows that have nothing to open
    digests: Mapping[str, bytes] = field(default_factory=dict)  # what else is known of exactly these rows

    @property
    def is_directory(self) -> bool:
        """Tell whether the tree's top is a directory."""
        return stat.S_ISDIR(self.top_entry.mode)

    @property
    def table(self) -> EntryTable:
        """Return what was walked."""
        return EntryTable(self.records, self.heap)

    @property
    def top_entry(self) -> Entry:
        """Return the row of what is copied."""
        return self.table.entry(self.top)

    def remembered_digest(self, owner: Ownership) -> bytes | None:
        """Return the digest that an earlier build computed, if nothing changed since."""
        if self.unknown is None and self.known is not None:
            return self.known.digests.get(owner.digest_name)
        return None

    def digest(self, owner: Ownership) -> bytes:
        """Return the digest of what reaches the result, reading only files whose content isn't known.

        A directory's own mode and attributes don't reach it, nor do owners, times, or modes under an octal --chmod.
        """
        remembered = self.remembered_digest(owner)
        if remembered is not None:
            return remembered
        self.ensure_table()
        self.hash_unknown()
        if owner.digest_name in self.digests:
            return self.digests[owner.digest_name]
        rows = self.graft(b"", Ownership(0, 0, owner.mode, owner.changes))
        digest = tardiff.tree_digest(rows.records, rows.heap, blake3, 0, not self.is_directory)
        del rows  # as large as the table, of which remember makes another copy
        self.remember(owner.digest_name, digest)
        return digest

    def hash_unknown(self) -> None:
        """Hash the files that the stat cache could not vouch for. Raises Conflict for one that changes meanwhile."""
        if not self.unknown:
            return
        from pylayers._native import filehash

        try:
            filehash.hash_files(self.root_fd, *self.own_table(), self.unknown, blake3)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT, errno.ELOOP):
                raise translate_os_error(error, f"read {self.directory}") from error
            raise Conflict(
                f"{os.fsdecode(error.filename or b'')} changed while it was read", hint="run the build again"
            ) from error
        self.unknown, self.digests = b"", {}

    def adopt(self, start: int, written: Buffer, first: int, count: int) -> None:
        """Take the hashes of rows as they were written; digests of other contents hold no more."""
        from pylayers._native import graft

        if graft.adopt_hashes(self.own_table()[0], start, written, first, count):
            self.digests = {}

    def rows(self, prefix: bytes, owner: Ownership) -> GraftedRows:
        """Return the tree's rows at a new path, ready for tarwrite.

        They carry no hashes: a file may have changed since it was hashed, and a layer's index must tell what its tar
        holds. tarwrite hashes what it writes.
        """
        self.ensure_table()
        rows = self.graft(prefix, owner)
        rows.records[FLAGS_AT::ENTRY_SIZE_BYTES] = rows.records[FLAGS_AT::ENTRY_SIZE_BYTES].translate(WITHOUT_HASH)
        return rows

    def graft(self, prefix: bytes, owner: Ownership) -> GraftedRows:
        """Return the tree's rows at a new path."""
        from pylayers._native import graft

        descriptors = struct.pack("<i", self.root_fd)
        records, heap, sources = graft.graft(
            self.records, self.heap, self.top, self.end, prefix, descriptors, SOURCE_PATH,
            owner.uid, owner.gid, owner.mode,
        )  # fmt: skip
        owner.finish(records)
        for row in self.sockets:
            if self.top <= row < self.end:
                SOURCE_STRUCT.pack_into(sources, (row - self.top) * SOURCE_STRUCT.size, -1, SOURCE_NONE, 0, 0)
        return GraftedRows(records, heap, sources, self, self.top)

    def ensure_table(self) -> None:
        """Take hashes and xattrs over from the known table when the tree was found unchanged."""
        if self.unknown is not None or self.known is None:
            return
        from pylayers.build.source.selector import unhashed_rows

        self.digests = self.known.digests
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

    def remember(self, name: str, digest: bytes) -> None:
        """Write what is now known to the stat cache."""
        if self.cache is not None:
            self.digests = {**self.digests, name: digest}
            self.cache.store(self.cache_key, self.records, self.heap, self.walked_at_ns, self.digests)

    def close(self) -> None:
        """Close the walked directory."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1


class Hollow(NotFound):
    """An excluded directory holds nothing that a `!` rule takes back: it is not in the context."""


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

    def large_keys(self, least_rows: int) -> list[str]:
        """Return the stat cache's keys of the trees that were walked and have so many rows."""
        least_bytes = least_rows * ENTRY_SIZE_BYTES
        return sorted({tree.cache_key for tree in self._trees if len(tree.records) >= least_bytes})

    def find(self, pattern: str) -> list[str]:
        """Expand one COPY source to paths relative to the context; empty only when it has wildcards.

        Climbing out is clamped at the context's root. Raises NotFound for a path that is not there.
        """
        cleaned = clean_source(pattern)
        if not any(character in cleaned for character in "*?[\\"):
            if not self.holds(cleaned):
                raise self.missing(pattern, cleaned)
            return [cleaned]
        from pylayers.dockerfile.match import split_components

        literal, wild = split_components(cleaned)
        base = "/".join(literal)
        if not self.holds(base) or (wild and not (self.directory / resolve_inside(self.directory, base)).is_dir()):
            raise self.missing(pattern, base)
        found = [path for path in self.expand(wild, base) if self.shows(path)] if wild else [base]
        for path in found:
            if not self.holds(path):  # a symlink that leads to nothing, or out of the context
                raise self.missing(pattern, path)
        return found

    def missing(self, pattern: str, path: str) -> NotFound:
        """Describe a source that is not in the context."""
        from pylayers.build.source.suggest import suggest_path

        return NotFound(f"{pattern!r} not found in the build context", hint=suggest_path(self, path))

    def expand(self, components: Sequence[str], base: str = "") -> Iterator[str]:
        """Yield the paths that match a pattern, component by component, in sorted order; no symlink is entered."""
        head, rest = components[0], components[1:]
        directory = self.directory / resolve_inside(self.directory, base)
        try:
            names = sorted(name for name in os.listdir(directory) if match(head, name))
        except (NotADirectoryError, FileNotFoundError):
            names = []
        for name in names:
            path = f"{base}/{name}" if base else name
            if not rest:
                yield path
            elif not (directory / name).is_symlink():
                yield from self.expand(rest, path)

    def shows(self, path: str) -> bool:
        """Tell whether a path itself exists in the context and isn't ignored."""
        above, _, last = path.rpartition("/")
        place = self.directory / resolve_inside(self.directory, above) / last
        is_directory = place.is_dir() and not place.is_symlink()
        return not path or (os.path.lexists(place) and self.included(path, is_directory=is_directory))

    def holds(self, path: str) -> bool:
        """Tell whether a path, and what it leads to where it is a symlink, is in the context."""
        if not self.shows(path):
            return False
        resolved = resolve_inside(self.directory, path)
        target = self.directory / resolved
        return os.path.lexists(target) and (not resolved or self.included(resolved, is_directory=target.is_dir()))

    def included(self, path: str, *, is_directory: bool) -> bool:
        """Tell whether the ignore rules leave a path, or something below it, in the context."""
        if self.rules is None or not self.rules.excluded(path, is_directory):
            return True
        return is_directory and self.rules.may_contain(path)

    def open(self, path: str, chosen: PathFilter | None = None) -> LocalTree:
        """Walk one found path, below a directory only what is chosen. A symlink is followed, inside the context.

        Raises Hollow for an excluded directory in which no `!` rule keeps anything.
        """
        resolved = resolve_inside(self.directory, path)
        name = path.rsplit("/", 1)[-1]
        if not (self.directory / resolved).is_dir():
            base, _, last = resolved.rpartition("/")
            return self.open_directory(base, frozenset((os.fsencode(last),)), None, name)
        tree = self.open_directory(resolved, None, chosen, name)
        if tree.end == 1 and resolved and self.rules and self.rules.excluded(resolved, True):
            hint = f".dockerignore excludes all that is in {resolved}"
            raise Hollow(f"{path!r} not found in the build context", hint=hint)
        return tree

    def open_files(self, paths: Sequence[str]) -> LocalTree:
        """Walk several plain files of one directory as the content of a tree, hard links as files of their own."""
        base = resolve_inside(self.directory, paths[0].rpartition("/")[0])
        return self.open_directory(base, frozenset(os.fsencode(path.rpartition("/")[2]) for path in paths), None, "")

    def open_directory(
        self, base: str, only: frozenset[bytes] | None, chosen: PathFilter | None, name: str
    ) -> LocalTree:
        """Walk a directory, or some names in it."""
        walked = self.directory / base
        try:
            root_fd = os.open(walked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                tree = self.walk(walked, root_fd, base, only, chosen, name)
            except BaseException:
                os.close(root_fd)
                raise
        except OSError as error:
            raise translate_os_error(error, f"read the build context {walked}") from error
        self._trees.append(tree)
        return tree

    def walk(
        self,
        walked: Path,
        root_fd: int,
        base: str,
        only: frozenset[bytes] | None,
        chosen: PathFilter | None,
        name: str,
    ) -> LocalTree:
        """Walk an opened directory (or some names in it) and match it with the stat cache."""
        started_ns = time.time_ns()
        extra = (chosen.name,) if chosen is not None else ()
        key = "\0".join((str(walked), os.fsdecode(b"/".join(sorted(only or ()))), self.fingerprint, *extra))
        early = ahead.take(self.cache, key, root_fd) if self.cache is not None else None
        known = early.known if early else self.cache.load(key) if self.cache is not None else None
        is_root = not base if only is None else len(only) > 1  # its own time is nobody's
        included = chosen is not None and chosen.include is not None
        changed = self.confirm(root_fd, known, chosen, early) if known is not None else None
        if known is not None and changed is not None:
            renewed: tuple[Buffer, Buffer] | None = known.records, known.heap
            if changed:
                from pylayers.build.source.selector import renew_rows

                renewed = renew_rows(root_fd, known.records, known.heap, changed)
            if renewed is not None:
                top, end = self.find_top(walked, only, *renewed)
                return LocalTree(
                    walked, root_fd, *renewed, top, end, name, started_ns, self.cache, key, known, changed or None,
                    is_root,
                )  # fmt: skip
        from pylayers.build.source.selector import Selector, drop_host_xattrs, unhashed_rows, walk_selected

        # A first walk reads the xattrs in its threads; a later one takes most of them from what is known.
        selector = Selector(self.rules, base, only, chosen)
        records, heap, sockets = walk_selected(root_fd, selector, xattrs=known is None)
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
            walked, root_fd, records, heap, top, end, name, started_ns, self.cache, key, known, unknown,
            is_root, included, frozenset(selector.unchosen), sockets,
        )  # fmt: skip

    def find_top(self, walked: Path, only: frozenset[bytes] | None, records: Buffer, heap: Buffer) -> tuple[int, int]:
        """Return the rows of what is copied: all, or that of one name. Raises NotFound where one vanished."""
        for name in only or ():
            top = tardiff.find(records, heap, name)
            if top < 0:
                raise NotFound(f"{walked / os.fsdecode(name)} vanished while it was read")
        return (0, len(records) // ENTRY_SIZE_BYTES) if only is None or len(only) > 1 else (top, top + 1)

    def confirm(
        self, root_fd: int, known: KnownTree, chosen: PathFilter | None, early: ahead.Confirmed | None
    ) -> bytes | None:
        """Tell, without listing anything, which plain files a walk would find changed, and nothing else; None: walk.

        Rules with exceptions may have left out a directory for what was not in it, which no known row tells.
        """
        if not known.digests or (self.rules is not None and self.rules.has_exceptions):
            return None
        if (chosen and chosen.enters) or confirm.read_filesystem_type(root_fd) not in STAMPING_FILESYSTEMS:
            return None
        if early is not None:
            return early.changed
        try:
            return confirm.confirm(root_fd, known.records, known.heap, known.trusted_before_ns, os.cpu_count() or 1)
        except ValueError:  # damaged: the walk that follows finds out what is still of use
            return None


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
