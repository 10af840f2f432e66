"""Start a container: spawn its monitor, and stay for its end when attached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from pylayers.container.ahead import Ahead
from pylayers.container.record import RUNNING, ContainerSpec, load_spec, load_state, locked, recorded_state
from pylayers.container.spawn import attached_streams, reap_monitor, spawn_monitor
from pylayers.container.stop import send_signal
from pylayers.errors import Conflict, ContainerError, NotFound
from pylayers.jsontext import load
from pylayers.thread import is_main

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # without the enums around it

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def start(
    directory: str,
    *,
    attach: bool = False,
    stdin_fd: int = 0,
    stdout_fd: int = 1,
    stderr_fd: int = 2,
    when_over: Callable[[], None] | None = None,
    ahead: Ahead | None = None,
) -> int | None:
    """Start a created or ended container; a running one is left as it is. Returns once it runs.

    attach=True passes its output (and with an interactive spec its input) and returns its exit code; signals that this
    process gets meanwhile go to the container. when_over is called when such a one has ended and is unmounted, beside
    the runtime, which removes its cgroups, and the monitor, which removes the directory of a --rm container. ahead is
    its monitor where that was begun while it was made. Raises ContainerError (125, 126, 127), NotFound, Conflict.
    """
    begun = _begin(directory, attach, (stdin_fd, stdout_fd, stderr_fd)) if ahead is None or not ahead.begun else ahead
    if begun is None:
        return None
    # Handlers first: the container can say that it is ready before we have read that it was started.
    with _forwarding(directory) if attach else contextlib.nullcontext():
        spec, status_fd, child = begun.go() if isinstance(begun, Ahead) else begun
        reports = _Reports(status_fd)
        try:
            first = _check_started(directory, spec, reports.next(), reports)
            if not attach:
                return None
            with _client_terminal(stdin_fd, spec.interactive and spec.process.terminal, first):
                return _await_end(reports, spec, first, when_over)
        finally:
            os.close(status_fd)
            if child and reports.ended:
                reap_monitor(child)


def _begin(directory: str, attach: bool, client: tuple[int, int, int]) -> tuple[ContainerSpec, int, int] | None:
    """Start the monitor; return the spec, the monitor's reports and its pid. None for a container that runs."""
    from pylayers.container.remove import clean_leftovers

    spec = load_spec(directory)
    with locked(directory) as lock_fd:
        if load_state(directory).status == RUNNING:
            if attach:
                raise Conflict(
                    f"container {spec.name or spec.id[:12]} is already running", hint="pylayers logs --follow"
                )
            return None
        clean_leftovers(directory, spec)
        return spec, *spawn_monitor(directory, spec, lock_fd, attached_streams(client, spec, attach), stays=attach)


def _await_end(
    reports: _Reports, spec: ContainerSpec, first: dict[str, Any], when_over: Callable[[], None] | None
) -> int:
    ended = reports.next() if "started" in first else first
    over = ended is not None and "over" in ended
    if over:
        if when_over is not None:
            when_over()
        ended = reports.next()
    if ended is None or "exit" not in ended:
        raise _killed(spec)
    if not over and when_over is not None:
        when_over()
    reports.next()  # until it has left
    return int(ended["exit"])


def _killed(spec: ContainerSpec) -> ContainerError:
    return ContainerError(
        f"the monitor of container {spec.id[:12]} was killed", hint=f"pylayers inspect {spec.id[:12]}"
    )


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
        report: dict[str, Any] = load(line)
        return report


def _check_started(
    directory: str, spec: ContainerSpec, report: dict[str, Any] | None, reports: _Reports
) -> dict[str, Any]:
    """Return the monitor's first report, unless that is of a failure."""
    if report is None:
        with contextlib.suppress(NotFound):
            if recorded_state(directory).status == RUNNING:
                raise _killed(spec)
        try:
            with open(f"{directory}/monitor.log", errors="replace") as log:
                reason = log.read().strip().rpartition("\n")[2]
        except OSError:
            reason = ""
        raise ContainerError(f"the container's monitor ended before it started anything: {reason or 'no reason given'}")
    if "error" in report:
        reports.next()  # until it has left, as it may be our child
        raise ContainerError(report["error"], hint=report.get("hint"), exit_code=int(report["exit_code"]))
    return report


@contextlib.contextmanager
def _client_terminal(stdin_fd: int, wanted: bool, started: dict[str, Any]) -> Iterator[None]:
    if not wanted or not os.isatty(stdin_fd):
        yield
        return
    monitor_pid = int(started["monitor"])
    from pylayers.container.terminal import raw

    def resized(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(monitor_pid, signal.SIGWINCH)

    with raw(stdin_fd), _handling({signal.SIGWINCH: resized}):
        yield


def _forwarding(directory: str) -> contextlib.AbstractContextManager[None]:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(Conflict, NotFound):  # it ended just now
            send_signal(directory, number)

    return _handling(dict.fromkeys(FORWARDED, forward))


@contextlib.contextmanager
def _handling(handlers: Mapping[int, Callable[[int, Any], None]]) -> Iterator[None]:
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
