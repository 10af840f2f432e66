"""Crashes and several processes: children of the test die at every step, or work on one root at once."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers.errors import AlreadyExists, Conflict, NotFound, PylayersError
from pylayers.snapshot.catalog import UNPACKING
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import SnapshotKind
from tests.conformance.snapshotter_suite import SnapshotterSuite
from tests.conformance.stage import Stage, digest_of, write

# The calls by which the Python side of a driver changes a directory; a child is killed before the n-th of them.
STEPS = ("mkdir", "rename", "replace", "unlink", "symlink", "rmdir", "fsync", "write")


class CrashSuite(SnapshotterSuite):
    """What is left after a kill is whole, and a second process sees the same snapshots."""

    def in_child(self, work: Callable[[], object]) -> int:
        """Run in a forked process and return its wait status."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1]

    def check_whole(self, stage: Stage) -> dict[str, SnapshotKind]:
        """Check that what the reopened driver holds is consistent, and list it."""
        driver = self.reopen(stage)
        found = {one.name: one.kind for one in driver.walk()}
        root = stage.scratch.parent / "root"
        assert [name for name in os.listdir(root) if name.startswith(".")] == []
        identities = {name for name in os.listdir(root) if len(name) == 32}
        assert len(identities) == len(found)
        assert {os.readlink(root / "by-name" / name)[3:] for name in os.listdir(root / "by-name")} == identities
        for name, kind in found.items():
            assert driver.stat(name).kind == kind
            if kind != SnapshotKind.COMMITTED:
                assert driver.mounts(name)
        return found

    def test_kill_at_every_step(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        digest = digest_of(stage.table_of("base"))
        root = stage.scratch.parent / "root"
        stage.driver.close()
        killed = 0
        for step in range(200):

            def work(step: int = step) -> None:
                driver = self.open_driver(root)
                count_down(step)
                driver.prepare("p", "base")
                driver.commit("c", "p")
                driver.view("v", "c")
                driver.remove("v")
                driver.remove("c")

            status = self.in_child(work)
            found = self.check_whole(stage)
            states: list[dict[str, SnapshotKind]] = [
                {}, {"p": SnapshotKind.ACTIVE}, {"c": SnapshotKind.COMMITTED},
                {"c": SnapshotKind.COMMITTED, "v": SnapshotKind.VIEW},
            ]  # fmt: skip
            assert found.pop("base") == SnapshotKind.COMMITTED
            assert found in states
            assert digest_of(stage.table_of("base")) == digest
            for key in ("v", "p", "c"):
                if key in found:
                    stage.driver.remove(key)
            stage.driver.close()
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
        else:
            pytest.fail("the work never came to its end")
        assert killed > 15
        self.reopen(stage)

    def test_others_are_not_misled_by_a_killed_commit(self, stage: Stage) -> None:
        """A driver that stays open sees the key or the name, never both, whatever another process left."""
        root = stage.scratch.parent / "root"
        for step in range(200):

            def work(step: int = step) -> None:
                driver = self.open_driver(root)
                count_down(step)
                driver.commit(f"name-{step}", f"key-{step}")

            stage.driver.prepare(f"key-{step}", None)
            status = self.in_child(work)
            seen = []
            for name in (f"key-{step}", f"name-{step}"):
                try:
                    seen.append(stage.driver.stat(name))
                except NotFound:
                    continue
            assert len(seen) == 1
            assert seen == [one for one in stage.driver.walk() if one.name.endswith(f"-{step}")]
            if seen[0].kind == SnapshotKind.ACTIVE:
                stage.driver.commit(f"name-{step}", f"key-{step}")
            stage.driver.prepare(f"key-{step}", f"name-{step}")  # over the stale pointer
            if status == 0:
                return
        pytest.fail("the commit never came to its end")

    def test_recovery_may_be_killed_too(self, stage: Stage) -> None:
        root = stage.scratch.parent / "root"
        stage.make("base", None, lambda top: [write(top, f"d/{at}") for at in range(5)])
        key = stage.active("base")
        stage.driver.close()
        for leftover in (".making-" + "0" * 32, ".removing-" + "1" * 32):
            (root / leftover / "diff" / "deep").mkdir(parents=True)
            (root / leftover / "diff" / "deep" / "file").touch()
        (root / "by-name" / "stale").symlink_to("../" + "2" * 32)
        for step in range(12):
            self.in_child(lambda step=step: (count_down(step), self.open_driver(root)))
        assert set(self.check_whole(stage)) == {"base", key}

    def test_makers_at_work_are_left_alone(self, stage: Stage) -> None:
        """A process that opens the root must not take another's unfinished snapshot for a leftover."""
        stage.make("base", None, lambda top: write(top, "file"))
        ready, go = os.pipe(), os.pipe()

        def work() -> None:
            driver = self.open_driver(stage.scratch.parent / "root")
            make = driver._make  # type: ignore[attr-defined]

            def slow(*arguments: object) -> None:
                os.write(ready[1], b".")
                os.read(go[0], 1)
                make(*arguments)

            driver._make = slow  # type: ignore[attr-defined]
            driver.prepare("slow", "base")

        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.read(ready[0], 1)
        other = self.reopen(stage)
        assert [one.name for one in other.walk()] == ["base"]
        other.prepare("quick", "base")  # and nobody waits for the slow one
        os.write(go[1], b".")
        assert os.waitpid(child, 0)[1] == 0
        assert {one.name for one in other.walk()} == {"base", "quick", "slow"}
        for descriptor in (*ready, *go):
            os.close(descriptor)

    def test_what_killed_processes_were_unpacking_goes(self, stage: Stage) -> None:
        """Not before they are gone, and what they held beside the snapshot's directory goes with it."""
        stage.make("base", None, lambda top: write(top, "file"))
        root = stage.scratch.parent / "root"
        before = left_in(root)
        ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                driver = self.open_driver(root)
                with mounted(driver.prepare(f"{UNPACKING}x", "base"), stage.scratch) as top:
                    write(top, "half")
                os.write(ready[1], b".")
                signal.pause()
            finally:
                os._exit(1)
        assert os.read(ready[0], 1) == b"."
        driver = self.reopen(stage)
        driver.sweep()
        assert {one.name for one in driver.walk()} == {"base", f"{UNPACKING}x"}
        with pytest.raises(Conflict, match="another process"):
            driver.remove(f"{UNPACKING}x")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        driver = self.reopen(stage)
        driver.sweep()
        assert {one.name for one in driver.walk()} == {"base"}
        driver.close()
        assert left_in(root) == before
        driver = self.reopen(stage)
        for name in ("committed", "removed"):  # the maker's own ways out
            driver.prepare(f"{UNPACKING}{name}", "base")
        driver.commit("done", f"{UNPACKING}committed")
        driver.remove(f"{UNPACKING}removed")
        driver.remove("done")
        for descriptor in ready:
            os.close(descriptor)

    def test_processes_at_once(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        root = stage.scratch.parent / "root"
        children = []
        for number in range(3):
            child = os.fork()
            if child == 0:
                try:
                    self.compete(root, number)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        found = self.check_whole(stage)
        assert {name for name in found if name.startswith("own")} == {
            f"own-{n}-{t}" for n in range(3) for t in range(6)
        }
        won = [name for name in found if name.startswith("won")]
        assert sorted(name.split("-")[2] for name in won) == [str(turn) for turn in range(6)]

    def compete(self, root: Path, number: int) -> None:
        """Make snapshots of one's own, and one per turn that only one process can get; remove what others may too."""
        driver = self.open_driver(root)
        for turn in range(6):
            driver.prepare(f"mine-{number}", "base")
            driver.commit(f"own-{number}-{turn}", f"mine-{number}")
            try:
                driver.prepare(f"race-{turn}", "base")
            except AlreadyExists:
                pass
            else:
                driver.view(f"won-{number}-{turn}", f"own-{number}-{turn}")
            for other in range(3):
                try:
                    driver.view(f"look-{number}", f"own-{other}-{turn}")
                    driver.remove(f"look-{number}")
                except (NotFound, Conflict):
                    continue
        driver.close()

    def test_failed_prepare_leaves_nothing(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        stage.make("base", None, lambda top: write(top, "file"))

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(stage.driver, "_make", fail)
        with pytest.raises(PylayersError, match="No space"):
            stage.driver.prepare("a", "base")
        monkeypatch.undo()
        assert set(self.check_whole(stage)) == {"base"}
        stage.driver.prepare("a", "base")


def left_in(root: Path) -> set[str]:
    """List a driver's folder as far as what is in it can tell of a snapshot."""
    return {os.path.join(above, name) for above, names, _ in os.walk(root) for name in names if len(name) == 32}


def count_down(step: int) -> None:
    """Kill this process before the step-th directory-changing call from now on."""
    left = [step]

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*arguments, **named)

        return counted

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))
