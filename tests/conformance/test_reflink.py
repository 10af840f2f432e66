"""Layers whose blocks are their sources': the same bytes as a copy, and no data block written."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import stat
import subprocess
import time
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.engine import Engine
from pylayers.snapshot.extent import exclusive_bytes
from pylayers.store.entry import SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE
from tests.oracle.canonical import Given, Item, check_against_oracle, make_table
from tests.oracle.resume import check_resumed

pytestmark = pytest.mark.root
FILE = stat.S_IFREG | 0o644
BLOCK_BYTES = 4096
SETTLING_S = 1.05  # after which a file's ctime tells of every later write


def settle() -> None:
    """Wait until what was written is no longer racy, and is on the disk."""
    os.sync()
    time.sleep(SETTLING_S)


def draw_items(draw: random.Random, kinds: tuple[int, ...]) -> list[Item]:
    """Draw files around the sizes of blocks, slots and direct writes, among small ones."""
    edges = (1, 511, 4095, 4096, 4097, 8192, 60_000, 65_536, 65_537, 1 << 20, (1 << 20) + 5, (3 << 20) - 1)
    items = []
    for number in range(draw.randrange(1, 12)):
        size = max(0, draw.choice(edges) + draw.choice((0, 0, 1, -1, 4096)))
        items.append(Item(b"f%02d" % number, FILE, draw.randbytes(size), kind=draw.choice(kinds)))
    return items


def whole_blocks(given: Given, from_bytes: int) -> int:
    sizes = [len(item.content) for item in given.items if item.kind != SOURCE_HEAP]
    return sum(size // BLOCK_BYTES * BLOCK_BYTES for size in sizes if size >= from_bytes)


class TestSharing:
    file_systems = ("xfs", "btrfs")

    @pytest.mark.parametrize("settled", [False, True])
    @pytest.mark.parametrize("direct_from", [0, 1 << 62])
    def test_bytes_equal_the_oracles(self, ground: Path, settled: bool, direct_from: int) -> None:
        """Any mixture of sources; the cloned ones read from the source or back from the tar."""
        draw = random.Random(direct_from + settled)
        made = [
            make_table(draw_items(draw, (SOURCE_PATH, SOURCE_RANGE, SOURCE_HEAP)), ground / f"source{number}", 4096)
            for number in range(15)
        ]
        if settled:
            settle()
        for number, given in enumerate(made):
            tar = ground / f"tar{number}"
            check_against_oracle(given, tar, 4096, 4096, direct_from, clone_from=4096)
            os.sync()
            assert exclusive_bytes(str(tar)) <= tar.stat().st_size + BLOCK_BYTES - whole_blocks(given, BLOCK_BYTES)
            given.close()

    @pytest.mark.parametrize("settled", [False, True])
    @pytest.mark.parametrize("direct_from", [0, 1 << 62])
    def test_a_tar_that_goes_on_from_a_row(self, ground: Path, settled: bool, direct_from: int) -> None:
        """Clones lie at the whole tar's offsets, whatever slot of the ring their copies pass through."""
        draw = random.Random(direct_from + settled + 7)
        made = [
            make_table(draw_items(draw, (SOURCE_PATH, SOURCE_RANGE, SOURCE_HEAP)), ground / f"source{number}", 4096)
            for number in range(10)
        ]
        if settled:
            settle()
        for number, given in enumerate(made):
            (ground / f"{number}").mkdir()
            first_row = draw.randrange(len(given.items))
            tar = check_resumed(given, first_row, ground / f"{number}", 4096, 4096, direct_from, clone_from=4096)
            os.sync()
            later = Given(given.table, given.sources, given.items[first_row:], [])
            assert exclusive_bytes(str(tar)) <= tar.stat().st_size + BLOCK_BYTES - whole_blocks(later, BLOCK_BYTES)
            given.close()

    def test_no_data_block_is_written(self, ground: Path) -> None:
        """What the tar alone has is its headers and its files' last blocks, in filefrag's and btrfs's own words."""
        draw = random.Random(3)
        sizes = (64 << 10, (1 << 20) + 1, 9 << 20, (4 << 20) + 4095)
        items = [Item(b"f%d" % at, FILE, draw.randbytes(size), kind=SOURCE_PATH) for at, size in enumerate(sizes)]
        given = make_table(items, ground / "source")
        settle()
        tar = ground / "tar"
        check_against_oracle(given, tar, direct_from=0, clone_from=65536)
        os.sync()
        told = subprocess.run(["filefrag", "-v", "-b4096", tar], capture_output=True, text=True, check=True).stdout
        shared = alone = 0
        for line in told.splitlines():
            fields = line.split(":")
            if len(fields) >= 5 and fields[0].strip().isdigit():
                blocks = int(fields[3])
                shared, alone = (shared + blocks, alone) if "shared" in line else (shared, alone + blocks)
        assert shared * BLOCK_BYTES == whole_blocks(given, 65536), told
        assert alone <= 3 * len(items) + 1, told
        found = subprocess.run(["stat", "-f", "-c%T", ground], capture_output=True, text=True, check=True)
        if found.stdout.strip() == "btrfs":
            told = subprocess.run(
                ["btrfs", "filesystem", "du", "--raw", "-s", ground], capture_output=True, text=True, check=True
            ).stdout
            exclusive = int(told.splitlines()[-1].split()[1])
            # The tar's own blocks, and the sources' last ones.
            assert exclusive <= (4 * len(items) + 1) * BLOCK_BYTES, told
        given.close()

    @pytest.mark.parametrize("settled", [False, True])
    @pytest.mark.parametrize("change", ["rewritten", "mapped", "time set back"])
    def test_a_source_that_changes(self, ground: Path, settled: bool, change: str) -> None:
        """The digest is of the bytes in the tar, or the source is reported: whatever is done to it, and how fast."""
        given = make_table([Item(b"f0", FILE, b"a" * (40 << 20), kind=SOURCE_PATH)], ground / "source")
        path = ground / "source" / "f0"
        before = path.stat()
        if settled:
            settle()

        class Changing:
            """A sha256 that has the file changed when the first bytes arrive: its end is not read by then."""

            def __init__(self) -> None:
                self.inner = hashlib.sha256()
                self.done = False

            def update(self, part: memoryview) -> None:
                if not self.done:
                    self.done = True
                    change_end(path, change, before)
                self.inner.update(part)

            def digest(self) -> bytes:
                return self.inner.digest()

        tar = ground / "tar"
        caught, written = None, (0, b"")
        with open(tar, "w+b", buffering=0) as out:
            arguments = (out.fileno(), given.records, given.table.heap, given.sources, Changing, blake3)
            try:
                written = tarwrite.write(*arguments, clone_from_bytes=4096)
            except tarwrite.SourceChanged as error:
                caught = error
        given.close()
        if caught is None:
            assert not settled
            content = tar.read_bytes()
            assert written == (len(content), hashlib.sha256(content).digest())
        else:
            assert (caught.errno, caught.filename) == (errno.ESTALE, b"f0")

    def test_a_file_that_cannot_be_cloned_is_copied(self, ground: Path) -> None:
        """On btrfs a file without checksums shares no blocks with one that has them; its neighbours still do."""
        given_folder = ground / "source"
        items = [Item(b"f%d" % at, FILE, bytes([at]) * 200_000, kind=SOURCE_PATH) for at in range(3)]
        given = make_table(items, given_folder)
        plain = given_folder / "d1" / "e" / "f1"
        plain.unlink()
        plain.touch()
        refused = subprocess.run(["chattr", "+C", plain], capture_output=True).returncode != 0
        plain.write_bytes(items[1].content)
        settle()
        tar = ground / "tar"
        check_against_oracle(given, tar, clone_from=65536)
        os.sync()
        copied = 0 if refused else 1
        assert exclusive_bytes(str(tar)) >= copied * 200_000 // BLOCK_BYTES * BLOCK_BYTES
        assert exclusive_bytes(str(tar)) <= copied * 200_000 + 10 * BLOCK_BYTES
        given.close()

    def test_holes_stay_holes(self, ground: Path) -> None:
        """A sparse source takes no blocks in the tar either."""
        content = bytes(5 << 20) + b"x" * 5000 + bytes(1 << 20)
        given = make_table([Item(b"f0", FILE, content, kind=SOURCE_PATH)], ground / "source")
        path = ground / "source" / "f0"
        path.unlink()
        with path.open("wb") as file:
            file.seek(5 << 20)
            file.write(b"x" * 5000)
            file.truncate(len(content))
        settle()
        tar = ground / "tar"
        check_against_oracle(given, tar, clone_from=65536)
        os.sync()
        assert tar.stat().st_blocks * 512 < 100_000
        given.close()

    def test_a_build(self, ground: Path, tmp_path: Path) -> None:
        """COPY of a large file, and COPY --from of it again: the layers of elsewhere, with the source's blocks."""
        context = ground / "context"
        context.mkdir()
        (context / "large").write_bytes(random.Random(1).randbytes((8 << 20) + 77))
        (context / "small").write_bytes(b"small")
        steps = ("FROM scratch AS one", "COPY . /a/", "FROM scratch", "COPY --from=one /a/large /b/", "")
        (context / "Dockerfile").write_text("\n".join(steps))
        settle()
        found = []
        for root in (ground / "root", tmp_path / "root"):
            with Engine.open(root) as engine:
                engine.build(context, references=("made",))
                layers = engine.images.get("made").config.diff_ids
                found.append(layers)
                if root.parent == ground:
                    os.sync()
                    for diff_id in layers:
                        assert exclusive_bytes(str(engine.store.layers.open(diff_id).tar_path)) < 64 << 10
                        engine.store.layers.verify(diff_id)
        assert found[0] == found[1]


class TestNoSharing:
    file_systems = ("ext4", "xfs")

    def test_other_file_systems_are_copied_from(self, ground: Path, tmp_path: Path) -> None:
        """Sources of another device, many of them: the same bytes."""
        items = draw_items(random.Random(5), (SOURCE_PATH, SOURCE_RANGE))
        given = make_table(items, tmp_path / "source", 4096)
        check_against_oracle(given, ground / "tar", 4096, 4096, clone_from=0)
        given.close()

    def test_within_the_file_system(self, ground: Path) -> None:
        """The same on one device, whether it can share or not."""
        items = draw_items(random.Random(6), (SOURCE_PATH, SOURCE_RANGE))
        given = make_table(items, ground / "source", 4096)
        check_against_oracle(given, ground / "tar", 4096, 4096, clone_from=0)
        given.close()


def change_end(path: Path, change: str, before: os.stat_result) -> None:
    """Overwrite a file's last bytes, its size kept."""
    if change == "mapped":
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[-5:] = b"after"
        return
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"after")
    if change == "time set back":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
