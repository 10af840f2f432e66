"""The filehash kernel against reading each file and hashing it whole."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import filehash as kernel
from pylayers._native import walk
from pylayers.store.entry import ENTRY_SIZE_BYTES, ENTRY_STRUCT, FLAG_HASHED, EntryTable

MIB = 1 << 20


def fill(length: int, seed: int) -> bytes:
    return blake3(seed.to_bytes(4, "big")).digest(length)


class Walked:
    """One walked tree with its descriptor."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.records, self.heap = walk.walk(self.fd)

    @property
    def table(self) -> EntryTable:
        return EntryTable(self.records, self.heap)

    def indexes(self, *paths: bytes) -> bytes:
        rows = [self.table.path(entry) for entry in self.table]
        return struct.pack(f"{len(paths)}I", *(rows.index(path) for path in paths))

    def everything(self) -> bytes:
        return struct.pack(f"{len(self.table)}I", *range(len(self.table)))

    def check(self, indexes: bytes) -> None:
        """Compare every row with the oracle: only the named regular files are hashed."""
        named = set(memoryview(indexes).cast("I"))
        for row, entry in enumerate(self.table):
            path = os.path.join(bytes(self.root), self.table.path(entry))
            if row in named and stat.S_ISREG(entry.mode):
                with open(path, "rb") as file:
                    assert (entry.blake3, entry.flags & FLAG_HASHED) == (blake3(file.read()).digest(), FLAG_HASHED)
            else:
                assert (entry.blake3, entry.flags & FLAG_HASHED) == (bytes(32), 0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "many" / "deeper").mkdir(parents=True)
    for index, size in enumerate(
        (0, 1, 63, 64, 65, 1023, 1024, 1025, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7, 5, MIB - 5, 6)
    ):
        (root / f"{index:03}-size").write_bytes(fill(size, index))
    for index in range(2500):
        (root / "many" / f"{index}").write_bytes(b"%d" % index)
        if index % 5 == 0:
            (root / "many" / "deeper" / f"{index}").write_bytes(fill(index * 3, index))
    (root / "link").symlink_to("000-size")
    os.mkfifo(root / "fifo")
    os.link(root / "012-size", root / "many" / "hard")
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"not utf-8")
    with open(root / "sparse", "wb") as file:
        file.truncate(3 * MIB)
    return root


def test_everything_equals_the_oracle(tree: Path) -> None:
    walked = Walked(tree)
    kernel.hash_files(walked.fd, walked.records, walked.heap, walked.everything(), blake3)
    walked.check(walked.everything())


@pytest.mark.parametrize("paths", [(), (b"000-size",), (b"many/7", b"001-size", b"many/8"), (b"012-size",), (b"fifo",)])
def test_only_the_named_rows_in_any_order(tree: Path, paths: tuple[bytes, ...]) -> None:
    walked = Walked(tree)
    kernel.hash_files(walked.fd, walked.records, bytes(walked.heap), walked.indexes(*paths), blake3)
    walked.check(walked.indexes(*paths))


def test_descriptors_and_pieces_are_bounded(tree: Path) -> None:
    before = os.listdir("/proc/self/fd")
    walked = Walked(tree)
    pieces: list[int] = []

    class Watching:
        def __init__(self, content: memoryview) -> None:
            pieces.append(len(content))
            self.hasher = blake3(content)
            assert len(os.listdir("/proc/self/fd")) <= len(before) + 5

        def update(self, content: memoryview) -> None:
            pieces.append(len(content))
            self.hasher.update(content)

        def digest(self) -> bytes:
            return self.hasher.digest()

    kernel.hash_files(walked.fd, walked.records, walked.heap, walked.everything(), Watching)
    walked.check(walked.everything())
    assert max(pieces) <= 4 * MIB
    os.close(walked.fd)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", ["000-size", "012-size", "many/77"])
