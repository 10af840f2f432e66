"""`driver migrate`: every pair of drivers that work here, refusals, and kills at every step."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from itertools import permutations
from pathlib import Path

import pytest

from pylayers.container.record import State, boot_id, load_spec, start_ticks, write_state
from pylayers.container.runtime import probe_runtimes
from pylayers.diff.compare import PathChange
from pylayers.engine import Engine
from pylayers.engine.container import Container
from pylayers.engine.migrate import Migrated
from pylayers.errors import Conflict, DriverError, InvalidInput, NoSpace, Unsupported
from pylayers.snapshot import mapper, select
from pylayers.snapshot.carry import carry_changes
from pylayers.snapshot.devicemapper import TRIAL_SIZES
from pylayers.snapshot.snapshotter import SnapshotKind
from pylayers.snapshot.zfscommand import FSNAME_VARIABLE, uses_fuse
from pylayers.store.mountpoint import mount_points_below
from tests.conformance.conftest import loop_file_system
from tests.conformance.crash_suite import count_down
from tests.conformance.migration_stage import change, import_base, look, mounted_root
from tests.conformance.zfspool import named_pool

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts, devices and owners"),
    pytest.mark.skipif(not any(one.runtime for one in probe_runtimes()), reason="needs an OCI runtime"),
]
# tests/kernels runs this file where device mapper is; only its pairs are of interest there.
ABSENT = {
    "aufs": "" if "aufs" in Path("/proc/filesystems").read_text().split() else "this kernel has no aufs",
    "devicemapper": "" if mapper.CONTROL.exists() else "this kernel has no device mapper",
    # Large owners, holes, and ACLs as other file systems show them: a plain move is tried below.
    "zfs": "zfs-fuse cannot hold all that is moved here; this kernel has no OpenZFS" if uses_fuse() else "",
}
PAIRS = [pair for pair in permutations(select.MODULES, 2) if not any(ABSENT.get(name) for name in pair)]
if mapper.CONTROL.exists():
    PAIRS = [pair for pair in PAIRS if "devicemapper" in pair]


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.DRIVER_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # A thin pool's base takes 64 MiB in a root, and as much again while the driver is tried beside it.
    with loop_file_system("btrfs", tmp_path_factory.mktemp("btrfs"), 1 << 30) as point:
        yield point


@pytest.fixture(scope="module")
def zfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a dataset; with its name given, a root may lie on any file system."""
    with named_pool(tmp_path_factory.mktemp("zfs")) as name:
        yield name


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """Give the tests' own directory, or a loop file system where that has no user xattrs (tmpfs before 6.6)."""
    try:
        os.setxattr(tmp_path, "user.note", b"any")
    except OSError:
        with loop_file_system("ext4", tmp_path) as point:
            yield point
    else:
        yield tmp_path


def make_root(root: Path, driver: str) -> tuple[Container, Container]:
    """Make a root with a container that changed everything, and one that changed nothing."""
    with Engine.open(root, driver=driver) as engine:
        import_base(engine)
        changed = engine.containers.create("base", ["true"])
        with mounted_root(engine, changed) as top:
            change(top)
        return changed, engine.containers.create("base", ["true"])


def check_place(root: Path, driver: str, container: Container) -> None:
    """Check that a container is this driver's alone, and that it alone has data."""
    assert load_spec(root / "containers" / container.id).driver == driver
    assert [name for name in select.DRIVER_ORDER if select.has_data(root, name)] == [driver]
    assert select.choose_driver(root) == driver
    assert not mount_points_below(root)


def without_other_name(changes: list[PathChange]) -> list[PathChange]:
    """Leave out the second name of a file whose first was changed: its time may have been set on the first's copy."""
    return [one for one in changes if one.path != b"opt/linked"]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=["-to-".join(pair) for pair in PAIRS])
