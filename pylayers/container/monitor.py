"""Watch one container: `python -m pylayers.container.monitor DIRECTORY STATUS LOCK STDIN STDOUT STDERR`.

One such process stays with every started container in place of a daemon. It mounts the root file system, lets the
runtime start the container, becomes its parent (subreaper), copies its output to container.log and to the caller,
records the exit code, and cleans up. It tells the caller what happened in JSON lines on STATUS. All arguments but the
first are descriptors, -1 for none.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from pylayers._native import sysmount
from pylayers.container import grace
from pylayers.container.bundle import runtime_error
from pylayers.container.launch import Launch, Launched, delete_from_runtime, forget_in_runtime
from pylayers.container.logs import LogWriter
from pylayers.container.order import Orders, Withdrawn
from pylayers.container.record import (
    CONFIG,
    EXIT,
    EXITED,
    LOG,
    RUNNING,
    UNKNOWN_EXIT_CODE,
    ContainerSpec,
    State,
    boot_id,
    load_spec,
    recorded_state,
    start_ticks,
    timestamp,
    write_state,
)
from pylayers.errors import Conflict, PylayersError, translate_os_error
from pylayers.jsontext import dump
from pylayers.record import replace
from pylayers.snapshot import mount as snapshot_mount
from pylayers.store.file import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # without the enums around it

CHUNK_BYTES = 64 << 10
DRAIN_MS = 200
ADOPTION_LIMIT_S = 5


class Monitor:
    """Hold one run of a container from start to removal."""

    def __init__(
        self,
        directory: str,
        spec: ContainerSpec,
        status_fd: int,
        lock_fd: int,
        client: tuple[int, int, int],
        orders: Orders | None = None,
    ) -> None:
        self.directory = directory
        self.status_fd = status_fd
        self.lock_fd = lock_fd
        self.client_in, *outputs = client
        self.client_out = {"stdout": outputs[0], "stderr": outputs[1]}
        self.spec = spec
        self.orders = orders
        self.root = f"{directory}/bundle/rootfs"
        self.log = LogWriter(f"{directory}/{LOG}")
        self.launched: Launched | None = None
        self.mounted = False

    def run(self) -> None:
        """Start the container, report, and stay until it has ended."""
        try:
            self.launched = self._launch()
        except OSError as error:
            raise translate_os_error(error, f"start container {self.spec.id[:12]}") from error
        if is_over(self.launched.first_pidfd):
            self._end_first()
        state = State(
            status=RUNNING,
            pid=self.launched.pid,
            start_ticks=start_ticks(self.launched.pid),
            monitor_pid=os.getpid(),
            monitor_start_ticks=start_ticks(os.getpid()),
            boot_id=boot_id(),
            started=timestamp(),
        )
        write_text(f"{self.directory}/{EXIT}", "")
        write_state(self.directory, state)
        os.close(self.lock_fd)
        if not self._is_attached() or self.launched.terminal is not None:  # who is attached waits for the end anyway
            self.report({"started": state.pid, "monitor": os.getpid()})
        try:
            self._pump(self.launched)
            code = self._wait(self.launched)
        finally:
            self.log.close()
            self.launched.close()
        self._finish(state, code)

    def _launch(self) -> Launched:
        """Start the container; on failure nothing of it runs or is mounted."""
        launch = Launch(self.directory, self.spec, self.client_in, attached=self._is_attached())
        try:
            launch.prepare()
            if self.orders is not None and launch.is_impatient:
                self.orders.await_soon()
            launch.begin()
            if self.orders is not None:
                self.spec = self.orders.spec()
            from pylayers.container.spec import forbids_devices

            shut = forbids_devices(self.spec.isolation, cgroup_limits=self.spec.runtime_limits)
            snapshot_mount.mount(self.spec.rootfs, self.root, nodev=shut, volatile=self.spec.remove_on_exit)
            self.mounted = True
            launch.configure(self.spec)
            if self.orders is not None:
                self.orders.await_go()
            return launch.complete()
        except BaseException:
            launch.abandon()
            self._unmount()
            raise

    def _is_attached(self) -> bool:
        return max(self.client_out.values()) >= 0

    def report(self, message: dict[str, Any]) -> None:
        """Tell the caller, if it is still there."""
        with contextlib.suppress(OSError):
            os.write(self.status_fd, dump(message).encode() + b"\n")

    def _pump(self, launched: Launched) -> None:
        """Copy output until the container has ended and its streams are empty."""
        poll = select.poll()
        for descriptor in (*launched.streams, launched.pidfd):
            poll.register(descriptor, select.POLLIN)
        if launched.first_pidfd >= 0:
            poll.register(launched.first_pidfd, select.POLLIN)
        poll.register(self.status_fd, 0)  # reports only that the caller has gone
        if launched.terminal is not None and self.client_in >= 0:
            poll.register(self.client_in, select.POLLIN)
        open_streams, alive = set(launched.streams), True
        while alive or open_streams:
            events = poll.poll(None if alive else DRAIN_MS)
            if not events:
                return  # the container has ended; whoever still holds a stream is none of it
            for descriptor, _ in events:
                if descriptor in launched.streams:
                    if not self._copy(descriptor, launched.streams[descriptor]):
                        poll.unregister(descriptor)
                        open_streams.discard(descriptor)
                elif descriptor == launched.first_pidfd:
                    poll.unregister(descriptor)
                    self._end_first()
                elif descriptor == launched.pidfd:
                    poll.unregister(descriptor)
                    alive = False
                elif descriptor == self.client_in:
                    if not self._type(launched):
                        poll.unregister(descriptor)
                        self.client_in = -1
                else:
                    poll.unregister(descriptor)
                    self._forget_client(poll, launched)

    def _end_first(self) -> None:
        """Begin to clear away, while the runtime, which waited for the first process, removes its cgroups."""
        if self.mounted:
            self._unmount()
            self.report({"over": True})

    def _copy(self, descriptor: int, stream: str) -> bool:
        try:
            content = os.read(descriptor, CHUNK_BYTES)
        except OSError:  # EIO: the last user of a terminal has closed it
            return False
        if not content:
            return False
        self.log.write(stream, content)
        target = self.client_out[stream]
        try:
            while target >= 0 and content:
                content = content[os.write(target, content) :]
        except OSError:
            self.client_out[stream] = -1
        return True

    def _type(self, launched: Launched) -> bool:
        try:
            content = os.read(self.client_in, CHUNK_BYTES)
            while content and launched.terminal is not None:
                content = content[os.write(launched.terminal, content) :]
                if not content:
                    return True
        except OSError:
            return False
        return False

    def _forget_client(self, poll: select.poll, launched: Launched) -> None:
        """Leave the caller's terminal to whoever reads it next."""
        self.client_out = {"stdout": -1, "stderr": -1}
        if self.client_in >= 0:
            if launched.terminal is not None:
                with contextlib.suppress(KeyError):
                    poll.unregister(self.client_in)
            self.client_in = -1

    def _wait(self, launched: Launched) -> int:
        code = await_exit(launched.waited_pid)
        return 128 - code if code < 0 else code

    def _finish(self, state: State, code: int) -> None:
        error = runtime_error(f"{self.directory}/runtime.log", self.spec.process.arguments[0]) if code else None
        if error is not None:
            code = error.exit_code
        # Of one that removes itself the rest goes with the directory.
        (forget_in_runtime if self.spec.remove_on_exit else delete_from_runtime)(self.directory, self.spec)
        self._unmount()
        if not self.spec.remove_on_exit:
            ended = replace(state, status=EXITED, pid=0, exit_code=code, finished=timestamp(), error=str(error or ""))
            write_state(self.directory, ended)
        # In place, not by rename: who waits holds this very file, also when the directory goes.
        write_text(f"{self.directory}/{EXIT}", f"{code}\n")
        self.report({"exit": code})  # the caller removes the snapshot while the directory goes here
        if self.spec.remove_on_exit:
            from pylayers.container.remove import delete_directory

            delete_directory(self.directory)

    def _unmount(self) -> None:
        if not self.mounted:
            return
        try:
            snapshot_mount.unmount(self.root)
        except Conflict:
            snapshot_mount.unmount(self.root, detach=True)
        self.mounted = False

    def fail(self, error: PylayersError) -> None:
        """Record and report that the container could not be started, once it is recorded itself. Raises Withdrawn."""
        if self.orders is not None:
            self.orders.await_go()
        code = error.exit_code if error.exit_code in (125, 126, 127) else 125
        self.log.close()
        if self.spec.remove_on_exit:
            from pylayers.container.remove import delete_directory

            delete_directory(self.directory)
        else:
            state = recorded_state(self.directory)
            write_state(self.directory, replace(state, exit_code=code, error=str(error)))
        self.report({"error": error.message, "hint": error.hint, "exit_code": code})

    def withdraw(self) -> None:
        """Leave nothing of a container that its caller has given up, but a whole one that is not to remove itself."""
        from pylayers.container.remove import delete_directory

        self.log.close()
        if self.spec.remove_on_exit or not os.path.exists(f"{self.directory}/{CONFIG}"):
            delete_directory(self.directory)


