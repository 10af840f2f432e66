"""Let the runtime start a container, and take hold of its process and streams; used by the monitor alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
from pathlib import Path

from pylayers.container.bundle import minimal_environment, runtime_error, write_config
from pylayers.container.network import write_network_files
from pylayers.container.record import ContainerSpec
from pylayers.container.spec import build_config
from pylayers.errors import ContainerError
from pylayers.record import field, record
from pylayers.store.file import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUBBLEWRAP = "bwrap"
PID_POLL_MS = 1
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


def runtime_call(directory: Path, spec: ContainerSpec) -> list[str]:
    """Return the start of a runtime's command line; its state lies in the container's own directory."""
    log = str(directory / "runtime.log")
    return [*spec.runtime, "--root", str(directory / "runtime"), "--log", log, "--log-format", "json"]


def launch(directory: Path, spec: ContainerSpec, client_in: int, *, attached: bool = False) -> Launched:
    """Write the bundle and start it. The root file system is mounted at bundle/rootfs.

    attached: the runtime may stay as the container's parent, which saves its second call, to delete the container.
    Raises ContainerError with the runtime's words and docker's exit code, Unsupported, InvalidInput, OSError.
    """
    (directory / "runtime.log").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        remove_tree(directory / "runtime")
    config = _write_bundle(directory, spec)
    if spec.process.terminal:
        return _launch_terminal(directory, spec, config, client_in)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    stdin, kept = _standard_input(spec, client_in)
    try:
        stays = attached and not spec.interactive
        launched = _start(directory, spec, config, (stdin, out_write, err_write), None, stays=stays)
    except BaseException:
        for descriptor in (out_read, err_read, *kept):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (out_write, err_write) if stdin == client_in else (out_write, err_write, stdin):
            os.close(descriptor)
    launched.streams = {out_read: "stdout", err_read: "stderr"}
    launched.kept = kept
    return launched


def _standard_input(spec: ContainerSpec, client_in: int) -> tuple[int, tuple[int, ...]]:
    if spec.interactive and client_in >= 0:
        return client_in, ()
    if spec.interactive:  # detached with -i: open, and silent
        read_end, write_end = os.pipe()
        return read_end, (write_end,)
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), ()


def _write_bundle(directory: Path, spec: ContainerSpec) -> dict[str, Any]:
    bundle = directory / "bundle"
    hostname = spec.isolation.hostname or spec.id[:12]
    taken = [mount.target for mount in spec.mounts]
    mounts = [*write_network_files(directory, spec.isolation, hostname, taken), *spec.mounts]
    root_fd = os.open(bundle / "rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
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
        settings.append(f"HOSTNAME={hostname}")
    write_config(bundle, config)
    return config


def _launch_terminal(directory: Path, spec: ContainerSpec, config: dict[str, Any], client_in: int) -> Launched:
    from pylayers.container.terminal import ConsoleSocket, copy_size, size

    if client_in >= 0 and (rows_columns := size(client_in)):
        # From the start: a program may ask before the terminal has come to us.
        config["process"]["consoleSize"] = {"height": rows_columns[0], "width": rows_columns[1]}
        write_config(directory / "bundle", config)
    if spec.runtime_name == BUBBLEWRAP:
        master, slave = os.openpty()
        if client_in >= 0:
            copy_size(client_in, master)
        try:
            launched = _start(directory, spec, config, (slave, slave, slave), None, controlling=True)
        finally:
            os.close(slave)
    else:
        console = ConsoleSocket(str(directory / "bundle"))
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            launched = _start(directory, spec, config, (nothing, nothing, nothing), console.path)
            master = console.receive()
        finally:
            os.close(nothing)
            console.close()
    launched.terminal = master
    launched.resize(client_in)
    launched.streams = {master: "stdout"}
    return launched


def _start(
    directory: Path,
    spec: ContainerSpec,
    config: dict[str, Any],
    standard: tuple[int, int, int],
    console: str | None,
    *,
    controlling: bool = False,
    stays: bool = False,
) -> Launched:
    if spec.runtime_name == BUBBLEWRAP:
        return _start_bubblewrap(directory, spec, config, standard, controlling=controlling)
    pid_file = directory / "bundle" / "pid"
    pid_file.unlink(missing_ok=True)
    command = [*runtime_call(directory, spec), "run", *([] if stays else ["--detach"])]
    command += ["--bundle", str(directory / "bundle"), "--pid-file", str(pid_file)]
    command += [*(["--console-socket", console] if console else []), spec.id]
    runtime_pid = spawn(command, standard)
    if stays:
        found = _await_pid(runtime_pid, pid_file)
        if found is not None:
            return Launched(found, runtime_pid, os.pidfd_open(runtime_pid), _open_process(found))
    _, status = os.waitpid(runtime_pid, 0)
    if status != 0 or not pid_file.exists():
        error = runtime_error(directory / "runtime.log", spec.process.arguments[0])
        delete_from_runtime(directory, spec)
        code = os.waitstatus_to_exitcode(status)
        raise error or ContainerError(f"{spec.runtime_name} failed with status {code} and gave no reason")
    pid = int(pid_file.read_text())
    return Launched(pid, pid, os.pidfd_open(pid))


def _await_pid(runtime_pid: int, pid_file: Path) -> int | None:
    """Wait until a runtime has written the container's pid; None when it ends without one."""
    descriptor = os.pidfd_open(runtime_pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            ended = bool(poll.poll(PID_POLL_MS))
            with contextlib.suppress(FileNotFoundError):
                if content := pid_file.read_text():
                    return int(content)
            if ended:
                return None
    finally:
        os.close(descriptor)


def _open_process(pid: int) -> int:
    """Return a pidfd of another's child, -1 where it has gone; by a reused pid we only learn nothing."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _start_bubblewrap(
    directory: Path, spec: ContainerSpec, config: dict[str, Any], standard: tuple[int, int, int], *, controlling: bool
) -> Launched:
    from pylayers.container.bubblewrap import bubblewrap_arguments

    info_read, info_write = os.pipe()
    os.set_inheritable(info_write, True)
    try:
        arguments = bubblewrap_arguments(config, directory / "bundle" / "rootfs", info_fd=info_write)
        waited = spawn([*spec.runtime, *arguments], standard, controlling=controlling)
    finally:
        os.close(info_write)
    with open(info_read, "rb") as info:
        content = info.read(4096)
    try:
        pid = int(json.loads(content)["child-pid"])
    except (ValueError, KeyError):
        os.waitpid(waited, 0)
        raise ContainerError("bubblewrap could not start the container") from None
    return Launched(pid, waited, os.pidfd_open(waited))


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


def delete_from_runtime(directory: Path, spec: ContainerSpec) -> None:
    """Let the runtime forget a container that has ended (its cgroups with it)."""
    if spec.runtime_name != BUBBLEWRAP and (directory / "runtime" / spec.id).exists():
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            command = [*runtime_call(directory, spec), "delete", "--force", spec.id]
            os.waitpid(spawn(command, (nothing, nothing, nothing)), 0)
        finally:
            os.close(nothing)
    with contextlib.suppress(OSError):
        remove_tree(directory / "runtime")
