"""Random trees come out of copy_tree as they went in; a second copy of the copy as well."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native.copyup import copy_file, copy_tree

NAME = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 200_000).map(bytes),
    st.integers(0, 9).map(lambda seed: random.Random(seed).randbytes(90_000)),
)
NODE = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), CONTENT),
        st.tuples(st.just("link"), st.binary(min_size=1, max_size=50).filter(lambda target: 0 not in target)),
        st.tuples(st.just("again"), st.integers(0, 50)),
    ),
    lambda below: st.tuples(st.just("directory"), st.dictionaries(NAME, below, max_size=5)),
    max_leaves=25,
)
META = st.tuples(st.integers(0, 0o7777), st.integers(-(10**9), 2 * 10**18))


def make(directory: bytes, nodes: dict[bytes, tuple[str, object]], files: list[bytes], meta: tuple[int, int]) -> None:
    """Make a tree; "again" is a hard link to an earlier file."""
    for name, (kind, value) in nodes.items():
        path = directory + b"/" + name
        if kind == "directory":
            os.mkdir(path)
            make(path, value, files, meta)  # type: ignore[arg-type]
            os.chmod(path, meta[0] | 0o700)
            os.utime(path, ns=(1, meta[1]))
        elif kind == "link":
            os.symlink(value, path)  # type: ignore[arg-type]
        elif kind == "again" and files:
            os.link(files[value % len(files)], path)  # type: ignore[operator]
        elif kind == "file":
            with open(path, "wb") as file:
                if any(value):  # type: ignore[arg-type]
                    file.write(value)  # type: ignore[arg-type]
                else:
                    file.truncate(len(value))  # type: ignore[arg-type]
            os.chmod(path, meta[0] | 0o400)
            os.utime(path, ns=(meta[1], meta[1] + 1))
            files.append(path)


def describe(root: bytes) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, bytes] = {}
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = directory + b"/" + name
            stat = os.lstat(path)
            content: object = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif not os.path.isdir(path):
                content = Path(os.fsdecode(path)).read_bytes()
            group = groups.setdefault(stat.st_ino, path[len(root) :])
            found[path[len(root) :]] = (stat.st_mode, stat.st_mtime_ns, group, content)
    return found


def copy(source: bytes, target: bytes) -> tuple[int, int]:
    os.mkdir(target)
    source_fd, target_fd = os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)
    try:
        return copy_tree(source_fd, target_fd)
    finally:
        os.close(source_fd)
        os.close(target_fd)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAME, NODE, max_size=6), META)
def test_a_copy_equals_its_source(nodes: dict[bytes, tuple[str, object]], meta: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as area:
        root = os.fsencode(area)
        os.mkdir(root + b"/1")
        make(root + b"/1", nodes, [], meta)
        entries, _ = copy(root + b"/1", root + b"/2")
        expected = describe(root + b"/1")
        assert entries == len(expected)
        assert describe(root + b"/2") == expected
        copy(root + b"/2", root + b"/3")
        assert describe(root + b"/3") == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3_000_000), st.binary(min_size=1, max_size=5000)), max_size=6), st.data())
def test_sparse_files(writes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        for offset, content in writes:
            os.pwrite(source.fileno(), content, offset)
        size = data.draw(st.integers(0, os.fstat(source.fileno()).st_size))
        os.pwrite(target.fileno(), b"old" * 100, data.draw(st.integers(0, 4_000_000)))
        copy_file(source.fileno(), target.fileno(), size)
        assert os.fstat(target.fileno()).st_size == size
        assert os.pread(target.fileno(), size + 1, 0) == os.pread(source.fileno(), size, 0)
