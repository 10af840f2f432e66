"""Wait for changes of a directory's names, in a monitor alone: SIGIO and the wakeup descriptor are taken for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from _typeshed import StrPath
else:
    import _signal as signal  # without the enums around it

# Where the kernel has no dnotify: how often one looks.
POLL_MS = 1


class Notice:
    """Wait for changes of a directory's names, or for a process's end."""

    def __init__(self, directory: StrPath, pidfd: int) -> None:
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)
        self._pidfd = pidfd
        self._read_end, self._write_end = os.pipe()
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._told = True
        for descriptor in (self._read_end, self._write_end):
            os.set_blocking(descriptor, False)
        self._poll.register(self._read_end, select.POLLIN)
        self._handler = signal.signal(signal.SIGIO, _nothing)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        try:
            fcntl.fcntl(self._directory_fd, fcntl.F_NOTIFY, fcntl.DN_RENAME | fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
        except OSError:
            self._told = False

    def wait(self, limit_ms: int) -> bool:
        """Return at a change, the process's end, or after a time; whether the process has ended."""
        events = self._poll.poll(limit_ms if self._told else POLL_MS)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 512)
        return any(descriptor == self._pidfd for descriptor, _ in events)

    def __enter__(self) -> Notice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._directory_fd)  # no more signals
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGIO, self._handler)
        os.close(self._read_end)
        os.close(self._write_end)


def _nothing(*_: object) -> None:
    """Be there, so that a signal doesn't end the process."""
