"""Size limits by xfs project quotas, on the real thing: needs a kernel whose xfs has quotas.

Where this machine's has none, tests/kernels runs this file in one that has.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.errors import InvalidInput, PylayersError, RuntimeMissing, Unsupported
from pylayers.snapshot import erofs, overlay2
from pylayers.snapshot.catalog import PROJECT, PROJECTS
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.projectquota import get_limit
from pylayers.snapshot.select import probe_driver
from pylayers.snapshot.stack import StackSnapshotter
from pylayers.store.mountpoint import mount_points_below
from tests.conformance.conftest import image_directory
from tests.conformance.migration_stage import import_base, mounted_root

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")
LIMIT_BYTES = 8 << 20


class Volume:
    """An xfs in a file that can be mounted with and without quotas."""

    def __init__(self, directory: Path) -> None:
        self.image = image_directory(directory) / f"pylayers-quota-{os.getpid()}"
        self.point = directory / "point"
        self.point.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(400 << 20)
        subprocess.run(["mkfs.xfs", "-q", "-f", self.image], check=True, capture_output=True)

    def mount(self, options: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "xfs", "-o", f"loop,{options}", self.image, self.point], capture_output=True, text=True
        )
        self.said = done.stderr.strip()
        return done.returncode == 0

    def unmount(self) -> None:
        subprocess.run(["umount", self.point], check=True)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        if mount_points_below(self.point):
            self.unmount()
        self.image.unlink()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with Volume(tmp_path) as made:
        if not made.mount("pquota"):
            pytest.skip(f"this kernel's xfs has no quotas: {made.said}")
        yield made


def fill(path: Path, size_bytes: int) -> int:
    """Write until it is enough or the file system refuses; return the bytes written."""
    written = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        while written < size_bytes:
            written += os.write(descriptor, bytes(64 << 10))
            if not written % (1 << 20):
                os.fsync(descriptor)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)
    return written


def project_of(driver: StackSnapshotter, key: str) -> int:
    return int(Path(driver.catalog.directory(driver.catalog.get(key)), PROJECT).read_text())


# erofs's upper is overlay2's: what it limits needs no kernel with EROFS, which one with xfs quotas may lack.
BOTH = pytest.mark.parametrize("kind", [overlay2.Driver, erofs.Driver], ids=["overlay2", "erofs"])


def make_driver(point: Path, kind: type[StackSnapshotter] = overlay2.Driver) -> StackSnapshotter:
    driver = kind(point / kind.name)
    try:
        driver.stat("base")
    except PylayersError:
        driver.prepare("in", None)
        with mounted(driver.mounts("in")) as top:
            fill(top / "below", 12 << 20)
        driver.commit("base", "in")
    return driver


@BOTH
def test_writes_end_at_the_limit(volume: Volume, kind: type[StackSnapshotter]) -> None:
    driver = make_driver(volume.point, kind)
    for key in ("limited", "free"):
        driver.prepare(key, "base")
    driver.limit("limited", LIMIT_BYTES)
    with mounted(driver.mounts("limited")) as top:
        written = fill(top / "file", 3 * LIMIT_BYTES)
        assert LIMIT_BYTES * 3 // 4 < written <= LIMIT_BYTES
        assert os.statvfs(top).f_blocks * os.statvfs(top).f_frsize == LIMIT_BYTES
        with pytest.raises(OSError, match=r"o space|quota"):  # copying 12 MiB up is a write, too
            os.truncate(top / "below", 1 << 40)
        (top / "file").unlink()
        (top / "deep" / "er").mkdir(parents=True)
        assert LIMIT_BYTES * 3 // 4 < fill(top / "deep" / "er" / "file", 3 * LIMIT_BYTES) <= LIMIT_BYTES
    with mounted(driver.mounts("free")) as top:
        assert fill(top / "file", 3 * LIMIT_BYTES) == 3 * LIMIT_BYTES
    driver.close()


def test_each_snapshot_has_its_own_project(volume: Volume) -> None:
    driver = make_driver(volume.point)
    root = Path(driver.root)
    for at in range(5):
        driver.prepare(f"s{at}", "base")
        driver.limit(f"s{at}", LIMIT_BYTES + (at << 20))
    projects = [project_of(driver, f"s{at}") for at in range(5)]
    assert len(set(projects)) == 5
    assert {name for name in os.listdir(root / PROJECTS) if name.isdecimal()} == set(map(str, projects))
    assert [get_limit(root, project)[0] for project in projects] == [LIMIT_BYTES + (at << 20) for at in range(5)]
    driver.limit("s0", 2 * LIMIT_BYTES)
    assert project_of(driver, "s0") == projects[0]
    assert get_limit(root, projects[0])[0] == 2 * LIMIT_BYTES
    driver.remove("s0")
    assert get_limit(root, projects[0]) == (0, 0)
    assert str(projects[0]) not in os.listdir(root / PROJECTS)
    driver.close()


@BOTH
def test_limits_hold_after_a_reboot(volume: Volume, kind: type[StackSnapshotter]) -> None:
    driver = make_driver(volume.point, kind)
    driver.prepare("limited", "base")
    driver.limit("limited", LIMIT_BYTES)
    driver.close()
    volume.unmount()
    assert volume.mount("pquota")
    driver = make_driver(volume.point, kind)
    with mounted(driver.mounts("limited")) as top:
        assert fill(top / "file", 3 * LIMIT_BYTES) <= LIMIT_BYTES
    driver.close()


@BOTH
def test_what_was_there_before_counts(volume: Volume, kind: type[StackSnapshotter]) -> None:
    driver = make_driver(volume.point, kind)
    driver.prepare("limited", "base")
    with mounted(driver.mounts("limited")) as top:
        (top / "d").mkdir()
        (top / "link").symlink_to("nowhere")
        fill(top / "d" / "file", LIMIT_BYTES // 2)
    driver.limit("limited", LIMIT_BYTES)
    assert get_limit(Path(driver.root), project_of(driver, "limited"))[1] >= LIMIT_BYTES // 2
    with mounted(driver.mounts("limited")) as top:
        assert fill(top / "d" / "more", LIMIT_BYTES) <= LIMIT_BYTES // 2
    driver.close()


def test_a_crash_leaves_no_limit_behind(volume: Volume) -> None:
    """The claim outlives a snapshot whose removal was cut between its steps; opening the driver clears it."""
    driver = make_driver(volume.point)
    driver.prepare("limited", "base")
    driver.limit("limited", LIMIT_BYTES)
    project = project_of(driver, "limited")
    directory = Path(driver.catalog.directory(driver.catalog.get("limited")))
    (directory / PROJECT).unlink()
    driver.remove("limited")
    assert get_limit(Path(driver.root), project)[0] == LIMIT_BYTES
    driver.close()
    driver = make_driver(volume.point)
    assert get_limit(Path(driver.root), project)[0] == 0
    assert os.listdir(Path(driver.root, PROJECTS)) == []
    driver.close()


@BOTH
def test_a_mount_without_quotas_says_what_to_do(tmp_path: Path, kind: type[StackSnapshotter]) -> None:
    with Volume(tmp_path) as plain:
        if not plain.mount("noquota"):
            pytest.skip(plain.said)
        driver = make_driver(plain.point, kind)
        driver.prepare("a", "base")
        with pytest.raises(Unsupported, match="not mounted with project quotas") as caught:
            driver.limit("a", LIMIT_BYTES)
        assert "-o pquota" in (caught.value.hint or "")
        with pytest.raises(InvalidInput, match="at least 1 byte"):
            driver.limit("a", 0)
        assert not Path(driver.root, PROJECTS).exists()
        driver.remove("a")
        driver.close()


@BOTH
def test_other_file_systems_are_named(tmp_path: Path, kind: type[StackSnapshotter]) -> None:
    driver = kind(tmp_path / kind.name)
    driver.prepare("a", None)
    with pytest.raises(Unsupported, match=r"only on xfs with project quotas, and .* is on ") as caught:
        driver.limit("a", LIMIT_BYTES)
    assert "-o pquota" in (caught.value.hint or "")
    assert sorted(os.listdir(driver.catalog.directory(driver.catalog.get("a")))) == [
        "children", "diff", "link", "merged", "snapshot.json", "work",
    ]  # fmt: skip
    driver.close()


def test_a_containers_limit_moves_with_it(volume: Volume) -> None:
    """From --storage-opt to the file system, through a migration, to the removal."""
    root = volume.point / "root"
    with Engine.open(root, driver="overlay2") as engine:
        import_base(engine)
        try:
            made = engine.containers.create("base", ["true"], ContainerOptions(storage_options=("size=8m",)))
        except RuntimeMissing as error:
            pytest.skip(str(error))
        assert engine.containers.inspect(made.id)["HostConfig"]["StorageOpt"] == {"size": "8m"}
        assert limits(root / "overlay2") == [LIMIT_BYTES]
        with mounted_root(engine, made) as top:
            fill(top / "file", 5 << 20)
        with pytest.raises(Unsupported, match=f"container {made.name} has a size limit"):
            engine.system.migrate("overlay2", "vfs")
        assert limits(root / "overlay2") == [LIMIT_BYTES]
    others = [name for name in ("erofs", "overlay", "fuse-overlayfs") if probe_driver(root, name).probe.usable]
    if not others:
        pytest.skip("no other driver of directories works here")
    with Engine.open(root) as engine:
        engine.system.migrate("overlay2", others[0])
        assert limits(root / "overlay2") == []
        assert limits(root / others[0]) == [LIMIT_BYTES]
        with mounted_root(engine, made) as top:
            assert (top / "file").stat().st_size == 5 << 20
            assert fill(top / "more", 2 * LIMIT_BYTES) < LIMIT_BYTES  # by FUSE some of it lies in the cache
        engine.containers.remove(made.id)
        assert limits(root / others[0]) == []


def limits(root: Path) -> list[int]:
    """List the limits that a driver's snapshots have."""
    claims = root / PROJECTS
    return sorted(get_limit(root, int(name))[0] for name in os.listdir(claims)) if claims.exists() else []
