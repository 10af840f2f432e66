"""The rules that every storage driver keeps. A driver's test is a subclass that gives `open_driver`."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from pylayers.snapshot.snapshotter import SnapshotKind, Snapshotter
from pylayers.store.entry import FLAG_IMPLICIT, EntryTable
from tests.conformance.stage import Stage, write


class SnapshotterSuite:
    """Relations: keys, names, parents, removal, views, reopening."""

    marks_of_a_new_directory = 0  # files that a driver keeps in it, which nobody sees

    def open_driver(self, root: Path) -> Snapshotter:
        raise NotImplementedError

    @pytest.fixture
    def stage(self, ground: Path) -> Iterator[Stage]:
        scratch = ground / "scratch"
        scratch.mkdir()
        stage = Stage(self.open_driver(ground / "root"), scratch)
        yield stage
        stage.driver.close()
        opened = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_open(fd)}
        assert not [path for path in opened if path.startswith(str(ground))], "descriptors were left open"

    def reopen(self, stage: Stage) -> Snapshotter:
        """Close and open the same driver again."""
        stage.driver.close()
        stage.driver = self.open_driver(stage.scratch.parent / "root")
        return stage.driver

    def test_empty(self, stage: Stage) -> None:
        stage.driver.prepare("a", None)
        with stage.mounted("a") as top:
            assert list(top.iterdir()) == []
            found = os.stat(top)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)
        assert stage.listed("a", None) == []
        stage.driver.commit("empty", "a")
        with stage.changes("empty") as found_changes:
            table = EntryTable(found_changes.records, found_changes.heap)
            assert [(table.path(entry), entry.flags) for entry in table] == [(b"", FLAG_IMPLICIT)]
        with stage.viewed("empty") as top:
            assert list(top.iterdir()) == []

    def test_stat_and_walk(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.make("middle", "base")
        stage.driver.prepare("writing/with a slash", "middle")
        stage.driver.view("looking", "base")
        found = stage.driver.stat("writing/with a slash")
        assert (found.name, found.kind, found.parent) == ("writing/with a slash", SnapshotKind.ACTIVE, "middle")
        assert stage.driver.stat("base").kind == SnapshotKind.COMMITTED
        assert stage.driver.stat("looking").kind == SnapshotKind.VIEW
        walked = list(stage.driver.walk())
        names = [one.name for one in walked]
        assert sorted(names) == ["base", "looking", "middle", "writing/with a slash"]
        assert all(one.parent is None or names.index(one.parent) < names.index(one.name) for one in walked)
        assert found in walked
        stage.driver.remove("looking")

    def test_unknown_keys(self, stage: Stage) -> None:
        stage.make("base", None)
        driver = stage.driver
        for call in (driver.stat, driver.usage, driver.mounts, driver.remove, driver.changes):
            with pytest.raises(NotFound):
                call("nobody")
        with pytest.raises(NotFound):
            stage.driver.prepare("a", "nobody")
        with pytest.raises(NotFound):
            stage.driver.commit("a", "nobody")
        with pytest.raises(InvalidInput):
            stage.driver.prepare("", None)
        assert [one.name for one in stage.driver.walk()] == ["base"]

    def test_taken_keys(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.driver.prepare("a", "base")
        for key in ("a", "base"):
            with pytest.raises(AlreadyExists):
                stage.driver.prepare(key, "base")
            with pytest.raises(AlreadyExists):
                stage.driver.view(key, None)
        stage.driver.prepare("b", None)
        with pytest.raises(AlreadyExists):
            stage.driver.commit("base", "b")
        with pytest.raises(AlreadyExists):
            stage.driver.commit("a", "b")
        assert stage.driver.stat("b").kind == SnapshotKind.ACTIVE
        stage.driver.commit("b", "b")  # its own key is free to become its name
        assert stage.driver.stat("b").kind == SnapshotKind.COMMITTED

    def test_names_that_need_escaping(self, stage: Stage) -> None:
        keys = ["sha256:" + "0" * 64, "a/../b", ".", "..", "%2e", "ünï", "x" * 4096, "a b\n", "Key", "key"]
        for key in keys:
            stage.driver.prepare(key, None)
        self.reopen(stage)
        assert sorted(one.name for one in stage.driver.walk()) == sorted(keys)
        for key in keys:
            stage.driver.remove(key)
        assert list(stage.driver.walk()) == []

    def test_only_committed_parents(self, stage: Stage) -> None:
        stage.driver.prepare("a", None)
        stage.driver.view("v", None)
        for parent in ("a", "v"):
            with pytest.raises(InvalidInput):
                stage.driver.prepare("child", parent)
            with pytest.raises(InvalidInput):
                stage.driver.view("child", parent)
        for call in (lambda: stage.driver.commit("n", "v"), lambda: stage.driver.changes("v")):
            with pytest.raises(InvalidInput):
                call()

    def test_committed_is_final(self, stage: Stage) -> None:
        stage.make("base", None)
        layer = stage.layer_of("base")
        with pytest.raises(InvalidInput):
            stage.driver.mounts("base")
        with pytest.raises(InvalidInput):
            stage.driver.commit("again", "base")
        with pytest.raises(InvalidInput):
            stage.driver.apply("base", layer)

    def test_remove_only_without_children(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.make("middle", "base")
        stage.driver.prepare("a", "middle")
        stage.driver.view("v", "base")
        for parent in ("base", "middle"):
            with pytest.raises(Conflict):
                stage.driver.remove(parent)
        stage.driver.remove("v")
        stage.driver.remove("a")
        stage.driver.remove("middle")
        stage.driver.remove("base")
        assert list(stage.driver.walk()) == []
        with pytest.raises(NotFound):
            stage.driver.stat("base")
        stage.make("base", None)  # the name is free again

    def test_mounted_is_in_use(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.driver.prepare("a", "base")
        with stage.mounted("a") as top:
            with pytest.raises(Conflict):
                stage.driver.remove("a")
            with pytest.raises(Conflict):
                stage.driver.commit("n", "a")
            assert (top / "file").exists()
        stage.driver.commit("n", "a")

    def test_mounts_are_stable(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.make("top", "base")
        made = stage.driver.prepare("a", "top")
        assert stage.driver.mounts("a") == made == stage.driver.mounts("a")
        viewed = stage.driver.view("v", "top")
        assert stage.driver.mounts("v") == viewed
        self.reopen(stage)
        assert stage.driver.mounts("a") == made
        assert stage.driver.mounts("v") == viewed

    def test_view_is_read_only(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.make("top", "base", lambda top: write(top, "other"))
        for parent in (None, "base", "top"):
            with stage.viewed(parent) as top:  # type: ignore[arg-type]
                with pytest.raises(OSError, match="Read-only"):
                    (top / "new").touch()
                if parent:
                    with pytest.raises(OSError, match="Read-only"):
                        (top / "file").write_bytes(b"y")

    def test_writes_stay_in_the_active_snapshot(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"old"))
        one = stage.active("base", lambda top: write(top, "file", b"one"))
        two = stage.active("base", lambda top: (top / "file").unlink())
        with stage.mounted(one) as top:
            assert (top / "file").read_bytes() == b"one"
        with stage.mounted(two) as top:
            assert not (top / "file").exists()
        with stage.viewed("base") as top:
            assert (top / "file").read_bytes() == b"old"

    def test_reopen_keeps_everything(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        stage.active("base", lambda top: write(top, "mine", b"mine"))
        before = list(stage.driver.walk())
        digest = stage.digest("active-2")
        self.reopen(stage)
        assert list(stage.driver.walk()) == before
        assert stage.digest("active-2") == digest

    def test_usage(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(300_000)))
        base = stage.driver.usage("base")
        assert base.inodes == 2
        assert 300_000 <= base.size_bytes <= 500_000

        def fill(top: Path) -> None:
            write(top, "dir/file", os.urandom(200_000))
            os.link(top / "dir" / "file", top / "dir" / "link")

        key = stage.active("base", fill)
        os.sync()  # btrfs and xfs count blocks only once they are allocated
        more = stage.driver.usage(key)
        own = self.usage_of_copies(base.inodes - 1)
        assert more.inodes == 3 + own + self.marks_of_a_new_directory  # the top, dir, one file with two names
        assert more.size_bytes >= 200_000
        view = stage.fresh("view")
        stage.driver.view(view, "base")
        assert stage.driver.usage(view).inodes == 1

    def usage_of_copies(self, inodes: int) -> int:
        """Tell how many of a parent's inodes a child holds as its own."""
        return 0

    def test_threads_at_once(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        wins: list[int] = []

        def work(number: int) -> None:
            for turn in range(5):
                stage.driver.prepare(f"t{number}-{turn}", "base")
                stage.driver.commit(f"n{number}-{turn}", f"t{number}-{turn}")
            try:
                stage.driver.prepare("contested", "base")
                wins.append(number)
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert len(list(stage.driver.walk())) == 1 + 4 * 5 + 1


def fd_is_open(descriptor: str) -> bool:
    """Tell whether a listed descriptor still is one (that of the listing itself is not)."""
    return os.path.lexists(f"/proc/self/fd/{descriptor}")
