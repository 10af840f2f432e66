"""Let the runtime start a container, and take hold of its process and streams; used by the monitor alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence

from pylayers.container.apart import Apart
from pylayers.container.bundle import CONFIG, encode_config, minimal_environment, runtime_error, write_config
from pylayers.container.feed import Feed, make_feed
from pylayers.container.filter import FILTERS, KeptFilter, find_filter
from pylayers.container.isolation import ContainerMount
from pylayers.container.network import write_network_files
from pylayers.container.notice import Notice
from pylayers.container.record import ContainerSpec
from pylayers.errors import ContainerError
from pylayers.jsontext import load
from pylayers.record import field, record
from pylayers.store.file import read_text, remove_file, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from _typeshed import StrPath
else:
    import _signal as signal  # without the enums around it

BUBBLEWRAP = "bwrap"
# Runtimes that take milliseconds until they read their configuration, begun before there is one.
SLOW_TO_START = ("crun", "runc")
IMPATIENT = ("runc",)  # was seen to lose milliseconds when it waits for more than some
FEED_POLL_MS = 1
LOOK_MS = 100  # for the pid file, beside being told: some file systems may tell nothing
DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


@record(frozen=False)
class Launched:
    """Hold a started container: `pid` is its first process, `waited_pid` the child whose status is its status.

    `first_pidfd` is the first process's where that is another, -1 where it isn't or has gone already.
    """

    pid: int
    waited_pid: int
    pidfd: int
    first_pidfd: int = -1
    streams: dict[int, str] = field(default_factory=dict)
    terminal: int | None = None
    kept: tuple[int, ...] = ()  # open for the container's life: the other end of a detached stdin

    def resize(self, client_fd: int) -> None:
        """Give the container's terminal the caller's size."""
        if self.terminal is not None and client_fd >= 0:
            from pylayers.container.terminal import copy_size

            copy_size(client_fd, self.terminal)

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor in {*self.streams, self.pidfd, self.first_pidfd, *self.kept} - {-1}:
            os.close(descriptor)


class Launch:
    """One start of a container: `prepare`, `begin`, `configure`, `complete` once nothing is missing, else `abandon`.

    The container's directory is there from the start, the root file system is mounted at bundle/rootfs before
    configure. attached: the runtime may stay as the container's parent, which saves its second call, to delete the
    container.
    """

    def __init__(self, directory: str, spec: ContainerSpec, client_in: int, *, attached: bool) -> None:
        self._directory = directory
        self._bundle = f"{directory}/bundle"
        self._spec = spec
        self._client_in = client_in
        self._stays = attached and not spec.interactive and not spec.process.terminal
        self._config: dict[str, Any] = {}
        self._files: list[ContainerMount] = []
        self._feed: Feed | None = None
        self._filter: KeptFilter | None = None
        self._apart: Apart | None = None
        self._streams = _Streams()
        self._runtime_pid = 0

    @property
    def is_impatient(self) -> bool:
        """Tell whether the runtime is the slower the longer it has waited."""
        return self._spec.runtime_name in IMPATIENT

    def prepare(self) -> None:
        """Clear away an earlier start, and do what takes neither the runtime nor the image.

        spec may lack what only the configuration takes, here and for begin. Raises ContainerError, OSError.
        """
        self._place()  # it takes the time of the rest
        for left in (f"{self._directory}/runtime.log", f"{self._bundle}/pid"):
            remove_file(left, durable=False)
        with contextlib.suppress(OSError):
            remove_tree(f"{self._directory}/runtime")
        self._files = write_network_files(self._directory, self._spec.isolation, _hostname(self._spec))

    def begin(self) -> None:
        """Start a runtime that is slow to: it waits for its configuration. Raises ContainerError, OSError."""
        if self._spec.runtime_name in SLOW_TO_START and not self._spec.process.terminal:
            self._feed = make_feed(self._bundle)
            if self._feed is not None:
                self._spawn()
        from pylayers.container.spec import load_rules  # in the time that it takes to start

        self._find_filter(load_rules(self._spec.isolation, cgroup_limits=self._spec.runtime_limits))

    def configure(self, spec: ContainerSpec) -> None:
        """Make the configuration. Raises ContainerError, InvalidInput, NotFound, OSError."""
        self._spec = spec
        if self._apart is not None:
            self._apart.show_rootfs()
        taken = [mount.target for mount in spec.mounts]
        files = [file for file in self._files if file.target not in taken]
        self._config = make_config(self._bundle, spec, [*files, *spec.mounts])
        rules = self._config["linux"].get("seccomp")
        if self._filter is None or self._filter.rules is not rules:
            self._find_filter(rules)
        if self._filter is not None:
            self._filter.lend(self._config)
        if self._feed is not None:
            self._feed.prepare(encode_config(self._config))

    def _find_filter(self, rules: dict[str, Any] | None) -> None:
        filters = f"{_root_of(self._directory)}/{FILTERS}"
        self._filter = find_filter(filters, self._spec.runtime_name, self._spec.runtime[0], rules)

    def complete(self) -> Launched:
        """Let the container start. Raises ContainerError with the runtime's words and docker's exit code, Unsupported.

        Nothing of it is left on failure.
        """
        try:
            if self._spec.process.terminal:
                return _launch_terminal(self._directory, self._spec, self._config, self._client_in)
            if self._spec.runtime_name == BUBBLEWRAP:
                write_config(self._bundle, encode_config(self._config))
                standard = self._streams.open(self._spec, self._client_in)
                launched = _start_bubblewrap(self._directory, self._spec, self._config, standard, controlling=False)
                return self._streams.give(launched)
            if self._feed is not None:
                self._feed.give()
            else:
                write_config(self._bundle, encode_config(self._config))
                self._spawn()
            runtime_pid, self._runtime_pid = self._runtime_pid, 0
            launched = _take(self._directory, self._spec, runtime_pid, self._stays, self._feed)
            if self._filter is not None and not self._filter.is_kept:
                self._filter.keep(f"{self._directory}/runtime/{self._spec.id}")
            return self._streams.give(launched)
        finally:
            self._streams.close()
            self._end()

    def _end(self) -> None:
        if self._feed is not None:
            self._feed.close()
        if self._apart is not None:
            self._apart.close()

    def _place(self) -> Apart:
        if self._apart is None:
            self._apart = make_apart(self._directory, self._spec)
        return self._apart

    def _spawn(self) -> None:
        standard = self._streams.open(self._spec, self._client_in)
        command = runtime_command(self._directory, self._spec, detach=not self._stays)
        self._runtime_pid = self._place().call(lambda: spawn(command, standard))
        self._streams.close_given()

    def abandon(self) -> None:
        """End a runtime that waits for its configuration: the container is not to be."""
        if self._runtime_pid:
            os.kill(self._runtime_pid, signal.SIGKILL)
            os.waitpid(self._runtime_pid, 0)
            self._runtime_pid = 0
            delete_from_runtime(self._directory, self._spec)
        self._streams.close()
        self._end()
        if self._feed is not None:
            remove_file(f"{self._bundle}/{CONFIG}", durable=False)


class _Streams:
    """The pipes of a container without a terminal: the ends that it is given, and ours."""

    def __init__(self) -> None:
        self._given: list[int] = []
        self._outputs: dict[int, str] = {}
        self._kept: tuple[int, ...] = ()

    def open(self, spec: ContainerSpec, client_in: int) -> tuple[int, int, int]:
        """Return descriptors for the container's 0, 1 and 2."""
        stdin = client_in
        if not spec.interactive:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._given.append(stdin)
        elif client_in < 0:  # detached with -i: open, and silent
            stdin, write_end = os.pipe()
            self._given.append(stdin)
            self._kept = (write_end,)
        writers = []
        for stream in ("stdout", "stderr"):
            read_end, write_end = os.pipe()
            self._outputs[read_end] = stream
            self._given.append(write_end)
            writers.append(write_end)
        return stdin, writers[0], writers[1]

    def give(self, launched: Launched) -> Launched:
        """Hand our ends over."""
        launched.streams, self._outputs = self._outputs, {}
        launched.kept, self._kept = self._kept, ()
        return launched

    def close_given(self) -> None:
        """Close the ends that the container has by now."""
        while self._given:
            os.close(self._given.pop())

    def close(self) -> None:
        """Close what is still here."""
        self.close_given()
        for descriptor in (*self._outputs, *self._kept):
            os.close(descriptor)
        self._outputs, self._kept = {}, ()


