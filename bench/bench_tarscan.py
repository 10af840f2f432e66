"""Scanning a tar; PYLAYERS_BENCH_ENTRIES sets its size. tarfile and `bsdtar -t` do the same work."""

from __future__ import annotations

import io
import mmap
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers._native.tarscan import scan

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "4000"))


def make_tar(path: Path, *, shuffled: bool, form: int) -> None:
    """Make a package-like tree's tar: twelve files per directory, one in forty a hard link."""
    names = []
    for number in range(ENTRIES // 13):
        folder = f"./usr/lib/node_modules/package-{number // 40}/dist/module-{number}"
        names.append((folder, [f"{folder}/source_file_{index}.js" for index in range(12)]))
    if shuffled:  # as readdir gives them: directories whole, in no order
        random.Random(1).shuffle(names)
    with tarfile.open(path, "w", format=form) as archive:
        for folder, files in names:
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
            for index, name in enumerate(files):
                info = tarfile.TarInfo(name)
                if form == tarfile.PAX_FORMAT:
                    info.pax_headers = {"mtime": "1600000000.123456789"}
                if index == 11 and name.endswith(("0/source_file_11.js", "3/source_file_11.js")):
                    info.type, info.linkname = tarfile.LNKTYPE, files[0]
                    archive.addfile(info)
                else:
                    info.size = 700
                    archive.addfile(info, io.BytesIO(bytes(700)))


@pytest.fixture(scope="module", params=["sorted", "unsorted", "pax"])
def tar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / f"{request.param}.tar"
    form = tarfile.PAX_FORMAT if request.param == "pax" else tarfile.GNU_FORMAT
    make_tar(path, shuffled=request.param == "unsorted", form=form)
    return path


@pytest.fixture
def mapped(tar: Path) -> Iterator[mmap.mmap]:
    with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def test_scan(benchmark, mapped: mmap.mmap) -> None:  # type: ignore[no-untyped-def]
    records, _ = benchmark(scan, mapped)
    benchmark.extra_info["rows"] = len(records) // 168


def test_tarfile(benchmark, tar: Path) -> None:  # type: ignore[no-untyped-def]
    def read() -> int:
        with tarfile.open(tar) as archive:
            return len(archive.getmembers())

    benchmark.pedantic(read, rounds=2)


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed")
def test_bsdtar(benchmark, tar: Path) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(
        lambda: subprocess.run(["bsdtar", "-tf", tar], check=True, stdout=subprocess.DEVNULL), rounds=5
    )
