"""Starts begun before all is known: a runtime that waits for its config.json, a monitor that waits for its spec."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from busybox_rootfs import Rootfs, needs_root, runtime

from pylayers.container.ahead import Ahead
from pylayers.container.isolation import Process
from pylayers.container.logs import read_logs
from pylayers.container.record import ContainerSpec, create, load_state
from pylayers.container.remove import remove
from pylayers.container.start import start
from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.errors import AlreadyExists, ContainerError, DriverError, NotFound
from pylayers.record import replace
from pylayers.snapshot.mount import mount_points_below
from pylayers.snapshot.snapshotter import Mount
from pylayers.thread import is_alone
from tests.e2e.build_case import open_with_busybox

pytestmark = [pytest.mark.root, needs_root]

WAIT_SECONDS = 10
EPHEMERAL = ContainerOptions(remove=True)
# As a process of its own, to be killed: begins a container's monitor, says which it is, and does nothing more.
BEGIN = """
import sys, time
from pathlib import Path
from pylayers.container.ahead import Ahead
from pylayers.container.record import load_spec, spec_from_json
directory, spec = Path(sys.argv[1]), spec_from_json(sys.argv[2].encode())
with Ahead(attach=True) as ahead:
    ahead.begin(directory, spec)
    if sys.argv[3] == "soon":
        ahead.expect()
    if sys.argv[3] == "told":
        ahead.tell(spec)
    print(ahead._child, flush=True)
    time.sleep(60)
"""


class Case:
    """Make specs of containers with a runtime, or a script that stands before it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.rootfs = Rootfs(directory)
        self.runtime = runtime(name)

    def spec(self, *arguments: str, program: Path | None = None, **given: object) -> ContainerSpec:
        values = {
            "id": secrets.token_hex(32), "name": "one", "process": Process(arguments=arguments),
            "rootfs": tuple(self.rootfs.mounts), "runtime": (str(program),) if program else self.runtime.command,
            "runtime_name": self.runtime.name, "runtime_limits": self.runtime.limits,
            "runtime_hides": self.runtime.hides,
        }  # fmt: skip
        return ContainerSpec(**{**values, **given})

    def place(self, spec: ContainerSpec) -> Path:
        return self.directory / "containers" / spec.id

    def create(self, *arguments: str, program: Path | None = None, **given: object) -> Path:
        spec = self.spec(*arguments, program=program, **given)
        create(self.place(spec), spec)
        return self.place(spec)

    def program(self, script: str) -> Path:
        """Write a program that stands for the runtime; $bundle is the bundle, "$real" "$@" goes on."""
        path = self.directory / self.runtime.name
        find = 'for last in "$@"; do\n[ "$before" = --bundle ] && bundle=$last\nbefore=$last\ndone\n'
        path.write_text(f"#!/bin/sh\nreal={self.runtime.command[0]}\n{find}{script}")
        path.chmod(0o755)
        return path


