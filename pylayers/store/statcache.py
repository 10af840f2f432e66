"""The stat cache: walked tables of build contexts, with the hashes that were read, one file per context.

It is only a cache: files are replaced atomically but not synced. A file written since the machine started is whole
(rename(2) made it visible after it was written); one from before a restart may be torn by a power loss, so only
then is its checksum compared. A torn, foreign or older-format file counts as absent.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Mapping, Sequence

from pylayers.errors import Conflict
from pylayers.oci.digest import hex_of
from pylayers.record import record
from pylayers.store.entry import ENTRY_SIZE_BYTES, Buffer
from pylayers.store.file import remove_file, translates, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

MAGIC = b"PYLAYSTC"
VERSION = 1
ALIGNMENT = 64
# magic, version, entry size, walked_at_ns, lengths of key, digests, records and heap, boot id, BLAKE3 of all the rest.
HEADER_STRUCT = struct.Struct("<8sIIqQQQQ16s32s24x")
_CHECKSUM_OFFSET = HEADER_STRUCT.size - 24 - 32
_DIGEST_STRUCT = struct.Struct("<HH")

# git's rule: a file changed in the clock tick in which it was walked may change again without its mtime moving.
# Linux stamps files with the time of the last timer tick: 10 ms apart at HZ=100, the slowest. Twice that
# leaves room for the walk's own clock reading. File systems with coarser stamps (FAT: 2 s) lie beyond this rule.
RACY_SLACK_NS = 20_000_000
EXPECTED_LIMIT = 64  # keys noted of one build


@record
class KnownTree:
    """View a stored walk; records and heap are read-only windows of a mapping, which they keep alive."""

    records: Buffer
    heap: Buffer
    trusted_before_ns: int  # entries stamped at or after this are racy
    digests: Mapping[str, bytes]  # what was computed from exactly this table, by name


class StatCache:
    """Keep one walk per key. A key is the absolute root path and whatever else selects what is walked."""

    def __init__(self, directory: StrPath) -> None:
        self._directory = os.fspath(directory)
        self._boot = _boot_id()

    def path(self, root_key: str) -> str:
        """Return where a key's file lies."""
        return f"{self._directory}/{hex_of(_encode_key(root_key))}.idx"

    @translates("read the stat cache")
    def load(self, root_key: str) -> KnownTree | None:
        """Return what was stored under a key; None when there is nothing usable."""
        try:
            descriptor = os.open(self.path(root_key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            length = status.st_size
            if not stat.S_ISREG(status.st_mode) or length < HEADER_STRUCT.size:
                return None
            content = memoryview(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
        return _decode(content, _encode_key(root_key), self._boot)

    @translates("write the stat cache")
    def store(
        self,
        root_key: str,
        records: Buffer,
        heap: Buffer,
        walked_at_ns: int,
        digests: Mapping[str, bytes] | None = None,
    ) -> None:
        """Replace what is stored under a key. walked_at_ns is time.time_ns() read before the walk began."""
        os.makedirs(self._directory, 0o700, exist_ok=True)
        sections = (_encode_key(root_key), _encode_digests(digests or {}), records, heap)
        content = _encode(sections, walked_at_ns, self._boot)
        path = self.path(root_key)
        try:
            write_file(path, content, durable=False)
        except IsADirectoryError:
            raise Conflict(f"{path} is a directory, not the stat cache's file", hint=f"rm -r {path}") from None

    def expected(self, build: str) -> list[str]:
        """Return the keys that a build was noted to walk; none where nothing, or nothing usable, is noted."""
        try:
            with open(self._note_path(build), encoding="utf-8", errors="surrogateescape") as file:
                keys = file.read().split("\n")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return []
        if keys[0] != build.replace("\0", "\1") or len(keys) > EXPECTED_LIMIT:
            return []
        return [key.replace("\1", "\0") for key in keys[1:]]

    @translates("write the stat cache")
    def expect(self, build: str, keys: Sequence[str]) -> None:
        """Note the keys that a build walks. A name is left out in which the separators occur."""
        lines = [build, *(key for key in keys if "\n" not in key and "\1" not in key)]
        content = "\n".join(lines).replace("\0", "\1").encode("utf-8", "surrogateescape")
        os.makedirs(self._directory, 0o700, exist_ok=True)
        write_file(self._note_path(build), content, durable=False)

    def _note_path(self, build: str) -> str:
        return f"{self._directory}/{hex_of(_encode_key(build))}.next"

    @translates("prune the stat cache")
    def prune(self, keep_count: int = 64) -> int:
        """Remove all but the walks stored last; return how many went."""
        try:
            with os.scandir(self._directory) as entries:
                found = sorted(((entry.stat().st_mtime_ns, entry.path) for entry in entries), reverse=True)
        except FileNotFoundError:
            return 0
        for _, path in found[keep_count:]:
            remove_file(path, durable=False)
        return len(found[keep_count:])


def _encode_key(root_key: str) -> bytes:
    return root_key.encode("utf-8", "surrogateescape")


def _boot_id() -> bytes:
    """Identify this start of the machine; zeros (never equal, see _decode) where the kernel doesn't tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            text = file.read()
        return bytes.fromhex(text.strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)


def _pad(length: int) -> int:
    return -length % ALIGNMENT


def _encode_digests(digests: Mapping[str, bytes]) -> bytes:
    named = bytearray()
    for name, digest in sorted(digests.items()):
        encoded = name.encode()
        named += _DIGEST_STRUCT.pack(len(encoded), len(digest)) + encoded + digest
    return bytes(named)


def _encode(sections: tuple[Buffer, ...], walked_at_ns: int, boot: bytes) -> bytearray:
    from blake3 import blake3

    lengths = [len(section) for section in sections]
    content = bytearray(
        HEADER_STRUCT.pack(MAGIC, VERSION, ENTRY_SIZE_BYTES, walked_at_ns, *lengths, boot, bytes(32))
    )
    for section in sections:
        content += section
        content += bytes(_pad(len(section)))
    content[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 32] = blake3(content).digest()
    return content


def _checksum(content: memoryview) -> bytes:
    from blake3 import blake3

    hasher = blake3(content[:_CHECKSUM_OFFSET])
    hasher.update(bytes(32))
    hasher.update(content[_CHECKSUM_OFFSET + 32 :])
    return hasher.digest()


def _decode(content: memoryview, key: bytes, boot: bytes) -> KnownTree | None:
    magic, version, entry_size, walked_at_ns, *lengths, stored_boot, checksum = HEADER_STRUCT.unpack_from(content)
    if (magic, version, entry_size) != (MAGIC, VERSION, ENTRY_SIZE_BYTES):
        return None
    if HEADER_STRUCT.size + sum(length + _pad(length) for length in lengths) != len(content):
        return None
    if (stored_boot != boot or not any(boot)) and _checksum(content) != checksum:
        return None
    sections: list[memoryview] = []
    at = HEADER_STRUCT.size
    for length in lengths:
        sections.append(content[at : at + length])
        at += length + _pad(length)
    stored_key, named, records, heap = sections
    digests = _decode_digests(bytes(named))
    if stored_key != key or len(records) % ENTRY_SIZE_BYTES or digests is None:
        return None
    return KnownTree(records, heap, walked_at_ns - RACY_SLACK_NS, digests)


def _decode_digests(named: bytes) -> dict[str, bytes] | None:
    found: dict[str, bytes] = {}
    at = 0
    while at < len(named):
        if len(named) - at < _DIGEST_STRUCT.size:
            return None
        name_length, digest_length = _DIGEST_STRUCT.unpack_from(named, at)
        at += _DIGEST_STRUCT.size
        if name_length + digest_length > len(named) - at:
            return None
        try:
            name = named[at : at + name_length].decode()
        except UnicodeDecodeError:
            return None
        found[name] = named[at + name_length : at + name_length + digest_length]
        at += name_length + digest_length
    return found
