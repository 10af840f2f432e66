"""tarwrite against a slow writer of the same bytes, Python's tarfile and GNU tar."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    SOURCE_HEAP,
    SOURCE_NONE,
    SOURCE_PATH,
    SOURCE_RANGE,
    SOURCE_STRUCT,
    TableBuilder,
)
from pylayers.store.row import Entry
from tests.oracle.canonical import EVERY_LANES, Given, Item, check_against_oracle, make_table

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
REPOSITORY = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "corpus" / "golden" / "canonical-tar"


def every_kind() -> list[Item]:
    """Give one item of each shape the format knows; the golden file is made of these."""
    long_name = b"n" * 101
    deep = [b"/".join([b"deep" * 10] * depth) for depth in range(1, 6)]
    return [
        *(Item(path, DIRECTORY, flags=FLAG_IMPLICIT) for path in deep[:4]),
        Item(b"", DIRECTORY, mtime_ns=1_700_000_000_999_999_999),
        Item(b"a", DIRECTORY, uid=1000, gid=1000),
        Item(b"a/empty"),
        Item(b"a/hello", stat.S_IFREG | 0o4755, b"hello\n", mtime_ns=1_234_567_890_123_456_789),
        Item(b"a/link", LINK, link=b"../b"),
        Item(b"a/long-link", LINK, link=b"x/" * 60),
        Item(b"a/raw-link", LINK, link=b"\xff\xfe" * 60),
        Item(
            b"a/same",
            stat.S_IFREG | 0o4755,
            link=b"a/hello",
            flags=FLAG_HARDLINK,
            mtime_ns=1_234_567_890_123_456_789,
            xattrs={b"user.repeated": b"of the target, left out"},
        ),
        Item(b"b", stat.S_IFIFO | 0o600),
        Item(b"c", stat.S_IFCHR | 0o666, rdev=(1, 3)),
        Item(b"d", stat.S_IFBLK | 0o660, rdev=(259, 1048575)),
        Item(b"gone", 0, flags=FLAG_WHITEOUT),
        Item(b"hidden", DIRECTORY, flags=FLAG_OPAQUE),
        Item(b"hidden/gone", 0, flags=FLAG_WHITEOUT),
        Item(b"implied", DIRECTORY, flags=FLAG_IMPLICIT),
        Item(b"implied/file", FILE, b"below a directory that the tar leaves out"),
        Item(deep[4], FILE, b"prefix and name"),
        Item(long_name, FILE, b"PAX path"),
        Item(long_name[:99] + b"\xc3\xa9", FILE, b"101 bytes, cut within a character"),
        Item(b"m" * 99, DIRECTORY),
        Item(b"m" * 100, DIRECTORY),
        Item(b"old", FILE, b"before 1970", mtime_ns=-1),
        Item(b"owner", FILE, b"large numbers", uid=2097152, gid=4294967294, mtime_ns=9_000_000_000 * 10**9),
        Item(b"raw\xff", FILE, b"short, not UTF-8"),
        Item(b"raw\xff" * 30, FILE, b"long, not UTF-8"),
        Item(
            b"xattrs",
            FILE,
            b"attributes",
            xattrs={b"user.b": b"\0\xff\n=", b"user.a": b"", b"security.capability": bytes(range(20))},
        ),
        Item(b"z-aligned", FILE, bytes(range(256)) * 16),
        Item(b"z-holes", FILE, bytes(5000) + b"data" * 10 + bytes(1000), ranges=((5000, 40),)),
    ]


@pytest.fixture
def prepare(tmp_path: Path) -> Iterator[Callable[[list[Item]], Given]]:
    made: list[Given] = []

    def make(items: list[Item]) -> Given:
        made.append(make_table(items, tmp_path / f"source{len(made)}"))
        return made[-1]

    yield make
    for given in made:
        given.close()


Prepare = Callable[[list[Item]], Given]


def test_golden_bytes_never_change(prepare: Prepare, tmp_path: Path) -> None:
    tar = check_against_oracle(prepare(every_kind()), tmp_path / "tar", 4096, 4096)
    golden = (GOLDEN / "every-kind.tar").read_bytes()
    assert tar == golden
    assert hashlib.sha256(golden).hexdigest() == (GOLDEN / "every-kind.sha256").read_text().split()[0]


def test_python_tarfile_reads_everything_back(prepare: Prepare, tmp_path: Path) -> None:
    given = prepare(every_kind())
    tar, *_ = given.write(tmp_path / "tar", align_bytes=512)
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        members = {member.name.encode("utf-8", "surrogateescape"): member for member in archive}
        marks = {name for name in members if os.path.basename(name).startswith(b".wh.")}
        assert marks == {b".wh.gone", b"hidden/.wh..wh..opq", b"hidden/.wh.gone"}
        for item in given.items:
            if item.flags & (FLAG_WHITEOUT | FLAG_IMPLICIT):
                continue
            member = members[item.path or b"."]
            assert (member.uid, member.gid, member.mode) == (item.uid, item.gid, item.mode & 0o7777)
            assert int(member.mtime) == item.mtime_ns // 10**9
            assert member.linkname.encode("utf-8", "surrogateescape") == item.link
            assert (member.devmajor, member.devminor) == item.rdev
            assert member.isdir() == stat.S_ISDIR(item.mode)
            if item.has_data:
                stored = archive.extractfile(member)
                assert stored is not None
                assert stored.read() == item.content
            for key, value in item.xattrs.items() if not item.flags & FLAG_HARDLINK else ():
                found = member.pax_headers["SCHILY.xattr." + key.decode()]
                assert found.encode("utf-8", "surrogateescape") == value or b"\xff" in value
        assert len(members) == sum(not item.flags & FLAG_IMPLICIT for item in given.items) + 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="restores owners and makes devices")
def test_gnu_tar_unpacks_everything(prepare: Prepare, tmp_path: Path) -> None:
    given = prepare(every_kind())
    given.write(tmp_path / "tar", align_from_bytes=1)
    into = tmp_path / "out"
    into.mkdir()
    subprocess.run(
        ["tar", "-xpf", tmp_path / "tar", "-C", into, "--xattrs", "--xattrs-include=user.*", "--numeric-owner"],
        check=True,
    )
    for item in given.items:
        path = os.fsencode(into) + b"/" + item.path
        if item.flags & (FLAG_WHITEOUT | FLAG_IMPLICIT):
            continue
        found = os.lstat(path)
        assert (found.st_mode, found.st_uid, found.st_gid) == (item.mode, item.uid, item.gid), item.path
        if not stat.S_ISDIR(item.mode) or item.path == b"a":
            assert found.st_mtime_ns == item.mtime_ns // 10**9 * 10**9, item.path
        if item.has_data:
            with open(path, "rb") as file:
                assert file.read() == item.content
        if stat.S_ISLNK(item.mode):
            assert os.readlink(path) == item.link
        if stat.S_ISCHR(item.mode) or stat.S_ISBLK(item.mode):
            assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == item.rdev
    assert os.path.samefile(into / "a" / "hello", into / "a" / "same")
    assert os.getxattr(into / "xattrs", "user.b") == b"\0\xff\n="
    assert os.getxattr(into / "xattrs", "user.a") == b""


def test_scanning_gives_the_table_back(prepare: Prepare, tmp_path: Path) -> None:
    tarscan = pytest.importorskip("pylayers._native.tarscan", reason="the tarscan kernel is not built")
    given = prepare(every_kind())
    tar, *_ = given.write(tmp_path / "tar", align_from_bytes=1)
    records, heap = tarscan.scan(tar)
    scanned = type(given.table)(records, heap)
    assert len(scanned) == len(given.table)
    for theirs, ours, item in zip(scanned, given.table, given.items, strict=True):
        assert scanned.path(theirs) == item.path
        assert theirs.flags & ~FLAG_HASHED == item.flags & ~FLAG_SPARSE, item.path
        if item.flags & (FLAG_WHITEOUT | FLAG_IMPLICIT):
            continue
        assert (theirs.mode, theirs.uid, theirs.gid) == (ours.mode, ours.uid, ours.gid), item.path
        assert theirs.data_offset == ours.data_offset or not stat.S_ISREG(item.mode), item.path
        assert theirs.mtime_ns == ours.mtime_ns // 10**9 * 10**9, item.path
        if not item.flags & FLAG_HARDLINK:
            assert theirs.size_bytes == ours.size_bytes
            assert (theirs.header_offset, theirs.rdev_major, theirs.rdev_minor) == (ours.header_offset, *item.rdev)
            assert scanned.link(theirs) == item.link
            assert scanned.xattrs(theirs) == item.xattrs


@pytest.mark.parametrize("kind", [SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE])
@pytest.mark.parametrize("align", [512, 4096, 65536])
def test_data_that_spans_slots(prepare: Prepare, tmp_path: Path, kind: int, align: int) -> None:
    """Files from empty to larger than two slots of the ring, more in all than half the ring."""
    draw = random.Random(kind)
    sizes = [0, 1, 511, 512, 513, 65535, 65536, 65537, 1 << 20, (1 << 20) - 512, 3 << 20, (2 << 20) + 7, 0, 700_000, 20]
    items = [Item(b"f%02d" % at, FILE, draw.randbytes(size), kind=kind) for at, size in enumerate(sizes)]
    check_against_oracle(prepare(items), tmp_path / "tar", align)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_small_files_of_every_length_about_a_block_and_a_chunk(prepare: Prepare, tmp_path: Path, lanes: int) -> None:
    """More in a slot than a batch of the lanes holds, empty ones among them, and files that span slots."""
    draw = random.Random(3)
    edges = [0, 1, 63, 64, 65, 127, 128, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 16384, 16385, 100_000]
    sizes = [0] * 1100 + [draw.choice(edges) for _ in range(200)] + [1_000_000, 40, 1_500_000]
    items = [Item(b"f%04d" % at, FILE, draw.randbytes(size), kind=SOURCE_RANGE) for at, size in enumerate(sizes)]
    check_against_oracle(prepare(items), tmp_path / "tar", lanes=lanes)


def test_lanes_that_are_refused(prepare: Prepare, tmp_path: Path) -> None:
    for lanes in (1, 7, 32):
        with pytest.raises(ValueError, match="lanes"):
            prepare([]).write(tmp_path / "tar", lanes=lanes)


@pytest.mark.usefixtures("nothing_left")
def test_a_small_source_that_changed_since_the_walk(tmp_path: Path) -> None:
    """The tar holds what is there now, and its hash; as long as the size is the record's."""
    given = make_table([Item(b"f%d" % at, FILE, b"old", kind=SOURCE_PATH) for at in range(6)], tmp_path / "source")
    for path in (tmp_path / "source").rglob("f*"):
        found = path.stat()
        path.write_bytes(b"new")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    changed = [Item(item.path, FILE, b"new", kind=SOURCE_PATH) for item in given.items]
    check_against_oracle(Given(given.table, given.sources, changed, given.descriptors), tmp_path / "tar")
    given.close()