def test_every_pair(
    source: str, target: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "zfs" in (source, target):
        monkeypatch.setenv(FSNAME_VARIABLE, request.getfixturevalue("zfs"))
    if "devicemapper" in (source, target):
        for name, size_bytes in TRIAL_SIZES.items():
            monkeypatch.setenv(name, str(size_bytes))
    ground = request.getfixturevalue("btrfs" if "btrfs" in (source, target) else "ground")
    root = ground / f"{source}-{target}"
    for name in (source, target):
        found = select.probe_driver(root, name).probe
        if not found.usable:
            pytest.skip(f"{name}: {found.reason}")
    changed, plain = make_root(root, source)
    with Engine.open(root) as engine:
        before, plainly = look(engine, changed), look(engine, plain)
        told = engine.containers.diff(changed.id)
        images = tuple(found.name for found in engine.driver().walk() if found.kind == SnapshotKind.COMMITTED)
        assert len(images) == 2
        assert engine.system.migrate(source, target) == Migrated((changed.id, plain.id), images)
    check_place(root, target, changed)
    with Engine.open(root) as engine:
        after = look(engine, changed)
        assert after[1] == before[1]
        found_after = engine.containers.diff(changed.id)
        if "fuse-overlayfs" in (source, target):  # there, what is one file depends on who was looked up first
            found_after, told = without_other_name(found_after), without_other_name(told)
        else:
            assert after[0] == before[0]
            assert look(engine, plain) == plainly
        assert found_after == told
        assert engine.containers.diff(plain.id) == []
        assert engine.system.migrate(source, target) == Migrated((), ())
        for container in (changed, plain):
            engine.containers.remove(container.id)
        engine.images.remove(["base"])
        engine.system.prune(everything=True)
    assert not any(select.has_data(root, name) for name in select.DRIVER_ORDER)


@pytest.mark.parametrize("driver", ABSENT)
def test_pairs_are_tried_where_the_kernel_has_the_driver(driver: str) -> None:
    if ABSENT[driver]:
        pytest.skip(ABSENT[driver])
    assert any(driver in pair for pair in PAIRS)


def test_there_and_back_through_zfs(zfs: str, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FSNAME_VARIABLE, zfs)
    root = ground / "root"

    def write(top: Path) -> None:
        (top / "x").unlink()
        (top / "new").mkdir()
        (top / "new" / "file").write_bytes(os.urandom(300_000))
        os.link(top / "new" / "file", top / "new" / "again")

    with Engine.open(root, driver="vfs") as engine:
        import_base(engine)
        container = engine.containers.create("base", ["true"])
        with mounted_root(engine, container) as top:
            write(top)
            content = (top / "new" / "file").read_bytes()
        told = engine.containers.diff(container.id)
    for source, target in (("vfs", "zfs"), ("zfs", "vfs")):
        with Engine.open(root) as engine:
            assert engine.system.migrate(source, target).containers == (container.id,)
            assert engine.containers.diff(container.id) == told
            with mounted_root(engine, container) as top:
                assert (top / "new" / "again").read_bytes() == content
                assert os.path.samefile(top / "new" / "again", top / "new" / "file")
                assert not (top / "x").exists()
    assert [name for name in select.DRIVER_ORDER if select.has_data(root, name)] == ["vfs"]


def test_kills_at_every_step(ground: Path) -> None:
    """A child is killed before its n-th change; its files are whole then, and the next run ends the move.

    The moves go there and back, so that each kill meets a root that was migrated before.
    """
    root = ground / "root"
    changed, _ = make_root(root, "vfs")
    with Engine.open(root) as engine:
        before = look(engine, changed)
    drivers = ["vfs", "overlay2"]
    killed, half, step = 0, 0, 0
    while True:
        source, target = drivers
        status = in_child(root, source, target, step)
        with Engine.open(root, driver=source if select.has_data(root, source) else None) as engine:
            assert look(engine, changed) == before
        with_data = [name for name in drivers if select.has_data(root, name)]
        if len(with_data) == 2:
            half += 1
            with Engine.open(root) as engine, pytest.raises(Conflict, match="several storage drivers") as caught:
                engine.driver()
            assert f"finish it with: pylayers driver migrate {source} {target}" in (caught.value.hint or "")
        with Engine.open(root) as engine:
            engine.system.migrate(source, target)
        check_place(root, target, changed)
        with Engine.open(root) as engine:
            assert look(engine, changed) == before
            assert [one.name for one in engine.driver().walk() if "unpack" in one.name or ".walk." in one.name] == []
        drivers.reverse()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
        step += 1 + step // 12  # every early step, later ones more thinly: they repeat themselves
    assert killed > 20
    assert half > 10


def test_kills_at_any_moment(ground: Path) -> None:
    """The same from outside, so that mounts, copies and deletions are cut as well."""
    root = ground / "root"
    changed, _ = make_root(root, "overlay2")
    with Engine.open(root) as engine:
        with mounted_root(engine, changed) as top:
            for at in range(300):
                (top / f"many-{at}").write_bytes(b"x" * at)
        before = look(engine, changed)
    drivers = ["overlay2", "vfs"]
    started = time.monotonic()
    assert in_child(root, *drivers, -1) == 0
    length_s = time.monotonic() - started
    killed = 0
    for at in range(10):
        drivers.reverse()
        source, target = drivers
        child = begin_child(root, source, target, -1)
        time.sleep(length_s * (at + 1) / 11)
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] != 0
        with Engine.open(root, driver=source if select.has_data(root, source) else None) as engine:
            assert look(engine, changed) == before
            engine.close_driver()
            engine.system.migrate(source, target)
            assert look(engine, changed) == before
        check_place(root, target, changed)
    assert killed > 4


