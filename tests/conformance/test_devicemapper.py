"""devicemapper keeps the rules of every driver, and some of its own. tests/kernels runs this where a kernel has it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pylayers.errors import Conflict, DriverError, InvalidInput, NoSpace, Unsupported
from pylayers.snapshot import devicemapper, mapper
from pylayers.snapshot.loop import attach_loop
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Snapshotter
from pylayers.snapshot.thinpool import Pool
from tests.conformance.conftest import loop_file_system
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for devices"),
    pytest.mark.skipif(
        not mapper.CONTROL.exists(), reason="this kernel has no device mapper; tests/kernels runs it in one that has"
    ),
]
MIB = 1 << 20
VARIABLE = "PYLAYERS_DM_LOOPDATASIZE"


@pytest.fixture(autouse=True, params=["xfs", "ext4"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLAYERS_DM_FS", request.param)
    for name, size_bytes in devicemapper.TRIAL_SIZES.items():
        monkeypatch.setenv(name, str(size_bytes))


@contextmanager
def given_pool(directory: Path, name: str) -> Iterator[Callable[[], None]]:
    """Make a thin pool as an administrator would; gives what brings it up again after a restart of the machine."""
    files = {directory / f"{name}-metadata": 4 * MIB, directory / f"{name}-data": 512 * MIB}
    for path, size_bytes in files.items():
        with open(path, "wb") as file:
            file.truncate(size_bytes)

    def bring_up() -> None:
        descriptors = [attach_loop(str(path), writable=True)[0] for path in files]
        try:
            places = [os.fstat(one).st_rdev for one in descriptors]
            words = " ".join(f"{os.major(place)}:{os.minor(place)}" for place in places)
            mapper.create_device(name, 512 * MIB // 512, "thin-pool", f"{words} 256 0 1 skip_block_zeroing")
        finally:
            for one in descriptors:
                os.close(one)

    bring_up()
    try:
        yield bring_up
    finally:
        with suppress(OSError):  # what still holds it has failed already
            mapper.remove_device(name)


def devices_of(root: Path) -> list[str]:
    """Name the devices that a root's driver has up."""
    prefix = Pool(root)._prefix()
    return [name for name in mapper.list_devices() if name.startswith(prefix)]


