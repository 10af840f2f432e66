"""Persistent containers with the real runtimes: start, attach, logs, exec, stop, kill, wait, rm, and crashes."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from busybox_rootfs import Rootfs, needs_root, runtime

from pylayers.container.exec import execute
from pylayers.container.isolation import ContainerMount, Isolation, Process
from pylayers.container.logs import read_logs
from pylayers.container.record import (
    ContainerSpec,
    create,
    is_process,
    list_containers,
    load_spec,
    load_state,
    recorded_state,
    write_state,
)
from pylayers.container.remove import remove
from pylayers.container.start import start
from pylayers.container.stop import kill, stop, wait
from pylayers.errors import Conflict, ContainerError, NotFound, PylayersError, Unsupported
from pylayers.record import replace
from pylayers.snapshot.mount import mount_points_below

# As a process of its own, since a subreaper stays one.
ADOPT = """
import os, time
from pylayers._native import sysmount
from pylayers.container.monitor import await_exit
sysmount.become_subreaper()
read_end, write_end = os.pipe()
if os.fork() == 0:
    container = os.fork()
    if container == 0:
        os._exit(7)
    os.waitid(os.P_PID, container, os.WEXITED | os.WNOWAIT)
    os.write(write_end, str(container).encode())
    time.sleep(0.3)
    os._exit(0)
container = int(os.read(read_end, 20))
try:
    os.waitpid(container, os.WNOHANG)
except ChildProcessError:
    print("not ours yet")
