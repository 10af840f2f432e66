"""What a runtime's start is spared or kept from: a mount that it must not see, a wait, the compiling of a filter."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from busybox_rootfs import Rootfs, needs_root, runtime

from pylayers._native import headstart, sysmount
from pylayers.container import grace
from pylayers.container import runtime as runtimes
from pylayers.container.apart import Apart
from pylayers.container.filter import (
    ANNOTATION,
    COMPILED,
    FILTERS,
    HEX_LENGTH,
    KEPT_LIMIT,
    SUFFIX,
    KeptFilter,
    find_filter,
)
from pylayers.container.isolation import Isolation, Process
from pylayers.container.sandbox import run_once
from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.snapshot.mount import mount_points_below
from tests.e2e.build_case import open_with_busybox

pytestmark = [pytest.mark.root, needs_root]

EPHEMERAL = ContainerOptions(remove=True)
RULES: dict[str, object] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["reboot"]}]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for point in mount_points_below(tmp_path):
        sysmount.unmount(os.fsencode(point))


def mount_memory(path: Path, content: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    sysmount.mount(b"test", os.fsencode(path), b"tmpfs")
    (path / content).touch()
    return path


def test_one_mount_is_hidden_from_what_is_started(place: Path) -> None:
    """Nothing can be made in its place either that would be there afterwards, below the mount."""
    parent = place / "parent"
    hidden, other = mount_memory(parent / "hidden", "secret"), mount_memory(parent / "other", "plain")
    (parent / "link").symlink_to("other")
    with Apart(str(hidden), place / "bundle", place) as apart:
        assert apart.call(lambda: sorted(os.listdir(parent))) == ["link", "other"]
        assert apart.call(lambda: os.listdir(parent / "link")) == ["plain"]
        listed = apart.call(lambda: subprocess.run(["ls", parent], capture_output=True, check=True).stdout)
        assert listed == b"link\nother\n"
        apart.call(lambda: (hidden.mkdir(), (hidden / "left").touch()))
        apart.call((other / "made").touch)
        assert os.listdir(hidden) == ["secret"]
        assert sorted(os.listdir(other)) == ["made", "plain"]
        mine, there = os.readlink("/proc/self/ns/mnt"), apart.call(lambda: os.readlink("/proc/thread-self/ns/mnt"))
        assert mine != there
        assert os.readlink("/proc/self/ns/mnt") == mine
    sysmount.unmount(os.fsencode(hidden))
    assert os.listdir(hidden) == []
    with Apart("", place / "bundle", place) as here:
        assert here.call(lambda: os.listdir(other)) == os.listdir(other)


def test_other_bundles_are_given_up_and_the_own_is_shown(place: Path) -> None:
    """A program that runs for long must keep no other container's file system busy."""
    hidden = mount_memory(place / "parent" / "hidden", "secret")
    own, other = place / "one" / "bundle", place / "two" / "bundle"
    mount_memory(other / "rootfs", "theirs")
    early = mount_memory(place / "three" / "bundle" / "rootfs", "early")
    with Apart(str(hidden), early.parent, place) as apart:
        assert apart.call(lambda: (os.listdir(other / "rootfs"), os.listdir(early))) == ([], ["early"])
    with Apart(str(hidden), own, place) as apart:
        assert apart.call(lambda: os.listdir(other / "rootfs")) == []
        mount_memory(own / "rootfs", "mine")
        apart.show_rootfs()
        assert apart.call(lambda: os.listdir(own / "rootfs")) == ["mine"]
    assert os.listdir(other / "rootfs") == ["theirs"]