def in_child(root: Path, source: str, target: str, step: int) -> int:
    """Migrate in a forked process that is killed before its step-th change (-1: never), and return its wait status."""
    return os.waitpid(begin_child(root, source, target, step), 0)[1]


def begin_child(root: Path, source: str, target: str, step: int) -> int:
    """Begin to migrate in a forked process, and return its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Engine.open(root) as engine:
                if step >= 0:
                    count_down(step)
                engine.system.migrate(source, target)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def test_refusals_change_nothing(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ground / "root"
    changed, plain = make_root(root, "vfs")
    directory = root / "containers" / plain.id
    with Engine.open(root) as engine:
        before = look(engine, changed)
        with pytest.raises(InvalidInput, match="from vfs to vfs"):
            engine.system.migrate("vfs", "vfs")
        with pytest.raises(InvalidInput, match="no storage driver 'floppy'"):
            engine.system.migrate("vfs", "floppy")
        monkeypatch.setattr(select.load_implementation("erofs"), "probe", lambda _: select.Probe(False, "says no"))
        with pytest.raises(DriverError, match="erofs was asked for but does not work: says no"):
            engine.system.migrate("vfs", "erofs")
        with Engine.open(root), pytest.raises(Conflict, match="another process uses the store"):
            engine.system.migrate("vfs", "overlay2")
        write_state(
            directory,
            State(status="running", pid=os.getpid(), start_ticks=start_ticks(os.getpid()), boot_id=boot_id()),
        )
        with pytest.raises(Conflict, match=f"while containers run: {plain.name}") as caught:
            engine.system.migrate("vfs", "overlay2")
        assert caught.value.hint == f"pylayers stop {plain.name}"
        write_state(directory, State())
    check_place(root, "vfs", changed)
    assert not (root / "overlay2").exists()
    with Engine.open(root) as engine:
        assert look(engine, changed) == before


def test_names_that_the_target_takes_for_marks(ground: Path) -> None:
    """Said before anything moves: fuse-overlayfs and aufs would hide the file, and one more."""
    root = ground / "root"
    if not select.probe_driver(root, "fuse-overlayfs").probe.usable:
        pytest.skip("fuse-overlayfs does not work here")
    changed, _ = make_root(root, "vfs")
    with Engine.open(root) as engine:
        with mounted_root(engine, changed) as top:
            (top / "opt" / ".wh.odd").mkdir()
        before = look(engine, changed)
        told = rf"container {changed.name} has the file 'opt/.wh.odd', and storage driver fuse-overlayfs cannot keep"
        with pytest.raises(Unsupported, match=told):
            engine.system.migrate("vfs", "fuse-overlayfs")
    check_place(root, "vfs", changed)
    with Engine.open(root) as engine:
        assert look(engine, changed) == before
        with mounted_root(engine, changed) as top:
            (top / "opt" / ".wh.odd").rmdir()
        engine.system.migrate("vfs", "fuse-overlayfs")
    check_place(root, "fuse-overlayfs", changed)


def test_another_drivers_container_is_named(ground: Path) -> None:
    """With two drivers' data, a wish decides; what it doesn't have is not taken for lost."""
    root = ground / "root"
    changed, _ = make_root(root, "vfs")
    with closing(select.open_driver(root, "overlay2")) as other:
        other.prepare("any", None)
    with Engine.open(root, driver="overlay2") as engine:
        told = f"vfs has the files of container {changed.name}, and overlay2 is in use"
        for ask in (engine.containers.diff, engine.containers.size, engine.containers.remove):
            with pytest.raises(Conflict, match=told) as caught:
                ask(changed.id)
            assert caught.value.hint == "use --driver vfs, or: pylayers driver migrate vfs overlay2"
    with Engine.open(root, driver="vfs") as engine:
        before = look(engine, changed)
        engine.system.migrate("vfs", "overlay2")
        assert look(engine, changed) == before
        assert engine.driver_name == "vfs"
    with Engine.open(root) as engine:
        assert {found.name for found in engine.driver().walk()} > {"any", changed.id}
        engine.containers.remove(changed.id)


def test_a_limit_that_the_target_cannot_keep(ground: Path) -> None:
    """Said before anything moves, and the target is empty again."""
    from pylayers.container.record import rewrite
    from pylayers.record import replace

    root = ground / "root"
    changed, _ = make_root(root, "overlay2")
    directory = root / "containers" / changed.id
    rewrite(directory, replace(load_spec(directory), size_limit_bytes=1 << 20))
    with Engine.open(root) as engine, pytest.raises(Unsupported, match=f"{changed.name} has a size limit: .* vfs"):
        engine.system.migrate("overlay2", "vfs")
    check_place(root, "overlay2", changed)
    assert not select.migration_target(root, "overlay2")


def test_a_full_disk_changes_nothing(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ground / "root"
    changed, _ = make_root(root, "overlay2")
    with Engine.open(root) as engine:
        before = look(engine, changed)

    def fill(changes: object, target: Path) -> int:
        carry_changes(changes, target)  # type: ignore[arg-type]
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pylayers.engine.migrate.carry_changes", fill)
    with Engine.open(root) as engine, pytest.raises(NoSpace, match=r"copy snapshot .* to vfs: No space"):
        engine.system.migrate("overlay2", "vfs")
    monkeypatch.undo()
    check_place(root, "overlay2", changed)
    with Engine.open(root) as engine:
        assert look(engine, changed) == before
        engine.system.migrate("overlay2", "vfs")
        assert look(engine, changed) == before
    check_place(root, "vfs", changed)


def test_an_image_whose_layers_the_store_lost(ground: Path) -> None:
    """Its snapshot is then the only copy, and is carried over itself."""
    root = ground / "root"
    changed, _ = make_root(root, "overlay2")
    with Engine.open(root) as engine:
        before = look(engine, changed)
        for diff_id in list(engine.store.layers.walk()):
            engine.store.layers.delete(diff_id)
        engine.system.migrate("overlay2", "vfs")
        after = look(engine, changed)
        assert after[0] == before[0]
        assert after[1] == before[1]
    check_place(root, "vfs", changed)
