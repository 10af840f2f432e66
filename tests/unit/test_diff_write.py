"""That a layer is written by the ways that make it fast, told by what they leave and not by a time."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.diff import write
from pylayers.store import Layer, Store
from pylayers.store.entry import SOURCE_PATH
from tests.oracle.canonical import Given, Item, make_table

FILE = stat.S_IFREG | 0o644
CAN_DIRECT = {"ext2/ext3", "xfs", "btrfs"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root") as opened:
        yield opened


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[list[bytes]], Given]]:
    made: list[Given] = []

    def run(contents: list[bytes]) -> Given:
        items = [Item(b"f%03d" % at, FILE, content, kind=SOURCE_PATH) for at, content in enumerate(contents)]
        made.append(make_table(items, tmp_path / f"source{len(made)}"))
        return made[-1]

    yield run
    for given in made:
        given.close()


def write_given(store: Store, given: Given) -> Layer:
    return write.write_layer(store, given.records, given.table.heap, given.sources)


def read_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def test_every_processor_with_vectors_has_lanes() -> None:
    flags = read_flags()
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        assert tarwrite.LANES == 16
    elif "avx2" in flags:
        assert tarwrite.LANES == 8
    else:
        assert tarwrite.LANES == 0


@pytest.mark.skipif(not tarwrite.LANES, reason="this processor has no vectors for BLAKE3")
def test_small_files_are_hashed_in_lanes(
    store: Store, make: Callable[[list[bytes]], Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a file that spans slots of the ring is hashed by the package."""
    hashed: list[int] = []

    class Counted:
        def __init__(self) -> None:
            self.inner = blake3()
            hashed.append(0)

        def update(self, piece: memoryview) -> None:
            hashed[-1] += len(piece)
            self.inner.update(piece)

        def digest(self) -> bytes:
            return self.inner.digest()

    monkeypatch.setattr(write, "blake3", Counted)
    contents = [os.urandom(at * 37) for at in range(200)] + [os.urandom(3 << 20)]
    layer = write_given(store, make(contents))
    assert hashed == [3 << 20]
    assert [entry.blake3 for entry in layer.table] == [blake3(content).digest() for content in contents]


def is_cached(path: Path, at: int) -> bool:
    """Tell whether a page of a file lies in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(4096)], at, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_large_layers_pass_the_page_cache_by(
    store: Store, make: Callable[[list[bytes]], Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written past the page cache isn't there; a smaller layer's bytes are, so the test can tell."""
    told = subprocess.run(["stat", "-f", "-c", "%T", store.root], capture_output=True, text=True, check=True)
    found = told.stdout.strip()
    if found not in CAN_DIRECT:
        pytest.skip(f"{found} may have no direct writes")
    monkeypatch.setattr(write, "CLONE_FROM_BYTES", tarwrite.CLONE_NEVER)
    cached = []
    for direct_from_bytes in (1 << 20, 64 << 20):
        monkeypatch.setattr(write, "DIRECT_FROM_BYTES", direct_from_bytes)
        layer = write_given(store, make([os.urandom(5 << 20)]))
        cached.append([is_cached(layer.tar_path, at << 20) for at in range(5)])
    assert cached == [[False] * 5, [True] * 5]
