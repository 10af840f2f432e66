"""Send signals to a container, stop it, wait for it. Processes are addressed by pidfd, so never a wrong one."""

from __future__ import annotations

import os
import select
import time

from pylayers.container.record import EXIT, RUNNING, State, is_process, load_spec, load_state
from pylayers.errors import Conflict, ContainerError, InvalidInput, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from _typeshed import StrPath
else:
    import _signal as signal  # without the enums around it

KILL_WAIT_SECONDS = 10.0


def parse_signal(given: str) -> int:
    """Read "TERM", "SIGTERM", "15" or "SIGRTMIN+3" as a number. Raises InvalidInput."""
    text = given.strip().upper()
    if text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    from signal import Signals

    name, plus, offset = text.partition("+")
    if not name.startswith("SIG"):
        name = f"SIG{name}"
    try:
        number = int(getattr(Signals, name)) + (int(offset) if plus else 0)
    except (AttributeError, ValueError):
        raise InvalidInput(f"invalid signal: {given}") from None
    if not 0 < number < signal.NSIG:
        raise InvalidInput(f"invalid signal: {given}")
    return number


def send_signal(directory: StrPath, number: int) -> None:
    """Send a signal to the container's first process. Raises NotFound, Conflict when it isn't running."""
    state = load_state(directory)
    descriptor = _open_process(state)
    if descriptor is None:
        raise Conflict(f"container {os.path.basename(directory)[:12]} is not running")
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        raise Conflict(f"container {os.path.basename(directory)[:12]} is not running") from None
    finally:
        os.close(descriptor)


def _open_process(state: State) -> int | None:
    """Open a running container's first process, and make sure that it is still that one."""
    if state.status != RUNNING:
        return None
    try:
        descriptor = os.pidfd_open(state.pid)
    except ProcessLookupError:
        return None
    if is_process(state.pid, state.start_ticks, state.boot_id):
        return descriptor
    os.close(descriptor)
    return None


def stop(directory: StrPath, *, timeout_seconds: float | None = None) -> None:
    """Ask a container to stop (its stop signal), kill it after the timeout (default: its own; negative: never).

    A container that isn't running is left alone. Raises NotFound, InvalidInput, ContainerError if even SIGKILL fails.
    """
    spec = load_spec(directory)
    if timeout_seconds is None:
        timeout_seconds = spec.stop_timeout_seconds
    state = load_state(directory)
    descriptor = _open_process(state)
    if descriptor is None:
        return
    try:
        if timeout_seconds != 0:
            _send(descriptor, parse_signal(spec.stop_signal))
        if not _ended(descriptor, timeout_seconds):
            _send(descriptor, signal.SIGKILL)
            if not _ended(descriptor, KILL_WAIT_SECONDS):
                raise ContainerError(f"container {spec.id[:12]} doesn't end, not even by SIGKILL")
    finally:
        os.close(descriptor)
    _await_monitor(state)


def _send(descriptor: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return


def _ended(descriptor: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_seconds < 0 else timeout_seconds * 1000))


def _await_monitor(state: State) -> None:
    """Wait until the monitor has recorded the end and cleaned up."""
    try:
        descriptor = os.pidfd_open(state.monitor_pid)
    except (ProcessLookupError, OSError):
        return
    try:
        if is_process(state.monitor_pid, state.monitor_start_ticks, state.boot_id):
            _ended(descriptor, -1)
    finally:
        os.close(descriptor)


def kill(directory: StrPath, signal_name: str = "SIGKILL") -> None:
    """Send a signal by name; after SIGKILL, return once the end is recorded.

    Raises NotFound, Conflict (not running), InvalidInput.
    """
    number = parse_signal(signal_name)
    state = load_state(directory)
    send_signal(directory, number)
    if number == signal.SIGKILL:
        _await_monitor(state)


def wait(directory: StrPath) -> int:
    """Wait until a container has ended and return its exit code; works for one that is removed at its end too.

    A container that was never started is waited for until it is started, as in docker. Raises NotFound.
    """
    while True:
        try:
            file = open(f"{directory}/{EXIT}", "rb")  # noqa: SIM115
        except FileNotFoundError:
            load_spec(directory)
            time.sleep(0.05)
            continue
        with file:
            try:
                state = load_state(directory)
            except NotFound:
                return int(file.read(16) or b"255")
            if state.status != RUNNING:
                return state.exit_code
            _await_monitor(state)
            content = file.read(16)
            if content.strip():
                return int(content)
            return load_state(directory).exit_code
