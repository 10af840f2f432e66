"""Keep containers on disk: containers/<id>/config.json (what was asked) and state.json (what became of it).

The state is what was last written, checked against the processes that are really there: a machine or monitor that died
never leaves a container "running".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from pylayers.container.isolation import ContainerMount, Device, Isolation, Limit, Process
from pylayers.errors import AlreadyExists, Conflict, IntegrityError, InvalidInput, NotFound, translate_os_error
from pylayers.jsontext import dump, load
from pylayers.record import field, record, replace, to_mapping
from pylayers.snapshot.snapshotter import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import StrPath

CONFIG, STATE, LOG, LOCK, EXIT = "config.json", "state.json", "container.log", "lock", "exit"
RECORD_LIMIT_BYTES = 16 << 20
UNKNOWN_EXIT_CODE = 255  # as docker: nobody was there to see it
CREATED, RUNNING, EXITED, DEAD = "created", "running", "exited", "dead"
NANOSECONDS = 1_000_000_000
RESTARTED = "the machine was restarted while it ran"


@record(kw_only=True)
class ContainerSpec:
    """Describe a container as it was asked for. `rootfs` is mounted at every start; the engine owns its snapshot."""

    id: str
    name: str
    process: Process
    rootfs: tuple[Mount, ...]
    runtime: tuple[str, ...]  # the runtime's command
    runtime_name: str = "runc"
    runtime_limits: bool = True
    runtime_hides: str = ""  # see Runtime
    image: str = ""
    image_digest: str = ""
    snapshot_key: str = ""
    driver: str = ""
    isolation: Isolation = field(default_factory=Isolation)
    mounts: tuple[ContainerMount, ...] = ()
    interactive: bool = False
    stop_signal: str = "SIGTERM"
    stop_timeout_seconds: int = 10
    remove_on_exit: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    anonymous_volumes: tuple[str, ...] = ()
    restart_policy: str = "no"
    storage_options: tuple[tuple[str, str], ...] = ()  # --storage-opt, as given
    size_limit_bytes: int = 0  # of the writable layer; 0: none
    created: str = ""  # RFC 3339


@record(kw_only=True)
class State:
    """Say what became of a container. Times are RFC 3339, ticks are field 22 of /proc/<pid>/stat."""

    status: str = CREATED
    pid: int = 0
    start_ticks: int = 0
    monitor_pid: int = 0
    monitor_start_ticks: int = 0
    boot_id: str = ""
    started: str = ""
    finished: str = ""
    exit_code: int = 0
    error: str = ""


def spec_to_json(spec: ContainerSpec) -> str:
    """Serialise a spec."""
    return dump(to_mapping(spec))


def spec_from_json(content: bytes) -> ContainerSpec:
    """Read a spec back. Raises KeyError, TypeError, ValueError for anything else."""
    values: dict[str, Any] = load(content)
    isolation = dict(values["isolation"])
    isolation["limits"] = tuple(Limit(**one) for one in isolation["limits"])
    isolation["devices"] = tuple(Device(**one) for one in isolation["devices"])
    values["isolation"] = Isolation(**_tuples(isolation))
    values["process"] = Process(**_tuples(values["process"]))
    values["mounts"] = tuple(ContainerMount(**one) for one in values["mounts"])
    values["rootfs"] = tuple(Mount(**_tuples(one)) for one in values["rootfs"])
    for pairs in ("labels", "storage_options"):
        values[pairs] = tuple((name, value) for name, value in values.get(pairs, ()))
    return ContainerSpec(**_tuples(values))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def make_directory(directory: StrPath) -> None:
    """Make the directory of a container to be; without config.json it is none yet. Raises OSError."""
    os.makedirs(f"{directory}/bundle/rootfs", 0o700, exist_ok=True)
    os.close(os.open(f"{directory}/{LOG}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o640))


def check_spec(spec: ContainerSpec) -> ContainerSpec:
    """Return a new container's spec, dated. Raises InvalidInput (restart policies)."""
    if spec.restart_policy not in ("no", ""):
        raise InvalidInput(
            f"restart policy {spec.restart_policy!r}: pylayers has no daemon that could restart containers",
            hint="use --restart no, and let a service manager such as systemd restart it",
        )
    return spec if spec.created else replace(spec, created=timestamp())


def create(directory: StrPath, spec: ContainerSpec) -> ContainerSpec:
    """Write a new container; it isn't started. Return its spec, dated. Crash-safe: config.json is written last.

    One that removes itself isn't flushed: a power cut ends it, and may leave config.json empty.

    Raises AlreadyExists, InvalidInput (restart policies), NoSpace, PermissionDenied.
    """
    spec = check_spec(spec)
    try:
        make_directory(directory)
        if os.path.exists(f"{directory}/{CONFIG}"):
            raise AlreadyExists(f"container {spec.id[:12]} already exists")
        write_state(directory, State())
        write_atomically(f"{directory}/{CONFIG}", spec_to_json(spec), durable=not spec.remove_on_exit)
    except OSError as error:
        raise translate_os_error(error, f"create container {spec.id[:12]}") from error
    return spec