@pytest.mark.parametrize("delta", [-1, 1])
def test_another_size_is_stale(tree: Path, name: str, delta: int) -> None:
    walked = Walked(tree)
    size = (tree / name).stat().st_size
    if size + delta < 0:
        pytest.skip("no file is that short")
    os.truncate(tree / name, size + delta)
    with pytest.raises(OSError) as caught:
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.everything(), blake3)
    assert caught.value.errno == errno.ESTALE
    assert caught.value.filename in (name.encode(), b"many/hard")


def test_file_that_shrinks_while_it_is_read(tree: Path) -> None:
    (tree / "huge").write_bytes(bytes(32 * MIB))
    walked = Walked(tree)

    def shrink(content: memoryview) -> object:
        os.truncate(tree / "huge", MIB)
        return blake3(content)

    with pytest.raises(OSError) as caught:
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.indexes(b"huge"), shrink)
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, b"huge")


def test_what_took_a_files_place_is_not_read(tree: Path, tmp_path: Path) -> None:
    walked = Walked(tree)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "7").write_bytes(b"7")
    (tree / "001-size").unlink()
    (tree / "001-size").symlink_to("002-size")
    (tree / "000-size").unlink()
    os.mkfifo(tree / "000-size")  # opening it must not wait for a writer
    (tree / "many").rename(tmp_path / "moved")
    (tree / "many").symlink_to(secret)
    for name, error in ((b"001-size", errno.ELOOP), (b"000-size", errno.ESTALE)):
        with pytest.raises(OSError) as caught:
            kernel.hash_files(walked.fd, walked.records, walked.heap, walked.indexes(name), blake3)
        assert (caught.value.errno, caught.value.filename) == (error, name)
    with pytest.raises(OSError) as caught:
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.indexes(b"many/7"), blake3)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    (tree / "002-size").unlink()
    with pytest.raises(FileNotFoundError) as missing:
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.indexes(b"002-size"), blake3)
    assert missing.value.filename == b"002-size"
    walked.check(b"")


def test_rows_before_the_failure_stay_hashed(tree: Path) -> None:
    walked = Walked(tree)
    (tree / "many" / "9").unlink()
    with pytest.raises(FileNotFoundError):
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.indexes(b"many/8", b"many/9"), blake3)
    walked.check(walked.indexes(b"many/8"))


def test_exceptions_of_the_hasher_pass_through(tree: Path) -> None:
    walked = Walked(tree)
    before = len(os.listdir("/proc/self/fd"))
    kept: list[memoryview] = []

    def refuse(content: memoryview) -> object:
        kept.append(content)
        if len(kept) == 40:
            raise KeyError("refused")
        return blake3(content)

    with pytest.raises(KeyError, match="refused"):
        kernel.hash_files(walked.fd, walked.records, walked.heap, walked.everything(), refuse)
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(len(bytes(view)) == len(view) for view in kept)  # views that were kept are still memory
    with pytest.raises(ValueError, match="BLAKE3"):
        kernel.hash_files(
            walked.fd, walked.records, walked.heap, walked.everything(), lambda _: type("", (), {"digest": bytes})()
        )


def test_bad_tables_are_refused(tree: Path) -> None:
    walked = Walked(tree)
    count = len(walked.table)
    with pytest.raises(ValueError, match="beyond"):
        kernel.hash_files(walked.fd, walked.records, walked.heap, struct.pack("I", count), blake3)
    with pytest.raises(ValueError, match="whole"):
        kernel.hash_files(walked.fd, walked.records, walked.heap, b"abc", blake3)
    with pytest.raises(ValueError, match="whole"):
        kernel.hash_files(walked.fd, walked.records[:-1], walked.heap, b"", blake3)
    for change in ({"path_offset": len(walked.heap) + 1}, {"path_length": 1 << 31}, {"path_offset": (1 << 64) - 1}):
        entry = walked.table.entry(3)._replace(**change)
        bad = bytearray(walked.records)
        ENTRY_STRUCT.pack_into(bad, 3 * ENTRY_SIZE_BYTES, *entry)
        with pytest.raises(ValueError, match="beyond"):
            kernel.hash_files(walked.fd, bad, walked.heap, struct.pack("I", 3), blake3)