def test_what_fails_apart_is_raised_here(place: Path) -> None:
    with Apart(str(place / "missing"), place, place) as apart:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                apart.call(lambda: None)
    hidden = mount_memory(place / "hidden", "secret")
    with Apart(str(hidden), place, place) as apart:
        with pytest.raises(ZeroDivisionError):
            apart.call(lambda: 1 // 0)
        assert apart.call(lambda: 7) == 7


def test_the_wait_moves_nobody() -> None:
    before = Path("/proc/self/cgroup").read_text()
    procs = grace.find_own_procs()
    if procs is None:
        pytest.skip("no cgroup of this process may be written")
    assert str(os.getpid()) in Path(procs).read_text().split()
    grace.begin()
    assert headstart.is_rewriting()
    grace.begin()  # the one thread goes on for longer
    end_s = time.monotonic() + 10
    while headstart.is_rewriting():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert Path("/proc/self/cgroup").read_text() == before


def test_the_wait_is_done_without_where_nothing_may_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(grace, "CGROUP_ROOT", str(tmp_path))
    assert grace.find_own_procs() is None
    grace.begin()
    assert not headstart.is_rewriting()


def test_a_filter_is_kept_for_the_same_rules(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    found = find_filter(tmp_path, "crun", "/bin/sh", RULES)
    assert found is not None
    assert not found.is_kept
    config: dict[str, object] = {"linux": {"seccomp": RULES}}
    found.lend(config)
    assert config == {"linux": {"seccomp": RULES}}
    assert not found.keep(state)  # it has ended already
    for wrong in (b"", b"1234567", bytes(8 * 4097)):
        (state / COMPILED).write_bytes(wrong)
        assert not found.keep(state)
    (state / COMPILED).write_bytes(b"8 bytes.")
    assert found.keep(state)
    again = find_filter(tmp_path, "crun", "/bin/sh", RULES)
    assert again is not None
    again.lend(config)
    rest = {name: value for name, value in RULES.items() if name != "syscalls"}
    assert config == {"linux": {"seccomp": rest}, "annotations": {ANNOTATION: "OCBieXRlcy4="}}
    assert "syscalls" in RULES  # others have the same ones
    for program, rules in (("/bin/ls", RULES), ("/bin/sh", {"defaultAction": "SCMP_ACT_KILL"})):
        other = find_filter(tmp_path, "crun", program, rules)
        assert other is not None
        assert not other.is_kept
    assert find_filter(tmp_path, "runc", "/bin/sh", RULES) is None
    assert find_filter(tmp_path, "crun", "/bin/sh", None) is None  # a privileged container
    assert find_filter(tmp_path / "missing", "crun", "/bin/sh", RULES) is None


def test_a_damaged_filter_is_not_used(tmp_path: Path) -> None:
    (tmp_path / COMPILED).write_bytes(b"8 bytes.")
    assert KeptFilter(tmp_path, "/bin/sh", RULES).keep(tmp_path)
    assert KeptFilter(tmp_path, "/bin/sh", RULES).is_kept
    path = next(path for path in tmp_path.iterdir() if path.suffix == SUFFIX and path.name != COMPILED)
    for damaged in (path.read_bytes()[:-1] + b"!", b""):
        path.write_bytes(damaged)
        assert not KeptFilter(tmp_path, "/bin/sh", RULES).is_kept
    assert KeptFilter(tmp_path, "/bin/sh", RULES).keep(tmp_path)
    assert KeptFilter(tmp_path, "/bin/sh", RULES).is_kept


def test_filters_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / FILTERS
    folder.mkdir()
    (tmp_path / COMPILED).write_bytes(b"8 bytes.")
    for number in range(KEPT_LIMIT + 3):
        assert KeptFilter(folder, "/bin/sh", {"number": number}).keep(tmp_path)
    assert len(list(folder.iterdir())) == 3


@pytest.fixture
def crun(tmp_path: Path) -> Iterator[Engine]:
    chosen = runtime("crun")
    with open_with_busybox(tmp_path / "root", tmp_path, runtime=chosen.name) as opened:
        yield opened
        for container in opened.containers.list(everything=True):
            opened.containers.remove(container.id, force=True)
    assert mount_points_below(tmp_path) == []


def test_crun_runs_under_the_kept_filter(crun: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    """Containers, those behind them in the same one, and steps of a build: none is without a filter."""
    script = "grep Seccomp: /proc/self/status; unshare -U true; sleep 0.2"
    seen = []
    for name in ("first", "second"):
        container, code = crun.containers.run("busybox", ["sh", "-c", script], ContainerOptions(name=name))
        assert code == 0
        seen.append([(record.stream, record.text) for record in crun.containers.logs(name)])
        config = (crun.root / "containers" / container.id / "bundle" / "config.json").read_text()
        assert (ANNOTATION in config) == (name == "second")
        assert ('"syscalls"' in config) == (name == "first")
    assert seen[0] == seen[1]
    assert ("stdout", "Seccomp:\t2\n") in seen[0]
    third, _ = crun.containers.run("busybox", ["sleep", "600"], ContainerOptions(name="third"), detach=True)
    [kept] = (crun.root / FILTERS).iterdir()
    used = crun.root / "containers" / third.id / "runtime" / third.id / COMPILED  # exec takes it from there too
    assert used.read_bytes() == kept.read_bytes()[HEX_LENGTH:]
    capfd.readouterr()
    assert crun.containers.exec("third", ["sh", "-c", "grep Seccomp: /proc/self/status"]) == 0
    assert capfd.readouterr().out == "Seccomp:\t2\n"


def test_a_step_keeps_its_filter(tmp_path: Path) -> None:
    rootfs, chosen = Rootfs(tmp_path), runtime("crun")
    folder = tmp_path / FILTERS
    folder.mkdir()
    output: list[bytes] = []
    for _ in range(2):
        status = run_once(
            rootfs.mounts, Process(arguments=("sh", "-c", "grep Seccomp: /proc/self/status; sleep 0.2")),
            runtime=chosen, work_directory=tmp_path, output=lambda _, content: output.append(content), filters=folder,
        )  # fmt: skip
        assert status.code == 0
        assert len(list(folder.iterdir())) == 1
    assert b"".join(output) == b"Seccomp:\t2\n" * 2


def test_crun_leaves_no_cgroups(crun: Engine) -> None:
    """Nor anything else where cgroups are: what it made below a hidden mount would be seen by nobody, and stay."""
    hides = crun.runtime().hides

    def count() -> int:
        return sum(len(names) for _, names, _ in os.walk(runtimes.CGROUP_ROOT))

    def below() -> list[str]:
        sysmount.unshare(sysmount.CLONE_NEWNS)
        sysmount.mount(b"", b"/", b"", sysmount.MS_REC | sysmount.MS_SLAVE)
        sysmount.unmount(os.fsencode(hides), sysmount.MNT_DETACH)
        return os.listdir(hides)

    before = count()
    for options in (EPHEMERAL, ContainerOptions()):
        container, code = crun.containers.run("busybox", ["true"], options)
        assert code == 0
    crun.containers.remove(container.id)
    assert count() <= before + len(os.listdir(runtimes.CGROUP_ROOT))  # the parent of all, where there was none
    if hides:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(below).result() == []


def test_crun_limits_what_it_is_told_to(crun: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    """Also on a machine whose hierarchy it refuses as it is."""
    if runtimes.cgroup_mode() == "unified":
        pytest.skip("a hierarchy of version 2 alone: crun needs nothing hidden")
    limited = ContainerOptions(remove=True, isolation=Isolation(memory_bytes=64 << 20, pids=33, cpus=0.5))
    paths = ("memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_quota_us")
    command = "; ".join(f"cat /sys/fs/cgroup/{path}" for path in paths)
    assert crun.containers.run("busybox", ["sh", "-c", command], limited)[1] == 0
    assert capfd.readouterr().out.split() == ["67108864", "33", "50000"]
