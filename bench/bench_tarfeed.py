"""Making a tar's table while it passes, beside a scan of the whole file and a hash of each file in it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from bench_tarscan import make_tar
from blake3 import blake3

from pylayers._native.tarfeed import TableFeed
from pylayers.store.tarindex import index_tar

PIECE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tarfile

    path = tmp_path_factory.mktemp("tar") / "sorted.tar"
    make_tar(path, shuffled=False, form=tarfile.GNU_FORMAT)
    return path


def test_feed(benchmark: Any, tar: Path) -> None:
    def feed() -> int:
        with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            table = TableFeed(blake3)
            with memoryview(view) as whole:
                for at in range(0, len(whole), PIECE_BYTES):
                    with whole[at : at + PIECE_BYTES] as piece:
                        assert table.take(piece)
            records, _ = table.finish()
            return len(records)

    benchmark.extra_info["rows"] = benchmark(feed) // 168


def test_whole(benchmark: Any, tar: Path) -> None:
    def index() -> int:
        with tar.open("rb") as file:
            return len(index_tar(file.fileno(), os.fstat(file.fileno()).st_size, str(tar))[0])

    benchmark.extra_info["rows"] = benchmark(index) // 168