print(await_exit(container))
print(await_exit(container))
"""
ATTACH = """
import sys
from pathlib import Path
from pylayers.container.start import start
sys.exit(start(Path(sys.argv[1]), attach=True))
"""

pytestmark = [pytest.mark.root, needs_root]


class House:
    def __init__(self, directory: Path, name: str) -> None:
        self.rootfs = Rootfs(directory)
        self.containers = directory / "containers"
        self.runtime = runtime(name)

    def create(self, *arguments: str, process: dict | None = None, **options) -> Path:
        container_id = secrets.token_hex(32)
        spec = ContainerSpec(
            id=container_id,
            name=options.pop("name", f"n{container_id[:6]}"),
            process=Process(arguments=arguments, **(process or {})),
            rootfs=tuple(self.rootfs.mounts),
            runtime=self.runtime.command,
            runtime_name=self.runtime.name,
            runtime_limits=self.runtime.limits, runtime_hides=self.runtime.hides,
            **options,
        )
        directory = self.containers / container_id
        create(directory, spec)
        return directory

    def shell(self, script: str, **options) -> Path:
        return self.create("/bin/sh", "-c", script, **options)


@pytest.fixture(params=["runc", "crun", "bwrap"])
def house(request: pytest.FixtureRequest, tmp_path: Path):
    yield from make_house(tmp_path, request.param)


@pytest.fixture
def runc(tmp_path: Path):
    yield from make_house(tmp_path, "runc")


def make_house(tmp_path: Path, name: str):
    house = House(tmp_path, name)
    yield house
    for folder in house.containers.iterdir() if house.containers.exists() else ():
        remove(folder, force=True)
    assert mount_points_below(tmp_path) == []


def text(directory: Path, stream: str = "stdout", **options) -> str:
    return "".join(record.text for record in read_logs(directory, **options) if record.stream == stream)


def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_detached_run_logs_and_exit_code(house: House) -> None:
    directory = house.shell("echo one; echo two >&2; printf partial; exit 3")
    assert load_state(directory).status == "created"
    assert start(directory) is None
    assert wait(directory) == 3
    state = load_state(directory)
    assert (state.status, state.exit_code) == ("exited", 3)
    assert state.started < state.finished
    assert text(directory) == "one\npartial"
    assert text(directory, "stderr") == "two\n"
    lines = [json.loads(line) for line in (directory / "container.log").read_text().splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {("log", "stream", "time")}
    assert mount_points_below(house.containers) == []


def test_foreground_passes_streams_and_code(house: House) -> None:
    directory = house.shell("read line; echo got $line; echo err >&2; exit 5", interactive=True)
    stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
    os.write(stdin[1], b"hello\n")
    code = start(directory, attach=True, stdin_fd=stdin[0], stdout_fd=stdout[1], stderr_fd=stderr[1])
    assert code == 5
    assert os.read(stdout[0], 100) == b"got hello\n"
    assert os.read(stderr[0], 100) == b"err\n"
    for descriptor in (*stdin, *stdout, *stderr):
        os.close(descriptor)


def test_restart_keeps_changes_and_appends_logs(house: House) -> None:
    directory = house.shell("cat /kept 2>/dev/null; echo x >>/kept")
    for _ in range(2):
        start(directory)
        assert wait(directory) == 0
    assert text(directory) == "x\n"


@pytest.mark.parametrize(("command", "code"), [("nowhere", 127), ("/bin/nowhere", 127), ("/etc/not-executable", 126)])
def test_what_cannot_run_tells_dockers_code(house: House, command: str, code: int) -> None:
    directory = house.create(command)
    with pytest.raises(ContainerError) as caught:
        start(directory)
    assert caught.value.exit_code == code, caught.value
    state = load_state(directory)
    assert (state.status, state.exit_code) == ("created", code)
    assert state.error
    assert mount_points_below(house.containers) == []


def test_unknown_user_is_125(house: House) -> None:
    directory = house.create("true", process={"user": "stranger"})
    with pytest.raises(ContainerError, match="no matching entries") as caught:
        start(directory)
    assert caught.value.exit_code == 125


def test_stop_asks_then_kills(house: House) -> None:
    polite = house.shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    start(polite)
    until(lambda: text(polite) == "ready\n")
    stop(polite)
    assert load_state(polite).exit_code == 0
    assert text(polite) == "ready\nbye\n"

    deaf = house.create("sleep", "100", stop_timeout_seconds=0)
    start(deaf)
    began = time.monotonic()
    stop(deaf, timeout_seconds=0.2)
    assert 0.2 < time.monotonic() - began < 5
    assert load_state(deaf).exit_code == 137
    stop(deaf)  # not running: nothing to do


def test_stop_signal_of_the_image(runc: House) -> None:
    directory = runc.shell("trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done", stop_signal="SIGUSR1")
    start(directory)
    until(lambda: text(directory) == "ready\n")
    stop(directory)
    assert load_state(directory).exit_code == 9


def test_kill_and_wait(house: House) -> None:
    directory = house.create("sleep", "100")
    start(directory)
    codes: list[int] = []
    waiter = threading.Thread(target=lambda: codes.append(wait(directory)))
    waiter.start()
    kill(directory)
    waiter.join(5)
    assert codes == [137]
    with pytest.raises(Conflict, match="not running"):
        kill(directory)


def test_remove_refuses_a_running_container(house: House) -> None:
    directory = house.create("sleep", "100")
    start(directory)
    with pytest.raises(Conflict, match="running"):
        remove(directory)
    state = load_state(directory)
    assert remove(directory, force=True).id == directory.name
    assert not directory.exists()
    assert not is_process(state.pid, state.start_ticks, state.boot_id)
    with pytest.raises(NotFound):
        load_spec(directory)


def test_removed_at_its_end(house: House) -> None:
    directory = house.shell("sleep 0.3; exit 4", remove_on_exit=True)
    start(directory)
    assert wait(directory) == 4
    until(lambda: not directory.exists())
    again = house.shell("exit 6", remove_on_exit=True)
    assert start(again, attach=True) == 6
    assert not again.exists()


def test_only_what_removes_itself_spares_the_disk(house: House) -> None:
    look = "grep -q '^[^ ]* / overlay .*volatile' /proc/mounts"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert start(house.shell(look, remove_on_exit=True), attach=True) == (0 if release >= (5, 10) else 1)
    # The kernel refuses an upper after a volatile mount, unless it is told that nothing was lost.
    assert start(house.shell(look), attach=True) == 1


def test_exec(house: House) -> None:
    directory = house.create("sleep", "100", process={"environment": ("FROM_CONTAINER=1",)})
    start(directory)

    def run(*arguments: str, **process) -> tuple[int, str]:
        reader, writer = os.pipe()
        try:
            code = execute(directory, Process(arguments=arguments, working_directory="", **process), stdout_fd=writer)
        finally:
            os.close(writer)
        with open(reader) as file:
            return code, file.read()

    if house.runtime.name == "bwrap":
        with pytest.raises(Unsupported, match="OCI runtime"):
            execute(directory, Process(arguments=("true",)))
        return
    assert run("sh", "-c", "echo $FROM_CONTAINER; exit 8") == (8, "1\n")
    assert run("id", "-u", user="app") == (0, "1000\n")
    with pytest.raises(ContainerError) as caught:
        run("nowhere")
    assert caught.value.exit_code == 127
    with pytest.raises(ContainerError) as caught:
        run("/etc/not-executable")
    assert caught.value.exit_code == 126
    assert execute(directory, Process(arguments=("touch", "/made-by-exec")), detach=True) == 0
    until(lambda: run("test", "-e", "/made-by-exec")[0] == 0)
    stop(directory, timeout_seconds=0)
    with pytest.raises(Conflict, match="not running"):
        execute(directory, Process(arguments=("true",)))


def test_follow_logs_to_the_end(runc: House) -> None:
    directory = runc.shell("for i in 1 2 3 4; do echo $i; sleep 0.1; done")
    start(directory)
    assert text(directory, follow=True) == "1\n2\n3\n4\n"
    assert text(directory, tail=2) == "3\n4\n"


def test_mounts_hosts_and_hostname(house: House, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content\n")
    directory = house.shell(
        "cat /data/file; touch /data/x 2>/dev/null || echo readonly; hostname; cat /etc/hostname; cat /etc/hosts",
        mounts=(ContainerMount(type="bind", source=str(source), target="/data", readonly=True),),
        isolation=Isolation(hostname="box", extra_hosts=("db:10.9.8.7",)),
    )
    start(directory)
    assert wait(directory) == 0
    output = text(directory)
    assert output.startswith("content\nreadonly\nbox\nbox\n")
    assert "10.9.8.7\tdb" in output


def test_terminal_is_attached(house: House) -> None:
    """Drive an -it run through a real pseudo-terminal, with its own caller process."""
    directory = house.shell("stty size; tty; read line; echo got $line", process={"terminal": True}, interactive=True)
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", ATTACH, str(directory)])
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    seen = b""
    sent = False
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                content = os.read(master, 4096)
            except OSError:
                break
            seen += content
        if not sent and b"/dev/" in seen:
            os.write(master, b"typed\r")
            sent = True
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert b"33 77" in seen
    assert b"got typed" in seen
    assert "got typed" in text(directory)


def test_interrupt_goes_to_the_container(runc: House) -> None:
    directory = runc.shell("trap 'exit 44' INT; echo ready; while :; do sleep 0.05; done")
    child = subprocess.Popen([sys.executable, "-c", ATTACH, str(directory)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=10) == 44


def test_container_outlives_its_caller(runc: House) -> None:
    directory = runc.shell("echo ready; sleep 0.5; echo after; exit 2")
    child = subprocess.Popen([sys.executable, "-c", ATTACH, str(directory)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    child.wait()
    assert wait(directory) == 2
    assert text(directory) == "ready\nafter\n"


def test_killed_monitor_never_leaves_running(runc: House) -> None:
    directory = runc.create("sleep", "100")
    start(directory)
    state = load_state(directory)
    os.kill(state.monitor_pid, signal.SIGKILL)
    until(lambda: not is_process(state.monitor_pid, state.monitor_start_ticks, state.boot_id))
    assert load_state(directory).status == "running"  # it is: only its monitor has gone
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: load_state(directory).status == "exited")
    assert load_state(directory).exit_code == 255
    assert start(directory) is None  # the stale mount and runtime state are cleaned first
    assert load_state(directory).status == "running"
    remove(directory, force=True)


def test_reboot_and_reused_pid_are_seen(runc: House) -> None:
    directory = runc.create("true")
    me = os.getpid()
    state = replace(
        recorded_state(directory), status="running", pid=me, start_ticks=1, boot_id="another", monitor_pid=me
    )
    write_state(directory, state)
    assert load_state(directory).status == "dead"
    from pylayers.container.record import boot_id

    write_state(directory, replace(state, boot_id=boot_id()))
    assert load_state(directory).status == "exited"


def test_a_state_that_a_power_cut_emptied_is_dead(runc: House) -> None:
    directory = runc.create("true")
    (directory / "state.json").write_bytes(b"")
    assert load_state(directory).status == "dead"
    assert load_state(directory).exit_code == 255
    assert start(directory, attach=True) == 0  # and it can be started again


def test_restart_policy_is_refused(runc: House) -> None:
    with pytest.raises(PylayersError, match="no daemon"):
        runc.create("true", restart_policy="always")


def test_listing_is_newest_first_and_start_is_idempotent(runc: House) -> None:
    first, second = runc.create("sleep", "100"), runc.create("true")
    start(first)
    start(first)
    listed = list(list_containers(runc.containers))
    assert [spec.id for spec, _ in listed] == [second.name, first.name]
    assert [state.status for _, state in listed] == ["created", "running"]


def test_pids_limit(runc: House) -> None:
    directory = runc.shell(
        "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null",
        isolation=Isolation(pids=37),
    )
    start(directory)
    wait(directory)
    assert "37" in text(directory).split()


def test_a_default_container_opens_no_disk(house: House, tmp_path: Path) -> None:
    """Neither one that it makes itself, nor one that lies in its image: by the cgroup's rules, or without them.

    crun 1.8 mounts the root file system anew without nodev: there the image's are open (container-lifecycle.md).
    """
    (tmp_path / "disk").write_bytes(b"SECRET".ljust(1 << 20, b"-"))
    found = subprocess.run(["losetup", "--find", "--show", tmp_path / "disk"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    loop = found.stdout.strip()
    try:
        number = os.stat(loop).st_rdev
        if house.runtime.name != "crun" or house.runtime.limits:
            os.mknod(house.rootfs.lower / "disk", 0o600 | stat.S_IFBLK, number)
        node = f"b {os.major(number)} {os.minor(number)}"
        directory = house.shell(
            f"head -c 6 /disk; for at in /dev /tmp; do mkdir -p $at; mknod $at/own {node} && head -c 6 $at/own; done; :"
        )
        start(directory)
        assert wait(directory) == 0
        assert text(directory) == ""
        assert "not permitted" in text(directory, "stderr") or "denied" in text(directory, "stderr")
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_container_that_ends_before_it_is_adopted_is_waited_for() -> None:
    """A starter that outlives the runtime for a moment is the container's parent until then."""
    done = subprocess.run((sys.executable, "-c", ADOPT), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("not ours yet\n7\n255\n", "")


def test_a_caller_with_threads_gets_a_monitor_of_its_own(house: House) -> None:
    """A process with several threads must not be forked from; its monitor is a new interpreter."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        directory = house.shell("echo threaded; exit 3")
        assert start(directory) is None
        assert wait(directory) == 3
        assert text(directory) == "threaded\n"
    finally:
        done.set()
        thread.join()
