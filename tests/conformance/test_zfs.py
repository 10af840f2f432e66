"""zfs keeps the rules of every driver, and some of its own: on zfs-fuse here, on OpenZFS where the kernel has it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pylayers._native import sysmount
from pylayers.errors import Conflict, DriverError, InvalidInput, NoSpace, PermissionDenied
from pylayers.snapshot import zfs, zfscommand
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import SnapshotKind, Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write
from tests.conformance.zfspool import own_mounts, pool_on_file

MIB = 1 << 20


class TestZfs(CrashSuite, ForeignSuite):
    file_systems = ("zfs",)

    def open_driver(self, root: Path) -> Snapshotter:
        return zfs.Driver(root)

    def usage_of_copies(self, inodes: int) -> int:
        return inodes

    def datasets(self, ground: Path) -> set[str]:
        above = zfscommand.find_dataset(ground)
        return set(zfscommand.run_zfs("list", "-H", "-o", "name", "-t", "all", "-r", above).split())

    def test_nothing_is_copied(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(4 * MIB)))
        key = stage.active("base", lambda top: write(top, "small", os.urandom(100_000)))
        assert 100_000 <= stage.driver.usage(key).size_bytes < 400_000

    def test_no_dataset_is_left(self, stage: Stage) -> None:
        before = self.datasets(stage.scratch)
        stage.make("base", None, lambda top: write(top, "file"))
        stage.make("child", "base")
        stage.driver.view("look", "child")
        for key in ("look", "child", "base"):
            stage.driver.remove(key)
        assert self.datasets(stage.scratch) == before

    def test_what_is_mounted_is_not_removed(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.driver.prepare("a", "base")
        with stage.mounted("a"):
            for call in (lambda: stage.driver.remove("a"), lambda: stage.driver.commit("b", "a")):
                with pytest.raises(Conflict):
                    call()
        stage.driver.remove("a")

    def test_limit(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(6 * MIB)))
        stage.driver.prepare("a", "base")
        stage.driver.limit("a", 4 * MIB)
        self.reopen(stage)

        def overfill(top: Path) -> None:
            with open(top / "new", "wb", buffering=0) as file:
                for _ in range(16):
                    file.write(os.urandom(MIB))
                    os.fsync(file.fileno())

        with pytest.raises(OSError) as caught:
            stage.change("a", overfill)
        assert caught.value.errno in (errno.EDQUOT, errno.ENOSPC)
        stage.driver.remove("a")

    def test_another_dataset_is_named(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        above = zfscommand.find_dataset(stage.scratch)
        stage.make("base", None)
        stage.driver.close()
        run = subprocess.run(["zfs", "create", f"{above}/other"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        try:
            monkeypatch.setenv(zfscommand.FSNAME_VARIABLE, f"{above}/other")
            with pytest.raises(DriverError, match="are datasets under"):
                self.open_driver(stage.scratch.parent / "root")
        finally:
            monkeypatch.undo()
            zfs.destroy_dataset(f"{above}/other")
        self.reopen(stage).remove("base")

    def test_probe(self, ground: Path, tmp_path: Path) -> None:
        before = self.datasets(ground)
        assert zfs.probe(ground) == zfs.Probe(True)
        assert self.datasets(ground) == before
        assert list(ground.iterdir()) == []
        assert "not on zfs" in zfs.probe(tmp_path).reason

    def owned(self, root: Path) -> set[str]:
        """Name a root's datasets by their snapshots' ids."""
        owned = zfs.list_owned(zfscommand.find_dataset(root.parent))
        return {name.rpartition("/")[2] for name, owner in owned if owner == str(root)}

    def check_datasets(self, stage: Stage) -> None:
        """Check that there is a dataset for each snapshot that has files of its own, and no other."""
        root = stage.scratch.parent / "root"
        records = [stage.driver.catalog.get(one.name) for one in stage.driver.walk()]  # type: ignore[attr-defined]
        assert self.owned(root) == {one.id for one in records if one.kind != SnapshotKind.VIEW}

    @pytest.mark.parametrize("at_once", [True, False], ids=["before", "during"])
    def test_kill_at_every_command(self, stage: Stage, at_once: bool) -> None:
        """Killed before its n-th command, or while that runs on without it, a process leaves nothing half-made."""
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        root = stage.scratch.parent / "root"
        stage.driver.close()
        killed = 0
        for command in range(60):

            def work(command: int = command) -> None:
                driver = self.open_driver(root)
                kill_at(command, at_once)
                driver.prepare("p", "base")
                driver.commit("c", "p")
                driver.view("v", "c")
                driver.remove("v")
                driver.remove("c")

            status = self.in_child(work)
            found = self.check_whole(stage)
            self.check_datasets(stage)
            assert found.pop("base") == SnapshotKind.COMMITTED
            for key in found:
                stage.driver.remove(key)
            with stage.viewed("base") as top:
                assert (top / "file").read_bytes() == b"base"
            stage.driver.close()
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
        else:
            pytest.fail("the work never came to its end")
        assert killed >= 4
        self.reopen(stage)

    def test_datasets_without_a_snapshot_are_collected(self, stage: Stage) -> None:
        """A power cut may keep the dataset and lose the directory; what belongs to others is left alone."""
        stage.make("base", None)
        root = stage.scratch.parent / "root"
        above = zfscommand.find_dataset(root)
        for number, owner in enumerate((str(root), "/elsewhere/zfs")):
            options = ("-o", "mountpoint=none", "-o", f"{zfs.ROOT_PROPERTY}={owner}")
            zfscommand.run_zfs("create", *options, f"{above}/{number:032x}")
        self.reopen(stage)
        self.check_datasets(stage)
        assert zfscommand.dataset_exists(f"{above}/{1:032x}")
        zfs.destroy_dataset(f"{above}/{1:032x}")

    def test_what_a_killed_probe_left_goes_with_the_next(self, ground: Path) -> None:
        left = f"{zfscommand.find_dataset(ground)}/{2:032x}"
        owner = f"{zfs.ROOT_PROPERTY}={ground}/{zfs.PROBE}gone/root"
        zfscommand.run_zfs("create", "-o", "mountpoint=none", "-o", owner, left)
        assert zfs.probe(ground).usable
        assert not zfscommand.dataset_exists(left)

    def test_a_busy_dataset_goes_later(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zfs, "DEPENDENT_TRIES", 2)
        stage.driver.prepare("a", None)
        driver = stage.driver
        held = driver._open_tree(driver.catalog.get("a"))  # type: ignore[attr-defined]
        try:
            with pytest.raises(Conflict, match="busy") as caught:
                driver.remove("a")
            assert "as soon as nothing uses it" in str(caught.value)
            assert list(driver.walk()) == []
            self.reopen(stage)  # still busy: logged, and left for the next time
            assert len(self.owned(stage.scratch.parent / "root")) == 1
        finally:
            os.close(held)
        monkeypatch.undo()
        self.reopen(stage)
        assert self.owned(stage.scratch.parent / "root") == set()

    def test_a_full_pool(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Writers get ENOSPC, a new snapshot NoSpace; nothing is lost, and removing makes room again."""
        with pool_on_file(stage.scratch, "pylayerssmall", 72 << 20):
            monkeypatch.setenv(zfscommand.FSNAME_VARIABLE, "pylayerssmall")
            driver = self.open_driver(stage.scratch / "other")
            small = Stage(driver, stage.scratch)
            small.make("base", None, lambda top: write(top, "file", b"base"))
            driver.prepare("a", "base")

            def fill(top: Path) -> None:
                with open(top / "big", "wb", buffering=0) as file:
                    for _ in range(80):
                        file.write(os.urandom(MIB))
                        os.fsync(file.fileno())

            with pytest.raises(OSError, match="No space") as caught:
                small.change("a", fill)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(NoSpace, match="out of space") as refused:
                prepare_many(driver, 100)
            assert "prune" in (refused.value.hint or "")
            with small.viewed("base") as top:
                assert (top / "file").read_bytes() == b"base"
            driver.remove("a")
            driver.prepare("b", "base")
            for one in reversed(list(driver.walk())):
                driver.remove(one.name)
            driver.close()

    def test_a_limit_reached_is_no_obstacle(self, stage: Stage) -> None:
        stage.driver.prepare("a", None)
        stage.driver.limit("a", 2 * MIB)

        def fill(top: Path) -> None:
            with open(top / "new", "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(os.urandom(MIB))
                    os.fsync(file.fileno())

        with pytest.raises(OSError, match="quota"):
            stage.change("a", fill)
        with pytest.raises(InvalidInput, match="less than current used"):
            stage.driver.limit("a", MIB)
        with pytest.raises(InvalidInput, match="at least 1 byte"):
            stage.driver.limit("a", 0)
        stage.driver.commit("full", "a")
        child = stage.active("full", lambda top: write(top, "more", os.urandom(3 * MIB)))
        assert stage.listed(child, "full") == [("A", b"more")]

    def test_a_renamed_dataset_is_named(self, stage: Stage) -> None:
        """The folder notes its dataset's name. The note is changed, as zfs-fuse calls a dataset busy for long."""
        above = zfscommand.find_dataset(stage.scratch)
        stage.driver.prepare("a", None)
        stage.driver.close()
        root = stage.scratch.parent / "root"
        kept = (root / "dataset").read_text()
        (root / "dataset").write_text(kept.replace(above, "tank/old", 1))
        told = f"are datasets under tank/old, but the folder is on {above} now"
        with pytest.raises(DriverError, match=told) as caught:
            self.open_driver(root)
        assert "rename the dataset back" in (caught.value.hint or "")
        (root / "dataset").write_text(kept)
        with mounted(self.reopen(stage).mounts("a"), stage.scratch) as top:
            write(top, "file")

    def test_a_moved_or_copied_root_is_named(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        stage.driver.close()
        root, moved = stage.scratch.parent / "root", stage.scratch.parent / "moved"
        root.rename(moved)
        with pytest.raises(DriverError, match=f"{moved} are datasets that belong to {root}") as caught:
            self.open_driver(moved)
        assert f"make {moved} the second line of {moved}/dataset" in (caught.value.hint or "")
        note = moved / zfs.OWNER
        note.write_text(note.read_text().replace(str(root), str(moved)))
        stage.driver = self.open_driver(moved)
        with stage.viewed("base") as top:
            assert (top / "file").read_bytes() == b"base"
        stage.driver.remove("base")

    def test_a_destroyed_origin_is_made_again(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        stage.driver.prepare("a", "base")
        stage.driver.remove("a")
        record = stage.driver.catalog.get("base")  # type: ignore[attr-defined]
        zfscommand.run_zfs("destroy", f"{zfscommand.find_dataset(stage.scratch)}/{record.id}{zfs.LAYER}")
        key = stage.active("base")
        with stage.mounted(key) as top:
            assert (top / "file").read_bytes() == b"base"

    @pytest.mark.skipif(not zfscommand.uses_fuse(), reason="this kernel has OpenZFS: there is no daemon to miss")
    def test_a_missing_daemon_is_named(self, ground: Path) -> None:
        with own_mounts():
            sysmount.mount(b"tmpfs", b"/run/zfs", b"tmpfs")
            found = zfs.probe(ground)
        assert not found.usable
        assert "zfs-fuse daemon is running" in found.reason
        assert "modprobe zfs" in found.reason


def prepare_many(driver: Snapshotter, number: int) -> None:
    for at in range(number):
        driver.prepare(f"more-{at}", None)


def kill_at(command: int, before: bool) -> None:
    """Kill this process before its n-th zfs command from now on, or right after that was started."""
    start = subprocess.Popen
    left = [command]

    def popen(*arguments: Any, **named: Any) -> Any:
        if left[0] == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        process = start(*arguments, **named)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return process

    subprocess.Popen = popen  # type: ignore[assignment,misc]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("cannot create 'tp/x': out of space", NoSpace),
        ("cannot destroy 'tp/x': dataset is busy", Conflict),
        ("cannot create 'tp/x': permission denied", PermissionDenied),
        ("cannot open 'tp/x': dataset does not exist", DriverError),
    ],
)
def test_refusals_are_named(words: str, kind: type[Exception]) -> None:
    error = zfscommand.explain_failure("zfs create tp/x", words)
    assert type(error) is kind
    assert words in str(error)
    assert error.hint


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zfscommand.FSNAME_VARIABLE, "tank")
    monkeypatch.setattr(zfscommand.shutil, "which", lambda _, **__: None)
    assert "no zfs program" in zfs.probe(tmp_path).reason
