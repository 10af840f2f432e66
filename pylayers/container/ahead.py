"""Start a container's monitor while the container is still being made, so that both take their time at once.

The monitor forks away and waits for orders (see order). At the first it lets the runtime start as far as it comes
without a configuration; the whole spec follows, and leave to start when the container is recorded. Until then all that
it has done can be taken back, and it does so by itself when its caller is gone.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from pylayers.container.order import write_go, write_soon, write_spec
from pylayers.container.record import CONFIG, ContainerSpec, locked, make_directory
from pylayers.container.spawn import attached_streams, close_all, duplicate, fork_monitor, reap_monitor
from pylayers.errors import translate_os_error
from pylayers.thread import is_alone


class Ahead:
    """One such monitor; as a context manager it is withdrawn at the end unless the container was started.

    attach: the container will have this process's 0, 1 and 2.
    """

    def __init__(self, *, attach: bool) -> None:
        self._attach = attach
        self._spec: ContainerSpec | None = None
        self._orders_fd = self._reports_fd = -1
        self._child = 0
        self._expected = False
        self._directory: str | None = None
        self._held = contextlib.ExitStack()  # the container's lock

    @property
    def begun(self) -> bool:
        """Tell whether there is a monitor that waits for orders."""
        return self._orders_fd >= 0

    def begin(self, directory: str, spec: ContainerSpec) -> None:
        """Start the monitor of a new container; spec may lack all that comes of its image, snapshot and volumes.

        Nothing happens in a process with several threads, as a fork would copy locks that they hold.
        Raises ContainerError, NotFound for a seccomp profile, NoSpace, PermissionDenied.
        """
        if not is_alone():
            return
        self._directory = directory
        try:
            make_directory(directory)
            lock_fd = self._held.enter_context(locked(directory))
            self._fork(directory, spec, lock_fd)
        except OSError as error:
            raise translate_os_error(error, "start the container's monitor") from error

    def _fork(self, directory: str, spec: ContainerSpec, lock_fd: int) -> None:
        orders_read, self._orders_fd = os.pipe()
        self._reports_fd, reports_write = os.pipe()
        copies: list[int] = []
        try:
            copies += duplicate(attached_streams((0, 1, 2), spec, self._attach))
            self._child = fork_monitor(
                directory, spec, reports_write, lock_fd, copies, leave=not self._attach, orders_fd=orders_read
            )
        finally:
            close_all((orders_read, reports_write, *copies))

    def expect(self) -> None:
        """Let the monitor start the runtime: the container will be made in the time that this takes, not much later.

        runc is slower by milliseconds after it has waited for more than some.
        """
        if self.begun and not self._expected:
            self._expected = True
            with contextlib.suppress(BrokenPipeError):  # it has gone; that shows when the container should start
                write_soon(self._orders_fd)

    def tell(self, spec: ContainerSpec) -> None:
        """Give the monitor all of the spec, so that it mounts and configures the container."""
        self._spec = spec
        self.expect()
        if self.begun:
            with contextlib.suppress(BrokenPipeError):
                write_spec(self._orders_fd, spec)

    def go(self) -> tuple[ContainerSpec, int, int]:
        """Let the container start; return its spec, the read end of the monitor's reports and its pid, 0 if no child.

        Both are the caller's now.
        """
        if self._spec is None:
            raise ValueError("a container starts when it is made")
        with contextlib.suppress(BrokenPipeError):
            write_go(self._orders_fd)
        self._held.close()
        os.close(self._orders_fd)
        reports_fd, child = self._reports_fd, self._child
        self._orders_fd = self._reports_fd = -1
        self._directory = None
        return self._spec, reports_fd, child

    def withdraw(self) -> None:
        """Let the monitor take everything back, and return when it has; harmless when it was never begun or told to go.

        It removes the container's directory, unless that holds a whole container that doesn't remove itself.
        """
        if self._orders_fd >= 0:
            os.close(self._orders_fd)
            self._orders_fd = -1
            while os.read(self._reports_fd, 4096):
                pass
            if self._child:
                reap_monitor(self._child)
        if self._reports_fd >= 0:
            os.close(self._reports_fd)
            self._reports_fd = -1
        self._held.close()
        directory, self._directory = self._directory, None
        if directory is not None and os.path.exists(directory) and not os.path.exists(f"{directory}/{CONFIG}"):
            from pylayers.container.remove import delete_unmade

            delete_unmade(directory)  # the monitor was killed

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.withdraw()
