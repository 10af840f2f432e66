"""Reading files to hash them, by read(2) into one buffer and by mmap(2), by size: `python bench/read_way.py`.

Every side opens each file, has its bytes hashed with BLAKE3 in one thread, and closes it; the page cache holds them.

read      into a buffer that is used again, as large as the kernel's (1 MiB), piece by piece
mmap      the whole file mapped, hashed where it lies
populate  the same with MAP_POPULATE: one call makes all pages present, instead of a fault for each few
kernel    what builds use (pyx/filehash): read(2) by a thread of its own beside the hashing

The first three make their calls by ctypes, so that what Python takes for them is alike. A file of 4 KiB is mostly such
calls, whichever way it is read.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from blake3 import blake3
from failure import FAILURES, describe_failure, exit_status
from report import describe_machine, write_result
from subject import SubjectError
from table import Row, render_rows

from pylayers._native import filehash, walk
from pylayers.store.entry import ENTRY_SIZE_BYTES, EntryTable

BUFFER_BYTES = 1 << 20
CLASSES = {"4 KiB": (4 << 10, 4000), "64 KiB": (64 << 10, 1000), "1 MiB": (1 << 20, 200), "64 MiB": (64 << 20, 4)}
QUICK_COUNT = 2  # files of each class
MAP_POPULATE = 0x8000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.read.restype = ctypes.c_ssize_t
libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]


def hash_by_read(paths: list[bytes], size_bytes: int) -> list[bytes]:
    """Read every file into one buffer, piece by piece."""
    buffer = (ctypes.c_ubyte * BUFFER_BYTES)()
    view = memoryview(buffer).cast("B")
    digests = []
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        hasher = blake3()
        left = size_bytes
        while left:
            got = libc.read(descriptor, buffer, min(left, BUFFER_BYTES))
            if got <= 0:
                raise SubjectError(f"{path!r} ended early")
            hasher.update(view[:got])
            left -= got
        os.close(descriptor)
        digests.append(hasher.digest())
    return digests


def hash_by_map(paths: list[bytes], size_bytes: int, flags: int = 0) -> list[bytes]:
    """Map every file and hash it where it lies."""
    digests = []
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED | flags, descriptor, 0)
        os.close(descriptor)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap of {path!r}")
        hasher = blake3()
        hasher.update(memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B"))
        libc.munmap(address, size_bytes)
        digests.append(hasher.digest())
    return digests


def hash_by_kernel(directory: Path, rows: tuple[bytearray, bytearray]) -> bytearray:
    """Hash the files of a walked table by the kernel."""
    records, heap = rows
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    count = len(records) // ENTRY_SIZE_BYTES
    try:
        filehash.hash_files(descriptor, records, heap, struct.pack(f"{count}I", *range(count)), blake3)
    finally:
        os.close(descriptor)
    return records


def make_files(directory: Path, size_bytes: int, count: int) -> list[bytes]:
    """Write the files of a class."""
    directory.mkdir(parents=True)
    content = blake3(b"read way").digest(size_bytes)
    paths = []
    for number in range(count):
        path = directory / f"{number:05}"
        path.write_bytes(number.to_bytes(8) + content[8:])
        paths.append(os.fsencode(path))
    return paths


def compare_class(place: Path, title: str, size_bytes: int, count: int, rounds: int) -> list[Row]:
    """Hash the files of one class every way, by turns; return a row for each peer of the kernel."""
    directory = place / str(size_bytes)
    paths = make_files(directory, size_bytes, count)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    rows = walk.walk(descriptor)
    os.close(descriptor)
    sides: dict[str, Callable[[], object]] = {
        "read": lambda: hash_by_read(paths, size_bytes),
        "mmap": lambda: hash_by_map(paths, size_bytes),
        "mmap, populate": lambda: hash_by_map(paths, size_bytes, MAP_POPULATE),
        "kernel": lambda: hash_by_kernel(directory, rows),
    }
    expected = hash_by_read(paths, size_bytes)
    found = [entry.blake3 for entry in EntryTable(hash_by_kernel(directory, rows), rows[1]) if entry.blake3]
    if not expected == hash_by_map(paths, size_bytes) == [one for one in found if any(one)]:
        raise SubjectError(f"{title}: the ways give different digests")
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            sides[side]()
            samples[side].append((time.perf_counter() - started) / count)
    shutil.rmtree(directory)
    medians = {side: statistics.median(taken) for side, taken in samples.items()}
    return [
        Row(f"hash a file of {title}, warm", medians["kernel"], peer, medians[peer], None, None, None, samples)
        for peer in sides
        if peer != "kernel"
    ]


def main() -> int:
    """Run the classes."""
    parser = argparse.ArgumentParser(description="Compare ways of reading files to hash them, by size.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a few files: whether it works")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    place = options.cache / "read-way"
    shutil.rmtree(place, ignore_errors=True)
    rows: list[Row] = []
    notes: list[str] = []
    for title, (size_bytes, count) in CLASSES.items():
        try:
            rows += compare_class(place, title, size_bytes, QUICK_COUNT if options.quick else count, options.rounds)
        except FAILURES as error:
            notes.append(describe_failure(f"files of {title}", error))
    shutil.rmtree(place, ignore_errors=True)
    result: dict[str, Any] = {
        "machine": describe_machine(options.cache),
        "rounds": options.rounds,
        "rows": [row.describe() for row in rows],
        "notes": notes,
    }
    path = write_result(options.cache, result, "read_way")
    print("\n".join([render_rows(result["rows"]), *notes]))
    print(f"\nwritten to {path}", file=sys.stderr)
    return exit_status(notes)


if __name__ == "__main__":
    sys.exit(main())
