"""run_once with the real runtimes: output, status, isolation, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from busybox_rootfs import Rootfs, needs_root, runtime

from pylayers.container.isolation import ContainerMount, Isolation, Limit, Process
from pylayers.container.runtime import Runtime
from pylayers.container.sandbox import Cancelled, ExitStatus, run_once
from pylayers.errors import ContainerError, Unsupported
from pylayers.snapshot.mount import mount_points_below

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(params=["runc", "crun", "bwrap"])
def engine(request: pytest.FixtureRequest) -> Runtime:
    return runtime(request.param)


@pytest.fixture
def rootfs(tmp_path: Path) -> Rootfs:
    return Rootfs(tmp_path)


class Box:
    def __init__(self, engine: Runtime, rootfs: Rootfs, directory: Path) -> None:
        self.engine, self.rootfs, self.directory = engine, rootfs, directory
        self.out = {1: b"", 2: b""}

    def run(
        self, *arguments: str, isolation: Isolation | None = None, mounts=(), cancel_fd=None, **process
    ) -> ExitStatus:
        def keep(number: int, content: bytes) -> None:
            self.out[number] += content

        self.out = {1: b"", 2: b""}
        return run_once(
            self.rootfs.mounts,
            Process(arguments=arguments, **process),
            runtime=self.engine,
            work_directory=self.directory,
            isolation=isolation,
            mounts=mounts,
            output=keep,
            cancel_fd=cancel_fd,
        )

    def shell(self, script: str, **options) -> str:
        status = self.run("/bin/sh", "-c", script, **options)
        assert status.code == 0, self.out
        return self.out[1].decode()


@pytest.fixture
def box(engine: Runtime, rootfs: Rootfs, tmp_path: Path):
    directory = tmp_path / "tmp"
    directory.mkdir()
    yield Box(engine, rootfs, directory)
    assert list(directory.iterdir()) == []
    assert mount_points_below(tmp_path) == []


def test_true_leaves_an_empty_upper(box: Box, rootfs: Rootfs) -> None:
    before = rootfs.upper.stat().st_mtime_ns
    assert box.run("true") == ExitStatus(0)
    assert rootfs.changed() == []
    assert rootfs.upper.stat().st_mtime_ns == before


def test_streams_are_kept_apart_and_status_is_passed_on(box: Box) -> None:
    assert box.run("sh", "-c", "echo out; echo err >&2; exit 7") == ExitStatus(7)
    assert box.out[1] == b"out\n"
    assert box.out[2] == b"err\n"


def test_signal_becomes_128_plus_n(box: Box) -> None:
    # pid 1 ignores what it doesn't handle, so a child is killed and its status passed on
    assert box.run("sh", "-c", "sh -c 'kill -9 $$'; exit $?") == ExitStatus(137)


def test_step_keeps_only_its_own_changes(box: Box, rootfs: Rootfs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mounts = [ContainerMount(type="bind", source=str(source), target="/deep/er/target")]
    box.shell("echo new >/etc/added; echo seen >/deep/er/target/file; touch /deep/er/kept", mounts=mounts)
    assert rootfs.changed() == ["deep", "deep/er", "deep/er/kept", "etc", "etc/added"]
    assert (source / "file").read_text() == "seen\n"


def test_image_with_its_own_resolv_conf_keeps_it(box: Box, rootfs: Rootfs) -> None:
    (rootfs.lower / "etc" / "resolv.conf").write_text("image's own\n")
    (rootfs.lower / "proc").mkdir()
    assert box.shell("cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()
    assert rootfs.changed() == []
    assert (rootfs.lower / "etc" / "resolv.conf").read_text() == "image's own\n"


def test_dangling_resolv_conf_symlink_leaves_nothing(box: Box, rootfs: Rootfs) -> None:
    (rootfs.lower / "etc" / "resolv.conf").symlink_to("../run/resolvconf/resolv.conf")
    assert box.run("true") == ExitStatus(0)
    assert rootfs.changed() == []


def test_bind_root_gets_its_times_back(box: Box, rootfs: Rootfs) -> None:
    from pylayers.snapshot.snapshotter import Mount

    rootfs.mounts = [Mount("bind", source=str(rootfs.lower))]
    etc = rootfs.lower / "etc"
    os.utime(rootfs.lower, ns=(10**18, 10**18))
    os.utime(etc, ns=(10**18, 10**18))
    names = sorted(os.listdir(rootfs.lower))
    box.run("true")
    assert sorted(os.listdir(rootfs.lower)) == names
    assert rootfs.lower.stat().st_mtime_ns == etc.stat().st_mtime_ns == 10**18


def test_missing_command_is_127(box: Box, rootfs: Rootfs) -> None:
    for name in ("nowhere", "/bin/nowhere"):
        with pytest.raises(ContainerError) as caught:
            box.run(name)
        assert caught.value.exit_code == 127, caught.value
    assert rootfs.changed() == []


def test_not_executable_is_126(box: Box) -> None:
    with pytest.raises(ContainerError) as caught:
        box.run("/etc/not-executable")
    assert caught.value.exit_code == 126, caught.value


def test_environment_is_the_given_one(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    lines = box.shell("env", environment=("A=1", "B=two words", "A=3")).splitlines()
    assert {"A=3", "B=two words", "HOME=/root"} <= set(lines)
    assert not any(line.startswith("SECRET") for line in lines)


def test_user_and_groups_come_from_the_image(box: Box) -> None:
    if not box.engine.oci:
        with pytest.raises(Unsupported, match="cannot run as user 1000"):
            box.run("id", user="app")
        return
    assert box.shell("id -u; id -g; id -G; echo $HOME", user="app").split() == [
        "1000",
        "1001",
        "1001",
        "29",
        "77",
        "/home/app",
    ]
    assert box.shell("id -u; id -g", user="1234:77").split() == ["1234", "77"]
    with pytest.raises(ContainerError, match="no matching entries in passwd file"):
        box.run("id", user="nobody-here")


def test_working_directory_is_made(box: Box, rootfs: Rootfs) -> None:
    assert box.shell("pwd", working_directory="/new/place") == "/new/place\n"


def test_network_none_has_only_loopback(box: Box) -> None:
    interfaces = box.shell("ls /sys/class/net; cat /proc/net/dev", isolation=Isolation(network="none"))
    assert [line.split(":")[0].strip() for line in interfaces.splitlines() if ":" in line] == ["lo"]


def test_capabilities_are_dockers(box: Box) -> None:
    def effective(isolation: Isolation) -> int:
        return int(box.shell("cat /proc/self/status", isolation=isolation).split("CapEff:")[1].split()[0], 16)

    mknod = 1 << 27 if box.engine.limits else 0  # not where no cgroup says which devices may be opened
    assert effective(Isolation()) == 0xA00425FB | mknod
    assert effective(Isolation(capabilities_dropped=("ALL",), capabilities_added=("chown",))) == 1


def test_kernel_files_are_masked(box: Box) -> None:
    assert (
        box.shell(
            "cat /proc/kcore /proc/timer_list | head -c 10; touch /proc/sys/kernel/hostname 2>/dev/null || echo no"
        ).strip()
        == "no"
    )


def test_processes_are_alone(box: Box) -> None:
    assert box.shell("echo $$") == "1\n"
    assert box.shell("hostname").strip() == "pylayers"


def test_tmpfs_readonly_and_shm(box: Box) -> None:
    mounts = [ContainerMount(type="tmpfs", target="/scratch", size_bytes=1 << 20, mode=0o700)]
    text = box.shell(
        "touch /scratch/x; touch /y 2>/dev/null || echo readonly; cat /proc/mounts",
        isolation=Isolation(readonly=True, shm_size_bytes=2 << 20),
        mounts=mounts,
    )
    assert text.startswith("readonly\n")
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith(("tmpfs", "shm"))}
    assert "size=1024k" in lines["/scratch"]
    assert "mode=700" in lines["/scratch"]
    if box.engine.oci:
        assert "size=2048k" in lines["/dev/shm"]


def test_ulimit(box: Box) -> None:
    isolation = Isolation(limits=(Limit(name="nofile", soft=100, hard=200),))
    if not box.engine.oci:
        with pytest.raises(Unsupported):
            box.run("true", isolation=isolation)
        return
    assert box.shell("ulimit -Sn; ulimit -Hn", isolation=isolation).split() == ["100", "200"]


def test_added_hosts_are_seen(box: Box) -> None:
    text = box.shell("cat /etc/hosts", isolation=Isolation(extra_hosts=("db:10.1.2.3",)))
    assert "10.1.2.3\tdb\n" in text


def test_failing_callback_kills_the_container(box: Box) -> None:
    class Stop(Exception):
        pass

    def fail(_number: int, _content: bytes) -> None:
        raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        run_once(
            box.rootfs.mounts,
            Process(arguments=("sh", "-c", "echo x; sleep 30")),
            runtime=box.engine,
            work_directory=box.directory,
            output=fail,
        )
    assert time.monotonic() - started < 10


def test_cancel_kills_the_container(box: Box) -> None:
    reader, writer = os.pipe()
    threading.Timer(0.3, os.write, (writer, b"x")).start()
    try:
        with pytest.raises(Cancelled):
            box.run("sleep", "30", cancel_fd=reader)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_take_everything_down(rootfs: Rootfs, tmp_path: Path, number: int) -> None:
    program = """
import sys
from pathlib import Path
from pylayers.container.isolation import Process
from pylayers.container.runtime import find_runtime
from pylayers.container.sandbox import run_once
from pylayers.snapshot.snapshotter import Mount
lower, upper, work, directory, name = sys.argv[1:]
run_once([Mount("overlay", lowers=(lower,), upper=upper, work=work)],
         Process(arguments=("sh", "-c", "echo ready; sleep 61.25")), runtime=find_runtime(name),
         work_directory=Path(directory),
         output=lambda n, c: print(c.decode(), flush=True))
"""
    directory = tmp_path / "tmp"
    directory.mkdir()
    arguments = [rootfs.lower, rootfs.upper, rootfs.work, directory, runtime("runc").name]
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(number)
    assert child.wait(timeout=10) in (1, 130, -2, 143)
    assert list(directory.iterdir()) == []
    assert mount_points_below(tmp_path) == []
    assert rootfs.changed() == []
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"61.25" in _read(path)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