def runtime_call(directory: StrPath, spec: ContainerSpec) -> list[str]:
    """Return the start of a runtime's command line; its state lies in the container's own directory."""
    log = f"{directory}/runtime.log"
    return [*spec.runtime, "--root", f"{directory}/runtime", "--log", log, "--log-format", "json"]


def runtime_command(directory: str, spec: ContainerSpec, *, detach: bool, console: str | None = None) -> list[str]:
    """Return the command line that runs a container."""
    command = [*runtime_call(directory, spec), "run", *(["--detach"] if detach else [])]
    command += ["--bundle", f"{directory}/bundle", "--pid-file", f"{directory}/bundle/pid"]
    return [*command, *(["--console-socket", console] if console else []), spec.id]


def _root_of(directory: StrPath) -> str:
    return os.path.dirname(os.path.dirname(directory))


def _hostname(spec: ContainerSpec) -> str:
    return spec.isolation.hostname or spec.id[:12]


def make_config(bundle: str, spec: ContainerSpec, mounts: Sequence[ContainerMount]) -> dict[str, Any]:
    """Return a container's config.json."""
    from pylayers.container.spec import build_config

    root_fd = os.open(f"{bundle}/rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        config = build_config(
            spec.process,
            spec.isolation,
            mounts,
            root_fd=root_fd,
            container_id=spec.id,
            cgroup_limits=spec.runtime_limits,
        )
    finally:
        os.close(root_fd)
    settings = config["process"]["env"]
    if not any(setting.startswith("HOSTNAME=") for setting in settings):
        settings.append(f"HOSTNAME={_hostname(spec)}")
    return config


