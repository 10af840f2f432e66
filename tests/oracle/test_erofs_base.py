"""EROFS images over tars whose first part lies in another file, against plain images of the same tables."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import erofs, sysmount, tarscan, walk
from pylayers.store.entry import EntryTable, TableBuilder
from pylayers.store.row import Entry
from tests.oracle.erofs_reader import Reader
from tests.oracle.test_erofs import observe, real_tar, trees

FILE = stat.S_IFREG | 0o600
WRONG = 0xA5  # what lies where nothing may be read


def write_image(path: Path, table: EntryTable, sizes: list[int], ends: list[int]) -> bytes:
    """Write an image over tars with bases, to be found at a path, and return its bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        written = erofs.write(descriptor, table.records, table.heap, sizes, base_ends=ends)
    finally:
        os.close(descriptor)
    content = path.read_bytes()
    assert len(content) == written
    return content


def split(tar: bytes, end: int) -> list[bytes]:
    """Give a tar as its devices: itself with nothing to be read before the end, and a base with nothing behind it."""
    if not end:
        return [tar]
    return [bytes([WRONG]) * end + tar[end:], tar[:end]]


def borders(table: EntryTable, layer: int, size: int) -> list[int]:
    """List where a tar may be split: at multiples of 512 that lie inside no file's data."""
    allowed = set(range(0, size + 1, 512))
    for entry in table:
        if entry.layer == layer and stat.S_ISREG(entry.mode) and entry.size_bytes:
            packed = entry.size_bytes
            if table.link(entry):
                lengths = memoryview(table.link(entry)).cast("Q")[1::2]
                packed = sum(lengths)
            allowed -= set(range(entry.data_offset + 1, entry.data_offset + packed))
    return sorted(allowed)


@settings(deadline=None, max_examples=150)
@given(trees(), st.data())
def test_each_file_is_read_from_the_device_that_holds_it(tmp_path_factory: pytest.TempPathFactory, drawn, data) -> None:  # type: ignore[no-untyped-def]
    table, tars, expected = drawn
    place = tmp_path_factory.mktemp("erofs") / "image"
    sizes = [len(tar) for tar in tars]
    ends = [data.draw(st.sampled_from(borders(table, at, len(tar)))) for at, tar in enumerate(tars)]
    devices = [device for tar, end in zip(tars, ends, strict=True) for device in split(tar, end)]
    found = Reader(write_image(place, table, sizes, ends), devices).tree()
    assert {path: observe(node) for path, node in found.items()} == expected
    if not any(ends):
        assert write_image(place, table, sizes, []) == write_image(place, table, sizes, ends)


@settings(deadline=None, max_examples=100)
@given(trees(), st.data())
def test_mutated_tables_are_refused_or_written(tmp_path_factory: pytest.TempPathFactory, drawn, data) -> None:  # type: ignore[no-untyped-def]
    table, tars, _ = drawn
    records = bytearray(table.records)
    for _ in range(data.draw(st.integers(1, 4))):
        records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    sizes = [len(tar) for tar in tars]
    ends = [data.draw(st.integers(0, size)) for size in sizes]
    with suppress(ValueError):
        write_image(tmp_path_factory.mktemp("erofs") / "image", EntryTable(records, table.heap), sizes, ends)


def one_file(offset: int, size: int) -> EntryTable:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    builder.add(b"x", Entry(mode=FILE, size_bytes=size, data_offset=offset))
    return builder.build()[0]