def test_more_than_the_ring(prepare: Prepare, tmp_path: Path) -> None:
    draw = random.Random(7)
    content = draw.randbytes(9 << 20)
    items = [Item(b"f%d" % at, FILE, content[at * 1000 :], kind=SOURCE_PATH) for at in range(4)]
    check_against_oracle(prepare(items), tmp_path / "tar")


@pytest.mark.parametrize("tail", [0, 1, 511, 4096, 100_000])
@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_past_the_page_cache(prepare: Prepare, tmp_path: Path, count: int, tail: int) -> None:
    """Whole slots and tails of every alignment, written with O_DIRECT where the file system has it."""
    draw = random.Random(count * 7 + tail)
    items = [Item(b"f%d" % at, FILE, draw.randbytes((2 << 20) + at), kind=SOURCE_PATH) for at in range(count)]
    items.append(Item(b"g", FILE, draw.randbytes(tail)))
    check_against_oracle(prepare(items), tmp_path / "tar", direct_from=0)


def test_past_the_page_cache_leaves_the_descriptor_as_it_was(tmp_path: Path) -> None:
    given = make_table(many_files(10), tmp_path / "source")
    with open(tmp_path / "tar", "wb", buffering=0) as out:
        before = fcntl.fcntl(out, fcntl.F_GETFL)
        tarwrite.write(
            out.fileno(), given.records, given.table.heap, given.sources, hashlib.sha256, blake3, direct_from_bytes=1
        )
        assert fcntl.fcntl(out, fcntl.F_GETFL) == before
    given.close()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="/dev/shm is not there")