def is_over(pidfd: int) -> bool:
    """Tell whether a process has ended; -1 is none."""
    if pidfd < 0:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def await_exit(pid: int) -> int:
    """Wait for a process that has ended, and is our child or about to become it; return its exit code, -n for a signal.

    A runtime may fork a process that starts the container and outlives the runtime for a moment: until that has gone
    too, the container isn't ours.
    """
    deadline_s = time.monotonic() + ADOPTION_LIMIT_S
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            if time.monotonic() > deadline_s or not os.path.exists(f"/proc/{pid}"):
                return UNKNOWN_EXIT_CODE
            time.sleep(0.001)


def main(arguments: list[str]) -> int:
    """Watch the container that the command line names."""
    directory = arguments[0]
    status_fd, lock_fd, stdin_fd, stdout_fd, stderr_fd = map(int, arguments[1:])
    return watch(directory, load_spec(directory), status_fd, lock_fd, (stdin_fd, stdout_fd, stderr_fd))


def watch(
    directory: str,
    spec: ContainerSpec,
    status_fd: int,
    lock_fd: int,
    client: tuple[int, int, int],
    *,
    leave: bool = True,
    orders_fd: int = -1,
) -> int:
    """Leave the caller (a second fork), then watch; return the process's exit status.

    orders_fd: spec isn't all yet, see ahead.
    """
    if leave and os.fork():
        os._exit(0)
    if leave and spec.runtime_limits:  # who doesn't leave has begun it before this module was loaded
        grace.begin()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    sysmount.become_subreaper()
    orders = Orders(orders_fd) if orders_fd >= 0 else None
    monitor = Monitor(directory, spec, status_fd, lock_fd, client, orders)

    def resized(*_: object) -> None:
        if monitor.launched is not None:
            monitor.launched.resize(monitor.client_in)

    signal.signal(signal.SIGWINCH, resized)
    try:
        try:
            monitor.run()
        except PylayersError as error:
            monitor.fail(error)
            return 1
    except Withdrawn:
        monitor.withdraw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
