"""The erofs kernel against a slow reader, the kernel's own EROFS, and fsck.erofs."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import erofs, sysmount, tarscan, unpack, walk
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    EntryTable,
    TableBuilder,
    encode_xattrs,
)
from pylayers.store.row import Entry
from tests.oracle.erofs_reader import Node, Reader

NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from([b"!", b"-", b"..x", b".-", b"...", b"..\x01", b".\xff", b"a" * 255, b"+", b"..+"]),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user." + b"n" * 250, b"trusted.t", b"security.capability", b"system.posix_acl_access",
                     b"system.posix_acl_default", b"trusted.overlay.opaque", b"user.overlay.x"]),
    st.binary(max_size=700), max_size=4,
)  # fmt: skip
TIMES = st.integers(min_value=-(10**18), max_value=4 * 10**18)


def image_of(tmp: Path, table: EntryTable, sizes: list[int]) -> bytes:
    """Write an image and return its bytes."""
    path = tmp / "image"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        written = erofs.write(descriptor, table.records, table.heap, sizes)
        content = os.pread(descriptor, written + 1, 0)
    finally:
        os.close(descriptor)
    assert len(content) == written
    return content


@st.composite
def trees(draw: st.DrawFn) -> tuple[EntryTable, list[bytes], dict[bytes, tuple[object, ...]]]:
    """Draw a table with its devices, and what a reader must find."""
    devices = [bytearray(512) for _ in range(draw(st.integers(1, 3)))]
    builder = TableBuilder()
    expected: dict[bytes, tuple[object, ...]] = {}
    directories = [b""]
    files: list[tuple[bytes, Entry]] = []

    def common() -> Entry:
        return Entry(uid=draw(st.integers(0, 2**32 - 2)), gid=draw(st.integers(0, 70000)), mtime_ns=draw(TIMES))

    def add(path: bytes, entry: Entry, content: bytes, xattrs: dict[bytes, bytes], link: bytes = b"") -> None:
        seen = {name: value for name, value in xattrs.items() if b".overlay." not in name}
        if entry.flags & FLAG_OPAQUE:
            seen[b"trusted.overlay.opaque"] = b"y"
        builder.add(path, entry, link=link, xattrs=encode_xattrs(xattrs))
        rdev = (entry.rdev_major, entry.rdev_minor)
        size = 0 if stat.S_ISDIR(entry.mode) else len(content)
        expected[path] = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, size, rdev, seen, content)

    add(b"", common()._replace(mode=stat.S_IFDIR | 0o755), b"", draw(XATTRS))
    for _ in range(draw(st.integers(0, 25))):
        above = draw(st.sampled_from(directories))
        path = (above + b"/" if above else b"") + draw(NAMES)
        if path in expected or len(path) > 4000:
            continue
        kind = draw(st.sampled_from("ddfffslbpw"))
        entry, xattrs = common(), draw(XATTRS)
        if kind == "d":
            flags = draw(st.sampled_from([0, FLAG_OPAQUE]))
            add(path, entry._replace(mode=stat.S_IFDIR | 0o711, flags=flags), b"", xattrs)
            directories.append(path)
        elif kind == "f":
            layer = draw(st.integers(0, len(devices) - 1))
            content = draw(st.binary(max_size=1500))
            entry = entry._replace(
                mode=stat.S_IFREG | 0o640, size_bytes=len(content), data_offset=len(devices[layer]), layer=layer
            )
            devices[layer] += content.ljust(-(-len(content) // 512) * 512, b"\0")
            add(path, entry, content, xattrs)
            files.append((path, entry))
        elif kind == "s":
            add_sparse(draw, devices[0], path, entry, add, xattrs)
        elif kind == "l":
            target = draw(st.binary(min_size=1, max_size=4095)).replace(b"\0", b"x")
            add(path, entry._replace(mode=stat.S_IFLNK | 0o777), target, xattrs, link=target)
        elif kind == "w":
            builder.add(path, Entry(mode=stat.S_IFCHR, flags=FLAG_WHITEOUT))
            expected[path] = (stat.S_IFCHR, 0, 0, 0, 0, (0, 0), {}, b"")
        else:
            mode = stat.S_IFBLK | 0o600 if kind == "b" else stat.S_IFIFO | 0o600
            major, minor = (draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))) if kind == "b" else (0, 0)
            add(path, entry._replace(mode=mode, rdev_major=major, rdev_minor=minor), b"", xattrs)
    table, _ = builder.build()
    return table, [bytes(device) for device in devices], expected


def add_sparse(draw, device, path, entry, add, xattrs) -> None:  # type: ignore[no-untyped-def]
    """Add a file with holes whose pieces lie at multiples of 512."""
    unit = 512 << draw(st.integers(0, 2))
    pieces = sorted(draw(st.sets(st.integers(0, 6), max_size=4)))
    size = 7 * unit
    content = bytearray(size)
    offset, ranges = len(device), b""
    for piece in pieces:
        content[piece * unit : (piece + 1) * unit] = bytes([piece + 1]) * unit
        device += bytes([piece + 1]) * unit
        ranges += struct.pack("<QQ", piece * unit, unit)
    ranges += struct.pack("<QQ", size, 0)
    entry = entry._replace(mode=stat.S_IFREG | 0o600, size_bytes=size, data_offset=offset, flags=FLAG_SPARSE)
    add(path, entry, bytes(content), xattrs, link=ranges)


def observe(node: Node) -> tuple[object, ...]:
    """Give what the drawing expects."""
    size = 0 if stat.S_ISDIR(node.mode) else node.size
    return (node.mode, node.uid, node.gid, node.mtime_ns, size, node.rdev, node.xattrs, node.content)


@settings(deadline=None, max_examples=150)
@given(trees())
def test_reader_finds_what_was_written(tmp_path_factory: pytest.TempPathFactory, drawn) -> None:  # type: ignore[no-untyped-def]
    table, devices, expected = drawn
    image = image_of(tmp_path_factory.mktemp("erofs"), table, [len(device) for device in devices])
    reader = Reader(image, devices)
    assert {path: observe(node) for path, node in reader.tree().items()} == expected
    assert reader.inodes == len(table)
    assert image == image_of(tmp_path_factory.mktemp("again"), table, [len(device) for device in devices])


@settings(deadline=None, max_examples=150)
@given(trees(), st.data())
def test_mutated_tables_are_refused_or_written(tmp_path_factory: pytest.TempPathFactory, drawn, data) -> None:  # type: ignore[no-untyped-def]
    table, devices, _ = drawn
    records, heap = bytearray(table.records), bytearray(table.heap)
    for _ in range(data.draw(st.integers(1, 4))):
        target = data.draw(st.sampled_from([records, records, heap])) if heap else records
        target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.integers(0, 255))
    descriptor = os.open(tmp_path_factory.mktemp("erofs") / "image", os.O_RDWR | os.O_CREAT)
    try:
        erofs.write(descriptor, records, heap, [len(device) for device in devices])
    except ValueError:
        pass
    finally:
        os.close(descriptor)


def test_hard_links_are_one_inode(tmp_path: Path) -> None:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    builder.add(b"a", Entry(mode=stat.S_IFREG | 0o600, size_bytes=3, data_offset=0))
    for name in (b"b", b"d/c"):
        builder.add(name, Entry(mode=stat.S_IFREG | 0o600, size_bytes=3, flags=FLAG_HARDLINK), link=b"a")
    builder.add(b"d", Entry(mode=stat.S_IFDIR | 0o755))
    device = b"abc".ljust(512, b"\0")
    tree = Reader(image_of(tmp_path, builder.build()[0], [512]), [device]).tree()
    assert len({tree[name].number for name in (b"a", b"b", b"d/c")}) == 1
    assert tree[b"d/c"].nlink == 3
    assert tree[b""].nlink == 3
    assert tree[b"b"].content == b"abc"


def table_with(entry: Entry, path: bytes = b"x", link: bytes = b"", xattrs: bytes = b"") -> EntryTable:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    builder.add(path, entry, link=link, xattrs=xattrs)
    return builder.build()[0]


FILE = stat.S_IFREG | 0o600


def without_root() -> EntryTable:
    table = table_with(Entry(mode=FILE))
    return EntryTable(table.records[ENTRY_SIZE_BYTES:], table.heap)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (EntryTable(b"x", b""), "inside a record"),
        (EntryTable(b"", b""), "there are none"),
        (without_root(), "root"),
        (table_with(Entry(mode=FILE), b"a/b"), "lacks its directory"),
        (table_with(Entry(mode=FILE, flags=FLAG_HARDLINK), link=b"a"), "hard link"),
        (table_with(Entry(mode=FILE, size_bytes=600, data_offset=512)), "outside the tar"),
        (table_with(Entry(mode=FILE, size_bytes=1, layer=1)), "outside its device"),
    ],
)
def test_malformed_tables(tmp_path: Path, table: EntryTable, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        image_of(tmp_path, table, [1024])
    assert not isinstance(caught.value, erofs.NotMappable)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (table_with(Entry(mode=FILE), b"n" * 256), "more than 255 bytes"),
        (table_with(Entry(mode=FILE), xattrs=encode_xattrs({b"strange.x": b""})), "cannot hold"),
        (table_with(Entry(mode=FILE), xattrs=encode_xattrs({b"user.x": b"v" * 65536})), "cannot hold"),
        (table_with(Entry(mode=FILE), xattrs=encode_xattrs({b"user.%d" % n: b"v" * 9000 for n in range(8)})), "hold"),
    ],
)
def test_names_and_attributes_that_no_image_can_show(tmp_path: Path, table: EntryTable, words: str) -> None:
    with pytest.raises(erofs.NotMappable, match=words):
        image_of(tmp_path, table, [1024])


@pytest.mark.parametrize(
    "entry",
    [Entry(mode=FILE, size_bytes=5, data_offset=100), Entry(mode=FILE, size_bytes=1000, flags=FLAG_SPARSE)],
)
def test_what_no_image_can_show(tmp_path: Path, entry: Entry) -> None:
    with pytest.raises(erofs.NotMappable):
        image_of(tmp_path, table_with(entry, link=struct.pack("<QQ", 3, 5) if entry.flags else b""), [4096])
    with pytest.raises(erofs.NotMappable, match="devices"):
        image_of(tmp_path, table_with(Entry(mode=FILE)), [512] * (erofs.MOST_DEVICES + 1))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    table = table_with(Entry(mode=FILE))
    descriptor = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No space") as caught:
            erofs.write(descriptor, table.records, table.heap, [])
        assert caught.value.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


def real_tar(path: Path) -> None:
    """Write a tar with something of everything."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(300):
            member = tarfile.TarInfo(f"many/{number:03d}-{'x' * (number % 90)}")
            member.size, member.mtime, member.uid = number * 37, 1_500_000_000 + number, number
            tar.addfile(member, io.BytesIO(bytes([number % 256]) * member.size))
        for name, kind, target in (("hard", tarfile.LNKTYPE, "many/007-xxxxxxx"), ("soft", tarfile.SYMTYPE, "t" * 900),
                                   ("fifo", tarfile.FIFOTYPE, ""), ("null", tarfile.CHRTYPE, "")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.devmajor, member.devminor = kind, target, 1, 3
            tar.addfile(member)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")
def test_kernel_shows_what_unpacking_gives(tmp_path: Path) -> None:
    if "erofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("the running kernel has no erofs")
    tar = tmp_path / "layer.tar"
    real_tar(tar)
    table = EntryTable(*tarscan.scan(tar.read_bytes()))
    image_of(tmp_path, table, [tar.stat().st_size])
    (tmp_path / "unpacked").mkdir()
    with tar.open("rb") as source:
        target = os.open(tmp_path / "unpacked", os.O_RDONLY | os.O_DIRECTORY)
        unpack.unpack(target, source.fileno(), table.records, table.heap, unpack.WHITEOUT_APPLY)
    try:
        mounted = sysmount.fsmount(b"erofs", os.fsencode(tmp_path / "image"), [b"device=" + os.fsencode(tar)], True)
    except OSError as error:
        pytest.skip(f"the running kernel mounts no EROFS from files: {error}")
    top = os.open(f"/proc/self/fd/{mounted}/.", os.O_RDONLY | os.O_DIRECTORY)
    try:
        shown, wanted = (EntryTable(*walk.walk(one, xattrs=True)) for one in (top, target))
        assert len(shown) == len(wanted) > 300
        for one, other in zip(shown, wanted, strict=True):
            fields = ("mode", "uid", "gid", "size_bytes", "mtime_ns", "rdev_major", "rdev_minor")
            assert shown.path(one) == wanted.path(other)
            if shown.path(one):
                assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]
            assert (shown.link(one), shown.xattrs(one)) == (wanted.link(other), wanted.xattrs(other))
            if stat.S_ISREG(one.mode):
                name = os.fsdecode(shown.path(one))
                assert Path(f"/proc/self/fd/{top}", name).read_bytes() == (tmp_path / "unpacked" / name).read_bytes()
    finally:
        for descriptor in (top, target, mounted):
            os.close(descriptor)