def test_past_the_page_cache_where_there_is_nothing_else(tmp_path: Path) -> None:
    """A tmpfs is page cache: direct writes are refused or ignored, by the kernel's age."""
    given = make_table(many_files(10), tmp_path / "source")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        check_against_oracle(given, Path(folder) / "tar", direct_from=0)
    given.close()


@pytest.mark.parametrize("length", range(97, 104))
def test_name_lengths_at_the_ustar_limits(prepare: Prepare, tmp_path: Path, length: int) -> None:
    items = [
        Item(b"a" * length, FILE, b"x"),
        Item(b"b" * length, DIRECTORY),
        Item(b"c/" + b"c" * length, FILE, b"y"),
        Item(b"d" * (length + 55) + b"/" + b"e" * 100, FILE),
        Item(b"f" * (length + 55) + b"/" + b"g" * 99, DIRECTORY),
        Item(b"h" * 50 + b"/" + b"i" * length + b"/" + b"j" * length, FILE),
        Item(b"l", LINK, link=b"t" * length),
        Item(b"/" .join([b"p" * length] * 10), FILE),
    ]  # fmt: skip
    check_against_oracle(prepare(items), tmp_path / "tar")


@pytest.mark.parametrize("width", [*range(60, 100), *range(950, 1000), *range(9950, 10000)])
def test_record_length_rollover(prepare: Prepare, tmp_path: Path, width: int) -> None:
    items = [Item(b"f", FILE, b"x" * 600, xattrs={b"user.a": b"v" * (width - 20)})]
    check_against_oracle(prepare(items), tmp_path / "tar", 4096, 1)