@pytest.mark.parametrize(
    ("table", "ends", "words"),
    [
        (one_file(512, 600), [1024], "outside its device"),
        (one_file(512, 600), [513], "outside its device"),
        (one_file(512, 600), [4097], "ends behind"),
        (one_file(512, 600), [0, 0], "2 bases for 1 tars"),
    ],
)
def test_bases_that_cannot_be(tmp_path: Path, table: EntryTable, ends: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        write_image(tmp_path / "image", table, [4096], ends)
    assert not isinstance(caught.value, erofs.NotMappable)


def test_bases_count_as_devices(tmp_path: Path) -> None:
    table = one_file(512, 600)
    half = erofs.MOST_DEVICES // 2
    write_image(tmp_path / "image", table, [4096] * half, [512] * half)
    with pytest.raises(erofs.NotMappable, match=f"{erofs.MOST_DEVICES + 1} devices"):
        write_image(tmp_path / "image", table, [4096] * (half + 1), [512] * half + [0])


def spliced_tar(place: Path) -> tuple[EntryTable, int, int, list[Path]]:
    """Write a tar with something of everything, and its two halves; give table, size, end and the halves."""
    whole = place / "whole.tar"
    real_tar(whole)
    content = whole.read_bytes()
    table = EntryTable(*tarscan.scan(content))
    headers = sorted(entry.header_offset for entry in table)
    end = headers[len(headers) // 2]
    assert 4096 < end < len(content) - 4096
    paths = [place / "layer.tar", place / "base.tar"]
    for path, half in zip(paths, split(content, end), strict=True):
        path.write_bytes(half)
    return table, len(content), end, paths


def contents(top: int) -> dict[bytes, tuple[object, ...]]:
    """Read a whole mounted tree."""
    table = EntryTable(*walk.walk(top, xattrs=True))
    found: dict[bytes, tuple[object, ...]] = {}
    for entry in table:
        path = table.path(entry)
        data = b""
        if stat.S_ISREG(entry.mode):
            data = Path(f"/proc/self/fd/{top}", os.fsdecode(path)).read_bytes()
        fields = (entry.mode, entry.uid, entry.gid, entry.size_bytes, entry.mtime_ns, entry.nlink)
        found[path] = (*fields, table.link(entry), table.xattrs(entry), data)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")
def test_kernel_shows_the_plain_image_s_bytes(tmp_path: Path) -> None:
    if "erofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("the running kernel has no erofs")
    table, size, end, halves = spliced_tar(tmp_path)
    write_image(tmp_path / "plain", table, [size], [])
    write_image(tmp_path / "spliced", table, [size], [end])
    shown = []
    for image, devices in (("plain", [tmp_path / "whole.tar"]), ("spliced", halves)):
        options = [b"device=" + os.fsencode(device) for device in devices]
        try:
            mounted = sysmount.fsmount(b"erofs", os.fsencode(tmp_path / image), options, True)
        except OSError as error:
            pytest.skip(f"the running kernel mounts no EROFS from files: {error}")
        top = os.open(f"/proc/self/fd/{mounted}/.", os.O_RDONLY | os.O_DIRECTORY)
        try:
            shown.append(contents(top))
        finally:
            os.close(top)
            os.close(mounted)
    assert shown[0] == shown[1]
    assert len(shown[0]) == len(table)


def test_fsck_is_content_with_two_devices(tmp_path: Path) -> None:
    """fsck.erofs of erofs-utils 1.8 and later checks blocks of 512 bytes; Debian 12's can't."""
    program = shutil.which("fsck.erofs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("fsck.erofs is not installed")
    table, size, end, halves = spliced_tar(tmp_path)
    write_image(tmp_path / "image", table, [size], [end])
    devices = [f"--device={path}" for path in halves]
    unpacked = f"--extract={tmp_path / 'unpacked'}" if os.geteuid() == 0 else "--extract"
    done = subprocess.run([program, *devices, unpacked, str(tmp_path / "image")], capture_output=True, text=True)
    if done.returncode and "blksize" in done.stderr + done.stdout:
        pytest.skip("this fsck.erofs knows no blocks of 512 bytes")
    assert done.returncode == 0, done.stderr
    if os.geteuid() == 0:
        whole = (tmp_path / "whole.tar").read_bytes()
        files = [entry for entry in table if stat.S_ISREG(entry.mode) and not entry.flags]
        assert len(files) > 200
        for entry in table:
            if stat.S_ISREG(entry.mode):
                path = tmp_path / "unpacked" / os.fsdecode(table.path(entry))
                assert path.read_bytes() == whole[entry.data_offset : entry.data_offset + entry.size_bytes], path


def test_golden_image(tmp_path: Path) -> None:
    """What was written once must be written for ever: a changed byte is a changed format."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755, mtime_ns=1_000_000_000_000_000_000))
    builder.add(b"a", Entry(mode=FILE, size_bytes=700, data_offset=512))
    builder.add(b"b", Entry(mode=FILE, size_bytes=100, data_offset=2048))
    builder.add(b"c", Entry(mode=FILE, size_bytes=3, data_offset=512, layer=1))
    image = write_image(tmp_path / "image", builder.build()[0], [4096, 1024], [1536, 0])
    golden = Path(__file__).parents[1] / "corpus" / "golden" / "layer-spliced.erofs"
    if not golden.exists():
        golden.write_bytes(image)
    assert image == golden.read_bytes()
    tree = Reader(image, [b"o" * 4096, b"b" * 1536, b"n" * 1024]).tree()
    assert [tree[name].content for name in (b"a", b"b", b"c")] == [b"b" * 700, b"o" * 100, b"nnn"]
