"""Destinations: made absolute, and followed through a tree's symlinks."""

from __future__ import annotations

import stat

import pytest

from pylayers.build.copy.destination import place_destination, resolve_path
from pylayers.errors import InvalidInput

TREE = {
    "etc": None, "etc/passwd": "", "usr": None, "usr/lib": None, "lib": "usr/lib", "abs": "/usr",
    "climb": "../../../etc",
    "dang": "nowhere/deep", "tofile": "etc/passwd", "loop": "loop", "usr/up": "../lib", "twice": "lib",
}  # fmt: skip


def look(path: bytes) -> tuple[int, bytes] | None:
    name = path.decode()
    if name not in TREE:
        return None
    target = TREE[name]
    if target is None:
        return stat.S_IFDIR | 0o755, b""
    return (stat.S_IFLNK | 0o777, target.encode()) if target else (stat.S_IFREG | 0o644, b"")


@pytest.mark.parametrize(
    ("written", "working_dir", "path", "as_directory"),
    [
        ("/x", "/", "x", False),
        ("/x/", "/", "x", True),
        ("x", "/w", "w/x", False),
        (".", "/w", "w", True),
        ("./", "/w/", "w", True),
        ("..", "/w/q", "w", True),
        ("/x/..", "/", "", True),
        ("/x/.", "/", "x", True),
        ("/x//y///z", "/", "x/y/z", False),
        ("../../../x", "/w", "x", False),
        ("/", "/w", "", True),
    ],
)
def test_makes_destinations_absolute(written: str, working_dir: str, path: str, as_directory: bool) -> None:
    placed = place_destination(written, working_dir)
    assert (placed.path, placed.as_directory) == (path, as_directory)


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("", ""),
        ("etc/new", "etc/new"),
        ("lib", "usr/lib"),
        ("lib/a/b", "usr/lib/a/b"),
        ("twice/x", "usr/lib/x"),
        ("abs/lib/x", "usr/lib/x"),
        ("usr/up/x", "usr/lib/x"),
        ("climb/x", "etc/x"),
        ("dang", "nowhere/deep"),
        ("dang/x", "nowhere/deep/x"),
        ("tofile", "etc/passwd"),
        ("no/such/path", "no/such/path"),
    ],
)
def test_follows_symlinks_inside_the_root(path: str, resolved: str) -> None:
    assert resolve_path(path.encode(), look) == resolved.encode()


@pytest.mark.parametrize("path", ["loop", "loop/x", "etc/passwd/x", "tofile/x"])
def test_refuses_loops_and_ways_through_files(path: str) -> None:
    with pytest.raises(InvalidInput, match=r"links|not a directory"):
        resolve_path(path.encode(), look)