def test_fsck_is_content(tmp_path: Path) -> None:
    """fsck.erofs of erofs-utils 1.8 and later checks blocks of 512 bytes; Debian 12's can't."""
    program = shutil.which("fsck.erofs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("fsck.erofs is not installed")
    told = subprocess.run([program, "-V"], capture_output=True, text=True)
    version = (told.stdout + told.stderr).split()[-1] if told.returncode == 0 else "0"
    tar = tmp_path / "layer.tar"
    real_tar(tar)
    image_of(tmp_path, EntryTable(*tarscan.scan(tar.read_bytes())), [tar.stat().st_size])
    done = subprocess.run(
        [program, f"--device={tar}", "--extract", str(tmp_path / "image")], capture_output=True, text=True
    )
    if done.returncode and "blksize" in done.stderr + done.stdout:
        pytest.skip(f"fsck.erofs {version} knows no blocks of 512 bytes")
    assert done.returncode == 0, done.stderr


def test_golden_image(tmp_path: Path) -> None:
    """What was written once must be written for ever: a changed byte is a changed format."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755, mtime_ns=1_000_000_000_500_000_000))
    xattrs = encode_xattrs({b"user.note": b"kept", b"security.capability": b"\1\2"})
    builder.add(b"bin", Entry(mode=stat.S_IFDIR | 0o700, uid=5, gid=6, flags=FLAG_OPAQUE))
    builder.add(b"bin/tool", Entry(mode=FILE, size_bytes=700, data_offset=512, mtime_ns=-1), xattrs=xattrs)
    builder.add(b"gone", Entry(mode=stat.S_IFCHR, flags=FLAG_WHITEOUT))
    builder.add(b"link", Entry(mode=stat.S_IFLNK | 0o777), link=b"bin/tool")
    image = image_of(tmp_path, builder.build()[0], [2048])
    golden = Path(__file__).parents[1] / "corpus" / "golden" / "layer.erofs"
    if not golden.exists():
        golden.write_bytes(image)
    assert image == golden.read_bytes()
    assert set(Reader(image, [bytes(2048)]).tree()) == {b"", b"bin", b"bin/tool", b"gone", b"link"}