def _launch_terminal(directory: str, spec: ContainerSpec, config: dict[str, Any], client_in: int) -> Launched:
    from pylayers.container.terminal import ConsoleSocket, copy_size, size

    if client_in >= 0 and (rows_columns := size(client_in)):
        # From the start: a program may ask before the terminal has come to us.
        config["process"]["consoleSize"] = {"height": rows_columns[0], "width": rows_columns[1]}
    write_config(f"{directory}/bundle", encode_config(config))
    if spec.runtime_name == BUBBLEWRAP:
        master, slave = os.openpty()
        if client_in >= 0:
            copy_size(client_in, master)
        try:
            launched = _start_bubblewrap(directory, spec, config, (slave, slave, slave), controlling=True)
        finally:
            os.close(slave)
    else:
        console = ConsoleSocket(f"{directory}/bundle")
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            command = runtime_command(directory, spec, detach=True, console=console.path)
            runtime_pid = spawn_runtime(command, (nothing, nothing, nothing), directory, spec)
            launched = _take(directory, spec, runtime_pid, False, None)
            master = console.receive()
        finally:
            os.close(nothing)
            console.close()
    launched.terminal = master
    launched.resize(client_in)
    launched.streams = {master: "stdout"}
    return launched


def _take(directory: str, spec: ContainerSpec, runtime_pid: int, stays: bool, feed: Feed | None) -> Launched:
    """Wait for a runtime to start its container. Raises ContainerError."""
    pid_file = f"{directory}/bundle/pid"
    found = _await_pid(runtime_pid, pid_file, feed) if stays or feed is not None else None
    if stays and found is not None:
        return Launched(found, runtime_pid, os.pidfd_open(runtime_pid), _open_process(found))
    _, status = os.waitpid(runtime_pid, 0)
    if status != 0 or not os.path.exists(pid_file):
        error = runtime_error(f"{directory}/runtime.log", spec.process.arguments[0])
        delete_from_runtime(directory, spec)
        code = os.waitstatus_to_exitcode(status)
        raise error or ContainerError(f"{spec.runtime_name} failed with status {code} and gave no reason")
    pid = int(read_text(pid_file))
    return Launched(pid, pid, os.pidfd_open(pid))