@pytest.fixture(params=["runc", "crun"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path, request.param)
    yield made
    parent = tmp_path / "containers"
    for folder in parent.iterdir() if parent.exists() else ():
        remove(folder, force=True)
    assert mount_points_below(tmp_path) == []
    assert processes(str(tmp_path)) == []


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_with_busybox(tmp_path / "root", tmp_path) as opened:
        yield opened
    assert mount_points_below(tmp_path) == []


def processes(word: str) -> list[str]:
    """Return the command lines of runtimes and callers that name a word."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line and ("runc" in line or "crun" in line):
                found.append(line)
    return found


def await_true(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def output(directory: Path) -> str:
    return "".join(record.text for record in read_logs(directory))


@pytest.mark.parametrize("attach", [True, False])
def test_config_json_is_a_file_once_it_runs(case: Case, attach: bool, capfd: pytest.CaptureFixture[str]) -> None:
    directory = case.create("/bin/sh", "-c", "echo up; exit 3")
    assert start(directory, attach=attach) == (3 if attach else None)
    assert json.loads((directory / "bundle" / "config.json").read_text())["process"]["args"][0] == "/bin/sh"
    assert sorted(path.name for path in (directory / "bundle").iterdir()) == ["config.json", "pid", "rootfs"]
    await_true(lambda: load_state(directory).status == "exited")
    assert (load_state(directory).exit_code, output(directory)) == (3, "up\n")
    assert start(directory, attach=True) == 3  # again, over the file of the first time


@pytest.mark.parametrize(
    "before",
    [
        'cat "$bundle/config.json" > "$bundle/../read"; cat "$bundle/config.json" > "$bundle/../again"',
        'head -c 100 "$bundle/config.json" > "$bundle/../read"; sleep 0.2',
        "sleep 0.3",
    ],
    ids=["read-to-its-end-twice", "read-in-part", "read-late"],
)
def test_a_runtime_may_read_its_configuration_as_it_likes(case: Case, before: str) -> None:
    directory = case.create("/bin/sh", "-c", "exit 4", program=case.program(f'{before}\nexec "$real" "$@"\n'))
    assert start(directory, attach=True) == 4
    content = (directory / "bundle" / "config.json").read_bytes()
    for copy in ("read", "again"):
        if (directory / copy).exists():
            assert content.startswith((directory / copy).read_bytes())
            assert copy != "again" or (directory / copy).read_bytes() == content


@pytest.mark.parametrize("program", [None, 'cat "$bundle/config.json" > /dev/null\nexec "$real" "$@"\n'])
def test_a_configuration_larger_than_a_pipe(case: Case, program: str | None) -> None:
    environment = tuple(f"V{number}={'x' * 1000}" for number in range(300))
    process = Process(arguments=("/bin/sh", "-c", "exit ${#V299}"), environment=environment)
    made = None if program is None else case.program(program)
    directory = case.create(process=process, program=made)
    assert (directory / "config.json").stat().st_size > 300_000
    assert start(directory, attach=True) == 1000 % 256


def refuse_calls(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int) -> None:
    """Let a call fail as a file system or kernel does that doesn't have it; forked monitors inherit that."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refuse)


def test_a_file_system_without_fifos(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_alone()
    refuse_calls(monkeypatch, os, "mkfifo", errno.EPERM)
    assert start(case.create("/bin/sh", "-c", "exit 5"), attach=True) == 5


def test_a_kernel_that_tells_of_no_changes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_alone()
    monkeypatch.setattr("fcntl.F_NOTIFY", -1)  # an unknown command of fcntl(2): EINVAL
    directory = case.create("/bin/sh", "-c", "sleep 0.3; exit 5")
    assert start(directory, attach=True) == 5


@pytest.mark.parametrize(("script", "words"), [
    ("exit 3", "failed with status 3"),
    ("kill -9 $$", "failed with status -9"),
    ('cat "$bundle/config.json" > /dev/null; exit 5', "failed with status 5"),
])  # fmt: skip
@pytest.mark.parametrize("attach", [True, False])
def test_a_runtime_that_ends_without_a_container(case: Case, script: str, words: str, attach: bool) -> None:
    directory = case.create("/bin/true", program=case.program(f'case "$*" in *" run "*) {script};; esac\n'))
    with pytest.raises(ContainerError, match=words) as caught:
        start(directory, attach=attach)
    assert caught.value.exit_code == 125
    assert load_state(directory).status == "created"
    assert mount_points_below(directory) == []


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("remove_on_exit", [True, False])
def test_a_mount_that_fails_after_the_runtime_was_begun(case: Case, attach: bool, remove_on_exit: bool) -> None:
    nowhere = Mount("overlay", lowers=(str(case.directory / "nowhere"),), upper="", work="")
    directory = case.create("/bin/true", rootfs=(nowhere,), remove_on_exit=remove_on_exit)
    with pytest.raises((ContainerError, DriverError), match=r"nowhere|mount"):
        start(directory, attach=attach)
    assert processes(directory.name) == []
    assert directory.exists() is not remove_on_exit
    assert not (directory / "bundle" / "config.json").exists()


def test_a_configuration_that_cannot_be_made_after_the_runtime_was_begun(case: Case) -> None:
    directory = case.create(process=Process(arguments=("/bin/true",), user="nobody-here"))
    with pytest.raises(ContainerError, match="nobody-here"):
        start(directory, attach=True)
    assert processes(directory.name) == []
    assert mount_points_below(directory) == []
    assert not (directory / "bundle" / "config.json").exists()


def test_a_runtime_that_is_missing(case: Case) -> None:
    directory = case.create("/bin/true", program=case.directory / "none" / case.runtime.name)
    with pytest.raises(ContainerError, match="No such file"):
        start(directory, attach=True)
    assert mount_points_below(directory) == []


@pytest.mark.parametrize("told", ["", "soon", "told"])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_caller_gives_up(case: Case, told: str, recorded: bool) -> None:
    spec = case.spec("/bin/true")
    with Ahead(attach=True) as ahead:
        ahead.begin(case.place(spec), spec)
        assert ahead.begun
        if told:
            ahead.expect()
        if told == "told":
            ahead.tell(spec)
        if recorded:
            create(case.place(spec), spec)
    assert processes(spec.id) == []
    assert mount_points_below(case.directory) == []
    assert case.place(spec).exists() is recorded
    if recorded:
        assert load_state(case.place(spec)).status == "created"
        assert start(case.place(spec), attach=True) == 0


@pytest.mark.parametrize("told", ["", "soon", "told"])
def test_the_caller_is_killed(case: Case, told: str) -> None:
    from pylayers.container.record import spec_to_json

    spec = case.spec("/bin/true", remove_on_exit=True)
    caller = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(case.place(spec)), spec_to_json(spec), told],
        stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert caller.stdout is not None
    monitor = int(caller.stdout.readline())
    if told:
        await_true((case.place(spec) / "bundle" / "config.json").is_fifo)
    if told == "told":
        await_true(lambda: mount_points_below(case.directory) != [])
    caller.kill()
    caller.wait()
    caller.stdout.close()
    await_true(lambda: not case.place(spec).exists() and not Path(f"/proc/{monitor}/cmdline").exists())
    assert processes(spec.id) == []


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_monitor_is_killed(case: Case, told: bool, recorded: bool) -> None:
    spec = case.spec("/bin/true")
    with Ahead(attach=True) as ahead:
        ahead.begin(case.place(spec), spec)
        if told:
            ahead.tell(spec)
            await_true(lambda: mount_points_below(case.directory) != [])
        os.kill(ahead._child, signal.SIGKILL)
        if not told:
            ahead.tell(spec)
        if recorded:
            create(case.place(spec), spec)
            with pytest.raises(ContainerError, match="before it started anything"):
                start(case.place(spec), attach=True, ahead=ahead)
    if recorded:
        assert load_state(case.place(spec)).status == "created"
        assert start(case.place(spec), attach=True) == 0
    assert not case.place(spec).exists() or recorded
    await_true(lambda: processes(spec.id) == [])


def is_dead(pid: int) -> bool:
    """Tell whether a process is gone, but for its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_both_are_killed(engine: Engine, case: Case) -> None:
    """What they leave goes with a prune, as soon as it can't be something that is being made."""
    from pylayers.container.record import spec_to_json

    spec = case.spec("/bin/true", remove_on_exit=True)
    place = engine.root / "containers" / spec.id
    caller = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(place), spec_to_json(spec), "told"],
        stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert caller.stdout is not None
    monitor = int(caller.stdout.readline())
    await_true(lambda: mount_points_below(place) != [])
    engine.containers.prune()
    assert place.exists()
    os.kill(monitor, signal.SIGKILL)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    await_true(lambda: is_dead(monitor))
    engine.containers.prune()
    assert place.exists()
    os.utime(place / "lock", (1, 1))

    def is_pruned() -> bool:
        engine.containers.prune()
        return not place.exists()

    await_true(is_pruned)  # the lock is free when the last of the monitor's threads has gone
    await_true(lambda: processes(spec.id) == [])


