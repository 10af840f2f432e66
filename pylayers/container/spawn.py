"""Start a container's monitor as a process of its own: by a fork, or as a program where a fork is not safe."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import os
import sys

import pylayers
from pylayers.container import grace
from pylayers.container.record import ContainerSpec
from pylayers.errors import translate_os_error
from pylayers.thread import is_alone

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without the enums around it

DESCRIPTORS = 1 << 20

_forks = itertools.count()
_leaving: list[int] = []  # children that have done their work, or are about to fork and leave; to be asked for


def reap_monitor(child: int) -> None:
    """Ask for a monitor that has closed its reports, and for earlier ones, without waiting for their last moment."""
    _leaving.append(child)
    reap_monitors(wait=False)


def reap_monitors(*, wait: bool = True) -> None:
    """Ask for the monitors that were not gone when they had done their work."""
    for child in tuple(_leaving):
        try:
            gone = os.waitpid(child, 0 if wait else os.WNOHANG)[0] != 0
        except ChildProcessError:  # another thread was faster, or someone asks for all children
            gone = True
        if gone:
            with contextlib.suppress(ValueError):
                _leaving.remove(child)


def spawn_monitor(
    directory: str, spec: ContainerSpec, lock_fd: int, client: tuple[int, int, int], *, stays: bool
) -> tuple[int, int]:
    """Start the monitor, and return the read end of its reports and its pid where it is our child, else 0.

    client: the caller's 0, 1 and 2, -1 for none. stays: we wait for its end, so it may be our child, which
    saves a fork.
    """
    child = 0
    read_end, write_end = os.pipe()
    copies: list[int] = []
    try:
        copies += duplicate(client)
        if is_alone():
            child = fork_monitor(directory, spec, write_end, lock_fd, copies, leave=not stays)
        else:  # a fork would copy locks that other threads hold
            _execute_monitor(directory, write_end, lock_fd, copies)
    except OSError as error:
        os.close(read_end)
        raise translate_os_error(error, "start the container's monitor") from error
    finally:
        close_all((write_end, *copies))
    return read_end, child


def attached_streams(client: tuple[int, int, int], spec: ContainerSpec, attach: bool) -> tuple[int, int, int]:
    """Return those of the caller's 0, 1 and 2 that the monitor gets, -1 for the others."""
    stdin_fd, stdout_fd, stderr_fd = client
    return (stdin_fd if attach and spec.interactive else -1, *((stdout_fd, stderr_fd) if attach else (-1, -1)))


def duplicate(client: tuple[int, int, int]) -> list[int]:
    """Return copies of descriptors that are out of the way of 0 to 2, which are the monitor's own; -1 stays."""
    return [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3) if one >= 0 else -1 for one in client]


def close_all(descriptors: tuple[int, ...]) -> None:
    """Close descriptors, -1 being none."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _execute_monitor(directory: str, write_end: int, lock_fd: int, copies: list[int]) -> None:
    import subprocess

    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(pylayers.__file__))
    # -S: the monitor needs the standard library and this package only, and starts in half the time.
    command = [sys.executable, "-S", "-m", "pylayers.container.monitor", os.path.abspath(directory)]
    with open(f"{directory}/monitor.log", "wb") as log:
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


def fork_monitor(
    directory: str,
    spec: ContainerSpec,
    write_end: int,
    lock_fd: int,
    copies: list[int],
    *,
    leave: bool,
    orders_fd: int = -1,
) -> int:
    """Fork the monitor: a third of the time that a new interpreter takes.

    leave makes it a grandchild, and 0 is returned; else its pid, for the caller to wait for (reap_monitor). orders_fd:
    spec isn't all yet, the rest comes there.
    """
    if next(_forks):  # and so may do it again: from now on monitors have from the start what they load
        load_monitor(spec)
    descriptors = (write_end, lock_fd, (copies[0], copies[1], copies[2]))
    log_fd = os.open(f"{directory}/monitor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()  # first: a terminal's signals are not for both
                _leave_caller(log_fd, {write_end, lock_fd, orders_fd, *copies})
                if spec.runtime_limits and not leave:  # else behind that fork, which no thread outlives
                    grace.begin()
                from pylayers.container import monitor

                status = monitor.watch(os.path.abspath(directory), spec, *descriptors, leave=leave, orders_fd=orders_fd)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                # The caller learns by its pipe that all is done; the end of a process takes a millisecond more.
                os.closerange(0, DESCRIPTORS)
                os._exit(status)
        if not leave:
            return child
        reap_monitor(child)
        return 0
    finally:
        os.close(log_fd)


def load_monitor(spec: ContainerSpec) -> None:
    """Load what a monitor uses: its modules, and the rules of the seccomp profile. Raises NotFound, InvalidInput."""
    from pylayers.container import monitor  # noqa: F401
    from pylayers.container.spec import load_rules

    load_rules(spec.isolation, cgroup_limits=spec.runtime_limits)


def _leave_caller(log_fd: int, kept: set[int]) -> None:
    """Give up everything of the process that was forked from: directory, descriptors, signal handlers.

    Its objects stay unused until the end: collecting them would close descriptors whose numbers are others' by now.
    """
    gc.disable()
    gc.freeze()
    os.chdir("/")
    for number in range(1, signal.NSIG):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    low = 3
    for descriptor in (*sorted(descriptor for descriptor in kept if descriptor >= 3), DESCRIPTORS):
        os.closerange(low, descriptor)
        low = descriptor + 1
    # What the process had buffered is its own to write.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