def rewrite(directory: StrPath, spec: ContainerSpec) -> None:
    """Replace a container's spec, durably, in one step; the caller holds its lock."""
    try:
        write_atomically(f"{directory}/{CONFIG}", spec_to_json(spec))
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translate_os_error(error, f"rewrite container {spec.id[:12]}") from error


def load_spec(directory: StrPath) -> ContainerSpec:
    """Read a container's spec. Raises NotFound, IntegrityError."""
    try:
        with open(f"{directory}/{CONFIG}", "rb") as file:
            content = file.read(RECORD_LIMIT_BYTES)
        if not content:  # of a container that was to remove itself, see create: a power cut took it
            raise FileNotFoundError
        return spec_from_json(content)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(directory) from None
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{directory}/{CONFIG} is damaged: {error}") from error


def _missing(directory: StrPath) -> NotFound:
    return NotFound(f"no such container: {os.path.basename(directory)[:12]}", hint="pylayers ps --all")


def recorded_state(directory: StrPath) -> State:
    """Read the state as last written. Raises NotFound, IntegrityError."""
    try:
        with open(f"{directory}/{STATE}", "rb") as file:
            content = file.read(RECORD_LIMIT_BYTES)
        if not content:  # a power cut took what was not flushed yet: see write_state
            return State(status=DEAD, exit_code=UNKNOWN_EXIT_CODE, error=RESTARTED)
        values = load(content)
        known = to_mapping(State())
        return State(**{name: value for name, value in values.items() if name in known})
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(directory) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{directory}/{STATE} is damaged: {error}") from error


def load_state(directory: StrPath) -> State:
    """Read the state and check it: "running" only while the container's first process is really there.

    When its end went unrecorded the status is "exited" with code 255 (docker's), or "dead" after a reboot.
    """
    state = recorded_state(directory)
    for _ in range(200):
        if state.status != RUNNING or is_process(state.pid, state.start_ticks, state.boot_id):
            return state
        if not is_process(state.monitor_pid, state.monitor_start_ticks, state.boot_id):
            # It may have written the end between our two looks.
            state = recorded_state(directory)
            return state if state.status != RUNNING else _unseen(state)
        time.sleep(0.01)  # the monitor is about to write the exit code
        state = recorded_state(directory)
    return _unseen(state)


def _unseen(state: State) -> State:
    if state.boot_id != boot_id():
        return replace(state, status=DEAD, exit_code=UNKNOWN_EXIT_CODE, error=RESTARTED)
    return replace(
        state,
        status=EXITED,
        exit_code=UNKNOWN_EXIT_CODE,
        error="its monitor was killed before it could record the exit status",
    )


def write_state(directory: StrPath, state: State) -> None:
    """Replace state.json atomically, durably once the container has ended.

    That one was made or runs is true for this boot alone: whatever a power cut leaves of it reads as dead.
    """
    write_atomically(f"{directory}/{STATE}", dump(to_mapping(state)), durable=state.status in (EXITED, DEAD))


def write_atomically(path: StrPath, content: str, *, durable: bool = True) -> None:
    """Write a file beside its name, flush it and move it into place."""
    parent, name = os.path.split(path)
    scratch = f"{parent}/.{name}.{os.urandom(6).hex()}"
    try:
        with open(scratch, "x", encoding="utf-8") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


@contextlib.contextmanager
def locked(directory: StrPath) -> Iterator[int]:
    """Hold a container's lock, against another start or removal. Raises NotFound, Conflict after 10 s."""
    try:
        descriptor = os.open(f"{directory}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise _missing(directory) from None
    try:
        for left in range(1000, -1, -1):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    short = os.path.basename(directory)[:12]
                    raise Conflict(f"container {short} is being started or removed by another") from None
                time.sleep(0.01)
        yield descriptor
    finally:
        os.close(descriptor)


def list_containers(parent: StrPath) -> Iterator[tuple[ContainerSpec, State]]:
    """Yield every whole container below a directory, newest first; one that is removed meanwhile is left out."""
    found = []
    try:
        folders = [entry for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for folder in folders:
        with contextlib.suppress(NotFound):
            found.append((load_spec(folder.path), load_state(folder.path)))
    yield from sorted(found, key=lambda one: one[0].created, reverse=True)


def boot_id() -> str:
    """Return this boot's id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int:
    """Return when a process started (clock ticks after boot), 0 when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            values = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if values[0] in (b"Z", b"X") else int(values[19])


def is_process(pid: int, ticks: int, boot: str) -> bool:
    """Tell whether this very process still runs (a reused pid has another start)."""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks and boot == boot_id()


def timestamp(time_ns: int | None = None) -> str:
    """Format a time (default: now) as RFC 3339 with nanoseconds."""
    seconds, rest = divmod(time.time_ns() if time_ns is None else time_ns, NANOSECONDS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"
