"""Removing a tree: the kernel beside shutil."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pylayers._native import clear

FILES = int(os.environ.get("PYLAYERS_BENCH_FILES", "2000"))


def grow(directory: Path) -> str:
    """Make a tree of small files, forty in a folder."""
    for number in range(FILES):
        folder = directory / "tree" / f"package{number // 400}" / f"part{number // 40 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(b"content")
    return str(directory / "tree")


@pytest.mark.parametrize("way", ["kernel", "shutil"])
def test_remove(benchmark: Any, tmp_path: Path, way: str) -> None:
    def remove(tree: str) -> None:
        if way == "kernel":
            clear.remove_tree(os.fsencode(tree))
        else:
            shutil.rmtree(tree)

    benchmark.pedantic(remove, setup=lambda: ((grow(tmp_path),), {}), rounds=5)
    assert os.listdir(tmp_path) == []
