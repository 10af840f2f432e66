"""`clear.remove_tree` against shutil.rmtree, and where it must do more or less than that."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from pylayers._native import clear


def grow(directory: Path, generator: random.Random, depth: int = 0) -> None:
    """Make some of everything below a directory."""
    for number in range(generator.randrange(1, 6)):
        place = directory / f"{number}-{'x' * generator.randrange(200)}"
        kind = generator.randrange(6)
        if kind == 0:
            place.symlink_to("..")
        elif kind == 1:
            os.mkfifo(place)
        elif kind < 4 or depth > 6:
            place.write_bytes(b"content")
            place.chmod(generator.choice((0, 0o644)))
        else:
            place.mkdir()
            grow(place, generator, depth + 1)


def names(directory: Path) -> list[str]:
    """List a tree, links unfollowed."""
    return sorted(os.path.join(folder, name) for folder, below, files in os.walk(directory) for name in below + files)


@pytest.mark.parametrize("seed", range(20))
def test_removes_what_rmtree_removes_and_nothing_else(tmp_path: Path, seed: int) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name / "beside").mkdir(parents=True)
        (tmp_path / name / "tree").mkdir()
        grow(tmp_path / name / "tree", random.Random(seed))
    clear.remove_tree(os.fsencode(tmp_path / "ours" / "tree"))
    shutil.rmtree(tmp_path / "theirs" / "tree")
    assert names(tmp_path / "ours") == [name.replace("theirs", "ours") for name in names(tmp_path / "theirs")]


def test_a_link_goes_itself_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("../kept")
    clear.remove_tree(os.fsencode(tmp_path / "link"))
    clear.remove_tree(os.fsencode(tmp_path / "tree"))
    assert names(tmp_path) == [str(tmp_path / "kept"), str(tmp_path / "kept" / "file")]


def test_a_file_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clear.remove_tree(os.fsencode(tmp_path / "file"))
    clear.remove_tree(os.fsencode(tmp_path / "file"))
    clear.remove_tree(os.fsencode(tmp_path / "no" / "folder"))
    assert names(tmp_path) == []


def test_paths_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    top = here
    for _ in range(40):  # 40 times 250 bytes
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        if here != top:
            os.close(here)
        here = below
    os.close(here)
    os.close(top)
    clear.remove_tree(os.fsencode(tmp_path / ("d" * 250)))
    assert os.listdir(tmp_path) == []


def test_two_at_once(tmp_path: Path) -> None:
    for number in range(2000):
        place = tmp_path / "tree" / str(number % 7) / str(number % 11) / str(number % 13)
        place.mkdir(parents=True, exist_ok=True)
        (place / str(number)).touch()
    failures: list[OSError] = []

    def remove() -> None:
        try:
            clear.remove_tree(os.fsencode(tmp_path / "tree"))
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == []


def test_what_cannot_go_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = os.fsencode(tmp_path / "file" / "below")
    with pytest.raises(NotADirectoryError, match=os.strerror(errno.ENOTDIR)) as caught:
        clear.remove_tree(below)
    assert caught.value.filename == below
    with pytest.raises(ValueError, match="NUL"):
        clear.remove_tree(b"a\0b")