def test_a_runtime_whose_monitor_was_killed_before_it_opens_its_configuration(case: Case) -> None:
    spec = case.spec("/bin/true", program=case.program('sleep 0.5\nexec "$real" "$@"\n'))
    with Ahead(attach=True) as ahead:
        ahead.begin(case.place(spec), spec)
        ahead.expect()
        await_true(lambda: processes(spec.id) != [])
        os.kill(ahead._child, signal.SIGKILL)
    assert not case.place(spec).exists()
    await_true(lambda: processes(spec.id) == [])


def ended(engine: Engine) -> bool:
    """Tell whether nothing is left of any container."""
    rows = list(engine.store.metadata.containers.walk())
    snapshots = [one.name for one in engine.driver().walk() if not one.name.startswith("sha256:")]
    folders = [one for one in (engine.root / "containers").iterdir() if one.is_dir()]
    return not rows and not snapshots and not folders


def test_run_leaves_nothing(engine: Engine) -> None:
    _, code = engine.containers.run("busybox", ["sh", "-c", "exit 6"], EPHEMERAL)
    assert code == 6
    assert ended(engine)
    assert processes(str(engine.root)) == []


def test_run_fails_before_and_while_the_container_is_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        engine.containers.run("nothing", ["true"], EPHEMERAL)
    assert ended(engine)
    taken = engine.containers.create("busybox", ["true"], replace(EPHEMERAL, name="taken"))
    for options in (replace(EPHEMERAL, name="taken"), ContainerOptions(name="taken")):
        with pytest.raises(AlreadyExists):
            engine.containers.run("busybox", ["true"], options)
    engine.containers.remove(taken.id)
    failures: tuple[tuple[object, str, BaseException], ...] = (
        (engine.driver(), "prepare", OSError(28, "full")),
        (engine.store.metadata.containers, "add", KeyboardInterrupt()),
    )
    for part, where, error in failures:

        def refuse(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(part, where, refuse)
        with pytest.raises(type(error)):
            engine.containers.run("busybox", ["true"], EPHEMERAL)
        monkeypatch.undo()
    assert ended(engine)
    assert processes(str(engine.root)) == []


def test_run_stops_when_the_id_cannot_be_kept(engine: Engine) -> None:
    def refuse(_: object) -> None:
        raise OSError(28, "full")

    for options in (EPHEMERAL, ContainerOptions()):
        with pytest.raises(OSError, match="full"):
            engine.containers.run("busybox", ["true"], options, when_made=refuse)
    [kept] = engine.containers.list(everything=True)
    assert kept.state == "created"
    engine.containers.remove(kept.id)
    assert ended(engine)


def test_run_beside_another_thread(engine: Engine) -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        assert engine.containers.run("busybox", ["sh", "-c", "exit 2"], EPHEMERAL)[1] == 2
    finally:
        stop.set()
        other.join()
    assert ended(engine)


def list_children() -> set[str]:
    """List this process's children, those that have ended and were not asked for among them."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


def test_no_process_stays_a_zombie_of_the_caller(engine: Engine) -> None:
    before = list_children()  # other tests may have left theirs
    for _ in range(3):
        assert engine.containers.run("busybox", ["true"], EPHEMERAL)[1] == 0
    engine.close()
    assert list_children() <= before


def test_detached_run_leaves_by_itself(engine: Engine) -> None:
    container, code = engine.containers.run("busybox", ["sh", "-c", "sleep 0.2"], EPHEMERAL, detach=True)
    assert code is None
    assert engine.containers.get(container.id).running
    await_true(lambda: not (engine.root / "containers" / container.id).exists())