def _await_pid(runtime_pid: int, pid_file: str, feed: Feed | None) -> int | None:
    """Wait until a runtime has written the container's pid; None when it ends without one."""
    descriptor = os.pidfd_open(runtime_pid)
    try:
        with Notice(os.path.dirname(pid_file), descriptor) as notice:
            ended = False
            while True:
                with contextlib.suppress(FileNotFoundError):
                    if content := read_text(pid_file):
                        return int(content)
                if ended:
                    return None
                ended = notice.wait(LOOK_MS if feed is None or feed.advance() else FEED_POLL_MS)
    finally:
        os.close(descriptor)


def _open_process(pid: int) -> int:
    """Return a pidfd of another's child, -1 where it has gone; by a reused pid we only learn nothing."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _start_bubblewrap(
    directory: str, spec: ContainerSpec, config: dict[str, Any], standard: tuple[int, int, int], *, controlling: bool
) -> Launched:
    from pylayers.container.bubblewrap import bubblewrap_arguments

    info_read, info_write = os.pipe()
    os.set_inheritable(info_write, True)
    try:
        arguments = bubblewrap_arguments(config, f"{directory}/bundle/rootfs", info_fd=info_write)
        waited = spawn([*spec.runtime, *arguments], standard, controlling=controlling)
    finally:
        os.close(info_write)
    with open(info_read, "rb") as info:
        content = info.read(4096)
    try:
        pid = int(load(content)["child-pid"])
    except (ValueError, KeyError):
        os.waitpid(waited, 0)
        raise ContainerError("bubblewrap could not start the container") from None
    return Launched(pid, waited, os.pidfd_open(waited))


def spawn_runtime(command: list[str], standard: tuple[int, int, int], directory: StrPath, spec: ContainerSpec) -> int:
    """Start a container's runtime with these standard streams and return its pid."""
    with make_apart(directory, spec) as apart:
        return apart.call(lambda: spawn(command, standard))


def make_apart(directory: StrPath, spec: ContainerSpec) -> Apart:
    """Return the place where a container's runtime is to be started."""
    return Apart(spec.runtime_hides, f"{directory}/bundle", _root_of(directory))


def spawn(command: list[str], standard: tuple[int, int, int], *, controlling: bool = False) -> int:
    """Start a program with these standard streams and return its pid; for this single-threaded process only.

    controlling: the first of them becomes its controlling terminal.
    """
    if not controlling:
        # A twentieth of the time: no page tables are copied. Sources go out of the way of 0 to 2 first.
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) for descriptor in standard]
        actions = [(os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies)]
        try:
            return os.posix_spawnp(
                command[0], command, minimal_environment(), file_actions=actions, setsigdef=DEFAULT_SIGNALS
            )
        except OSError as error:
            raise ContainerError(f"{command[0]}: {error.strerror}", exit_code=125) from error
        finally:
            for copy in copies:
                os.close(copy)
    pid = os.fork()
    if pid:
        return pid
    try:
        import termios

        for caught in DEFAULT_SIGNALS:
            signal.signal(caught, signal.SIG_DFL)
        copies = [os.dup(descriptor) for descriptor in standard]
        for number, copy in enumerate(copies):
            os.dup2(copy, number)
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execvpe(command[0], command, minimal_environment())  # noqa: S606
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def delete_from_runtime(directory: StrPath, spec: ContainerSpec) -> None:
    """Let the runtime forget a container that has ended, and remove what is left of the runtime's state."""
    forget_in_runtime(directory, spec)
    with contextlib.suppress(OSError):
        remove_tree(f"{directory}/runtime")


def forget_in_runtime(directory: StrPath, spec: ContainerSpec) -> None:
    """Let the runtime forget a container that has ended (its cgroups with it)."""
    if spec.runtime_name != BUBBLEWRAP and os.path.exists(f"{directory}/runtime/{spec.id}"):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            command = [*runtime_call(directory, spec), "delete", "--force", spec.id]
            os.waitpid(spawn_runtime(command, (nothing, nothing, nothing), directory, spec), 0)
        finally:
            os.close(nothing)
