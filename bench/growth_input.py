"""The inputs of bench/growth.py: contexts, tables, tars, and a file system whose files share their blocks."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from source import PrepareError

from pylayers.store.entry import entry_dtype

NAME_BYTES = 16
TAR_FILE_BYTES = 100  # of each file in a tar whose headers are read: one block of its own


def make_context(place: Path) -> Path:
    """Make a context that is copied whole."""
    place.mkdir(parents=True)
    (place / "Dockerfile").write_text("FROM scratch\nCOPY . /tree\n")
    return place


@contextmanager
def shared_file_system(place: Path) -> Iterator[Path]:
    """Mount a btrfs from a sparse file: files there can share their blocks. Raises PrepareError where that can't be."""
    image, point = place / "btrfs.image", place / "btrfs"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 30)
    for command in (("mkfs.btrfs", "-q", str(image)), ("mount", "-o", "loop", str(image), str(point))):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise PrepareError(f"bytes: {error}") from error
        if done.returncode:
            raise PrepareError(f"bytes: {' '.join(command)}: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(("umount", str(point)), check=True)
        image.unlink()


def make_table(count: int) -> tuple[bytes, bytes]:
    """Make a table of files in one directory, their names in order."""
    import numpy as np

    rows = np.zeros(count + 1, dtype=entry_dtype())
    rows["mode"] = 0o100644
    rows["mode"][0] = 0o40755
    rows["nlink"] = 1
    rows["path_length"][1:] = NAME_BYTES
    rows["path_offset"][1:] = np.arange(count, dtype=np.uint64) * NAME_BYTES
    rows["size_bytes"][1:] = np.arange(count, dtype=np.uint64) % 9999
    numbers = np.arange(count, dtype=np.uint64)
    names = np.full((count, NAME_BYTES), ord("f"), dtype=np.uint8)
    for place in range(1, NAME_BYTES):
        names[:, -place] = ord("0") + (numbers // 10 ** (place - 1)) % 10
    return rows.tobytes(), names.tobytes()


def make_tar(count: int) -> bytes:
    """Make a tar of small files, fifty in a folder, as a build's is: every folder before its files."""
    out = io.BytesIO()
    content = b"x" * TAR_FILE_BYTES + bytes(512 - TAR_FILE_BYTES)
    for number in range(count):
        folder = f"tree/d{number // 50:06}"
        if number % 50 == 0:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            out.write(member.tobuf(tarfile.PAX_FORMAT))
        member = tarfile.TarInfo(f"{folder}/file{number:07}")
        member.size, member.mtime = TAR_FILE_BYTES, 1_600_000_000
        out.write(member.tobuf(tarfile.PAX_FORMAT))
        out.write(content)
    out.write(bytes(1024))
    return out.getvalue()
