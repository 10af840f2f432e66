"""What containers that were to remove themselves leave when the machine stops, and that it goes."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.container import record
from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.engine.reap import SWEPT
from pylayers.errors import NotFound
from tests.conformance.conftest import loop_file_system, unmount
from tests.e2e.build_case import open_with_busybox, tar_busybox

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]
EPHEMERAL = ContainerOptions(remove=True)
SHUT_DOWN = 0x8004587D  # FS_IOC_SHUTDOWN
WITHOUT_LOG = 2  # nothing more reaches the disk, the journal neither


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_with_busybox(tmp_path / "root", tmp_path) as opened:
        yield opened


def age(engine: Engine, container_id: str) -> Path:
    """Make a container one of an earlier boot, and let the next look find it."""
    directory = engine.root / "containers" / container_id
    os.utime(directory, (1, 1))
    (engine.root / "containers" / SWEPT).unlink(missing_ok=True)
    return directory


def is_left(engine: Engine, container_id: str) -> bool:
    """Tell whether anything of a container is there."""
    known = engine.store.metadata.containers.get(container_id) is not None
    snapshots = {one.name for one in engine.driver().walk()}
    return known or container_id in snapshots or (engine.root / "containers" / container_id).exists()


def test_those_of_an_earlier_boot_go_once(engine: Engine) -> None:
    kept = engine.containers.create("busybox", ["true"])
    gone = engine.containers.create("busybox", ["true"], EPHEMERAL)
    young = engine.containers.create("busybox", ["true"], EPHEMERAL)
    age(engine, kept.id)
    age(engine, gone.id)
    engine.containers.reap()
    assert [is_left(engine, one.id) for one in (kept, gone, young)] == [True, False, True]
    directory = engine.root / "containers" / young.id
    os.utime(directory, (1, 1))
    engine.containers.reap()  # was done for this boot
    assert is_left(engine, young.id)


def test_a_running_one_stays(engine: Engine) -> None:
    container, _ = engine.containers.run("busybox", ["sleep", "100"], EPHEMERAL, detach=True)
    age(engine, container.id)
    engine.containers.reap()
    assert engine.containers.get(container.id).running
    engine.containers.kill(container.id)  # returns when the end is recorded, and the container removed


@pytest.mark.parametrize("lost", ["record", "config", "snapshot", "everything"])
def test_whatever_a_power_cut_took(engine: Engine, lost: str) -> None:
    container = engine.containers.create("busybox", ["true"], EPHEMERAL)
    directory = age(engine, container.id)
    if lost in ("record", "everything"):
        engine.store.metadata.containers.delete(container.id)
    if lost in ("config", "everything"):
        os.truncate(directory / record.CONFIG, 0)
    if lost in ("snapshot", "everything"):
        records = (engine.root / "overlay2").glob("*/snapshot.json")
        [snapshot] = [path for path in records if b"active" in path.read_bytes()]
        os.truncate(snapshot, 0)
        engine.close_driver()
    if lost == "config":
        assert engine.containers.list(everything=True) == []
        with pytest.raises(NotFound):
            engine.containers.get(container.id)
    other = engine.containers.create("busybox", ["true"])
    assert not is_left(engine, container.id)
    assert [one.id for one in engine.containers.list(everything=True)] == [other.id]
    assert [path.name for path in (engine.root / "overlay2").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("driver", ["erofs", "overlay2", "overlay", "vfs"])
def test_power_cut(tmp_path: Path, kind: str, driver: str) -> None:
    """The file system stops while a --rm container is made: a flushed container and its image stay, and work."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with loop_file_system(kind, disk) as point:
        with Engine.open(point / "root", driver=driver, runtime="runc") as engine:
            engine.images.import_(io.BytesIO(tar_busybox(tmp_path)), "busybox")
            kept = engine.containers.create("busybox", ["true"])
        child = os.fork()
        if child == 0:
            engine = Engine.open(point / "root", runtime="runc")
            engine.containers.create("busybox", ["true"], EPHEMERAL)
            descriptor = os.open(point, os.O_RDONLY)
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_LOG))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        remount(point)
        with Engine.open(point / "root", runtime="runc") as engine:
            assert kept.id in [one.id for one in engine.containers.list(everything=True)]
            assert engine.containers.run("busybox", ["sh", "-c", "exit 4"], EPHEMERAL)[1] == 4
            engine.containers.start(kept.id)
            assert engine.containers.wait(kept.id) == 0


def remount(point: Path) -> None:
    """Unmount a loop file system and mount it again, which replays its journal."""
    [device] = [
        fields[fields.index("-") + 2]
        for fields in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
        if fields[4] == str(point)
    ]
    image = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    unmount(point)
    subprocess.run(["mount", "-o", "loop", image, str(point)], check=True)
