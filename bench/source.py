"""The inputs of the build comparison: source trees and a base image's tar, made once and kept in a cache."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 1 << 20
BIG_FILE_BYTES = 512 << 20
BIG_FILE_COUNT = 4
MODULE_FILE_COUNT = 36_000
BASE_SUITE = "bookworm"
CHANGED_NAME = "one-changed-file.txt"
FIRST_NAME = "!changed-first.txt"  # before all others in a layer's order
PYTHON_TORCH = "torch==2.13.0"
PYTHON_PACKAGES = ("numpy", "scipy", "pandas", "scikit-learn", "sympy", "transformers")
NODE_PACKAGES = (
    "typescript", "webpack", "eslint", "next", "react", "@mui/material", "lodash", "rxjs", "jest", "vite",
)  # fmt: skip


class PrepareError(RuntimeError):
    """An input cannot be made here."""


@dataclass(frozen=True, slots=True)
class TreeSize:
    """Count a tree: entries below its top, and bytes of its regular files, each inode once."""

    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """One build context with its Dockerfile beside it."""

    name: str
    directory: Path
    dockerfile: Path

    @property
    def changed_file(self) -> Path:
        """Return the file that the one-file-changed rebuild writes anew."""
        return self.directory / CHANGED_NAME

    @property
    def first_file(self) -> Path:
        """Return the file whose change leaves nothing of a layer as it was: all that follows is hashed anew."""
        return self.directory / FIRST_NAME


def prepare_source(cache: Path, name: str, base: str) -> Source:
    """Return a source by name, making it when it is missing. Raises PrepareError."""
    if name not in MAKERS:
        raise PrepareError(f"no source {name!r}; there are {', '.join(MAKERS)}")
    place = cache / "source" / name
    if not place.is_dir():
        make_whole(place, MAKERS[name])
    directory = place.resolve()
    if (directory / ".dockerignore").exists():
        raise PrepareError(f"{directory} has a .dockerignore, which would make the two builds incomparable")
    for changed in (CHANGED_NAME, FIRST_NAME):
        if not (directory / changed).exists():
            (directory / changed).write_text("0\n")
    dockerfile = cache / "dockerfile" / f"Dockerfile.{name}"
    dockerfile.parent.mkdir(parents=True, exist_ok=True)
    dockerfile.write_text(f"FROM {base}\nCOPY . /opt/{name}\n")
    return Source(name, directory, dockerfile.resolve())


def prepare_base(cache: Path, *, small: bool) -> Path:
    """Return the base image's root file system as a tar: Debian's minbase, or a tiny one."""
    path = cache / ("base-small.tar" if small else "base.tar")
    if path.exists():
        return path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    if small:
        write_small_base(partial)
    else:
        run(("mmdebstrap", "--variant=minbase", BASE_SUITE, str(partial)))
    partial.rename(path)
    return path.resolve()


def make_whole(place: Path, make: Callable[[Path], None]) -> None:
    """Make a directory under another name, and give it its own only when it is complete."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"partial-{place.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    make(partial)
    partial.rename(place)


def make_python(directory: Path) -> None:
    """Install a machine learning stack the way images get it."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory))
    run((*pip, "--no-deps", PYTHON_TORCH))
    run((*pip, *PYTHON_PACKAGES))


def make_node(directory: Path) -> None:
    """Install a front-end project's node_modules."""
    run(("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *NODE_PACKAGES), directory)


def make_big(directory: Path) -> None:
    """Write model-sized files, random and repeating bytes by turns."""
    repeating = bytes(range(256)) * (READ_BYTES // 256)
    for number in range(1, BIG_FILE_COUNT + 1):
        generator = random.Random(number)
        with (directory / f"f{number}.bin").open("wb") as file:
            for block in range(BIG_FILE_BYTES // READ_BYTES):
                file.write(generator.randbytes(READ_BYTES) if block % 2 else repeating)


def make_quick(directory: Path) -> None:
    """Write a small package-like tree: 2,000 files, some links, one file of 16 MiB."""
    generator = random.Random(1)
    for number in range(2000):
        place = directory / f"package{number // 200}" / f"part{number // 20 % 10}" / f"file{number}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(generator.randbytes(generator.randrange(8192)))
        if number % 20 == 0:
            place.with_suffix(".link").symlink_to(place.name)
        if number % 100 == 0:
            os.link(place, place.with_suffix(".hard"))
    (directory / "large.bin").write_bytes(generator.randbytes(16 << 20))


def make_modules(directory: Path) -> None:
    """Write a tree like an unpacked node_modules: 36,000 files of a few KB in some 3,400 directories, and links."""
    generator = random.Random(7)
    places = ("", "lib", "dist/esm", "node_modules/inner/src")
    for number in range(MODULE_FILE_COUNT):
        package = directory / "node_modules" / f"package{number // 48}" / places[number // 12 % 4]
        if number % 12 == 0:
            package.mkdir(parents=True, exist_ok=True)
        size_bytes = min(int(generator.lognormvariate(7.6, 1.6)), 4 << 20)
        (package / f"file{number}.js").write_bytes(generator.randbytes(size_bytes))
        if number % 1200 == 0:
            (directory / "node_modules" / f".bin{number}").symlink_to(f"package{number // 48}/file{number}.js")


MAKERS: dict[str, Callable[[Path], None]] = {
    "ml": make_python,
    "nm": make_node,
    "big": make_big,
    "quick": make_quick,
    "modules": make_modules,
}


def write_small_base(path: Path) -> None:
    """Write a root file system of a few directories."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("etc", "opt", "usr", "usr/bin"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)


def run(arguments: tuple[str, ...], directory: Path | None = None) -> None:
    """Run a command that makes an input. Raises PrepareError."""
    print("preparing:", " ".join(arguments), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(arguments, cwd=directory, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except FileNotFoundError:
        raise PrepareError(f"{arguments[0]} is needed to make this input, and is not installed") from None
    if done.returncode:
        raise PrepareError(f"{' '.join(arguments)} failed with status {done.returncode}")


def walk_entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a directory; links are not followed."""
    pending = [str(directory)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def measure_tree(directory: Path) -> TreeSize:
    """Count a tree by the standard library alone, to check layers against."""
    entries = size_bytes = 0
    seen: set[tuple[int, int]] = set()
    for entry in walk_entries(directory):
        entries += 1
        status = entry.stat(follow_symlinks=False)
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and identity not in seen:
            seen.add(identity)
            size_bytes += status.st_size
    return TreeSize(entries, size_bytes)


def read_tree(directory: Path) -> int:
    """Read every regular file once, which also brings it into the page cache; return the bytes read."""
    buffer = bytearray(READ_BYTES)
    total = 0
    for entry in walk_entries(directory):
        if not entry.is_file(follow_symlinks=False):
            continue
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while count := os.readv(descriptor, (buffer,)):
                total += count
        finally:
            os.close(descriptor)
    return total