class Enough(Exception):
    """Raised by a hasher that has seen what it wanted."""


class StopEarly:
    """A sha256 that keeps the first bytes and ends the write."""

    def __init__(self) -> None:
        self.start = b""

    def update(self, part: memoryview) -> None:
        self.start = bytes(part[:1536])
        raise Enough


def test_a_file_too_large_for_ustar(tmp_path: Path) -> None:
    """A hole of 8 GiB: its header is what is looked at, the write is ended soon after."""
    builder = TableBuilder()
    builder.add(b"huge", Entry(size_bytes=1 << 33, mode=FILE))
    table, _ = builder.build()
    hole = tmp_path / "hole"
    hole.touch()
    os.truncate(hole, 1 << 33)
    hasher = StopEarly()
    source = os.open(hole, os.O_RDONLY)
    packed = SOURCE_STRUCT.pack(source, SOURCE_RANGE, 0, 0)
    with open(tmp_path / "tar", "wb") as out, pytest.raises(Enough):
        tarwrite.write(out.fileno(), bytearray(table.records), table.heap, packed, lambda: hasher, blake3, 512)
    os.close(source)
    assert hasher.start[512:].startswith(b"19 size=8589934592\n\0")
    with tarfile.open(fileobj=io.BytesIO(hasher.start), ignore_zeros=True) as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size) == ("huge", 1 << 33)


def test_hashed_rows_keep_their_hash(prepare: Prepare, tmp_path: Path) -> None:
    given = prepare(
        [
            Item(b"a", FILE, b"one", flags=FLAG_HASHED),
            Item(b"b", FILE, b"two"),
            Item(b"c", FILE, link=b"a", flags=FLAG_HARDLINK),
        ]
    )
    given.records[ENTRY_SIZE_BYTES - 32 : ENTRY_SIZE_BYTES] = b"k" * 32
    assert given.table.entry(0).flags == FLAG_HASHED
    given.write(tmp_path / "tar")
    assert given.table.entry(0).blake3 == given.table.entry(2).blake3 == b"k" * 32
    assert given.table.entry(1).blake3 == blake3(b"two").digest()


# Tables that cannot be a tar


def raw_row(path: bytes, link: bytes = b"", xattrs: bytes = b"", **fields: int) -> tuple[bytearray, bytearray]:
    builder = TableBuilder()
    builder.add(path, Entry(**{"mode": FILE, **fields}), link=link, xattrs=xattrs)  # type: ignore[arg-type]
    table, _ = builder.build()
    return table.records, table.heap  # type: ignore[return-value]