class TestDevicemapper(CrashSuite, ForeignSuite):
    file_systems = ("own",)

    def open_driver(self, root: Path) -> Snapshotter:
        return devicemapper.Driver(root)

    def devices(self, stage: Stage) -> list[str]:
        prefix = stage.driver._pool._prefix()  # type: ignore[attr-defined]
        return [name for name in ("pool", "base") if mapper.find_device(prefix + name)]

    def paths(self, stage: Stage, name: str) -> list[bytes]:
        self.reopen(stage)
        table = stage.table_of(name)
        return [table.path(entry) for entry in table]

    def test_the_last_user_takes_the_pool_down(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.driver.prepare("a", "base")
        assert self.devices(stage) == ["pool"]
        second = self.open_driver(stage.scratch.parent / "root")
        second.mounts("a")
        second.close()
        assert self.devices(stage) == ["pool"]
        with stage.mounted("a"):
            stage.driver.close()
            assert self.devices(stage) == ["pool"]  # what is mounted stays
        self.reopen(stage).close()
        assert self.devices(stage) == []
        driver = self.reopen(stage)
        with mounted(driver.mounts("a"), stage.scratch) as top:
            assert (top / "file").read_bytes() == b"x"

    def test_kept_mounts_outlive_the_pool(self, stage: Stage) -> None:
        """A container's mounts are written down, and used long after whoever made it has ended."""
        for name in ("one", "two"):
            stage.driver.prepare(name, None)
        kept = {name: stage.driver.mounts(name) for name in ("one", "two")}
        for name, mounts in kept.items():
            with mounted(mounts, stage.scratch) as top:
                write(top, name)
        stage.driver.close()
        for name in ("two", "one"):  # the other way round: the kernel numbers devices as they come
            with mounted(kept[name], stage.scratch) as top:
                assert os.listdir(top) == [name]
        self.reopen(stage)

    def test_removed_blocks_go_back_to_the_disk(self, stage: Stage) -> None:
        data = stage.scratch.parent / "root/devicemapper/data"
        stage.make("base", None, lambda top: write(top, "file"))
        before = os.stat(data).st_blocks
        stage.make("big", "base", lambda top: [write(top, "big", os.urandom(40 * MIB)), os.sync()])
        assert os.stat(data).st_blocks * 512 > before * 512 + 39 * MIB
        stage.driver.remove("big")
        os.sync()
        assert os.stat(data).st_blocks * 512 < before * 512 + 4 * MIB

    def test_what_is_mounted_is_not_removed(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.driver.prepare("a", "base")
        with stage.mounted("a"):
            for call in (lambda: stage.driver.remove("a"), lambda: stage.driver.commit("b", "a")):
                with pytest.raises(Conflict):
                    call()
        stage.driver.remove("a")

    def test_a_pool_that_is_nearly_full_is_named(self, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, str(448 * MIB))
        driver = devicemapper.Driver(ground / "root")
        scratch = ground / "scratch"
        scratch.mkdir()
        try:
            with mounted(driver.prepare("a", None), scratch) as top:
                (top / "big").write_bytes(os.urandom(415 * MIB))
                os.sync()
            with pytest.raises(NoSpace, match="data blocks left") as caught:
                driver.prepare("b", None)
            assert "prune" in (caught.value.hint or "")
            assert [one.name for one in driver.walk()] == ["a"]
            driver.remove("a")
            driver.prepare("b", None)
        finally:
            driver.close()

    def test_limit(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.driver.prepare("a", "base")
        with pytest.raises(Unsupported, match="base device"):
            stage.driver.limit("a", 100 * MIB)
        with pytest.raises(InvalidInput):
            stage.driver.limit("a", 0)
        with stage.mounted("a") as top:
            before = os.statvfs(top).f_blocks
        stage.driver.limit("a", 700 * MIB)
        self.reopen(stage)
        with stage.mounted("a") as top:
            found = os.statvfs(top)
            assert before * found.f_frsize < 540 * MIB < 600 * MIB < found.f_blocks * found.f_frsize < 700 * MIB
            with pytest.raises(OSError, match="No space") as caught:
                (top / "big").write_bytes(os.urandom(700 * MIB))
            assert caught.value.errno == errno.ENOSPC
            (top / "big").unlink()
        stage.driver.commit("grown", "a")
        stage.driver.prepare("child", "grown")
        with stage.mounted("child") as top:
            assert os.statvfs(top).f_blocks == found.f_blocks

    def test_numbers_are_never_given_twice(self, stage: Stage) -> None:
        seen: list[int] = []
        for turn in range(5):
            stage.driver.prepare(f"a{turn}", None)
            root = stage.scratch.parent / "root"
            seen.append(devicemapper.read_device(root / os.readlink(root / f"by-name/a{turn}")[3:])[0])
            stage.driver.remove(f"a{turn}")
        assert seen == sorted(set(seen))

    def test_an_older_pool_is_named(self, stage: Stage) -> None:
        """A metadata file from a backup does not have the newest devices."""
        folder = stage.scratch.parent / "root/devicemapper"
        stage.make("base", None)
        stage.driver.close()
        shutil.copyfile(folder / "metadata", stage.scratch / "kept")
        self.reopen(stage)
        stage.make("newer", "base", lambda top: write(top, "file"))
        stage.driver.close()
        shutil.copyfile(folder / "metadata", stage.scratch / "newest")
        shutil.copyfile(stage.scratch / "kept", folder / "metadata")
        self.reopen(stage)
        for call in (lambda: stage.driver.view("old", "base"), lambda: stage.table_of("newer")):
            with pytest.raises(DriverError, match="older state"):
                call()
        stage.driver.close()
        shutil.copyfile(stage.scratch / "newest", folder / "metadata")
        assert b"file" in self.paths(stage, "newer")

    def test_a_lost_file_is_named(self, stage: Stage) -> None:
        folder = stage.scratch.parent / "root/devicemapper"
        stage.make("base", None)
        stage.driver.close()
        os.rename(folder / "data", folder / "away")
        self.reopen(stage)
        with pytest.raises(DriverError, match="are gone"):
            stage.driver.prepare("a", "base")
        os.rename(folder / "away", folder / "data")
        stage.driver.prepare("a", "base")

    def test_a_given_pool_that_is_missing_is_named(self, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYLAYERS_DM_THINPOOL", "/dev/mapper/no-such-pool")
        driver = devicemapper.Driver(ground / "root")
        with pytest.raises(DriverError, match="no thin pool"):
            driver.prepare("a", None)
        driver.close()

    def test_a_given_pool(self, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody's own pool is used, found again with no word of it, shared with nobody, and never taken down."""
        root, scratch = ground / "root", ground / "scratch"
        scratch.mkdir()
        with given_pool(ground, "given-pool") as bring_up:
            monkeypatch.setenv("PYLAYERS_DM_THINPOOL", "/dev/mapper/given-pool")
            driver = devicemapper.Driver(root)
            with mounted(driver.prepare("a", None), scratch) as top:
                write(top, "file", b"in the given pool")
            driver.commit("base", "a")
            driver.prepare("b", "base")
            assert not (root / "devicemapper/data").exists()
            driver.close()
            assert "given-pool" in mapper.list_devices()
            assert devices_of(root) == []

            other = devicemapper.Driver(ground / "other")
            with pytest.raises(DriverError, match="somebody else's") as caught:
                other.prepare("x", None)
            assert caught.value.hint == "give pylayers a pool of its own"
            other.close()
            monkeypatch.delenv("PYLAYERS_DM_THINPOOL")
            for restart in (False, True):
                if restart:
                    mapper.remove_device("given-pool")
                    driver = devicemapper.Driver(root)
                    with pytest.raises(DriverError, match="there is no thin pool /dev/mapper/given-pool"):
                        driver.prepare("c", "base")
                    driver.close()
                    bring_up()
                driver = devicemapper.Driver(root)
                assert [one.name for one in driver.walk()] == ["base", "b"]
                with mounted(driver.mounts("b"), scratch) as top:
                    assert (top / "file").read_bytes() == b"in the given pool"
                driver.close()
                assert "given-pool" in mapper.list_devices()
                assert devices_of(root) == []
            driver = devicemapper.Driver(root)
            used = driver._pool.start() and driver._pool.status().data_used
            for name in ("b", "base"):
                driver.remove(name)
            assert driver._pool.status().data_used <= used
            driver.close()
            assert "given-pool" in mapper.list_devices()
            assert devices_of(root) == []

    def test_a_full_disk_below_the_pool_is_named(self, ground: Path) -> None:
        """The pool's files are sparse: what the disk lacks would fail every file system in the pool."""
        scratch = ground / "scratch"
        scratch.mkdir()
        with loop_file_system("ext4", ground) as point:
            driver = devicemapper.Driver(point / "root")

            def fill(left_bytes: int) -> None:
                found = os.statvfs(point)
                taken = found.f_bavail * found.f_frsize - left_bytes
                descriptor = os.open(point / "filler", os.O_WRONLY | os.O_CREAT)
                try:
                    os.posix_fallocate(descriptor, 0, taken)
                finally:
                    os.close(descriptor)

            fill(100 * MIB)
            with pytest.raises(NoSpace, match="and 128 MiB have to be") as caught:
                driver.prepare("a", None)
            assert "--root" in (caught.value.hint or "")
            (point / "filler").unlink()
            with mounted(driver.prepare("a", None), scratch) as top:
                write(top, "file")
            fill(20 * MIB)
            with pytest.raises(NoSpace, match="and 32 MiB have to be"):
                driver.prepare("b", None)
            assert [one.name for one in driver.walk()] == ["a"]
            (point / "filler").unlink()
            driver.prepare("b", None)
            driver.close()

    def test_probe(self, ground: Path) -> None:
        assert devicemapper.probe(ground) == devicemapper.Probe(True)
        assert list(ground.iterdir()) == []
