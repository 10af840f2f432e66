"""Start a container: spawn its monitor, and stay for its end when attached."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pylayers
from pylayers.container.record import RUNNING, ContainerSpec, load_spec, load_state, locked
from pylayers.container.remove import clean_leftovers
from pylayers.container.stop import send_signal
from pylayers.errors import Conflict, ContainerError, NotFound, translate_os_error
from pylayers.thread import is_alone, is_main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def start(
    directory: Path,
    *,
    attach: bool = False,
    stdin_fd: int = 0,
    stdout_fd: int = 1,
    stderr_fd: int = 2,
    when_over: Callable[[], None] | None = None,
) -> int | None:
    """Start a created or ended container; a running one is left as it is. Returns once it runs.

    attach=True passes its output (and with an interactive spec its input) and returns its exit code; signals that this
    process gets meanwhile go to the container. when_over is called when such a one has ended and is unmounted, beside
    the monitor, which removes the directory of a --rm container. Raises ContainerError (125, 126, 127), NotFound,
    Conflict.
    """
    spec = load_spec(directory)
    with locked(directory) as lock_fd:
        if load_state(directory).status == RUNNING:
            if attach:
                raise Conflict(
                    f"container {spec.name or spec.id[:12]} is already running", hint="pylayers logs --follow"
                )
            return None
        clean_leftovers(directory, spec)
        client = (stdin_fd if attach and spec.interactive else -1, *((stdout_fd, stderr_fd) if attach else (-1, -1)))
        status_fd, child = _spawn_monitor(directory, spec, lock_fd, client, stays=attach)
    reports = _Reports(status_fd)
    try:
        if not attach:
            _check_started(directory, reports)
            return None
        # Handlers first: the container can say that it is ready before we have read that it was started.
        with _forwarding(directory):
            monitor_pid = _check_started(directory, reports)
            with _client_terminal(stdin_fd, spec.interactive and spec.process.terminal, monitor_pid):
                ended = reports.next()
                if ended is None or "exit" not in ended:
                    raise ContainerError(
                        f"the monitor of container {spec.id[:12]} was killed", hint=f"pylayers inspect {spec.id[:12]}"
                    )
                if when_over is not None:
                    when_over()
                reports.next()  # until it has left
    finally:
        os.close(status_fd)
        if child and reports.ended:
            os.waitpid(child, 0)
    return int(ended["exit"])


def _spawn_monitor(
    directory: Path, spec: ContainerSpec, lock_fd: int, client: tuple[int, ...], *, stays: bool
) -> tuple[int, int]:
    """Start the monitor, and return the read end of its reports and its pid where it is our child, else 0.

    stays: we wait for its end, so it may be our child, which saves a fork.
    """
    child = 0
    read_end, write_end = os.pipe()
    copies: list[int] = []
    try:
        # The monitor has its own 0, 1 and 2.
        for descriptor in client:
            copies.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) if descriptor >= 0 else -1)
        if is_alone():
            child = _fork_monitor(directory, spec, write_end, lock_fd, copies, leave=not stays)
        else:  # a fork would copy locks that other threads hold
            _execute_monitor(directory, write_end, lock_fd, copies)
    except OSError as error:
        os.close(read_end)
        raise translate_os_error(error, "start the container's monitor") from error
    finally:
        for descriptor in (write_end, *(copy for copy in copies if copy >= 0)):
            os.close(descriptor)
    return read_end, child


def _execute_monitor(directory: Path, write_end: int, lock_fd: int, copies: list[int]) -> None:
    import subprocess

    environment = dict(os.environ)
    environment["PYTHONPATH"] = str(Path(pylayers.__file__).parent.parent)
    # -S: the monitor needs the standard library and this package only, and starts in half the time.
    command = [sys.executable, "-S", "-m", "pylayers.container.monitor", str(directory.absolute())]
    with (directory / "monitor.log").open("wb") as log:
        child = subprocess.Popen(
            [*command, str(write_end), str(lock_fd), *map(str, copies)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write_end, lock_fd, *(copy for copy in copies if copy >= 0)],
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    child.wait()  # it forks at once and leaves


def _fork_monitor(
    directory: Path, spec: ContainerSpec, write_end: int, lock_fd: int, copies: list[int], *, leave: bool
) -> int:
    """Fork the monitor: a third of the time that a new interpreter takes.

    leave makes it a grandchild, and 0 is returned; else its pid, for the caller to wait for.
    """
    # Before the fork, as whoever forks once may do so again: the modules, and what they keep of the seccomp profile.
    from pylayers.container import monitor
    from pylayers.container.spec import load_rules

    load_rules(spec.isolation, cgroup_limits=spec.runtime_limits)
    descriptors = (write_end, lock_fd, (copies[0], copies[1], copies[2]))
    log_fd = os.open(directory / "monitor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _leave_caller(log_fd, {write_end, lock_fd, *copies})
                status = monitor.watch(directory.absolute(), spec, *descriptors, leave=leave)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        if leave:
            os.waitpid(child, 0)
        return 0 if leave else child
    finally:
        os.close(log_fd)


def _leave_caller(log_fd: int, kept: set[int]) -> None:
    """Give up everything of the process that was forked from: session, directory, descriptors, signal handlers.

    Its objects stay unused until the end: collecting them would close descriptors whose numbers are others' by now.
    """
    gc.disable()
    gc.freeze()
    os.setsid()
    os.chdir("/")
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    low = 3
    for descriptor in (*sorted(descriptor for descriptor in kept if descriptor >= 3), 1 << 20):
        os.closerange(low, descriptor)
        low = descriptor + 1
    # What the process had buffered is its own to write.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115


class _Reports:
    """Read the monitor's JSON lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self.ended = False  # the monitor has gone

    def next(self) -> dict[str, Any] | None:
        """Wait for the next line; None when the monitor is gone."""
        while b"\n" not in self._buffer:
            content = os.read(self._descriptor, 4096)
            if not content:
                self.ended = True
                return None
            self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        return report


def _check_started(directory: Path, reports: _Reports) -> int:
    report = reports.next()
    if report is None:
        try:
            reason = (directory / "monitor.log").read_text(errors="replace").strip().rpartition("\n")[2]
        except OSError:
            reason = ""
        raise ContainerError(f"the container's monitor ended before it started anything: {reason or 'no reason given'}")
    if "error" in report:
        reports.next()  # until it has left, as it may be our child
        raise ContainerError(report["error"], hint=report.get("hint"), exit_code=int(report["exit_code"]))
    return int(report["monitor"])


@contextlib.contextmanager
def _client_terminal(stdin_fd: int, wanted: bool, monitor_pid: int) -> Iterator[None]:
    if not wanted or not os.isatty(stdin_fd):
        yield
        return
    from pylayers.container.terminal import raw

    def resized(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(monitor_pid, signal.SIGWINCH)

    with raw(stdin_fd), _handling({signal.SIGWINCH: resized}):
        yield


def _forwarding(directory: Path) -> contextlib.AbstractContextManager[None]:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(Conflict, NotFound):  # it ended just now
            send_signal(directory, signal.Signals(number))

    return _handling(dict.fromkeys(FORWARDED, forward))


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Callable[[int, Any], None]]) -> Iterator[None]:
    """Set signal handlers for a while; only the main thread can, elsewhere nothing is forwarded."""
    if not is_main():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
