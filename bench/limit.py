"""What the machine itself takes for the work that no build can leave out: read, hash, write, stat."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from source import read_tree

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds of each kind of work, done alone and in one thread."""

    read_s: float  # every source file once, from the page cache
    sha256_s: float  # of the layer's tar, from the page cache
    write_s: float  # as many bytes as the tar, sequentially, with fsync
    stat_s: float  # find -size: every entry's metadata


def measure_limits(directory: Path, tar: Path, scratch: Path) -> Limits:
    """Measure the limits of one source and its layer; scratch is a file that is made and removed."""
    return Limits(
        read_s=timed_read(directory),
        sha256_s=timed_hash(tar),
        write_s=timed_write(scratch, tar.stat().st_size),
        stat_s=timed_stat(directory),
    )


def timed_read(directory: Path) -> float:
    """Time one warm read of every file."""
    read_tree(directory)
    started = time.perf_counter()
    read_tree(directory)
    return time.perf_counter() - started


def timed_hash(tar: Path) -> float:
    """Time sha256 over a warm file."""
    with tar.open("rb") as file:
        while file.read(BLOCK_BYTES):
            pass
        file.seek(0)
        started = time.perf_counter()
        hashlib.file_digest(file, "sha256")
        return time.perf_counter() - started


def timed_write(scratch: Path, size_bytes: int) -> float:
    """Time one sequential write with fsync, on the file system that layers are written to."""
    block = os.urandom(BLOCK_BYTES)
    scratch.unlink(missing_ok=True)  # of a benchmark that was killed: the whole run would end here for it
    os.sync()
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        started = time.perf_counter()
        left = size_bytes
        while left > 0:
            left -= os.write(descriptor, block[: min(left, BLOCK_BYTES)])
        os.fsync(descriptor)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)
        scratch.unlink()


def timed_stat(directory: Path) -> float:
    """Time find over the tree's metadata."""
    started = time.perf_counter()
    subprocess.run(("find", str(directory), "-size", "-0"), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