SPARSE_LATE = struct.pack("<QQQQ", 5, 5, 0, 5)


@pytest.mark.parametrize(
    ("row", "source", "said"),
    [
        (raw_row(b"s", mode=stat.S_IFSOCK), None, "b's': a socket"),
        (raw_row(b"t", mode=0o644), None, "b't': its file type"),
        (raw_row(b"/a"), None, "path"),
        (raw_row(b"a/"), None, "path"),
        (raw_row(b"a//b"), None, "path"),
        (raw_row(b"a/./b"), None, "path"),
        (raw_row(b"a/../b"), None, "path"),
        (raw_row(b"a\0b"), None, "path"),
        (raw_row(b"a/.wh.b"), None, "whiteout"),
        (raw_row(b""), None, "root directory"),
        (raw_row(b"", flags=FLAG_WHITEOUT), None, "root directory"),
        (raw_row(b"a", mode=LINK), None, "symlink target"),
        (raw_row(b"a", mode=LINK, link=b"x\0"), None, "symlink target"),
        (raw_row(b"a", link=b"b", flags=FLAG_HARDLINK), None, "hard-link target"),
        (raw_row(b"a", flags=FLAG_OPAQUE), None, "opaque"),
        (raw_row(b"a", mode=stat.S_IFCHR, rdev_major=2097152), None, "device number"),
        (raw_row(b"a", size_bytes=1), None, "no source"),
        (raw_row(b"a", size_bytes=1), (-1, 9, 0, 0), "no source"),
        (raw_row(b"a", size_bytes=1 << 60), (0, SOURCE_RANGE, 0, 0), "absurd"),
        (raw_row(b"a", size_bytes=9), (0, SOURCE_HEAP, 0, 9), "outside the heap"),
        (raw_row(b"a", size_bytes=9), (0, SOURCE_HEAP, 1 << 63, 9), "outside the heap"),
        (raw_row(b"a"), (0, SOURCE_PATH, 0, 9), "outside the heap"),
        (raw_row(b"../x", link=b"a", flags=FLAG_WHITEOUT), None, "path"),
        (raw_row(b"a", link=b"../x"), (0, SOURCE_PATH, 1, 4), "source path"),
        (raw_row(b"a", flags=FLAG_SPARSE), (0, SOURCE_HEAP, 0, 0), "sparse"),
        (raw_row(b"a", flags=FLAG_SPARSE, link=b"x", size_bytes=9), (0, SOURCE_RANGE, 0, 0), "sparse map"),
        (raw_row(b"a", flags=FLAG_SPARSE, link=SPARSE_LATE, size_bytes=9), (0, SOURCE_RANGE, 0, 0), "sparse map"),
        (raw_row(b"a", flags=FLAG_SPARSE, link=SPARSE_LATE, size_bytes=99), (0, SOURCE_RANGE, 0, 0), "sparse map"),
        (raw_row(b"a", xattrs=b"\1\0\0\0\0"), None, "cut short"),
        (raw_row(b"a", xattrs=b"\1\0\1\0\0\0a"), None, "cut short"),
        (raw_row(b"a", xattrs=b"\1\0\0\0\0\0="), None, "xattr name"),
        (raw_row(b"a", xattrs=b"\0\0\0\0\0\0"), None, "xattr name"),
        (raw_row(b"a", xattrs=b"\1\0\0\0\0\0b\1\0\0\0\0\0a"), None, "sorted by name"),
        (raw_row(b"a", xattrs=b"\1\0\0\0\0\0b\1\0\0\0\0\0b"), None, "sorted by name"),
        (raw_row(b"a/" * 600_000 + b"b"), None, "larger than a PAX"),
        (raw_row(b"a/" * 600_000 + b"b", flags=FLAG_WHITEOUT), None, "larger than a PAX"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_that_cannot_be_a_tar(
    tmp_path: Path, row: tuple[bytearray, bytearray], source: tuple[int, int, int, int] | None, said: str
) -> None:
    records, heap = row
    packed = SOURCE_STRUCT.pack(*(source or (-1, SOURCE_NONE, 0, 0)))
    with open(tmp_path / "tar", "wb") as out, pytest.raises(ValueError, match=said):
        tarwrite.write(out.fileno(), bytearray(records), heap, packed, hashlib.sha256, blake3)
    assert (tmp_path / "tar").stat().st_size == 0


@pytest.mark.parametrize("field", ["path", "link", "xattr"])
def test_offsets_outside_the_heap(tmp_path: Path, field: str) -> None:
    for offset, length in ((2, 1), (1 << 63, 1), (0, 1 << 31), ((1 << 64) - 1, 2)):
        records, heap = raw_row(b"a", mode=LINK, link=b"b")
        values = Entry._make(struct.unpack("<QQQQQQqqQQ14I32s", records))
        spoilt = values._replace(**{f"{field}_offset": offset, f"{field}_length": length})  # type: ignore[arg-type]
        packed = bytearray(struct.pack("<QQQQQQqqQQ14I32s", *spoilt))
        with open(tmp_path / "tar", "wb") as out, pytest.raises(ValueError, match="outside the heap"):
            tarwrite.write(out.fileno(), packed, heap, SOURCE_STRUCT.pack(-1, 0, 0, 0), hashlib.sha256, blake3)


@pytest.mark.parametrize("shared", [523_000, 524_000])
def test_the_longest_hard_link(prepare: Prepare, tmp_path: Path, shared: int) -> None:
    """Both names must fit one extended header: each alone would."""
    folder = b"a/" * (shared // 2)
    items = [Item(folder + b"a", FILE, b"x"), Item(folder + b"b", FILE, link=folder + b"a", flags=FLAG_HARDLINK)]
    if shared == 523_000:
        items[1:] = [Item(folder[:1000] + b"b", FILE, link=folder + b"a", flags=FLAG_HARDLINK)]
        check_against_oracle(prepare(items), tmp_path / "tar")
        return
    with pytest.raises(ValueError, match="larger than a PAX"):
        prepare(items).write(tmp_path / "tar")


def test_unsorted_and_doubled_paths(prepare: Prepare, tmp_path: Path) -> None:
    given = prepare([Item(b"a", FILE, b"1"), Item(b"b", FILE, b"2")])
    swapped = given.records[ENTRY_SIZE_BYTES:] + given.records[:ENTRY_SIZE_BYTES]
    doubled = given.records[:ENTRY_SIZE_BYTES] * 2
    for records in (swapped, doubled):
        with open(tmp_path / "tar", "wb") as out, pytest.raises(ValueError, match="not sorted"):
            tarwrite.write(out.fileno(), records, given.table.heap, given.sources, hashlib.sha256, blake3)


@pytest.mark.parametrize(
    "options", [{"align_bytes": 0}, {"align_bytes": 1000}, {"align_bytes": 1 << 20}, {"align_from_bytes": -1}]
)
def test_alignments_that_are_refused(prepare: Prepare, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="align"):
        prepare([Item(b"a")]).write(tmp_path / "tar", **options)


def test_buffers_of_the_wrong_size(tmp_path: Path) -> None:
    records, heap = raw_row(b"a")
    with open(tmp_path / "tar", "wb") as out:
        for spoilt, sources in ((records[:-1], bytes(24)), (records, b""), (records, bytes(23)), (records, bytes(48))):
            with pytest.raises(ValueError, match="source"):
                tarwrite.write(out.fileno(), bytearray(spoilt), heap, sources, hashlib.sha256, blake3)


# Failures on the way: raised once, no thread left, nothing held


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = (threads(), len(os.listdir("/proc/self/fd")))
    yield
    deadline = time.monotonic() + 2
    while (threads(), len(os.listdir("/proc/self/fd"))) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (threads(), len(os.listdir("/proc/self/fd"))) == before


def many_files(count: int = 60, size: int = 500_000) -> list[Item]:
    return [Item(b"f%03d" % at, FILE, bytes([at]) * size, kind=SOURCE_PATH) for at in range(count)]


def put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "kind", "number"),
    [
        (lambda path: path.unlink(), FileNotFoundError, errno.ENOENT),
        (lambda path: os.truncate(path, 100), tarwrite.SourceChanged, errno.ESTALE),
        (lambda path: os.truncate(path, 600_000), tarwrite.SourceChanged, errno.ESTALE),
        (lambda path: (path.unlink(), path.symlink_to("f0")), tarwrite.SourceChanged, errno.ESTALE),
        (put_fifo, tarwrite.SourceChanged, errno.ESTALE),
        (lambda path: (path.unlink(), path.mkdir()), tarwrite.SourceChanged, errno.ESTALE),
        (lambda path: (path.parent.rename(path.parent.parent / "was"), path.parent.symlink_to("was")),
         tarwrite.SourceChanged, errno.ESTALE),
    ],
    ids=["vanished", "shrunk", "grown", "symlink", "fifo", "directory", "parent-symlink"],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_left")
def test_a_source_that_changed(
    tmp_path: Path, spoil: Callable[[Path], object], kind: type[OSError], number: int
) -> None:
    given = make_table(many_files(), tmp_path / "source")
    name = "d1/e/f49"
    spoil(tmp_path / "source" / name)
    with pytest.raises(kind) as caught:
        given.write(tmp_path / "tar")
    given.close()
    assert caught.value.errno == number
    folder_spoilt = (tmp_path / "source" / "d1" / "e").is_symlink()  # then its first file is the one that fails
    assert caught.value.filename == (b"d1/e/f1" if folder_spoilt else name.encode())


@pytest.mark.usefixtures("nothing_left")
def test_an_unreadable_source(tmp_path: Path) -> None:
    given = make_table([Item(b"a", FILE, b"data", kind=SOURCE_RANGE)], tmp_path / "source")
    closed = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)  # reading a directory: EISDIR
    with pytest.raises(IsADirectoryError) as caught:
        Given(given.table, SOURCE_STRUCT.pack(closed, SOURCE_RANGE, 0, 4), given.items, []).write(tmp_path / "tar")
    assert caught.value.filename == b"a"
    os.close(closed)
    fd, kind, offset, length = SOURCE_STRUCT.unpack(given.sources)
    past_the_end = Given(given.table, SOURCE_STRUCT.pack(fd, kind, offset + 1, length), given.items, [])
    with pytest.raises(tarwrite.SourceChanged):
        past_the_end.write(tmp_path / "tar")
    given.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """The first bytes reach sha256 while the file is still being read: there it is shrunk, grown or rewritten."""
    ways: list[Callable[[Path], None]] = [
        lambda path: os.truncate(path, 30 << 20),
        lambda path: os.truncate(path, 70 << 20),
        lambda path: os.utime(path, (1, 1)),
    ]
    for spoil in ways:
        source = tmp_path / f"source{id(spoil)}"
        given = make_table([Item(b"f", FILE, bytes(60 << 20), kind=SOURCE_PATH)], source)

        class Spoiling:
            def __init__(self, spoil: Callable[[Path], object] = spoil, path: Path = source / "f0") -> None:
                self.spoil: Callable[[Path], object] | None = spoil
                self.path = path

            def update(self, part: memoryview) -> None:
                if self.spoil:
                    self.spoil(self.path)
                    self.spoil = None

        with open(tmp_path / "tar", "wb") as out, pytest.raises(tarwrite.SourceChanged) as caught:
            tarwrite.write(out.fileno(), given.records, given.table.heap, given.sources, Spoiling, blake3)
        assert caught.value.filename == b"f0"
        given.close()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("direct_from_bytes", [0, 1 << 62])
def test_a_full_device(tmp_path: Path, direct_from_bytes: int) -> None:
    given = make_table(many_files(), tmp_path / "source")
    with open("/dev/full", "wb", buffering=0) as out, pytest.raises(OSError) as caught:
        tarwrite.write(
            out.fileno(), given.records, given.table.heap, given.sources, hashlib.sha256, blake3,
            direct_from_bytes=direct_from_bytes,
        )  # fmt: skip
    assert caught.value.errno == errno.ENOSPC
    given.close()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("direct_from_bytes", [0, 1 << 62])
def test_an_output_limit_on_the_way(tmp_path: Path, direct_from_bytes: int) -> None:
    given = make_table(many_files(), tmp_path / "source")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((5 << 20) + 1000, before[1]))
    try:
        with open(tmp_path / "tar", "wb") as out, pytest.raises(OSError) as caught:
            tarwrite.write(
                out.fileno(), given.records, given.table.heap, given.sources, hashlib.sha256, blake3,
                direct_from_bytes=direct_from_bytes,
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        given.close()
    assert caught.value.errno == errno.EFBIG


class Broken:
    """A hasher that fails on its second piece, or gives nonsense."""

    def __init__(self, data: object = b"") -> None:
        self.pieces = 0

    def update(self, part: object) -> None:
        self.pieces += 1
        if self.pieces == 2:
            raise RuntimeError("hasher broke")

    def digest(self) -> bytes:
        return b"short"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("which", ["sha256", "blake3", "short"])
def test_a_hasher_that_fails(tmp_path: Path, which: str) -> None:
    items = many_files(2) if which == "short" else many_files(2, 20 << 20)
    given = make_table(items, tmp_path / "source")
    sha256, file_hash = (Broken, blake3) if which == "sha256" else (hashlib.sha256, Broken)
    with open(tmp_path / "tar", "wb") as out, pytest.raises((RuntimeError, ValueError), match=r"hasher broke|32 bytes"):
        tarwrite.write(out.fileno(), given.records, given.table.heap, given.sources, sha256, file_hash)
    given.close()


@pytest.mark.usefixtures("nothing_left")
def test_keyboard_interrupt_ends_every_stage(tmp_path: Path) -> None:
    given = make_table(many_files(20, 4 << 20), tmp_path / "source")

    class Interrupting:
        def __init__(self) -> None:
            self.sent = False

        def update(self, part: memoryview) -> None:
            if not self.sent:
                self.sent = True
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

        def digest(self) -> bytes:
            return b""

    def write_often(out_fd: int) -> None:
        for _ in range(50):  # the signal may come after the first write's last piece
            tarwrite.write(out_fd, given.records, given.table.heap, given.sources, Interrupting, blake3)

    with open(tmp_path / "tar", "wb") as out, pytest.raises(KeyboardInterrupt):
        write_often(out.fileno())
    given.close()


WITHOUT_OPENAT2 = """
    import ctypes, hashlib, os, struct, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tests.oracle.canonical import check_against_oracle, make_table
    from tests.oracle.test_tarwrite import many_files
    from pylayers._native import tarwrite
    given = make_table(many_files(12, 3000), Path(sys.argv[1]) / "source")
    rules = b"".join(struct.pack("<HBBI", *rule) for rule in (
        (0x20, 0, 0, 0),                      # load the system call's number
        (0x15, 0, 1, 437),                    # openat2?
        (0x06, 0, 0, 0x00050000 | 38),        # ENOSYS
        (0x06, 0, 0, 0x7FFF0000)))            # else allow
    held = ctypes.create_string_buffer(rules, len(rules))
    program = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
    assert libc.syscall(437, -100, b"/", b"", 0) == -1 and ctypes.get_errno() == 38
    check_against_oracle(given, Path(sys.argv[1]) / "tar")
    folder = Path(sys.argv[1]) / "source" / "d1"
    folder.rename(folder.parent / "was")
    folder.symlink_to("was")
    try:
        given.write(Path(sys.argv[1]) / "tar")
    except tarwrite.SourceChanged as error:
        print("refused", error.filename)
"""


def test_without_openat2(tmp_path: Path) -> None:
    """The component-wise fallback, under a seccomp filter that hides the call."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_OPENAT2), tmp_path, REPOSITORY], capture_output=True, text=True
    )
    assert ran.stdout == "refused b'd1/e/f1'\n", ran.stderr


def test_parallel_writes(tmp_path: Path) -> None:
    items = many_files(8, 300_000)
    found: list[bytes] = []

    def run(number: int) -> None:
        given = make_table(items, tmp_path / f"source{number}")
        found.append(given.write(tmp_path / f"tar{number}")[2])
        given.close()

    workers = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert len(set(found)) == 1


@pytest.mark.parametrize("start", range(0, 1100, 100))
def test_comments_of_every_length(prepare: Prepare, tmp_path: Path, start: int) -> None:
    """Records of 100 and 1000 bytes are among them: no text has that length by the shortest writing of its own."""
    for size in range(start, start + 100):
        item = Item(b"file", FILE, b"data", xattrs={b"user.x": bytes(size)})
        check_against_oracle(prepare([item]), tmp_path / f"tar{size}", 1024, 0)
